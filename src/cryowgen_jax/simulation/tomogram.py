"""A tomogram with known truth: a crowded phantom, textured solvent, noise, and the missing wedge."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from cryowgen_jax.operators import wedge_mask
from cryowgen_jax.simulation.crowding import crowded_phantom
from cryowgen_jax.simulation.phantoms import Shape
from cryowgen_jax.spatial.fourier import filter_volume
from cryowgen_jax.types import InputError

SMALLEST_AXIS = 24
_TEXTURE_WIDTH_NM = 1.2


class SimulatedTomogram(NamedTuple):
    """The truth and its two observed halves; all volumes (Z, Y, X), bright objects on a dark background.

    Attributes
    ----------
    truth
        float32: the phantom and the solvent texture.
    half1, half2
        float32: the truth with independent white noise, both seen through the missing wedge.
    labels
        int16: 0 solvent, 1 membrane, 2 filament, 3 and up one number per particle.
    tilt_range
        Lowest and highest tilt, degrees; tilt axis y, beam z.
    voxel_size_angstrom
        Length of a voxel's edge.
    noise_sd
        Standard deviation of the noise of one half, per voxel, before the wedge.
    """

    truth: np.ndarray
    half1: np.ndarray
    half2: np.ndarray
    labels: np.ndarray
    tilt_range: tuple[float, float]
    voxel_size_angstrom: float
    noise_sd: float


def simulate_tomogram(
    shape: Shape = (64, 128, 128),
    tilt_range: tuple[float, float] = (-60.0, 60.0),
    snr: float = 0.1,
    seed: int = 0,
    voxel_size_angstrom: float = 10.0,
    texture: float = 0.1,
) -> SimulatedTomogram:
    r"""Simulate two halves of a tomogram of a crowded phantom.

    .. math:: x_i = F^{-1} M F (v + \sigma \epsilon_i), \quad \sigma^2 = \mathrm{var}(v) / \mathrm{snr}, \quad i = 1, 2

    with v the truth, M the missing wedge and white unit noise epsilon. The truth depends on the shape, the seed, the
    voxel size and the texture only, so that the same specimen can be observed at another SNR or tilt range.

    Parameters
    ----------
    shape
        (Z, Y, X) in voxels, at least 24 each.
    tilt_range
        Lowest and highest tilt, degrees.
    snr
        Variance of the truth over variance of the noise of one half, before the wedge.
    seed
        Non-negative integer. The same seed gives the same tomogram.
    voxel_size_angstrom
        Length of a voxel's edge. The objects are 7 to 30 nm, the filament 25 nm across.
    texture
        Share of the truth's variance, in [0, 1), that is a smooth random field. Without it the solvent is flat, and a
        method could fill the wedge from the knowledge that no density is below it.

    Returns
    -------
    SimulatedTomogram
        See there.

    Raises
    ------
    InputError
        A value outside these ranges.
    """
    _check(shape, snr, seed, voxel_size_angstrom, texture)
    specimen, solvent, first, second = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4))
    phantom = crowded_phantom(shape, specimen, voxel_size_angstrom)
    truth = phantom.density + _solvent(solvent, phantom.density, texture, voxel_size_angstrom)
    noise_sd = float(np.sqrt(truth.var(dtype=np.float64) / snr))
    mask = wedge_mask(shape, tilt_range)
    half1, half2 = (
        np.array(filter_volume(truth + np.float32(noise_sd) * rng.standard_normal(shape, np.float32), mask))
        for rng in (first, second)
    )
    low, high = tilt_range
    return SimulatedTomogram(
        truth, half1, half2, phantom.labels, (float(low), float(high)), float(voxel_size_angstrom), noise_sd
    )


def _solvent(rng: np.random.Generator, density: np.ndarray, share: float, voxel_size_angstrom: float) -> np.ndarray:
    """Smooth periodic Gaussian field that has this share of the variance of its sum with ``density``."""
    width = max(1.0, 10.0 * _TEXTURE_WIDTH_NM / voxel_size_angstrom)
    field = gaussian_filter(rng.standard_normal(density.shape, np.float32), width, mode="wrap")
    field -= field.mean()
    variance = density.var(dtype=np.float64) * share / (1.0 - share)
    return field * np.float32(np.sqrt(variance / field.var(dtype=np.float64)))


def _check(shape: Shape, snr: float, seed: int, voxel_size_angstrom: float, texture: float) -> None:
    if len(shape) != 3 or min(shape) < SMALLEST_AXIS:
        raise InputError(f"the shape is {tuple(shape)}: give three axes (Z Y X) of at least {SMALLEST_AXIS} voxels")
    if not (np.isfinite(snr) and snr > 0):
        raise InputError(f"the signal-to-noise ratio is {snr}: give a positive number, such as 0.1")
    if seed < 0:
        raise InputError(f"the seed is {seed}: give zero or a positive integer")
    if not (np.isfinite(voxel_size_angstrom) and voxel_size_angstrom > 0):
        raise InputError(f"the voxel size is {voxel_size_angstrom} A: give a positive number, such as 10")
    if not 0 <= texture < 1:
        raise InputError(f"the texture's share of the variance is {texture}: give a number from 0 to below 1")
