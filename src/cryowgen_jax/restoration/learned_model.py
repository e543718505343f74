r"""The learned model: networks look at the tomogram, and their answers make a posterior.

The first one (``models.prior_net``) sees the data. The second (``models.denoiser``) sees the data, the solvent model's
mean and envelope, and the mean that the first one leads to. Each answers with a centre zbar, the power P of what it
does not know per frequency, and a relative standard deviation s(x) per voxel. The first answer and the data give the
mean that the second network is shown, per Fourier coefficient,

.. math:: V = \Big(\frac1P + \frac MN\Big)^{-1}, \qquad m = V \Big(\frac{\bar z}{P} + \frac{M y}{N}\Big)

The second answer knows the data: m is its zbar, and V its P, at most N / M. Where the measured coefficients of a shell
differ from y by more than the noise, m is moved towards y until they do not.

A third network, where there is one, draws the family on half the grid (``annealed_family``). What is finer, or all of
it without such a network, is drawn from the Gaussian with mean m and covariance V^(1/2) s^2 V^(1/2), whose exponent is

.. math:: F(z) = -\tfrac12 \sum_x e(x)\, [F^{-1} V^{-1/2} F (z - m)]^2(x), \qquad e = 1 / s^2 .

Measured coefficients stay within the noise of the data. The witness is what remains of F without data
term and tether. With e_0 the smallest e,

.. math:: w(z) = -\tfrac12 \sum_x (e(x) - e_0)\, [F^{-1} V^{-1/2} F (z - m)]^2(x)
          - \tfrac12 (z - \mu)^T c\, (z - \mu), \qquad c = \frac{e_0}{V} - \frac MN - \beta,
          \quad \mu = m + \frac{M}{N} \frac{m - y}{c} .

The network has seen y, so w is not a prior: it was learned together with the data term. F is quadratic, so its mean is
its maximum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax import platform
from cryowgen_jax.models import NnxFunction
from cryowgen_jax.models.denoiser import Sight, sight_of
from cryowgen_jax.models.prior_net import KNOTS, Features, features
from cryowgen_jax.potentials import QuadraticWitness, SolventWitness, SumWitness
from cryowgen_jax.restoration.annealed_family import LEAST_EDGE, CoarsePosterior, coarse_sight
from cryowgen_jax.restoration.blocks import by_blocks
from cryowgen_jax.restoration.geometry import HALF_TURNS, Geometry, reverses_tilts
from cryowgen_jax.restoration.prior_weights import PriorWeights
from cryowgen_jax.restoration.solvent_model import SolventModel
from cryowgen_jax.restoration.spectra import Shells, shells_of
from cryowgen_jax.restoration.volume_model import VolumeModel
from cryowgen_jax.samplers import NoiseFn, white_noise
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, PRNGKey

RELATIVE_TETHER = 0.5  # beta as a share of the smallest precision
LARGEST_CONTRAST, FIRM = 32.0, 0.995  # of e, whose quantile FIRM counts as its largest: chains step accordingly
_NUDGE = 1e-3  # of a coefficient's precision, at least, in its quadratic term


@dataclasses.dataclass(frozen=True)
class LearnedModel(VolumeModel):
    """The Gaussian that the second network's answer and the data make, and the posterior of the third one.

    Attributes
    ----------
    signal
        S per shell, as the network was told it.
    precision
        e per voxel, (Z, Y, X).
    variance
        V per coefficient, rfftn layout.
    mask
        M, rfftn layout.
    solvent
        The solvent model that the network was shown.
    coarse
        What the family is drawn from on half the grid; None where all of it is Gaussian.
    widening
        Factor of the variance in the wedge of what is drawn there.
    """

    signal: np.ndarray
    precision: np.ndarray
    variance: np.ndarray
    mask: np.ndarray
    solvent: SolventModel
    coarse: CoarsePosterior | None = None
    widening: float = 1.0

    @property
    def center(self) -> np.ndarray:
        """The tether's centre: m, so that the tether does not move the mean."""
        return self.mean

    @property
    def firmness(self) -> np.ndarray:
        """The solvent model's envelope."""
        return self.solvent.envelope

    @property
    def prior_precision(self) -> np.float32:
        """Beta."""
        return np.float32(RELATIVE_TETHER * self.precision.min() / self.variance.max())

    def witness(self) -> SumWitness:
        """w, for the posterior's ``prior_precision``."""
        lowest = float(self.precision.min())
        data = self.mask / self.shells.spread(self.noise)
        stiffness = lowest / self.variance
        curvature = stiffness - data - self.prior_precision
        curvature = np.where(np.abs(curvature) < _NUDGE * stiffness, _NUDGE * stiffness, curvature)
        mean = np.asarray(fourier.rfftn(jnp.asarray(self.mean)))
        balance = mean + data * (mean - self.observation) / curvature
        stationary = QuadraticWitness(
            jnp.asarray(curvature, jnp.float32),
            fourier.irfftn(jnp.asarray(balance, jnp.complex64), self.shells.shape),
        )
        whitening = np.sqrt((float(self.precision.max()) - lowest) / self.variance)
        contrast = (self.precision - lowest) / max(float(self.precision.max()) - lowest, 1e-6)
        local = SolventWitness(jnp.asarray(contrast), jnp.asarray(whitening, jnp.float32), jnp.asarray(self.mean))
        return SumWitness((stationary, local))

    @property
    def drawing(self) -> str:
        """Langevin dynamics where there is a third network."""
        return "exact" if self.coarse is None else "annealed Langevin"

    def gaussian_draw(self, key: PRNGKey, mask: np.ndarray, draw_noise: NoiseFn = white_noise) -> Array:
        """The mean and V^(1/2) s noise."""
        noise = draw_noise(jax.random.fold_in(key, 0), self.shells.shape)
        scaled = fourier.rfftn(noise / np.sqrt(self.precision)) * np.sqrt(self.variance)
        return jnp.asarray(self.mean) + fourier.irfftn(scaled, self.shells.shape)

    def draw(self, key: PRNGKey, mask: np.ndarray, draw_noise: NoiseFn = white_noise) -> Array:
        """A Gaussian draw, of which the third network replaces what fits on half the grid."""
        member = self.gaussian_draw(key, mask, draw_noise)
        if self.coarse is None:
            return member
        coarse = self.coarse.draw(jax.random.fold_in(key, 1), draw_noise)
        off = member - self.coarse.low_passed(member) + coarse - jnp.asarray(self.mean)
        missing = 1 + (np.sqrt(self.widening) - 1) * (1 - mask)
        return jnp.asarray(self.mean) + fourier.filter_volume(off, jnp.asarray(missing, jnp.float32))

    def standard_deviation(self, draws: Sequence[Array]) -> Array:
        """Of the Gaussian, exact: with h the kernel of V^(1/2), the variance is h^2 convolved with s^2.

        With a third network it is scaled to what the draws say.
        """
        shape = self.shells.shape
        impulse = jnp.zeros(shape).at[0, 0, 0].set(1.0)
        kernel = fourier.filter_volume(impulse, jnp.sqrt(self.variance))
        spread = fourier.rfftn(kernel**2) * fourier.rfftn(jnp.asarray(1 / self.precision)) * np.sqrt(np.prod(shape))
        variance = jnp.maximum(fourier.irfftn(spread, shape), 0.0)
        return jnp.sqrt(variance) if self.coarse is None else self.scaled_to(draws, np.asarray(variance))


