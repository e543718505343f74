"""How close an estimate is to a known truth, in the missing wedge and outside it, and how calibrated its spread is.

Everything is computed from frequencies below 0.25 cycles per voxel, where the phantoms have most of their power, and
without the zero frequency. The estimate is multiplied by one gain, fitted to the truth on the measured coefficients, so
that its contrast convention does not matter.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from cryowgen_jax.spatial.fourier import irfftn, multiplicity, radial_frequency, real_product, rfftn
from cryowgen_jax.types import InputError

HIGHEST_FREQUENCY = 0.25  # cycles per voxel

_ALONE = 1 - 1e-6  # sum of squared weights from which on one member counts as having all the weight
_ROUNDING = 1e-10  # of the truth's energy: an estimate with less is rounding error of float32


class Evaluation(NamedTuple):
    """An estimate and its family compared with the truth; nan where a quantity is not defined.

    Attributes
    ----------
    in_wedge_correlation
        Correlation of the mean with the truth over the Fourier coefficients that were not measured; 1 is best, and 0
        where the mean has nothing there.
    measured_correlation
        The same over those that were.
    wedge_energy_ratio
        Energy of the mean over that of the truth in the wedge; below 1 for a posterior mean.
    spread_over_error
        Variance of the family over squared error of its mean, in the wedge; 1 if calibrated, less if over-confident.
    coverage_95
        Share of voxels of the wedge component where the truth is within 1.96 standard deviations; 0.95 if calibrated.
    error_spread_correlation
        Correlation over voxels of |error| with the spread; positive where the spread shows which voxels are wrong.
    gain
        Factor that was applied to the mean and the samples.
    effective_samples
        1 / sum of squared weights.
    """

    in_wedge_correlation: float
    measured_correlation: float
    wedge_energy_ratio: float
    spread_over_error: float
    coverage_95: float
    error_spread_correlation: float
    gain: float
    effective_samples: float


class WedgeErrors(NamedTuple):
    """The wedge component of a family, voxel by voxel, both (Z, Y, X).

    Attributes
    ----------
    error
        Truth minus the weighted mean of the samples.
    spread
        Standard deviation that the error has if the truth is one more draw from the family; nan where one member has
        all the weight.
    """

    error: np.ndarray
    spread: np.ndarray


def evaluate_family(
    truth: np.ndarray, mean: np.ndarray, samples: np.ndarray, weights: np.ndarray, mask: np.ndarray
) -> Evaluation:
    r"""Compare an estimate and its family with the truth.

    With V the truth's spectrum, E the mean's, c the multiplicities of the half spectrum and W the coefficients with
    mask 0 and 0 < |k| < 0.25,

    .. math::
        cc = \frac{\sum_W c\, \mathrm{Re}(V \bar E)}{\sqrt{\sum_W c |V|^2 \sum_W c |E|^2}}, \qquad
        s^2 = (1 + \textstyle\sum_i w_i^2) \frac{\sum_i w_i |Z_i - \mu|^2}{1 - \sum_i w_i^2},
        \quad \mu = \sum_i w_i Z_i

    where s^2, the unbiased variance plus that of the mean, is the expectation of |V - mu|^2 if the truth is one more
    draw from the family.

    Parameters
    ----------
    truth, mean
        (Z, Y, X).
    samples
        (K, Z, Y, X). With K = 1, or all the weight on one, the calibration is nan.
    weights
        (K,), non-negative, sum 1.
    mask
        (Z, Y, X // 2 + 1), 0 where nothing was measured.

    Returns
    -------
    Evaluation
        See there.

    Raises
    ------
    InputError
        Shapes that do not match, or weights that are negative or do not sum to 1.
    """
    scene = _scene(truth, mean, samples, weights, mask)
    v, e, weights = scene.truth, scene.mean, scene.weights
    energy = _ratio(_inner(e, e, scene.wedge), _inner(v, v, scene.wedge))
    concentration = float(np.sum(weights**2))
    ratio = coverage = correlation = float("nan")
    if concentration < _ALONE and scene.wedge.any():
        errors = _wedge_errors(scene, samples)
        spread = errors.spread.astype(np.float64)
        size = np.abs(errors.error).astype(np.float64)
        ratio = _ratio(np.sum(spread**2), np.sum(size**2))
        coverage = float(np.mean(size < 1.96 * spread))
        correlation = _correlation_of_voxels(size, spread)
    return Evaluation(
        0.0 if energy < _ROUNDING else _correlation(v, e, scene.wedge),
        _correlation(v, e, scene.measured),
        energy,
        ratio,
        coverage,
        correlation,
        scene.gain,
        1.0 / concentration,
    )


def wedge_errors(
    truth: np.ndarray, mean: np.ndarray, samples: np.ndarray, weights: np.ndarray, mask: np.ndarray
) -> WedgeErrors:
    """Error and predicted spread of the wedge component below 0.25 cycles per voxel; see :func:`evaluate_family`."""
    return _wedge_errors(_scene(truth, mean, samples, weights, mask), samples)


def coverage_curve(errors: WedgeErrors, nominal: np.ndarray) -> np.ndarray:
    """Share of voxels where |error| is within the central Gaussian interval of each probability in ``nominal``.

    nan where the spread is not defined.
    """
    if np.isnan(errors.spread).any():
        return np.full(np.shape(nominal), np.nan)
    inside = ndtri(0.5 + 0.5 * np.asarray(nominal, np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = np.abs(errors.error.astype(np.float64)) / errors.spread
    return np.array([np.mean(surprise < level) for level in inside])


class _Scene(NamedTuple):
    truth: np.ndarray  # spectrum
    mean: np.ndarray  # spectrum, gain applied
    gain: float
    weights: np.ndarray
    wedge: np.ndarray  # multiplicity where it counts, zero elsewhere
    measured: np.ndarray


def _scene(truth: np.ndarray, mean: np.ndarray, samples: np.ndarray, weights: np.ndarray, mask: np.ndarray) -> _Scene:
    weights = _checked_weights(truth, mean, samples, weights, mask)
    band, mask = _band(truth.shape), np.asarray(mask)
    v, e = _spectrum(truth), _spectrum(mean)
    power = _inner(e, e, band * mask)
    gain = _inner(v, e, band * mask) / power if power > 0 else 1.0
    return _Scene(v, np.float32(gain) * e, gain, weights, band * (mask == 0), band * (mask > 0))


def _wedge_errors(scene: _Scene, samples: np.ndarray) -> WedgeErrors:
    """Goes through the members twice, one volume at a time, so that a large family needs little memory."""
    shape = samples.shape[1:]
    inside = (scene.wedge > 0).astype(np.float32)
    centre = np.zeros_like(scene.truth)
    for weight, sample in zip(scene.weights, samples, strict=True):
        centre += np.float32(weight * scene.gain) * _spectrum(sample)
    variance = np.zeros(shape)
    for weight, sample in zip(scene.weights, samples, strict=True):
        difference = (np.float32(scene.gain) * _spectrum(sample) - centre) * inside
        variance += weight * np.asarray(irfftn(jnp.asarray(difference), shape)) ** 2
    concentration = float(np.sum(scene.weights**2))
    variance *= (1 + concentration) / (1 - concentration) if concentration < _ALONE else np.nan
    error = np.asarray(irfftn(jnp.asarray((scene.truth - centre) * inside), shape))
    return WedgeErrors(error, np.sqrt(variance).astype(np.float32))


def _spectrum(volume: np.ndarray) -> np.ndarray:
    return np.asarray(rfftn(jnp.asarray(volume, jnp.float32)))


def _band(shape: tuple[int, ...]) -> np.ndarray:
    """Multiplicity of the coefficients with 0 < |k| < 0.25, zero elsewhere."""
    k = radial_frequency(shape)
    return np.where((k > 0) & (k < HIGHEST_FREQUENCY), multiplicity(shape), 0.0)


def _inner(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> float:
    return float(np.sum(real_product(a, b) * weight))


def _correlation(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> float:
    return _ratio(_inner(a, b, weight), np.sqrt(_inner(a, a, weight) * _inner(b, b, weight)))


def _correlation_of_voxels(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return _ratio(np.sum(a * b), np.sqrt(np.sum(a * a) * np.sum(b * b)))


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else float("nan")


def _checked_weights(
    truth: np.ndarray, mean: np.ndarray, samples: np.ndarray, weights: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    half = (*truth.shape[:-1], truth.shape[-1] // 2 + 1)
    if mean.shape != truth.shape or samples.shape[1:] != truth.shape or mask.shape != half:
        shapes = f"truth {truth.shape}, mean {mean.shape}, samples {samples.shape}, mask {mask.shape}"
        raise InputError(f"shapes do not match: {shapes}; give (Z, Y, X) twice, (K, Z, Y, X) and (Z, Y, X // 2 + 1)")
    if weights.shape != samples.shape[:1] or np.any(weights < 0) or abs(weights.sum() - 1) > 1e-3:
        described = f"shape {weights.shape}, sum {weights.sum():.4g}"
        raise InputError(f"weights do not fit {len(samples)} samples: {described}; give one each, non-negative, sum 1")
    return weights / weights.sum()
