"""A small U-Net: features (Z, Y, X, inputs) of any box -> (Z, Y, X, outputs), conditioned on a vector."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from cryowgen_jax.models.convolution import double, halve, pad_to_multiple
from cryowgen_jax.models.layers import Convolution
from cryowgen_jax.types import Array, InputError


class UNet(nnx.Module):
    """Down: mean over 2^3 and a block per level. Up: repeat 2^3, concatenate the features of the way down, and a block.

    A block is a 3^3 convolution whose result is scaled and shifted by functions of the conditions (Perez et al., FiLM,
    AAAI 2018) and passed through SiLU, and a second convolution with SiLU that adds to it. Boxes are padded with zeros
    to a multiple of 2^levels and cut back. The last layer starts at zero.

    Parameters
    ----------
    inputs, outputs
        Channels of the volume that comes in and of the one that goes out.
    channels
        Features of the finest level, twice as many on each coarser one.
    levels
        How often the grid is halved.
    conditions
        Length of the vector of conditions; 0 for none.
    rngs
        Streams for the initial weights.
    """

    def __init__(
        self, inputs: int, outputs: int, *, channels: int = 8, levels: int = 2, conditions: int = 0, rngs: nnx.Rngs
    ) -> None:
        if channels < 1 or levels < 0:
            raise InputError(f"{channels} channels and {levels} levels make no network: give positive numbers")
        widths = [channels * 2**i for i in range(levels + 1)]
        self.down = nnx.List([_Block(i, o, conditions, rngs) for i, o in zip([inputs, *widths], widths, strict=False)])
        self.up = nnx.List([_Block(widths[i] + widths[i + 1], widths[i], conditions, rngs) for i in range(levels)])
        self.last = Convolution(channels, outputs, rngs=rngs, silent=True)

    def __call__(self, volume: Array, conditions: Array | None = None) -> Array:
        """Channels (Z, Y, X, inputs) and conditions (n,) -> (Z, Y, X, outputs)."""
        features = pad_to_multiple(volume, 2 ** len(self.up))
        passed = []
        for i, block in enumerate(self.down):
            features = block(features if i == 0 else halve(features), conditions)
            passed.append(features)
        for i in reversed(range(len(self.up))):
            features = self.up[i](jnp.concatenate([passed[i], double(features)], axis=-1), conditions)
        z, y, x = volume.shape[:3]
        return self.last(features)[:z, :y, :x]


class _Block(nnx.Module):
    """Two convolutions, the second one residual."""

    def __init__(self, inputs: int, outputs: int, conditions: int, rngs: nnx.Rngs) -> None:
        self.first = Convolution(inputs, outputs, rngs=rngs)
        self.second = Convolution(outputs, outputs, rngs=rngs)
        zeros = nnx.initializers.zeros_init()
        self.film = nnx.Linear(conditions, 2 * outputs, kernel_init=zeros, rngs=rngs) if conditions else None

    def __call__(self, features: Array, conditions: Array | None) -> Array:
        features = self.first(features)
        if self.film is not None:
            scale, shift = jnp.split(self.film(conditions)[None, None, None], 2, axis=-1)
            features = features * (1 + scale) + shift
        features = jax.nn.silu(features)
        return features + jax.nn.silu(self.second(features))
