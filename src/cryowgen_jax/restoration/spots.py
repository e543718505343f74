"""Spots that outshine the specimen, bright or dark: gold beads and hot voxels, with their streaks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.sparse.linalg import LinearOperator, cg

from cryowgen_jax.restoration.spectra import LEAST_NOISE, noise_of, robust_spread, through

SPOT_WIDTHS = (0.0, 1.5, 3.0)  # voxels: of the blur before spots are looked for
LEAST_SPOT, SPOT_GAP = 8.0, 1.6  # robust standard deviations; spots over what comes next
SPOT_EDGE, SPOT_RIM = 0.5, 2  # of a spot's height; voxels beyond
MOST_SPOTS, LARGEST_SPOT = 0.08, 0.035  # of the voxels
BESIDE = 6  # voxels from a spot, where the specimen is looked for
SIGNIFICANT, LEAST_SPECIMEN = 5.0, 0.0125  # standard errors; of the height of spots
COLOUR = 3.0  # times the variance of blurred white noise
RESIDUAL, MOST_ITERATIONS = 1e-3, 30


def spots_of(halves: Sequence[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Return g of halves without background; 0 where there are no spots, or nothing but spots."""
    volume = np.mean(halves, axis=0)
    spots, support = np.zeros_like(volume), np.zeros(volume.shape, bool)
    for width in SPOT_WIDTHS:
        left = through(volume - spots, mask)
        smooth = ndimage.gaussian_filter(left, width) if width else left
        smooth = (smooth - np.median(smooth)) / max(robust_spread(smooth), 1e-30)
        new = outstanding(smooth, width) | outstanding(-smooth, width)
        if new.any():
            support |= ndimage.binary_dilation(new, iterations=SPOT_RIM)
            spots = _fitted(volume, support, mask)
    parts, _ = ndimage.label(support)
    sizes = np.bincount(parts.ravel())[1:] / support.size
    if not sizes.size or sizes.sum() > MOST_SPOTS or sizes.max() > LARGEST_SPOT:
        return np.zeros_like(volume)
    return spots if _is_beside(halves, spots, support, mask) else np.zeros_like(volume)


def outstanding(smooth: np.ndarray, width: float) -> np.ndarray:
    """Where peaks are that a gap in height divides from all others; of a volume in robust standard deviations."""
    reach = int(4 * width) + 3
    peaks = np.sort(smooth[(smooth == ndimage.maximum_filter(smooth, reach)) & (smooth > 1)])[::-1]
    pairs = itertools.pairwise([*peaks.tolist(), 1.0])
    lowest = [high for high, low in pairs if high >= LEAST_SPOT and high > SPOT_GAP * low]
    if not lowest:
        return np.zeros(smooth.shape, bool)
    parts, count = ndimage.label(smooth > SPOT_EDGE * lowest[-1])
    tops = np.asarray(ndimage.maximum(smooth, parts, np.arange(count + 1)))
    tops[0] = np.inf
    tops[tops < lowest[-1]] = np.inf
    return smooth > SPOT_EDGE * tops[parts]


def _fitted(volume: np.ndarray, support: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Solve T_M g = y for g on the support, outside of which it is 0, by conjugate gradients."""

    def spread(values: np.ndarray) -> np.ndarray:
        spots = np.zeros(volume.shape, np.float32)
        spots[support] = values
        return spots

    size = int(support.sum())
    operator = LinearOperator((size, size), lambda values: through(spread(values), mask)[support], dtype=np.float64)
    values, _ = cg(operator, volume[support].astype(np.float64), rtol=RESIDUAL, maxiter=MOST_ITERATIONS)
    return spread(values)


def _is_beside(halves: Sequence[np.ndarray], spots: np.ndarray, support: np.ndarray, mask: np.ndarray) -> bool:
    """Whether there is a specimen beside the spots; otherwise they are it."""
    width, seen = SPOT_WIDTHS[1], through(spots, mask)
    beside = ndimage.distance_transform_edt(~support) > BESIDE
    blurred = [ndimage.gaussian_filter(half - seen, width) for half in halves]
    smooth = [part[beside] - part[beside].mean() for part in blurred]
    height = np.percentile(np.abs(ndimage.gaussian_filter(np.mean(halves, axis=0), width))[support], 90)
    kernel = (2 * np.sqrt(np.pi) * width) ** 3  # voxels that become one
    if len(halves) == 2:
        product = smooth[0] * smooth[1]
        error = product.std() / np.sqrt(max(product.size / kernel, 1))
        return bool(product.mean() > max(SIGNIFICANT * error, (LEAST_SPECIMEN * height) ** 2))
    noise = noise_of([halves[0] - seen])[beside].var()
    known = noise > LEAST_NOISE * halves[0].var()
    return bool(known and smooth[0].var() > max(COLOUR * noise / kernel, (LEAST_SPECIMEN * height) ** 2))
