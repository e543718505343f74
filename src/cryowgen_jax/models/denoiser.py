r"""A denoiser that has seen the tomogram, and begins at what is known of it already.

D(z, sigma) approximates the mean of a volume v given the tomogram and z = v + sigma * white noise. With m the posterior
mean that was found before, and V the power of v - m per frequency,

.. math:: D(z, \sigma) = m + W (z - m) + r \, F\!\left(\frac{W (z - m)}{r}, \sigma, \ldots\right), \qquad
          W = \frac{V}{V + \sigma^2}, \quad r^2 = \Big\langle \frac{V \sigma^2}{V + \sigma^2} \Big\rangle_k

so that the untrained D is the mean under the Gaussian N(m, V), and r the error it expects (the scaling of Karras et
al., NeurIPS 2022, frequency by frequency). For sigma = infinity, where z says nothing, D = m + s F with s = ``SPREAD``:
the posterior mean itself. F, a network whose last layer starts at zero, also sees the data, a Wiener estimate, m, the
solvent model's mean and envelope, the spectra of noise and signal, and the tilt range. So the untrained D is m, and
what is larger than the network's receptive field is given.

For sigma = infinity the network also says how wrong D is. With its P, the power of v - D per frequency, and e, the
inverse of a relative variance per voxel, v is about Gaussian with mean D and precision

.. math:: Q = F^{-1} W F\, \mathrm{diag}(e)\, F^{-1} W F + F^{-1} R F, \qquad W^2 = L^2 / P, \quad R = (1 - L^2) / P

where L is a low-pass.

Everything is in units of the signal's standard deviation, with beam z and tilt axis y.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cryowgen_jax.models.adapters import NnxFunction, from_nnx
from cryowgen_jax.models.convolution import depth_to_space, double, halve, pad_to_multiple, space_to_depth
from cryowgen_jax.models.layers import Convolution
from cryowgen_jax.models.prior_net import KNOTS, bounded_log_variance, spectral_conditions
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array

WIDTHS, PAIRS = (32, 64, 64), (1, 2, 2)
SPREAD = 0.5  # s
LEAST_POWER = 1e-6  # V of what is known
BANDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)  # cycles per voxel: the network gets noise and signal of each band
NUM_CHANNELS, NUM_CONDITIONS = 6, 2 * (len(BANDS) - 1) + 4
_EMBEDDED = 64
_SMALL = 1e-4  # under a mean square of features
_SECOND = 0.3  # initial gain of the convolution whose result is added


class Sight(NamedTuple):
    """What the network is shown of a tomogram.

    Attributes
    ----------
    channels
        (Z, Y, X, 5): data, Wiener estimate, solvent mean and envelope, and m.
    conditions
        Noise and signal per band, tilt range; (14,).
    scale
        The unit: standard deviation of the signal.
    power
        V per coefficient, rfftn layout; None where sigma is never finite.
    """

    channels: Array
    conditions: Array
    scale: Array
    power: Array | None = None

    @property
    def mean(self) -> Array:
        """m, less its average."""
        return self.channels[..., 4]


class Denoised(NamedTuple):
    """What the network says.

    ``volume`` is D, ``begun`` that of the untrained network, (Z, Y, X), and ``reach`` r. ``log_variance`` is that of
    D's relative error (Z, Y, X), ``log_gain`` log P / S at the knots (measured, missing).
    """

    volume: Array
    log_variance: Array
    log_gain: Array
    begun: Array
    reach: Array


class Denoiser(nnx.Module):
    """(sight, z, sigma) -> D(z, sigma). Sigma 0 stands for infinity: z is then not looked at.

    2^3 patches; on each of the grids, halved from one to the next, pairs of 3^3 convolutions whose result is added.
    The features that enter a pair or the last layer have mean square 1; before a pair they are scaled and shifted by
    functions of the conditions (Perez et al., FiLM, AAAI 2018). Boxes are padded with zeros and cut back.

    Parameters
    ----------
    widths
        Features on each grid, the finest first.
    pairs
        Pairs of convolutions on each grid, on the way down and again on the way up.
    rngs
        Streams for the initial weights.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS, pairs: Sequence[int] = PAIRS, *, rngs: nnx.Rngs) -> None:
        zeros = nnx.initializers.zeros_init()
        self.embedding = nnx.Linear(NUM_CONDITIONS, _EMBEDDED, rngs=rngs)
        self.first = Convolution(8 * NUM_CHANNELS, widths[0], rngs=rngs, half=True)
        self.down = nnx.List([_pairs(count, width, rngs) for count, width in zip(pairs, widths, strict=True)])
        self.up = nnx.List([_pairs(count, width, rngs) for count, width in zip(pairs[:-1], widths[:-1], strict=True)])
        steps = list(itertools.pairwise(widths))
        self.coarser = nnx.List([nnx.Linear(fine, coarse, rngs=rngs) for fine, coarse in steps])
        self.finer = nnx.List([nnx.Linear(coarse, fine, rngs=rngs) for fine, coarse in steps])
        self.last = Convolution(widths[0], 16, rngs=rngs, silent=True, half=True)
        self.gain = nnx.Linear(_EMBEDDED, 2 * len(KNOTS), kernel_init=zeros, rngs=rngs)

    def __call__(self, sight: Sight, volume: Array, sigma: Array) -> Denoised:
        """D, in units of ``sight.scale``, and how large its errors are where sigma is infinite."""
        known = (sigma > 0).astype(jnp.float32)
        given = jnp.where(sigma > 0, sigma, 1.0)
        off, reach = jnp.zeros_like(sight.mean), jnp.asarray(SPREAD)
        if sight.power is not None:
            weight = sight.power / (sight.power + given**2)
            weights = np.broadcast_to(fourier.multiplicity(volume.shape), weight.shape) / volume.size
            off = known * fourier.filter_volume(volume - sight.mean, weight)
            reach = jnp.where(sigma > 0, given * jnp.sqrt(jnp.sum(weights * weight)), SPREAD)
        told = jnp.concatenate([sight.conditions, jnp.stack([known * jnp.log(given) / 2, known])])
        channels = jnp.concatenate([sight.channels, (off / reach)[..., None]], axis=-1)
        conditions = jnp.tanh(self.embedding(told))
        out = self._network(channels, conditions)
        begun = sight.mean + off
        return Denoised(
            volume=begun + reach * out[..., 0],
            log_variance=bounded_log_variance(out[..., 1]),
            log_gain=self.gain(conditions).reshape(2, len(KNOTS)),
            begun=begun,
            reach=reach,
        )

    def _network(self, channels: Array, conditions: Array) -> Array:
        z, y, x = channels.shape[:3]
        padded = pad_to_multiple(channels, 2 ** len(self.down))
        features, passed = self.first(space_to_depth(padded)), []
        for i, pairs in enumerate(self.down):
            if i:
                features = self.coarser[i - 1](halve(features))
            for pair in pairs:
                features = pair(features, conditions)
            passed.append(features)
        for i in reversed(range(len(self.up))):
            features = passed[i] + double(self.finer[i](features))
            for pair in self.up[i]:
                features = pair(features, conditions)
        return depth_to_space(self.last(_even(features)))[:z, :y, :x]