class Answer(NamedTuple):
    """What a network says of a tomogram: zbar and log s^2, (Z, Y, X), and P per shell, measured and missing."""

    center: np.ndarray
    log_variance: np.ndarray
    powers: tuple[np.ndarray, np.ndarray]


def model_of(learned: PriorWeights, solvent: SolventModel, mask: np.ndarray, geometry: Geometry) -> LearnedModel:
    """The model that networks make of a tomogram, and of what the solvent model makes of it."""
    answer, mean, variance = gaussian_of(learned, solvent, mask, geometry)
    precision = np.exp(-answer.log_variance)
    precision = np.maximum(precision, np.quantile(precision, FIRM) / LARGEST_CONTRAST)
    precision = np.minimum(precision, precision.min() * LARGEST_CONTRAST)
    coarse = None
    if learned.third is not None and min(solvent.shells.shape) >= LEAST_EDGE:
        sight = coarse_sight_of(solvent, mean, variance, geometry)
        coarse = CoarsePosterior(learned.third, sight, float(np.mean(mean)), geometry.order, solvent.shells.shape)
        corrected = answer._replace(center=mean + np.asarray(coarse.correction()))
        mean, _ = _within_noise(corrected, solvent, mask)
    return LearnedModel(
        shells=solvent.shells,
        halves=solvent.halves,
        noise_rule=solvent.noise_rule,
        noise=solvent.noise,
        mean=mean,
        signal=solvent.signal,
        precision=precision,
        variance=variance,
        mask=mask,
        solvent=solvent,
        coarse=coarse,
    )


