"""A network for the centre zbar of the posterior: volume -> volume."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from cryowgen_jax.models.convolution import double, halve, pad_to_multiple
from cryowgen_jax.models.layers import Convolution
from cryowgen_jax.types import Array, InputError


class CenterNet(nnx.Module):
    """Volume (Z, Y, X) of any shape -> volume of that shape: the input plus a small U-Net's correction of it.

    Per level down: 3^3 convolution, SiLU, mean of 2^3; per level up: repeat 2^3, join what was there on the way down,
    convolution, SiLU. Boxes are continued with zeros to a multiple of 2^levels and cut back. The last layer starts at
    zero, so that an untrained network returns its input.

    Parameters
    ----------
    channels
        Features of the finest level, twice as many on each coarser one.
    levels
        How often the grid is halved.
    rngs
        Streams for the initial weights.
    """

    def __init__(self, *, channels: int = 8, levels: int = 2, rngs: nnx.Rngs) -> None:
        if channels < 1 or levels < 0:
            raise InputError(f"{channels} channels and {levels} levels make no network: give positive numbers")
        widths = [channels * 2**i for i in range(levels + 1)]
        self.down = nnx.List([Convolution(i, o, rngs=rngs) for i, o in zip([1, *widths], widths, strict=False)])
        self.up = nnx.List([Convolution(widths[i] + widths[i + 1], widths[i], rngs=rngs) for i in range(levels)])
        self.last = Convolution(channels, 1, rngs=rngs, silent=True)

    def __call__(self, volume: Array) -> Array:
        """The corrected volume."""
        if volume.ndim != 3:
            raise InputError(f"shape {volume.shape} is no volume: give (Z, Y, X) and use jax.vmap for many")
        features = pad_to_multiple(volume[..., None], 2 ** len(self.up))
        passed = []
        for i, layer in enumerate(self.down):
            features = jax.nn.silu(layer(features if i == 0 else halve(features)))
            passed.append(features)
        for i in reversed(range(len(self.up))):
            features = jax.nn.silu(self.up[i](jnp.concatenate([passed[i], double(features)], axis=-1)))
        z, y, x = volume.shape
        return volume + self.last(features)[:z, :y, :x, 0]
