r"""The one-dimensional problem: a library of signals, observations that lack a band, and the posterior in closed form.

A signal is one of three components plus white texture of variance v; the components differ only inside the widest band
that can be missing. An observation is what the band leaves of it, plus white noise of variance 1/lambda:

.. math:: z \sim p(z) = \sum_j \pi_j N(z; m_j, v I), \qquad x = T_M z + \varepsilon .
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import cryowgen_jax as cg

LENGTH = 96  # samples
COMPONENTS = ("two peaks", "one peak", "second peak shifted")
PRIOR = np.array([0.35, 0.45, 0.20])
TEXTURE_VARIANCE = 0.2
DATA_WEIGHT = 400.0  # lambda
PRIOR_PRECISION = 1.0  # beta
BAND_CENTRE = 6  # in units of 1 / LENGTH cycles per sample, as are widths
WIDEST = 11
STIFFEST = DATA_WEIGHT + 1 / TEXTURE_VARIANCE  # largest curvature of -F
_PEAK_WIDTH, _SEPARATION, _SHIFT = 3.5, 20.0, 8.0  # samples
_MULTIPLICITY = np.array([1.0] + [2.0] * (LENGTH // 2 - 1) + [1.0])


def band_mask(width: int) -> np.ndarray:
    """1 where measured, 0 in a band of ``width`` (odd, or 0) frequencies about the centre; rfft layout."""
    missing = np.abs(np.arange(LENGTH // 2 + 1) - BAND_CENTRE) < width / 2
    return np.where(missing, 0.0, 1.0)


def components() -> np.ndarray:
    """The means m_j, (3, LENGTH): natural signals, made equal to the first outside the widest band.

    The one peak has the mass and the variance of the two, so that next to nothing is left to be made equal.
    """
    middle, half = LENGTH / 2, _SEPARATION / 2
    broad = np.hypot(_PEAK_WIDTH, half)
    two = _peak(middle - half, _PEAK_WIDTH) + _peak(middle + half, _PEAK_WIDTH)
    one = 2 * _PEAK_WIDTH / broad * _peak(middle, broad)
    shifted = _peak(middle - half, _PEAK_WIDTH) + _peak(middle + half + _SHIFT, _PEAK_WIDTH)
    return _irfft(np.where(band_mask(WIDEST) > 0, _rfft(two), _rfft(np.stack([two, one, shifted]))))


def witness() -> cg.GaussianMixtureWitness:
    r"""Return w = log p(z) + beta/2 |z|^2 up to a constant: e^w times the conditional prior N(0, I/beta) is p.

    That is a mixture again, of precision 1/v - beta and means m_j (1/v) / (1/v - beta).
    """
    variance = 1 / (1 / TEXTURE_VARIANCE - PRIOR_PRECISION)
    means = components() * variance / TEXTURE_VARIANCE
    squares = np.sum(means**2, axis=1) / variance - np.sum(components() ** 2, axis=1) / TEXTURE_VARIANCE
    weights = PRIOR * np.exp(0.5 * (squares - squares.max()))
    return cg.GaussianMixtureWitness(
        jnp.asarray(weights, jnp.float32), jnp.asarray(means, jnp.float32), jnp.float32(variance)
    )


def posterior(observation: np.ndarray, width: int) -> cg.Posterior:
    """The library's posterior of one observation."""
    decoder = cg.Wedge(jnp.asarray(band_mask(width), jnp.float32))
    observed = jnp.asarray(observation, jnp.float32)
    weight, precision = jnp.float32(DATA_WEIGHT), jnp.float32(PRIOR_PRECISION)
    return cg.Posterior(witness(), decoder, observed, jnp.zeros_like(observed), weight, precision)


class Batch(NamedTuple):
    """Observations (N, LENGTH), the truths behind them and the component of each."""

    truths: np.ndarray
    observations: np.ndarray
    labels: np.ndarray