def gaussian_of(
    learned: PriorWeights, solvent: SolventModel, mask: np.ndarray, geometry: Geometry
) -> tuple[Answer, np.ndarray, np.ndarray]:
    """What the second network says, and the mean (Z, Y, X) and V (rfftn layout) that it leads to."""
    answer = second_look(learned, solvent, first_look(learned, solvent, mask, geometry), geometry)
    return answer, *_within_noise(answer, solvent, mask)


def coarse_sight_of(solvent: SolventModel, mean: np.ndarray, variance: np.ndarray, geometry: Geometry) -> Sight:
    """What the third network is shown: half the grid, about the ``mean`` and V that the second one leads to."""
    volumes, noise, signal = _turned((_data(solvent), solvent.mean, solvent.envelope, mean), solvent, geometry)
    kernel = fourier.irfftn(jnp.asarray(variance, jnp.complex64), solvent.shells.shape).transpose(geometry.order)
    tilts = jnp.asarray(geometry.tilt_range, jnp.float32)
    return coarse_sight(_second_sight(volumes, noise, signal, tilts), fourier.rfftn(kernel).real)


def first_look(learned: PriorWeights, solvent: SolventModel, mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The posterior mean that the first network leads to, (Z, Y, X)."""
    data = _data(solvent)
    level = np.mean(data)
    answer = _look(_first_sight, _first, learned.first, (data - level,), solvent, geometry)
    return _blended(answer._replace(center=answer.center + level), solvent, mask)


def second_look(learned: PriorWeights, solvent: SolventModel, first: np.ndarray, geometry: Geometry) -> Answer:
    """What the second network says, which also sees the solvent model and where the ``first`` one leads."""
    volumes = (_data(solvent), solvent.mean, solvent.envelope, first)
    answer = _look(_second_sight, _second, learned.second, volumes, solvent, geometry)
    return answer._replace(center=answer.center + np.float32(np.mean(first)))


def _within_noise(answer: Answer, solvent: SolventModel, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """m, (Z, Y, X), and V, rfftn layout, of an answer that already holds what the data say.

    Where the measured coefficients of a shell differ from the data by more than the noise, they are drawn nearer.
    """
    shells, noise = solvent.shells, solvent.shells.spread(solvent.noise)
    center, power = _spectra(answer, shells)
    off = (solvent.observation - center) * shells.mask
    misfit = np.maximum(shells.mean(fourier.power(off)), 1e-30)
    share = shells.spread(np.maximum(1 - np.sqrt(solvent.noise / misfit), 0))
    mean = np.asarray(fourier.irfftn(jnp.asarray(center + share * mask * off, jnp.complex64), shells.shape))
    return mean, np.minimum(power, noise / np.maximum(mask, 1e-6)).astype(np.float32)


def _blended(answer: Answer, solvent: SolventModel, mask: np.ndarray) -> np.ndarray:
    """m, (Z, Y, X), of a network's answer and the data."""
    center, power = _spectra(answer, solvent.shells)
    weight = mask / solvent.shells.spread(solvent.noise)
    blend = (center / power + weight * solvent.observation) / (1 / power + weight)
    return np.asarray(fourier.irfftn(jnp.asarray(blend, jnp.complex64), solvent.shells.shape))


def _spectra(answer: Answer, shells: Shells) -> tuple[np.ndarray, np.ndarray]:
    """The half spectrum of zbar, and P per coefficient."""
    power = np.where(shells.mask > 0, *(shells.spread(power) for power in answer.powers))
    return np.asarray(fourier.rfftn(jnp.asarray(answer.center, jnp.float32))), power


def _data(solvent: SolventModel) -> np.ndarray:
    """The data as a volume, (Z, Y, X)."""
    return np.asarray(fourier.irfftn(jnp.asarray(solvent.observation), solvent.shells.shape))


def _look(
    sight_of_volumes: Callable[..., Any],
    run: Callable[..., tuple[Array, Array, Array]],
    network: NnxFunction,
    volumes: Sequence[np.ndarray],
    solvent: SolventModel,
    geometry: Geometry,
) -> Answer:
    """A network's answer to volumes, averaged over half turns of them about their axes."""
    shells, (low, high) = solvent.shells, geometry.tilt_range
    turned, noise, signal = _turned(volumes, solvent, geometry)
    centers, variances, gains = [], [], []
    for flips in HALF_TURNS:
        tilts = jnp.asarray((-high, -low) if reverses_tilts(flips) else (low, high), jnp.float32)
        sight = sight_of_volumes(tuple(jnp.flip(volume, flips) for volume in turned), noise, signal, tilts)

        def look(channels: Array, sight: Any = sight) -> tuple[Array, Array]:
            *volumes, gain = run(network, sight._replace(channels=channels))
            gains.append(np.asarray(gain))
            return volumes[0], volumes[1]

        center, log_variance = by_blocks(look, sight.channels, 2)
        centers.append(np.flip(center, flips))
        variances.append(np.flip(log_variance, flips))
    powers = [solvent.signal * np.exp(np.interp(shells.frequency, KNOTS, g)) for g in np.mean(gains, axis=0)]
    back = np.argsort(geometry.order)
    center, log_variance = (np.mean(found, axis=0).transpose(back) for found in (centers, variances))
    return Answer(center, log_variance, (powers[0], powers[1]))


def _turned(
    volumes: Sequence[np.ndarray], solvent: SolventModel, geometry: Geometry
) -> tuple[tuple[Array, ...], Array, Array]:
    """Volumes with the beam first and the tilt axis second, and N and S per coefficient of them."""
    turned = tuple(jnp.asarray(volume.transpose(geometry.order)) for volume in volumes)
    seen = shells_of(turned[0].shape, np.ones(fourier.spectrum_shape(turned[0].shape)))
    return turned, jnp.asarray(seen.spread(solvent.noise)), jnp.asarray(seen.spread(solvent.signal))


@platform.jit
def _first_sight(volumes: tuple[Array], noise: Array, signal: Array, tilts: Array) -> Features:
    (data,) = volumes
    return features(fourier.rfftn(data), noise, signal, tilts, data.shape)


@platform.jit
def _first(network: NnxFunction, seen: Features) -> tuple[Array, Array, Array]:
    prior = network(seen)
    return prior.center * seen.scale, prior.log_variance, prior.log_gain


@platform.jit
def _second_sight(volumes: tuple[Array, ...], noise: Array, signal: Array, tilts: Array) -> Sight:
    data, mean, envelope, first = volumes
    return sight_of(fourier.rfftn(data), mean, envelope, first, noise, signal, tilts)


@platform.jit
def _second(network: NnxFunction, sight: Sight) -> tuple[Array, Array, Array]:
    said = network(sight, sight.mean, jnp.zeros(()))
    return said.volume * sight.scale, said.log_variance, said.log_gain
