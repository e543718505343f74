r"""The default model of a tomogram: particles in solvent, every parameter estimated from the tomogram itself.

.. math:: w(z) = -\tfrac12 \sum_x e(x)\, [P_s^{-1/2} (z - c)]^2(x) - \tfrac12 (z - c)^T (P_p^{-1} - \beta) (z - c)

with e(x) the probability that voxel x is solvent, c the solvent level, P_s the power spectrum of solvent and P_p that
of particles, both isotropic, and the noise spectrum N that weighs the data. They are found by alternating between the
posterior mean under the present model and moments of it and of the data (empirical Bayes). Given them the posterior is
Gaussian: conjugate gradients give its mean, and draws by solving for a random right side (Papandreou and Yuille, NIPS
2010), at which chains start.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax import platform
from cryowgen_jax.potentials import QuadraticWitness, SolventWitness, SumWitness
from cryowgen_jax.restoration import spectra
from cryowgen_jax.restoration.model import VolumeModel
from cryowgen_jax.restoration.spectra import Shells
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, InputError

BLUR = 1.5  # voxels, before solvent is told from particle
# Solvent lies between -BELOW and a threshold, in its own standard deviation after the blur. The threshold tightens from
# round to round: what is taken for solvent is flattened, so faint objects must be let in before solvent is known well.
THRESHOLDS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0)
SOLVING = 20  # steps of a chain that finding a mean, or drawing, by conjugate gradients takes about as long as
BELOW, SOFTNESS = 5.0, 0.7
SOLVENT_GAIN = 1.3  # on P_s: the masked moments see the solvent that the mean already smoothed
SOLVENT_SHARE = 0.2  # of the power found in solvent, where one tomogram with coloured noise cannot tell noise from it
LEAST_MEASURED = 1e-6  # of the spectrum's power without the mean: rounding
SOLVED, MOST_ITERATIONS = 1e-2, 200  # residual that conjugate gradients leave, of the right side
# What a tomogram without noise, or particles in vacuum, would make singular: shares of the signal's and the particles'
# power in the same shell, and of the strongest shell's. Below them nothing is known of what spectra look like.
LEAST_NOISE, LEAST_SOLVENT, LEAST_SHELL = 1e-4, 5e-4, 1e-9
RELATIVE_TETHER = 0.5  # beta as a share of the smallest 1 / P_p


@dataclasses.dataclass(frozen=True)
class SolventModel(VolumeModel):
    """Spectra per shell, envelope and level. In a ``frozen`` model all but the envelope stays as it is."""

    signal: np.ndarray
    solvent: np.ndarray
    particle: np.ndarray
    envelope: np.ndarray
    level: float
    frozen: bool = False

    @property
    def firmness(self) -> np.ndarray:
        """The envelope."""
        return self.envelope

    @property
    def center(self) -> np.ndarray:
        """zbar: the level of the solvent everywhere."""
        return np.full(self.shells.shape, self.level, np.float32)

    def witness(self) -> SumWitness:
        """w, for the posterior's ``prior_precision``."""
        shape, spread = self.shells.shape, self.shells.spread
        inside = QuadraticWitness(
            jnp.asarray(1 / spread(self.particle) - self.prior_precision), jnp.full(shape, self.level, jnp.float32)
        )
        whitening = jnp.asarray(1 / np.sqrt(spread(self.solvent)))
        return SumWitness((inside, SolventWitness(jnp.asarray(self.envelope), whitening, jnp.float32(self.level))))

    @property
    def prior_precision(self) -> np.float32:
        """Beta."""
        return np.float32(RELATIVE_TETHER / self.particle.max())

    def posterior_mean(self, start: Array, mask: np.ndarray) -> Array:
        """Its mean, by conjugate gradients from ``start``."""
        precisions = self._precisions(mask)
        misfit = precisions[0] * jnp.asarray(self.observation).at[0, 0, 0].add(-self.level * math.sqrt(start.size))
        right = fourier.irfftn(misfit, start.shape)
        return self.level + _solve(*precisions, right, start - self.level)

    def draw_near(self, noises: Array, mean: Array, mask: np.ndarray) -> Array:
        """A draw of the posterior about ``mean``: the one solution of a system with as much noise as precision."""
        return mean + _perturb(*self._precisions(mask), noises)

    def _precisions(self, mask: np.ndarray) -> tuple[Array, Array, Array, Array]:
        """M / N, 1 / P_p and 1 / P_s per coefficient, and the envelope."""
        spread, array = self.shells.spread, jnp.asarray
        inside, outside = array(1 / spread(self.particle)), array(1 / spread(self.solvent))
        return array(mask / spread(self.noise), jnp.float32), inside, outside, array(self.envelope)


