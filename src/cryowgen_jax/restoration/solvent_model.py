r"""The default model of a tomogram: particles in solvent, every parameter estimated from the tomogram itself.

.. math:: w(z) = -\tfrac12 \sum_x e(x)\, [P_s^{-1/2} (z - c)]^2(x) - \tfrac12 (z - c')^T (P_p^{-1} - \beta) (z - c')

with e(x) the probability that voxel x is solvent, c the solvent level (and c' = c but for what is said below), P_s the
power spectrum of solvent and P_p that of particles, both isotropic, and the noise spectrum N that weighs the data. They
are found by alternating between the posterior mean under the present model and moments of it and of the data (empirical
Bayes). Given them the posterior is Gaussian: conjugate gradients give its mean.

What the wedge hides is in no moment, so a model found in this way is too sure of objects that it took for solvent, at
low frequency above all. By how much is seen by hiding more. A second, *blind* model is made without the tilts in the
middle of the range, and its P_s multiplied, per shell, until its draws spread about its mean by as much as that misses
there. A blind model has the harder task, and so the factor to the power 0.6 goes to the model itself, for the spread
only: the family is the Gaussian about the mean as found, by the choice of c', with the precision that the wider P_s
gives. Draws of it, at which chains start, solve for a random right side (Papandreou and Yuille, NIPS 2010).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax import platform
from cryowgen_jax.operators import wedge_mask
from cryowgen_jax.operators.wedge import AXES
from cryowgen_jax.potentials import QuadraticWitness, SolventWitness, SumWitness
from cryowgen_jax.restoration import spectra
from cryowgen_jax.restoration.spectra import Shells
from cryowgen_jax.restoration.volume_model import Geometry, VolumeModel
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, InputError

# Blur before solvent is told from particle: this share of the wavelength where noise outgrows signal; bounds in voxels.
BLUR, LEAST_BLUR, LARGEST_BLUR = 0.2, 1.0, 2.0
# After the blur solvent lies between -BELOW of its own standard deviations and a threshold: this share of the standard
# deviation of particles, within bounds that are in those of solvent again. The threshold tightens from round to round:
# what is taken for solvent is flattened, so faint objects must be let in before solvent is known well.
PARTICLE_SHARE, LEAST_THRESHOLD, LARGEST_THRESHOLD = 0.35, 1.0, (4.0, 24.0)
START, ROUNDS = 1 / 6, (12, 24)
SOLVING = 20  # steps of a chain that finding a mean, or drawing, by conjugate gradients takes about as long as
BELOW, SOFTNESS = 5.0, (0.5, 6.0)
LEVEL_WIDTH, SHIFTS = 0.7, 5  # of the level's window in standard deviations of solvent, and how often it moves
SOLVENT_GAIN = 1.3  # on P_s: the masked moments see the solvent that the mean already smoothed
SOLVENT_SHARE = (0.2, 0.9)  # of the power found in solvent, where one tomogram with coloured noise cannot tell them
# Pairs are for tomograms and for clean maps. One tomogram that is not white counts as clean as far as solvent has less
# than these shares of the power, at the median of the shells between these frequencies (cycles per voxel).
CLEAN, CLEAN_BAND = (0.3, 0.1), (0.05, 0.25)
LEAST_MEASURED = 1e-6  # of the spectrum's power without the mean: rounding
SOLVED, MOST_ITERATIONS = 1e-2, 200  # residual that conjugate gradients leave, of the right side
EXACTLY = 1e-4  # the same for the mean that is reported
# What a tomogram without noise, or particles in vacuum, would make singular: shares of the signal's and the particles'
# power in the same shell, and of the strongest shell's. Below them nothing is known of what spectra look like.
LEAST_NOISE, LEAST_SOLVENT, LEAST_SHELL = 1e-4, (5e-4, 1e-4), 1e-9
RELATIVE_TETHER = 0.5  # beta as a share of the smallest 1 / P_p
# What is hidden from a blind model: half as many degrees as are missing, this share of the range at most.
HIDDEN, MOST_HIDDEN = 0.5, 0.4
WIDENINGS, BLIND_DRAWS = 3, 4  # rounds of finding the factor on P_s, and draws in each
LARGEST_WIDENING, POOLED = 10.0, 3  # of a round; and the shells that are looked at together
SIGNIFICANT = 2.0  # standard errors
SHARE_OF_WIDENING = 0.6  # of the factor's logarithm that the model gets
MOST_SOLVENT = 0.9  # of P_p that the factor may make of P_s


@dataclasses.dataclass(frozen=True)
class SolventModel(VolumeModel):
    """Spectra per shell, envelope and level. In a ``frozen`` model all but the envelope stays as it is.

    ``solvent`` is P_s as it makes the ``mean``, ``widening`` the factor on it that makes the spread.
    ``cleanness``, 0 to 1, says how much this is a map without noise rather than a tomogram.
    """

    signal: np.ndarray
    solvent: np.ndarray
    particle: np.ndarray
    widening: np.ndarray
    envelope: np.ndarray
    level: float
    frozen: bool = False
    cleanness: float = 0.0

    @property
    def widened(self) -> np.ndarray:
        """P_s per shell as it shapes the spread."""
        return np.maximum(self.solvent, np.minimum(self.widening * self.solvent, MOST_SOLVENT * self.particle))

    @property
    def blur(self) -> float:
        """Standard deviation in voxels."""
        noisy = np.flatnonzero(self.signal[1:] < self.noise[1:]) + 1
        shortest = self.shells.centre[noisy[0]] if noisy.size else 0.5
        return float(np.clip(BLUR / shortest, LEAST_BLUR, LARGEST_BLUR))

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
        spread, envelope, level = self.shells.spread, jnp.asarray(self.envelope), jnp.float32(self.level)
        curvature = jnp.asarray(1 / spread(self.particle) - self.prior_precision)
        found, wide = (
            SolventWitness(envelope, jnp.asarray(spread(power**-0.5)), level) for power in (self.solvent, self.widened)
        )
        # at the mean the wide term pulls less than the one that made it: the other term's centre makes up for that
        lost = jax.grad(found)(jnp.asarray(self.mean)) - jax.grad(wide)(jnp.asarray(self.mean))
        return SumWitness((QuadraticWitness(curvature, level + fourier.filter_volume(lost, 1 / curvature)), wide))

    @property
    def prior_precision(self) -> np.float32:
        """Beta."""
        return np.float32(RELATIVE_TETHER / self.particle.max())

    def posterior_mean(self, start: Array, mask: np.ndarray, residual: float = SOLVED) -> Array:
        """Its mean, by conjugate gradients from ``start`` until this share of the right side is left."""
        precisions = self._precisions(mask, self.solvent)
        misfit = precisions[0] * jnp.asarray(self.observation).at[0, 0, 0].add(-self.level * math.sqrt(start.size))
        right = fourier.irfftn(misfit, start.shape)
        return self.level + _solve(*precisions, right, start - self.level, residual)

    def draw(self, noises: Array, mask: np.ndarray) -> Array:
        """A draw of the posterior about its mean: the one solution of a system with as much noise as precision."""
        return jnp.asarray(self.mean) + _perturb(*self._precisions(mask, self.widened), noises)

    def _precisions(self, mask: np.ndarray, solvent: np.ndarray) -> tuple[Array, Array, Array, Array]:
        """M / N, 1 / P_p and 1 / P_s per coefficient, and the envelope."""
        spread, array = self.shells.spread, jnp.asarray
        inside, outside = array(1 / spread(self.particle)), array(1 / spread(solvent))
        return array(mask / spread(self.noise), jnp.float32), inside, outside, array(self.envelope)


@platform.jit
def _perturb(data: Array, inside: Array, outside: Array, envelope: Array, noises: Array) -> Array:
    """A draw of N(0, L^-1), with L of `_solve`: the solution for a right side whose covariance is L."""
    stationary = fourier.filter_volume(noises[0], jnp.sqrt(data + inside))
    local = fourier.filter_volume(jnp.sqrt(envelope) * noises[1], jnp.sqrt(outside))
    start = fourier.filter_volume(noises[0], jax.lax.rsqrt(data + inside + jnp.mean(envelope) * outside))
    return _solve(data, inside, outside, envelope, stationary + local, start, SOLVED)


@platform.jit
def _solve(
    data: Array, inside: Array, outside: Array, envelope: Array, right: Array, start: Array, residual: float
) -> Array:
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
        tol=residual,
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
    total = shells.mean(fourier.power(data))
    error = total / np.sqrt(np.maximum(shells.count, 1))
    if len(parts) == 2:
        rule = "difference of the halves"
        signal = shells.mean(np.real(parts[0] * np.conj(parts[1])))
        noise = shells.mean(fourier.power(parts[0] - parts[1])) / 4
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
    nothing = np.zeros(shape, np.float32)
    model = SolventModel(shells, parts, rule, noise, nothing, signal, blank, blank, np.ones_like(signal), nothing, 0.0)
    first = update(model, estimate, START)
    if first.cleanness > 0:  # its threshold is higher, which is known only now
        first = update(dataclasses.replace(model, cleanness=first.cleanness), estimate, START)
    return first


def _require_signal(whole: list[np.ndarray], parts: tuple[np.ndarray, ...]) -> None:
    measured, total = (sum(float(np.sum(fourier.power(part.ravel()[1:]))) for part in p) for p in (parts, whole))
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
    return update(other, estimate, START)


def tightening(model: SolventModel) -> list[float]:
    """Shares of the threshold in the rounds that follow a first model."""
    rounds = ROUNDS[1] if model.cleanness > 0 else ROUNDS[0]
    return [*np.linspace(START, 1, rounds)[1:].tolist(), 1.0]


def without_middle(mask: np.ndarray, shape: tuple[int, ...], geometry: Geometry) -> np.ndarray:
    """``mask`` of a blind model: without the tilts in the middle of the range, so a second wedge across the first."""
    low, high = geometry.tilt_range
    hidden = min(HIDDEN * (180 - (high - low)), MOST_HIDDEN * (high - low))
    middle = float(np.clip((low + high) / 2, -hidden / 2, hidden / 2))  # a range of tilts is one within +-90
    (third,) = {*AXES} - {geometry.tilt_axis, geometry.beam_axis}
    # with the third axis for the beam, tilt a is 90 - a
    kept = (hidden / 2 - 90 - middle, 90 - hidden / 2 - middle)
    return mask * np.asarray(wedge_mask(shape, kept, tilt_axis=geometry.tilt_axis, beam_axis=third))


def widen(model: SolventModel, mask: np.ndarray, blind: SolventModel, seen: np.ndarray) -> SolventModel:
    """``model``, as much less certain of solvent as ``blind`` turns out to have been too sure of it.

    ``blind`` is the model of the same data under ``seen``, the part of ``mask`` that it was shown.
    """
    hidden = np.where(seen > 0, 0, mask)
    shells = spectra.shells_of(model.shells.shape, hidden)

    def pooled(per_shell: np.ndarray) -> np.ndarray:
        return np.convolve(per_shell, np.ones(POOLED), "same")

    def energy(spectrum: np.ndarray) -> np.ndarray:
        return pooled(shells.mean(hidden * fourier.power(spectrum)) * shells.count)

    mean = np.asarray(fourier.rfftn(jnp.asarray(blind.mean)))
    noise, count = pooled(blind.noise * shells.count), np.maximum(pooled(shells.count), 1)
    missed = energy(model.observation - mean) - noise
    for number in range(WIDENINGS):
        keys = jax.random.split(jax.random.key(number), BLIND_DRAWS)
        noises = (jax.random.normal(key, (2, *shells.shape)) for key in keys)
        draws = (np.asarray(fourier.rfftn(blind.draw(pair, seen))) for pair in noises)
        spread = sum(energy(draw - mean) for draw in draws) / BLIND_DRAWS
        if number == 0:  # what the noise could have done by itself is no news
            missed = spread + _beyond(missed - spread, SIGNIFICANT * (noise + spread) * np.sqrt(2 / count))
        lacking = np.maximum(missed, 0) / np.maximum(spread, 1e-30)
        lacking = np.log(np.clip(lacking, 1 / LARGEST_WIDENING, LARGEST_WIDENING))
        # pooled once more: with one window alone what alternates from shell to shell would grow from round to round
        factor = np.exp(pooled(lacking) / pooled(np.ones_like(lacking)))
        blind = dataclasses.replace(blind, widening=factor * blind.widened / blind.solvent)
    return dataclasses.replace(model, widening=(blind.widened / blind.solvent) ** SHARE_OF_WIDENING)


def _beyond(values: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Values shrunk towards 0: none of one within its error is left, and nearly all of one far beyond it."""
    return values * np.maximum(1 - (error / np.where(values == 0, 1e-30, values)) ** 2, 0)


