"""Scenes to learn a denoiser from: known volumes, observations of them, and what was made of those before."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.models.denoiser import Sight, reversed_tilts, sight_of
from cryowgen_jax.operators import traced_wedge_mask
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, PRNGKey

FLOOR = 1e-4  # of the signal's variance per coefficient, under P, N and S


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Example:
    """One volume, in units in which the signal's variance is 1, and what is known of it.

    Attributes
    ----------
    truth
        v, less the average of ``mean``; (Z, Y, X), or a box of it.
    sight
        What the network is shown, of the same box.
    spectrum
        y, the half spectrum of the observation of the whole.
    noise, signal
        Power N of the noise and S of the signal, per coefficient.
    mask
        M, rfftn layout.
    """

    truth: Array
    sight: Sight
    spectrum: Array
    noise: Array
    signal: Array
    mask: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scenes:
    """Key -> one example: a scene, or a box of it, mirrored at random along each axis.

    Parameters
    ----------
    truth, data, solvent, envelope, mean
        (M, Z, Y, X): volumes, observations that are 0 in the wedge, the solvent model's mean and envelope, and the mean
        that the first network leads to; beam z and tilt axis y, in one unit, any floating-point type.
    noise, signal
        (M, shells): the solvent model's spectra, in the shells of ``fourier.wide_shell_index``.
    tilt_range
        (M, 2), in degrees.
    box
        (Z, Y, X) of an example, whose corner has even coordinates; None for whole scenes.
    """

    truth: Array | np.ndarray
    data: Array | np.ndarray
    solvent: Array | np.ndarray
    envelope: Array | np.ndarray
    mean: Array | np.ndarray
    noise: Array | np.ndarray
    signal: Array | np.ndarray
    tilt_range: Array | np.ndarray
    box: tuple[int, int, int] | None = dataclasses.field(default=None, metadata={"static": True})

    def __call__(self, key: PRNGKey) -> Example:
        """One example."""
        number_key, mirror_key, place_key = jax.random.split(key, 3)
        number = jax.random.randint(number_key, (), 0, self.truth.shape[0])
        mirrored = jax.random.bernoulli(mirror_key, shape=(3,))
        truth, data, solvent, envelope, mean = (
            _mirror(jnp.asarray(volumes)[number].astype(jnp.float32), mirrored)
            for volumes in (self.truth, self.data, self.solvent, self.envelope, self.mean)
        )
        noise, signal, tilts = (jnp.asarray(rows)[number] for rows in (self.noise, self.signal, self.tilt_range))
        tilts = jnp.where(mirrored[0] != mirrored[2], -tilts[::-1], tilts)  # a mirror across the beam reverses them
        return self._cut(place_key, example(truth, data, solvent, envelope, mean, noise, signal, tilts))

    def _cut(self, key: PRNGKey, whole: Example) -> Example:
        if self.box is None:
            return whole
        room = np.subtract(whole.truth.shape, self.box) // 2
        corner = 2 * jax.random.randint(key, (3,), 0, jnp.asarray(room + 1))
        truth = jax.lax.dynamic_slice(whole.truth, corner, self.box)
        channels = jax.lax.dynamic_slice(
            whole.sight.channels, [*corner, 0], (*self.box, whole.sight.channels.shape[-1])
        )
        return dataclasses.replace(whole, truth=truth, sight=whole.sight._replace(channels=channels))


class CoarseExample(NamedTuple):
    """A volume on half the grid, (Z, Y, X), and what the network is shown of it; in one unit, levels taken off."""

    truth: Array
    sight: Sight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CoarseScenes:
    """Key -> one example on half the grid, mirrored at random along each axis.

    Parameters
    ----------
    truth, channels, power, conditions
        (M, ...): volumes in the unit of the sights, and the fields of those, ``models.denoiser.Sight``; beam z and tilt
        axis y, any floating-point type.
    """

    truth: Array | np.ndarray
    channels: Array | np.ndarray
    power: Array | np.ndarray
    conditions: Array | np.ndarray

    def __call__(self, key: PRNGKey) -> CoarseExample:
        """One example."""
        number_key, mirror_key = jax.random.split(key)
        number = jax.random.randint(number_key, (), 0, self.truth.shape[0])
        across, along, last = mirrored = jax.random.bernoulli(mirror_key, shape=(3,))
        truth, channels, power, conditions = (
            jnp.asarray(values)[number].astype(jnp.float32)
            for values in (self.truth, self.channels, self.power, self.conditions)
        )
        # half a spectrum is left as it is by a mirror along all axes
        for axis, reverse in ((0, across != last), (1, along != last)):
            power = jnp.where(reverse, jnp.roll(jnp.flip(power, axis), 1, axis), power)
        conditions = jnp.where(across != last, reversed_tilts(conditions), conditions)
        sight = Sight(_mirror(channels, mirrored), conditions, jnp.ones(()), power)
        return CoarseExample(_mirror(truth, mirrored), sight)


def example(
    truth: Array,
    data: Array,
    solvent: Array,
    envelope: Array,
    mean: Array,
    noise: Array,
    signal: Array,
    tilt_range: Array,
) -> Example:
    """One scene of :class:`Scenes` as an example."""
    shape = truth.shape
    index, _ = fourier.wide_shell_index(shape)
    mask = traced_wedge_mask(shape, tilt_range)
    spectrum = fourier.rfftn(data) * mask
    noise, signal = noise[index], signal[index]
    sight = sight_of(spectrum, solvent, envelope, mean, noise, signal, tilt_range)
    unit, level = sight.scale, jnp.mean(mean)
    return Example(
        truth=(truth - level) / unit,
        sight=sight._replace(scale=jnp.ones(())),
        spectrum=(spectrum / unit).at[0, 0, 0].add(-level / unit * np.sqrt(np.prod(shape))),
        noise=noise / unit**2 + FLOOR,
        signal=signal / unit**2 + FLOOR,
        mask=mask,
    )


def _mirror(volume: Array, mirrored: Array) -> Array:
    for axis in range(3):
        volume = jnp.where(mirrored[axis], jnp.flip(volume, axis), volume)
    return volume