@platform.jit
def _perturb(data: Array, inside: Array, outside: Array, envelope: Array, noises: Array) -> Array:
    """A draw of N(0, L^-1), with L of `_solve`: the solution for a right side whose covariance is L."""
    stationary = fourier.filter_volume(noises[0], jnp.sqrt(data + inside))
    local = fourier.filter_volume(jnp.sqrt(envelope) * noises[1], jnp.sqrt(outside))
    start = fourier.filter_volume(noises[0], jax.lax.rsqrt(data + inside + jnp.mean(envelope) * outside))
    return _solve(data, inside, outside, envelope, stationary + local, start)


@platform.jit
def _solve(data: Array, inside: Array, outside: Array, envelope: Array, right: Array, start: Array) -> Array:
    r"""Conjugate gradients for L z = right, :math:`L = F^{-1} (D + I) F + F^{-1} O^{1/2} F\, e\, F^{-1} O^{1/2} F`.

    D, I and O are precisions per coefficient. The unknowns are scaled so that the part of L that is diagonal in Fourier
    space becomes 1; what is left is about as badly conditioned as P_p / P_s is large.
    """
    diagonal = data + inside + jnp.mean(envelope) * outside
    stationary, whitening = (data + inside) / diagonal, jnp.sqrt(outside / diagonal)

    def apply(scaled: Array) -> Array:
        spectrum = fourier.rfftn(scaled)
        local = fourier.rfftn(envelope * fourier.irfftn(whitening * spectrum, scaled.shape))
        return fourier.irfftn(stationary * spectrum + whitening * local, scaled.shape)

    found, _ = jax.scipy.sparse.linalg.cg(
        apply,
        fourier.filter_volume(right, jax.lax.rsqrt(diagonal)),
        fourier.filter_volume(start, jnp.sqrt(diagonal)),
        tol=SOLVED,
        maxiter=MOST_ITERATIONS,
    )
    return fourier.filter_volume(found, jax.lax.rsqrt(diagonal))