def update(model: SolventModel, mean: np.ndarray, tightness: float) -> SolventModel:
    """Model after a look at the posterior mean: envelope, level, solvent and particle spectra, and coloured noise.

    ``tightness`` is the share of the threshold at which solvent is to end.
    """
    shells = model.shells
    blurred = spectra.blur(mean, model.blur)
    if not model.solvent.any():
        level, spread = spectra.solvent_level(blurred)
        threshold = _between(LARGEST_THRESHOLD, model.cleanness)
    else:
        passed = np.exp(-4 * np.pi**2 * model.blur**2 * fourier.radial_frequency(shells.shape) ** 2)
        multiplicity = np.broadcast_to(fourier.multiplicity(shells.shape), passed.shape)
        spread, particles = (
            float(np.sqrt(np.average(passed * shells.spread(power), weights=multiplicity)))
            for power in (model.solvent, model.particle)
        )
        level = _shifted(model.level, blurred, LEVEL_WIDTH * spread)
        largest = _between(LARGEST_THRESHOLD, model.cleanness)
        threshold = float(np.clip(PARTICLE_SHARE * particles / spread, LEAST_THRESHOLD, largest))
    level = model.level if model.frozen else level
    softness = _between(SOFTNESS, model.cleanness)
    envelope = _envelope((blurred - level) / max(spread, 1e-12), tightness * threshold, softness)
    model = dataclasses.replace(model, envelope=envelope, level=level)
    return model if model.frozen else _with_moments(model, mean)