def draw_batch(rng: np.random.Generator, width: int, size: int) -> Batch:
    """Components in the proportions of the prior. The first truth is the two peaks themselves, without texture."""
    labels = np.repeat(np.arange(len(PRIOR)), np.round(PRIOR * size).astype(int))
    texture = rng.normal(size=(labels.size, LENGTH)) * np.sqrt(TEXTURE_VARIANCE)
    texture[0] = 0.0
    truths = components()[labels] + texture
    noise = rng.normal(size=truths.shape) / np.sqrt(DATA_WEIGHT)
    return Batch(truths, _irfft(band_mask(width) * _rfft(truths)) + noise, labels)


@dataclasses.dataclass(frozen=True)
class Exact:
    """The posterior sum_j omega_j N(mu_j, Q^-1), Q diagonal in Fourier space and the same for all components.

    Attributes
    ----------
    weights, means
        omega (..., J) and mu (..., J, LENGTH).
    precision
        Q in rfft layout.
    cost
        (..., J): how badly component j explains the measured coefficients, in nats.
    """

    weights: np.ndarray
    means: np.ndarray
    precision: np.ndarray
    cost: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """E z."""
        return np.sum(self.weights[..., None] * self.means, axis=-2)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation, sample by sample."""
        within = np.sum(_MULTIPLICITY / self.precision) / LENGTH
        between = (self.means - self.mean[..., None, :]) ** 2
        return np.sqrt(within + np.sum(self.weights[..., None] * between, axis=-2))

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Independent draws (count, ..., LENGTH)."""
        shape = (count, *self.weights.shape[:-1])
        labels = np.sum(rng.random((*shape, 1)) > np.cumsum(self.weights, axis=-1)[..., :-1], axis=-1)
        means = np.broadcast_to(self.means, (count, *self.means.shape))
        chosen = np.take_along_axis(means, labels[..., None, None], axis=-2)[..., 0, :]
        return chosen + _irfft(_rfft(rng.normal(size=chosen.shape)) / np.sqrt(self.precision))


def exact(observations: np.ndarray, width: int) -> Exact:
    r"""The posterior in closed form: observations (..., LENGTH) -> one law each.

    .. math:: q_k = 1/v + \lambda M_k, \qquad \mu_j = (m_j / v + \lambda M x) / q, \qquad
              \omega_j \propto \pi_j e^{-c_j}, \qquad c_j = \frac{|T_M (x - m_j)|^2}{2 (v + 1/\lambda)} .
    """
    mask, observed, library = band_mask(width), _rfft(observations)[..., None, :], _rfft(components())
    precision = 1 / TEXTURE_VARIANCE + DATA_WEIGHT * mask
    means = (library / TEXTURE_VARIANCE + DATA_WEIGHT * mask * observed) / precision
    squares = np.sum(_MULTIPLICITY * mask * np.abs(observed - library) ** 2, axis=-1)
    cost = 0.5 * squares / (TEXTURE_VARIANCE + 1 / DATA_WEIGHT)
    mass = PRIOR * np.exp(cost.min(axis=-1, keepdims=True) - cost)
    return Exact(mass / mass.sum(axis=-1, keepdims=True), _irfft(means), precision, cost)


def responsibilities(signals: np.ndarray) -> np.ndarray:
    """Probability of each component given the signal, (..., J); its mean over the posterior is omega."""
    cost = 0.5 * np.sum((signals[..., None, :] - components()) ** 2, axis=-1) / TEXTURE_VARIANCE
    odds = PRIOR * np.exp(cost.min(axis=-1, keepdims=True) - cost)
    return odds / odds.sum(axis=-1, keepdims=True)


def _peak(position: float, width: float) -> np.ndarray:
    return np.exp(-0.5 * ((np.arange(LENGTH) - position) / width) ** 2)


def _rfft(signal: np.ndarray) -> np.ndarray:
    return np.fft.rfft(signal, norm="ortho")


def _irfft(spectrum: np.ndarray) -> np.ndarray:
    return np.fft.irfft(spectrum, LENGTH, norm="ortho")
