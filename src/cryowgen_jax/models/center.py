"""A network for the centre zbar of the posterior: volume -> volume."""

from __future__ import annotations

from flax import nnx

from cryowgen_jax.models.unet import UNet
from cryowgen_jax.types import Array, InputError


class CenterNet(nnx.Module):
    """Volume (Z, Y, X) of any shape -> volume of that shape: the input plus a small :class:`UNet`'s correction of it.

    An untrained network returns its input.

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
        self.correction = UNet(1, 1, channels=channels, levels=levels, rngs=rngs)

    def __call__(self, volume: Array) -> Array:
        """The corrected volume."""
        if volume.ndim != 3:
            raise InputError(f"shape {volume.shape} is no volume: give (Z, Y, X) and use jax.vmap for many")
        return volume + self.correction(volume[..., None])[..., 0]