def _with_moments(model: SolventModel, mean: np.ndarray) -> SolventModel:
    """Spectra of solvent, particles and coloured noise: moments of the data under the envelope, wedge filled."""
    shells = model.shells
    flat = float(np.mean(model.envelope**2))
    filling = np.asarray(fourier.rfftn(jnp.asarray(mean))) * (1 - shells.mask)

    def masked(part: np.ndarray) -> np.ndarray:
        volume = np.asarray(fourier.irfftn(jnp.asarray(part + filling), shells.shape))
        return np.asarray(fourier.rfftn(jnp.asarray(model.envelope * (volume - model.level))))

    noise, signal, gain, cleanness = model.noise, model.signal, SOLVENT_GAIN, 0.0
    if model.noise_rule.startswith("coloured"):
        total = shells.mean(fourier.power(model.observation))
        found = shells.mean(fourier.power(masked(model.observation))) / flat
        found[0] = found[1]
        cleanness = _cleanness(found / np.maximum(total, 1e-30), shells)
        found = _positive(np.minimum(shells.plateau(found), 0.98 * total))
        share = _between(SOLVENT_SHARE, cleanness)
        noise = (1 - share) * found
        signal = _positive(np.maximum(total - noise, 0.02 * total))
        signal[0] = signal[1]
        solvent, gain = share * found, 1.0
    else:
        parts = [masked(part) for part in model.halves]
        total = np.mean([shells.mean(fourier.power(part)) for part in parts], axis=0) / flat
        cross = total - noise if len(parts) == 1 else shells.mean(np.real(parts[0] * np.conj(parts[1]))) / flat
        solvent = np.maximum(cross, 0.5 * total / np.sqrt(np.maximum(shells.count * flat, 1)))
        solvent[0] = solvent[1]
        solvent = _positive(shells.plateau(np.minimum(solvent, signal)))
    filled = max(float(np.mean((1 - model.envelope) ** 2)), 0.02)
    particle = np.maximum((signal - flat * solvent) / filled, solvent)
    particle[0] = particle[1]
    particle = np.maximum(np.maximum(particle, gain * solvent), LEAST_SHELL * particle.max())
    solvent = np.maximum(gain * solvent, _between(LEAST_SOLVENT, cleanness) * particle)
    noise = np.maximum(noise, np.maximum(LEAST_NOISE * signal, LEAST_SHELL * signal.max()))
    return dataclasses.replace(
        model, noise=noise, signal=signal, solvent=solvent, particle=particle, cleanness=cleanness
    )


