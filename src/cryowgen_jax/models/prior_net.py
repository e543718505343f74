r"""A conditional prior for a tomogram, in one pass of a network.

From the data's half spectrum y, the power spectra N of the noise and S of the signal, and the tilt range, the network
predicts

.. math:: z \sim N(\bar z, Q^{-1}), \qquad Q = F^{-1} W F\, \mathrm{diag}(e)\, F^{-1} W F + F^{-1} R F

with three parts: the centre zbar; 1 / e, a relative variance per voxel, which says where the truth may be far from it;
and P, the power of the difference per frequency. W^2 = L^2 / P and R = (1 - L^2) / P, with a low-pass L. Everything is
in units of the signal's standard deviation, with beam z and tilt axis y.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cryowgen_jax.models.adapters import NnxFunction, from_nnx
from cryowgen_jax.models.unet import UNet
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array

KNOTS = (0.0, 0.02, 0.04, 0.07, 0.10, 0.14, 0.18, 0.22, 0.27, 0.33, 0.40, 0.50, 0.87)  # cycles per voxel
BANDS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)  # cycles per voxel: the network gets noise and signal of each band
NUM_CONDITIONS = 2 * (len(BANDS) - 1) + 2
LOCAL = 0.22  # cycles per voxel: the local variance is learned from errors coarser than this
LEAST_VARIANCE, LARGEST_VARIANCE = 0.03, 8.0  # of a voxel, relative to the mean
_WEAK = 1e-3  # of the signal's variance: the network does not tell weaker noise from none


class Features(NamedTuple):
    """Input of the network: (Z, Y, X, 2) channels, vector of conditions, and the unit of the channels."""

    channels: Array
    conditions: Array
    scale: Array


class ConditionalPrior(NamedTuple):
    """zbar (Z, Y, X), log of the relative variance (Z, Y, X), log of P / S at the knots (measured, missing)."""

    center: Array
    log_variance: Array
    log_gain: Array


class PriorNet(nnx.Module):
    """Features of a tomogram -> its conditional prior.

    Parameters
    ----------
    channels, levels
        Of the :class:`UNet`.
    rngs
        Streams for the initial weights.
    """

    def __init__(self, *, channels: int = 24, levels: int = 2, rngs: nnx.Rngs) -> None:
        self.volume = UNet(2, 2, channels=channels, levels=levels, conditions=NUM_CONDITIONS, rngs=rngs)
        zeros = nnx.initializers.zeros_init()
        self.spectrum = nnx.Linear(NUM_CONDITIONS, 64, rngs=rngs)
        self.gain = nnx.Linear(64, 2 * len(KNOTS), kernel_init=zeros, rngs=rngs)

    def __call__(self, seen: Features) -> ConditionalPrior:
        """The prior, in units of ``seen.scale``; ``seen`` is made by :func:`features`."""
        out = self.volume(seen.channels, seen.conditions)
        log_variance = bounded_log_variance(out[..., 1])
        gain = self.gain(jnp.tanh(self.spectrum(seen.conditions))).reshape(2, len(KNOTS))
        return ConditionalPrior(seen.channels[..., 1] + out[..., 0], log_variance, gain)


def prior_network(*, channels: int, levels: int, seed: int = 0) -> NnxFunction:
    """An untrained :class:`PriorNet` as a pytree, features -> prior."""
    return from_nnx(PriorNet(channels=channels, levels=levels, rngs=nnx.Rngs(seed)))


def features(spectrum: Array, noise: Array, signal: Array, tilt_range: Array, shape: tuple[int, ...]) -> Features:
    """Input of the network for a tomogram: the data, a Wiener estimate, noise and signal per band, the tilt range.

    Parameters
    ----------
    spectrum
        y, the data's half spectrum, 0 where nothing was measured.
    noise, signal
        N and S, one value per coefficient (S as if all orientations had been measured).
    tilt_range
        (lo, hi) in degrees.
    shape
        (Z, Y, X).
    """
    conditions, scale = spectral_conditions(noise, signal, tilt_range, shape, BANDS)
    raw = fourier.irfftn(spectrum, shape) / scale
    wiener = fourier.irfftn(spectrum * signal / (signal + noise), shape) / scale
    return Features(jnp.stack([raw, wiener], axis=-1), conditions, scale)


def spectral_conditions(
    noise: Array, signal: Array, tilt_range: Array, shape: tuple[int, ...], edges: Sequence[float]
) -> tuple[Array, Array]:
    """What networks are told of spectra and tilts, and the standard deviation of the signal.

    For each band between two ``edges``, in cycles per voxel, the logarithms of the mean noise and signal in it.
    """
    weight = np.broadcast_to(fourier.multiplicity(shape), fourier.spectrum_shape(shape))
    variance = jnp.sum(signal * weight) / np.prod(shape)
    radius = fourier.radial_frequency(shape)
    bands = []
    for low, high in itertools.pairwise(edges):
        inside = weight * ((radius >= low) & (radius < high))
        inside = inside / max(inside.sum(), 1.0)
        bands += [jnp.sum(inside * noise), jnp.sum(inside * signal)]
    told = jnp.log10(jnp.stack(bands) / variance + _WEAK)
    return jnp.concatenate([told, tilt_range / 60.0]), jnp.sqrt(variance)


def bounded_log_variance(answer: Array) -> Array:
    """A network's answer, bent into the range of log s^2."""
    low, high = np.log(LEAST_VARIANCE), np.log(LARGEST_VARIANCE)
    middle, reach = 0.5 * (low + high), 0.5 * (high - low)
    return middle + reach * jnp.tanh((answer - middle) / reach)


def local_filter(shape: tuple[int, ...]) -> np.ndarray:
    """L: 1 at frequency 0, falling to 0 beyond ``LOCAL``."""
    return np.exp(-((fourier.radial_frequency(shape) / LOCAL) ** 4)).astype(np.float32)


def residual_power(log_gain: Array, signal: Array, measured: Array, shape: tuple[int, ...]) -> Array:
    """P per coefficient, in the unit of ``signal``: interpolated between knots, for measured and missing ones apart."""
    seen, unseen = jnp.tensordot(log_gain, _hats(shape), 1, precision="highest")
    return signal * jnp.exp(jnp.where(measured > 0, seen, unseen))


def _hats(shape: tuple[int, ...]) -> Array:
    """Linear interpolation between the knots as a matrix, (knots, *half spectrum): its gradient is a product too."""
    radius = jnp.asarray(fourier.radial_frequency(shape), jnp.float32)
    knots = np.asarray((-1.0, *KNOTS, 2.0), np.float32)
    hats = []
    for before, knot, after in zip(knots[:-2], knots[1:-1], knots[2:], strict=True):
        hats.append(jnp.clip(jnp.minimum((radius - before) / (knot - before), (after - radius) / (after - knot)), 0, 1))
    return jnp.stack(hats)
