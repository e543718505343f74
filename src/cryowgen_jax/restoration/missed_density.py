"""Where density may be that the mean does not show."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from cryowgen_jax.restoration import spectra

WIDTH = 1.5  # voxels: density is looked for at this resolution, as the standard deviation of a blur
POOLING_WIDTH = 4.0  # voxels: of a blur of the members' squared deviations, which are few
LEAST_PARTICLES = 1e-3  # share of the voxels, below which the densest ones stand for particles


def missed_density(
    mean: np.ndarray, samples: np.ndarray, weights: np.ndarray, firmness: np.ndarray
) -> tuple[np.ndarray, float]:
    r"""Probability that density exceeds half the particles' level at a voxel where the mean does not; else 0.

    .. math:: p(x) = \Phi\!\left(\frac{\mu(x) - t}{\sigma(x)}\right) \quad\text{where } \mu(x) < t

    with mu and sigma the mean and standard deviation of the family blurred over 1.5 voxels, and t halfway between the
    level of solvent (the median of mu) and that of particles (the mean of mu in them).

    Parameters
    ----------
    mean
        (Z, Y, X), density positive.
    samples, weights
        The family, (K, Z, Y, X) and (K,).
    firmness
        1 in solvent, 0 in particles, (Z, Y, X).

    Returns
    -------
    tuple
        p, (Z, Y, X); and the volume that is expected to be missed, as a share of that and of what the mean shows.
    """
    blurred = spectra.blur(mean, WIDTH)
    deviations = sum(
        weight * np.square(spectra.blur(np.asarray(member), WIDTH) - blurred)
        for weight, member in zip(weights, samples, strict=True)
    )
    spread = np.sqrt(np.maximum(spectra.blur(np.asarray(deviations), POOLING_WIDTH), 0.0))
    solvent = float(np.median(blurred))
    inside = firmness < 0.5
    if inside.mean() < LEAST_PARTICLES:
        inside = blurred >= np.quantile(blurred, 1 - LEAST_PARTICLES)
    threshold = 0.5 * (solvent + float(blurred[inside].mean()))
    chance = ndtr((blurred - threshold) / np.maximum(spread, 1e-6 * float(np.std(blurred)) + 1e-30))
    missed = np.where(blurred < threshold, chance, 0.0).astype(np.float32)
    expected, shown = float(missed.sum(dtype=np.float64)), int(np.sum(blurred >= threshold))
    return missed, expected / max(expected + shown, 1e-30)
