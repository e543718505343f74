"""The classical baseline: projections onto convex sets."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

import cryowgen_jax as cg
from cryowgen_jax.spatial import fourier


def pocs(half1: np.ndarray, half2: np.ndarray, tilt_range: tuple[float, float], rounds: int = 100) -> np.ndarray:
    """Projections onto convex sets: not below the median, measured coefficients (Wiener-filtered by shell) kept."""
    shape = half1.shape
    mask = np.asarray(cg.wedge_mask(shape, tilt_range))
    first, second = (np.asarray(fourier.rfftn(jnp.asarray(half))) for half in (half1, half2))
    count = min(shape) // 2
    index = np.maximum(fourier.shell_index(shape, count), 0)
    weight = mask * fourier.multiplicity(shape)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(index.ravel(), (values * weight).ravel(), count)

    cross, power = sums(np.real(first * np.conj(second))), sums(0.5 * (np.abs(first) ** 2 + np.abs(second) ** 2))
    correlation = np.clip(cross / np.maximum(power, 1e-30), 0, 1)
    measured = 0.5 * (first + second) * (2 * correlation / (1 + correlation))[index]
    volume = np.asarray(fourier.irfftn(jnp.asarray(measured), shape))
    for _ in range(rounds):
        spectrum = np.asarray(fourier.rfftn(jnp.asarray(np.maximum(volume, np.median(volume)))))
        volume = np.asarray(fourier.irfftn(jnp.asarray(np.where(mask > 0, measured, spectrum)), shape))
    return volume
