"""From a tomogram to a standardised periodic volume, and back."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, InputError

SMALLEST_AXIS = 16  # voxels


@dataclasses.dataclass(frozen=True)
class Frame:
    """How a volume was prepared, and so how to undo it.

    Attributes
    ----------
    shape
        (Z, Y, X) of the tomogram.
    region
        The part of it that holds data: borders of one constant value are cut off.
    scale, level
        Standard deviation and median there, in the units of the tomogram; scale < 0 where density was dark.
    smooth
        What was taken off so that opposite faces fit, (Z, Y, X) of the region, standardised.
    periodic
        Whether they fitted already, so that nothing was taken off.
    """

    shape: tuple[int, ...]
    region: tuple[slice, ...]
    scale: float
    level: float
    smooth: np.ndarray
    periodic: bool

    def prepare(self, tomogram: np.ndarray) -> Array:
        """Standardised periodic part of a tomogram of the same frame (a second half, a centre)."""
        part = (np.asarray(tomogram, np.float32)[self.region] - self.level) / self.scale
        return jnp.asarray(part if self.periodic else part - smooth_part(part), jnp.float32)

    def restore(self, volume: Array | np.ndarray, tomogram: np.ndarray) -> np.ndarray:
        """A prepared volume in the units of the tomogram, whose own values stay outside of the region."""
        full = np.array(tomogram, np.float32)
        full[self.region] = (np.asarray(volume) + self.smooth) * self.scale + self.level
        return full

    def restore_spread(self, std: Array | np.ndarray) -> np.ndarray:
        """A standard deviation in the units of the tomogram; 0 outside of the region, where nothing was restored."""
        return self.fill(np.asarray(std) * abs(self.scale))

    def fill(self, part: np.ndarray) -> np.ndarray:
        """A volume of the tomogram's shape that holds ``part`` in the region and 0 outside."""
        full = np.zeros(self.shape, np.float32)
        full[self.region] = part
        return full


def frame_of(tomogram: np.ndarray, *, bright: bool = True, periodic: bool = False) -> Frame:
    """Measure how to prepare a tomogram.

    Parameters
    ----------
    tomogram
        (Z, Y, X), finite.
    bright
        Whether density is brighter than its surroundings; otherwise the sign is turned while chains run.
    periodic
        Whether opposite faces fit each other already, as in a simulation; otherwise the jump between them is taken off.

    Raises
    ------
    InputError
        Not 3-D, not finite, constant, or smaller than 16 voxels along an axis.
    """
    volume = np.asarray(tomogram, np.float32)
    if volume.ndim != 3:
        raise InputError(f"tomogram has shape {volume.shape}: give one 3-D volume (Z, Y, X)")
    if not np.isfinite(volume).all():
        raise InputError(f"tomogram has {np.sum(~np.isfinite(volume))} voxels that are not finite: mend them first")
    region = data_region(volume)
    part = volume[region]
    if min(part.shape) < SMALLEST_AXIS:
        what = "tomogram" if part.shape == volume.shape else "tomogram inside its constant border"
        raise InputError(
            f"{what} has shape {part.shape}: each axis needs at least {SMALLEST_AXIS} voxels, give a larger part"
        )
    level, spread = float(np.median(part)), float(part.std(dtype=np.float64))
    scale = spread if bright else -spread
    standard = (part - level) / scale
    smooth = np.zeros_like(standard) if periodic else smooth_part(standard)
    return Frame(volume.shape, region, scale, level, smooth, periodic)


def data_region(volume: np.ndarray) -> tuple[slice, ...]:
    """Largest box in which no outermost plane is constant; borders of other values along other axes may lie around."""
    if volume.min() == volume.max():
        raise InputError(f"tomogram is constant, every voxel is {volume.flat[0]:g}: give one with something in it")
    region = tuple(slice(0, n) for n in volume.shape)
    while True:
        smaller = region
        for axis in range(volume.ndim):
            part = volume[smaller]
            others = tuple(a for a in range(volume.ndim) if a != axis)
            varies = np.flatnonzero(part.min(axis=others) != part.max(axis=others)) + smaller[axis].start
            if not varies.size:
                return smaller
            one = slice(int(varies[0]), int(varies[-1]) + 1)
            smaller = (*smaller[:axis], one, *smaller[axis + 1 :])
        if smaller == region:
            return region
        region = smaller


def smooth_part(volume: np.ndarray) -> np.ndarray:
    r"""Smooth component of Moisan's periodic-plus-smooth decomposition (J. Math. Imaging Vis. 2011).

    The jump v between opposite faces is spread harmonically over the volume,
    s_k = v_k / sum_d (2 cos(2 pi k_d) - 2), so that volume - s has no jump at its borders and its spectrum none of the
    cross that such a jump draws through the missing wedge.
    """
    jump = np.zeros_like(volume)
    for axis in range(volume.ndim):
        difference = np.take(volume, -1, axis) - np.take(volume, 0, axis)
        first = [slice(None)] * volume.ndim
        last = list(first)
        first[axis], last[axis] = slice(0, 1), slice(-1, None)
        jump[tuple(first)] += np.expand_dims(difference, axis)
        jump[tuple(last)] -= np.expand_dims(difference, axis)
    laplacian = sum(2 * np.cos(2 * np.pi * k) - 2 for k in fourier.frequencies(volume.shape))
    inverse = np.divide(1.0, laplacian, out=np.zeros_like(laplacian), where=laplacian != 0)
    return np.asarray(fourier.filter_volume(jnp.asarray(jump), jnp.asarray(inverse, jnp.float32)))
