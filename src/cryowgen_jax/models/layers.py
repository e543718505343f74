"""One convolution layer, shared by the decoder and the centre network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from cryowgen_jax import platform
from cryowgen_jax.models.convolution import convolve3
from cryowgen_jax.types import Array


class Convolution(nnx.Module):
    """3^3 convolution with bias: (D, H, W, inputs) -> (D, H, W, outputs).

    Weights start with variance 2 / (27 inputs), or at zero where ``silent``. With ``half``, volume and kernel are
    rounded to bfloat16 where that is faster (``platform.half_is_fast``); sums and the result are float32.
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, silent: bool = False, half: bool = False) -> None:
        self.half = half
        gain = 0.0 if silent else (2.0 / (27 * inputs)) ** 0.5
        self.kernel = nnx.Param(gain * jax.random.normal(rngs.params(), (3, 3, 3, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((1, 1, 1, outputs)))

    def __call__(self, volume: Array) -> Array:
        """Convolve one volume."""
        kernel = self.kernel[...]
        if self.half and platform.half_is_fast():
            volume, kernel = volume.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
        return convolve3(volume, kernel).astype(jnp.float32) + self.bias[...]
