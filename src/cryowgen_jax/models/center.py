"""A network for the centre zbar of the posterior, volume -> volume, and a layer that keeps the measured data."""

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

    Raises
    ------
    InputError
        Where the sizes make no network, or it is called with an array that is no volume.

    Examples
    --------
    >>> import jax.numpy as jnp, cryowgen_jax as cg
    >>> from flax import nnx
    >>> center = cg.from_nnx(cg.CenterNet(channels=2, levels=1, rngs=nnx.Rngs(0)))
    >>> center(jnp.ones((6, 7, 8))).shape
    (6, 7, 8)
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
    r"""y -> n(y) + T_M (y - n(y)): the data where there are any, and the answer of a network n elsewhere.

    A data-consistency layer for data without noise (Schlemper et al., IEEE Trans. Med. Imaging, 2018): the noise of the
    data stays in the result. To compare results with observations, add noise inside the wedge only
    (``operators.NoisyWitness``).

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
