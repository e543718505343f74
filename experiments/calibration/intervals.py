r"""Does a family's spread foretell its error? Voxel by voxel, for parts of the spectrum.

With mean m and unbiased variance s^2 of K members, the truth v of a calibrated Gaussian family is one more draw:

.. math:: \frac{v - m}{s \sqrt{1 + 1/K}} \sim t_{K-1} .

With weights w, 1 / K becomes the sum of w^2.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import stats

from cryowgen_jax.spatial import fourier

NOMINAL = (0.5, 0.8, 0.9, 0.95)
EDGES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)  # of the bands, cycles per voxel
WHOLE = (EDGES[0], EDGES[-1])
BANDS = (*itertools.pairwise(EDGES), WHOLE)
REGIONS = ("wedge", "measured")

Band = tuple[float, float]


class Part(NamedTuple):
    """The truth (...), the members of a family (K, ...) and their weights (K,), all or some voxels of a component."""

    truth: np.ndarray
    members: np.ndarray
    weights: np.ndarray

    @property
    def size(self) -> float:
        """K; of a weighted family 1 / sum w^2."""
        return 1 / float(np.sum(self.weights**2))


class Errors(NamedTuple):
    """Truth less the mean of the members, and the standard deviation foretold for it, s sqrt(1 + 1/K)."""

    error: np.ndarray
    spread: np.ndarray


def selection(mask: np.ndarray, shape: tuple[int, ...], region: str, band: Band) -> np.ndarray:
    """Coefficients of a region with frequencies of the band, the mean left out; boolean, rfftn layout."""
    k = fourier.radial_frequency(shape)
    return ((mask == 0) == (region == "wedge")) & (k > 0) & (k >= band[0]) & (k < band[1])


def spectra(volumes: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(fourier.rfftn(jnp.asarray(volume, jnp.float32))) for volume in volumes])


def component(
    truth: np.ndarray, members: np.ndarray, weights: np.ndarray, chosen: np.ndarray, shape: tuple[int, ...]
) -> Part:
    """Of half spectra the ``chosen`` coefficients, as volumes."""

    def volume(spectrum: np.ndarray) -> np.ndarray:
        return np.asarray(fourier.irfftn(jnp.asarray(np.where(chosen, spectrum, 0)), shape))

    return Part(volume(truth), np.stack([volume(member) for member in members]), weights)


def pooled(parts: Sequence[Part], voxels: Sequence[np.ndarray] | None = None) -> Part:
    """Several of as many members as one, or of each only the ``voxels``."""
    wanted = [np.ones(part.truth.shape, bool) for part in parts] if voxels is None else voxels
    chosen = list(zip(parts, wanted, strict=True))
    return Part(
        np.concatenate([part.truth[where] for part, where in chosen]),
        np.concatenate([part.members[:, where] for part, where in chosen], axis=1),
        parts[0].weights,
    )


def errors(part: Part) -> Errors:
    mean = np.tensordot(part.weights, part.members, 1)
    concentration = float(np.sum(part.weights**2))
    variance = np.tensordot(part.weights, (part.members - mean) ** 2, 1) * (1 + concentration) / (1 - concentration)
    return Errors(part.truth - mean, np.sqrt(variance))


def coverage(part: Part, nominal: Sequence[float] | np.ndarray = NOMINAL, *, normal: bool = False) -> np.ndarray:
    """Share of voxels with the truth in the central interval of each probability: Student's t, or the normal's."""
    error, spread = errors(part)
    tail = 0.5 + 0.5 * np.asarray(nominal)
    limits = stats.norm.ppf(tail) if normal else stats.t.ppf(tail, part.size - 1)
    surprise = np.sort((np.abs(error) / np.maximum(spread, 1e-30)).ravel())
    return np.searchsorted(surprise, limits) / surprise.size


def normal_coverage_expected(size: float, nominal: float = 0.95) -> float:
    """What normal intervals of a calibrated family of so many members cover."""
    return float(2 * stats.t.cdf(stats.norm.ppf(0.5 + 0.5 * nominal), size - 1) - 1)


def spread_over_error(part: Part) -> float:
    """Of energies: 1 is calibrated, below is over-confident."""
    error, spread = errors(part)
    return float(np.sum(spread**2, dtype=np.float64) / np.sum(error**2, dtype=np.float64))


def correlation(part: Part) -> float:
    """Of |error| with the spread over voxels."""
    error, spread = errors(part)
    return float(np.corrcoef(np.abs(error).ravel(), spread.ravel())[0, 1])


def correlation_expected(part: Part) -> float:
    """The same where each member in turn is the truth of the others: what the family itself would have it be."""
    rest = np.full(len(part.members) - 1, 1 / (len(part.members) - 1))
    held_out = (Part(member, np.delete(part.members, i, axis=0), rest) for i, member in enumerate(part.members))
    return float(np.mean([correlation(each) for each in held_out]))


def ranks(part: Part) -> np.ndarray:
    """Shares of the voxels by the number of members below the truth, 0 to K: all 1 / (K + 1) if calibrated."""
    below = np.sum(part.members < part.truth, axis=0).ravel()
    return np.bincount(below, minlength=len(part.members) + 1) / below.size