def first_model(halves: tuple[Array, ...], mask: np.ndarray) -> SolventModel:
    """Model before any chain has run.

    Noise from two halves is that of their difference. From one tomogram it is taken as white where its spectrum is flat
    near Nyquist (shells 0.70-0.84 of it less than 10 % above shells 0.86-1), at the level of the lowest sixth of its
    shells; otherwise as coloured like the solvent, of whose power it gets four fifths.
    """
    shape = halves[0].shape
    shells = spectra.shells_of(shape, mask)
    whole = [np.asarray(fourier.rfftn(half)) for half in halves]
    parts = tuple(part * shells.mask for part in whole)
    _require_signal(whole, parts)
    enough = shells.count > spectra.MANY
    enough = enough if enough.any() else shells.count > 0
    data = np.mean(np.stack(parts), axis=0)
    total = shells.mean(spectra.power(data))
    error = total / np.sqrt(np.maximum(shells.count, 1))
    if len(parts) == 2:
        rule = "difference of the halves"
        signal = shells.mean(np.real(parts[0] * np.conj(parts[1])))
        noise = shells.mean(spectra.power(parts[0] - parts[1])) / 4
        noise = np.where(enough, noise, np.median(noise[enough]))
    else:
        rule = "white, from the weakest shells" if _flat_tail(shells, total, enough) else "coloured, as in solvent"
        weakest = np.sort(total[enough])[: max(3, total.size // 6)]
        noise = np.full_like(total, weakest.mean())
        signal = total - noise
    signal = np.maximum(signal, 2 * error)
    signal[0], noise[0] = signal[1], noise[1]
    signal, noise = _positive(signal), _positive(noise)
    if rule.startswith("coloured"):
        estimate = spectra.blur(np.asarray(fourier.irfftn(jnp.asarray(data), shape)), 1.0)
    else:
        wiener = shells.spread(signal / (signal + noise))
        estimate = np.asarray(fourier.irfftn(jnp.asarray(data * wiener), shape))
    blank = np.zeros_like(signal)
    model = SolventModel(shells, parts, rule, noise, signal, blank, blank, np.zeros(shape, np.float32), 0.0)
    return update(model, estimate, THRESHOLDS[0])


def _require_signal(whole: list[np.ndarray], parts: tuple[np.ndarray, ...]) -> None:
    measured, total = (sum(float(np.sum(spectra.power(part.ravel()[1:]))) for part in p) for p in (parts, whole))
    if measured <= LEAST_MEASURED * total:
        raise InputError(
            "no model fits this tomogram: the measured part of its spectrum holds nothing; check tilt_range "
            "and the axes"
        )


def like(model: SolventModel, halves: tuple[Array, ...]) -> SolventModel:
    """The model of a neighbouring tile of the same shape: spectra and level of this one, another envelope."""
    parts = tuple(np.asarray(fourier.rfftn(half)) * model.shells.mask for half in halves)
    other = dataclasses.replace(model, halves=parts, frozen=True)
    wiener = model.shells.spread(model.signal / (model.signal + model.noise))
    estimate = np.asarray(fourier.irfftn(jnp.asarray(other.observation * wiener), model.shells.shape))
    return update(other, estimate, THRESHOLDS[0])


def update(model: SolventModel, mean: np.ndarray, threshold: float) -> SolventModel:
    """Model after a look at the posterior mean: envelope, level, solvent and particle spectra, and coloured noise.

    ``threshold`` is where solvent ends, in its own standard deviations after a blur.
    """
    shells = model.shells
    blurred = spectra.blur(mean, BLUR)
    level, spread = spectra.solvent_level(blurred)
    if model.frozen:
        level = model.level
    if model.solvent.any():
        passed = np.exp(-4 * np.pi**2 * BLUR**2 * fourier.radial_frequency(shells.shape) ** 2)
        multiplicity = np.broadcast_to(fourier.multiplicity(shells.shape), passed.shape)
        spread = float(np.sqrt(np.average(passed * shells.spread(model.solvent), weights=multiplicity)))
    model = dataclasses.replace(
        model, envelope=_envelope((blurred - level) / max(spread, 1e-12), threshold), level=level
    )
    return model if model.frozen else _with_moments(model, mean)


def _with_moments(model: SolventModel, mean: np.ndarray) -> SolventModel:
    """Spectra of solvent, particles and coloured noise: moments of the data under the envelope, wedge filled."""
    shells = model.shells
    flat = float(np.mean(model.envelope**2))
    filling = np.asarray(fourier.rfftn(jnp.asarray(mean))) * (1 - shells.mask)

    def masked(part: np.ndarray) -> np.ndarray:
        volume = np.asarray(fourier.irfftn(jnp.asarray(part + filling), shells.shape))
        return np.asarray(fourier.rfftn(jnp.asarray(model.envelope * (volume - model.level))))

    noise, signal, gain = model.noise, model.signal, SOLVENT_GAIN
    if model.noise_rule.startswith("coloured"):
        total = shells.mean(spectra.power(model.observation))
        found = shells.mean(spectra.power(masked(model.observation))) / flat
        found[0] = found[1]
        found = _positive(np.minimum(shells.plateau(found), 0.98 * total))
        noise = (1 - SOLVENT_SHARE) * found
        signal = _positive(np.maximum(total - noise, 0.02 * total))
        signal[0] = signal[1]
        solvent, gain = SOLVENT_SHARE * found, 1.0
    else:
        parts = [masked(part) for part in model.halves]
        total = np.mean([shells.mean(spectra.power(part)) for part in parts], axis=0) / flat
        cross = total - noise if len(parts) == 1 else shells.mean(np.real(parts[0] * np.conj(parts[1]))) / flat
        solvent = np.maximum(cross, 0.5 * total / np.sqrt(np.maximum(shells.count * flat, 1)))
        solvent[0] = solvent[1]
        solvent = _positive(shells.plateau(np.minimum(solvent, signal)))
    filled = max(float(np.mean((1 - model.envelope) ** 2)), 0.02)
    particle = np.maximum((signal - flat * solvent) / filled, solvent)
    particle[0] = particle[1]
    particle = np.maximum(np.maximum(particle, gain * solvent), LEAST_SHELL * particle.max())
    solvent = np.maximum(gain * solvent, LEAST_SOLVENT * particle)
    noise = np.maximum(noise, np.maximum(LEAST_NOISE * signal, LEAST_SHELL * signal.max()))
    return dataclasses.replace(model, noise=noise, signal=signal, solvent=solvent, particle=particle)


def _flat_tail(shells: Shells, total: np.ndarray, enough: np.ndarray) -> bool:
    def tail(low: float, high: float) -> float:
        chosen = (shells.centre > low) & (shells.centre < high) & enough
        return float(total[chosen].mean()) if chosen.any() else np.inf

    return tail(0.35, 0.42) < 1.1 * tail(0.43, 0.5)


def _envelope(deviation: np.ndarray, threshold: float) -> np.ndarray:
    def below(limit: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(np.clip(limit / SOFTNESS, -50, 50)))

    return (below(deviation - threshold) * below(-deviation - BELOW)).astype(np.float32)


def _positive(profile: np.ndarray) -> np.ndarray:
    """The profile with empty or non-positive shells filled by the smallest positive value."""
    good = profile > 0
    return np.where(good, profile, profile[good].min() if good.any() else 1.0)
