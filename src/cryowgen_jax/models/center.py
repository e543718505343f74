"""A network for the centre zbar of the posterior, volume -> volume, and one that keeps what was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DataConsistent:
    r"""y -> n(y) + T_M (y - n(y)): the data where they are, and the answer of a network n where there are none.

    A data-consistency layer without noise (Schlemper et al., IEEE Trans. Med. Imaging, 2018). The noise of what was
    measured stays in it; to look at answers as at observations, put noise back inside the wedge alone.

    Parameters
    ----------
    network
        n: volume -> volume, a pytree callable such as ``from_nnx(CenterNet(...))``.
    decoder
        T_M, a projection such as ``Wedge`` of a mask of zeros and ones. Gradients stop there: it is not learned.
    """

    network: Callable[[Array], Array]
    decoder: Callable[[Array], Array]

    def __call__(self, observation: Array) -> Array:
        """The completed volume."""
        answer = self.network(observation)
        return answer + jax.lax.stop_gradient(self.decoder)(observation - answer)
