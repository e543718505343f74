"""A decoder network: latent -> volume."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from cryowgen_jax.models.convolution import double
from cryowgen_jax.models.layers import Convolution
from cryowgen_jax.types import Array, InputError


class Decoder(nnx.Module):
    """Latent, a vector (d,) or a small grid -> volume (Z, Y, X).

    A linear map makes a coarse grid of features. Every level repeats each voxel 2^3 times and applies a 3^3 convolution
    and SiLU. A last convolution has one channel, and its result is cut to the box.

    Parameters
    ----------
    latent_shape
        Shape of the latent; a number d stands for (d,).
    shape
        Box (Z, Y, X), any sizes.
    channels
        Features of every level.
    levels
        How often the grid is doubled.
    rngs
        Streams for the initial weights.

    Raises
    ------
    InputError
        Where sizes make no decoder, or the latent that it is called with has another shape.

    Examples
    --------
    >>> import jax.numpy as jnp, cryowgen_jax as cg
    >>> from flax import nnx
    >>> decoder = cg.from_nnx(cg.Decoder(3, (6, 7, 8), channels=2, levels=1, rngs=nnx.Rngs(0)))
    >>> decoder(jnp.ones(3)).shape
    (6, 7, 8)
    """

    def __init__(
        self,
        latent_shape: int | Sequence[int],
        shape: Sequence[int],
        *,
        channels: int = 16,
        levels: int = 2,
        rngs: nnx.Rngs,
    ) -> None:
        self.latent_shape = (latent_shape,) if isinstance(latent_shape, int) else tuple(latent_shape)
        self.shape = tuple(shape)
        if len(self.shape) != 3 or min(*self.shape, *self.latent_shape, channels) < 1 or levels < 0:
            raise InputError(
                f"latent {self.latent_shape}, box {self.shape}, {channels} channels, {levels} levels make no decoder: "
                "give a box (Z, Y, X) and positive sizes"
            )
        self.grid = (*(math.ceil(n / 2**levels) for n in self.shape), channels)
        size = math.prod(self.latent_shape)
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (size, math.prod(self.grid))) / size**0.5)
        self.bias = nnx.Param(jnp.zeros((math.prod(self.grid),)))
        self.hidden = nnx.List([Convolution(channels, channels, rngs=rngs) for _ in range(levels)])
        self.last = Convolution(channels, 1, rngs=rngs)

    def __call__(self, latent: Array) -> Array:
        """The volume of one latent."""
        if latent.shape != self.latent_shape:
            raise InputError(f"latent of shape {latent.shape} does not fit: give {self.latent_shape}, vmap for many")
        features = (latent.reshape(-1) @ self.weight[...] + self.bias[...]).reshape(self.grid)
        for layer in self.hidden:
            features = jax.nn.silu(layer(double(features)))
        z, y, x = self.shape
        return self.last(features)[:z, :y, :x, 0]