def _cleanness(shares: np.ndarray, shells: Shells) -> float:
    """From 0 to 1, on a logarithmic scale: how little of each shell's power is found in solvent."""
    low, high = CLEAN_BAND
    share = max(float(np.median(shares[(shells.centre > low) & (shells.centre < high)])), 1e-12)
    return float(np.clip(math.log(CLEAN[0] / share) / math.log(CLEAN[0] / CLEAN[1]), 0, 1))


def _between(pair: tuple[float, float], cleanness: float) -> float:
    """Geometric interpolation between the values for tomograms and for clean maps."""
    return pair[0] ** (1 - cleanness) * pair[1] ** cleanness


def _shifted(level: float, volume: np.ndarray, width: float) -> float:
    """Mode of the voxels near ``level``, by mean shift (Comaniciu and Meer, PAMI 2002): it moves without jumps."""
    for _ in range(SHIFTS):
        weights = np.exp(-0.5 * ((volume - level) / width) ** 2)
        level = float(np.sum(weights * volume, dtype=np.float64) / max(np.sum(weights, dtype=np.float64), 1e-30))
    return level


def _flat_tail(shells: Shells, total: np.ndarray, enough: np.ndarray) -> bool:
    def tail(low: float, high: float) -> float:
        chosen = (shells.centre > low) & (shells.centre < high) & enough
        return float(total[chosen].mean()) if chosen.any() else np.inf

    return tail(0.35, 0.42) < 1.1 * tail(0.43, 0.5)


def _envelope(deviation: np.ndarray, threshold: float, softness: float) -> np.ndarray:
    def below(limit: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(np.clip(limit / softness, -50, 50)))

    return (below(deviation - threshold) * below(-deviation - BELOW)).astype(np.float32)


def _positive(profile: np.ndarray) -> np.ndarray:
    """The profile with empty or non-positive shells filled by the smallest positive value."""
    good = profile > 0
    return np.where(good, profile, profile[good].min() if good.any() else 1.0)
