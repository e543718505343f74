"""Power spectra of a tomogram in its measured region, and the level of its solvent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter

from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array

LARGEST_SOLVENT_FREQUENCY = 0.06  # cycles per voxel: solvent has no structure larger than the inverse of it
FINE = 0.4  # cycles per voxel: beyond it one tomogram is taken to be noise
LEAST_NOISE = 0.02  # of the variance, which that noise has to have
MANY = 50  # coefficients that make a shell's mean worth something


@dataclasses.dataclass(frozen=True)
class Shells:
    """Fourier shells of a volume, and which of their coefficients were measured.

    Shells are equally wide and reach 3/2 of Nyquist; the last one also holds what is further out.

    Attributes
    ----------
    shape
        (Z, Y, X) of the volume.
    mask
        1 where measured, 0 in the missing wedge; rfftn layout.
    index
        Shell of every half-spectrum coefficient.
    weight
        Multiplicity of every half-spectrum coefficient that was measured, 0 for the others.
    count
        Number of measured coefficients of each shell.
    frequency
        Frequency in the middle of each shell, cycles per voxel.
    """

    shape: tuple[int, ...]
    mask: np.ndarray
    index: np.ndarray
    weight: np.ndarray
    count: np.ndarray
    frequency: np.ndarray

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean of ``values`` over the measured coefficients of each shell; 0 where there are none."""
        sums = np.bincount(self.index.ravel(), (values * self.weight).ravel(), self.frequency.size)
        return sums / np.maximum(self.count, 1e-9)

    def spread(self, profile: np.ndarray) -> np.ndarray:
        """One value per shell as one per coefficient, rfftn layout, float32."""
        return profile[self.index].astype(np.float32)

    def plateau(self, profile: np.ndarray) -> np.ndarray:
        """The profile, no higher at low frequency than in the first shells beyond 0.06 cycles per voxel."""
        first = profile[self.frequency > LARGEST_SOLVENT_FREQUENCY][:3]
        return np.minimum(profile, np.median(first)) if first.size else profile


def shells_of(shape: tuple[int, ...], mask: np.ndarray) -> Shells:
    """Shells of a volume; ``mask`` > 0 is the measured region."""
    half = min(shape) // 2
    index, number = fourier.wide_shell_index(shape)
    measured = (np.asarray(mask) > 0).astype(np.float32)
    weight = measured * fourier.multiplicity(shape)
    count = np.bincount(index.ravel(), weight.ravel(), number)
    return Shells(shape, measured, index, weight, count, (np.arange(number) + 0.5) * 0.5 / half)


def blur(volume: np.ndarray, width: float) -> np.ndarray:
    """Gaussian blur, periodic, ``width`` = standard deviation in voxels."""
    return gaussian_filter(np.asarray(volume, np.float32), width, mode="wrap")


def solvent_level(volume: np.ndarray) -> tuple[float, float]:
    """Mode of the voxels, and their spread below it.

    The mode is the half-sample mode (Robertson and Cryer, JASA 1974) stopped at 2 % of the voxels; the spread is the
    68 % quantile of the distance of the voxels below it, the standard deviation of a Gaussian.
    """
    voxels = np.sort(np.asarray(volume, np.float64).ravel()[:: max(1, volume.size // 200_000)])
    sample = voxels
    while sample.size > max(50, voxels.size // 50):
        half = sample.size // 2
        start = int(np.argmin(sample[half:] - sample[: sample.size - half]))
        sample = sample[start : start + half + 1]
    level = float(sample.mean())
    below = voxels[voxels < level]
    return level, float(level - np.quantile(below, 0.3173)) if below.size else 0.0


def wedge_leak(volume: Array, mask: np.ndarray) -> float:
    """Mean power outside of the measured region over that inside, 0.1 < |k| < 0.35; near 0 where faces fit."""
    shape = volume.shape
    frequency = fourier.radial_frequency(shape)
    band = ((frequency > 0.1) & (frequency < 0.35)) * fourier.multiplicity(shape)
    energy = fourier.power(np.asarray(fourier.rfftn(jnp.asarray(volume, jnp.float32))))
    measured, missing = band * (np.asarray(mask) > 0), band * (np.asarray(mask) == 0)
    if not (missing.any() and measured.any()):
        return 0.0
    inside = float(np.sum(energy * measured) / np.sum(measured))
    return float(np.sum(energy * missing) / np.sum(missing)) / inside if inside > 0 else 0.0


def through(volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """T_M of a volume."""
    return np.asarray(fourier.filter_volume(jnp.asarray(volume, jnp.float32), jnp.asarray(mask, jnp.float32)))


def noise_of(halves: Sequence[np.ndarray]) -> np.ndarray:
    """Noise of the mean of two halves: half their difference. Of one tomogram: what is finest in it."""
    if len(halves) == 2:
        return (halves[0] - halves[1]) / 2
    fine = fourier.radial_frequency(halves[0].shape) > FINE
    return through(halves[0], fine)


def robust_spread(values: np.ndarray) -> float:
    """Standard deviation of the middle of a distribution."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))