class _Pair(nnx.Module):
    """Two convolutions whose result is added to what came in."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.first = Convolution(width, width, rngs=rngs, half=True)
        self.second = Convolution(width, width, rngs=rngs, half=True)
        self.second.kernel[...] *= _SECOND
        self.film = nnx.Linear(_EMBEDDED, 2 * width, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, features: Array, conditions: Array) -> Array:
        scale, shift = jnp.split(self.film(conditions)[None, None, None], 2, axis=-1)
        return features + self.second(jax.nn.silu(self.first(_even(features) * (1 + scale) + shift)))


def _even(features: Array) -> Array:
    """With mean square 1 at each voxel."""
    return features * jax.lax.rsqrt(jnp.mean(features**2, axis=-1, keepdims=True) + _SMALL)


def _pairs(count: int, width: int, rngs: nnx.Rngs) -> nnx.List:
    return nnx.List([_Pair(width, rngs) for _ in range(count)])


def denoising_network(widths: Sequence[int] = WIDTHS, pairs: Sequence[int] = PAIRS, *, seed: int = 0) -> NnxFunction:
    """An untrained :class:`Denoiser` as a pytree callable."""
    return from_nnx(Denoiser(widths, pairs, rngs=nnx.Rngs(seed)))


def with_errors_alone(network: NnxFunction) -> NnxFunction:
    """The same :class:`Denoiser`, whose gradient is that of what it says of its errors: D is left as it is."""

    def held(path: Any, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name.startswith("gain"):
            return leaf
        if name.startswith("last"):  # outputs alternate: D and log s^2 of each voxel of a patch
            return jnp.where(jnp.arange(leaf.shape[-1]) % 2 == 1, leaf, jax.lax.stop_gradient(leaf))
        return jax.lax.stop_gradient(leaf)

    return dataclasses.replace(network, variables=jax.tree_util.tree_map_with_path(held, network.variables))


def sight_of(
    spectrum: Array, solvent: Array, envelope: Array, mean: Array, noise: Array, signal: Array, tilt_range: Array
) -> Sight:
    """What the network is shown of a tomogram.

    Parameters
    ----------
    spectrum
        y, the data's half spectrum, 0 where nothing was measured.
    solvent, envelope
        The solvent model's mean and envelope, (Z, Y, X).
    mean
        m, what is known of the volume already: the mean that the network before this one leads to.
    noise, signal
        N and S, one value per coefficient (S as if all orientations had been measured).
    tilt_range
        (lo, hi) in degrees.
    """
    shape = mean.shape
    conditions, scale = spectral_conditions(noise, signal, tilt_range, shape, BANDS)
    data = fourier.irfftn(spectrum, shape)
    wiener = fourier.irfftn(spectrum * signal / (signal + noise), shape) / scale
    channels = (
        (data - jnp.mean(data)) / (jnp.std(data) + _SMALL * scale),
        wiener - jnp.mean(wiener),
        (solvent - jnp.mean(solvent)) / scale,
        envelope,
        (mean - jnp.mean(mean)) / scale,
    )
    return Sight(jnp.stack(channels, axis=-1), conditions, scale)


def reversed_tilts(conditions: Array) -> Array:
    """The same ``conditions`` of a tomogram whose tilts have the other sign."""
    return conditions.at[-2:].set(-conditions[:-3:-1])


def shrunk(sight: Sight, power: Array) -> Sight:
    """The same on half the grid (``fourier.shrink``), with this V; coefficients that are left out count as known."""
    shape = sight.mean.shape
    smaller = fourier.halved(shape)
    channels = jax.vmap(lambda volume: fourier.shrink(volume, smaller), in_axes=-1, out_axes=-1)(sight.channels)
    ratio = np.float32(np.prod(smaller) / np.prod(shape))
    kept = jnp.maximum(ratio * fourier.cropped(power, shape, smaller), LEAST_POWER)
    return sight._replace(channels=channels, power=kept)
