r"""Finding the solvent model of a tomogram from the tomogram alone.

Spectra, envelope and level are found by alternating between the posterior mean under the present model and moments of
it and of the data (empirical Bayes).

Moments say nothing of what the wedge hides. A model found in this way is therefore too sure of objects that it took for
solvent, at low frequency above all. Hiding more of the data shows by how much. A second, *blind* model is made without
the tilts in the middle of the range, and its P_s is multiplied, per shell, until its draws spread about its mean by as
much as that misses in what was hidden. The blind model has the harder task, so the factor to the power 0.6 goes to the
model itself, for the spread only.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.chains import Progress
from cryowgen_jax.operators import wedge_mask
from cryowgen_jax.operators.wedge import AXES
from cryowgen_jax.restoration import spectra
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.solvent_model import SolventModel
from cryowgen_jax.restoration.solvent_settings import SETTINGS, Pair, SolventSettings, between
from cryowgen_jax.restoration.spectra import Shells
from cryowgen_jax.restoration.volume_model import NoiseRule
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, InputError

NEVER_EMPTY = (1e-30, 1e-31)  # as empty_share


def fit(
    halves: tuple[Array, ...],
    mask: np.ndarray,
    geometry: Geometry,
    progress: Callable[[Progress], None] | None = None,
    neighbour: SolventModel | None = None,
    *,
    of_spread: bool = True,
    settings: SolventSettings = SETTINGS,
) -> SolventModel:
    """Estimate a solvent model.

    Parameters
    ----------
    halves
        One prepared volume, or two halves of it.
    mask
        The wedge of their box, in [0, 1].
    geometry
        Which tilts the blind model is not shown.
    progress
        Told after every round.
    neighbour
        The model of another tile, which lends all but envelope and mean.
    of_spread
        Whether to make a blind model, which only the spread needs.
    settings
        The constants.

    Raises
    ------
    InputError
        Where the measured region is empty, or the mean is not finite.
    """
    alone = of_spread and neighbour is None
    seen = without_middle(mask, halves[0].shape, geometry, settings) if alone else mask
    widened = bool(np.any(seen != mask))
    started = time.monotonic()
    first = first_model(halves, mask, settings) if neighbour is None else like(neighbour, halves)
    rounds = len(tightening(first))

    def told(step: int) -> None:
        if progress is not None:
            seconds = time.monotonic() - started
            progress(Progress("estimating the model", step, 2 * rounds + 1 if widened else rounds, 1.0, seconds))

    model = settle(first, mask, told)
    if widened:
        # fewer data look emptier: a blind model is of the kind of the whole one
        kind = settings if model.cleanness > 0 else dataclasses.replace(settings, empty_share=NEVER_EMPTY)
        blind = settle(first_model(halves, seen, kind), seen, lambda step: told(rounds + min(step, rounds)))
        model = widen(model, mask, blind, seen)
        told(2 * rounds + 1)
    return model


def settle(model: SolventModel, mask: np.ndarray, told: Callable[[int], None]) -> SolventModel:
    """Alternate between the mean under the model and the model given the mean; ``told`` hears the rounds done."""
    mean = jnp.full(model.shells.shape, model.level)
    for number, tightness in enumerate(tightening(model)):
        mean = model.posterior_mean(mean, mask)
        if not bool(jnp.isfinite(mean).all()):
            raise InputError("no model fits this tomogram (its mean is not finite): check tilt_range and the axes")
        model = update(model, np.asarray(mean), tightness)
        told(number + 1)
    return dataclasses.replace(model, mean=np.asarray(model.posterior_mean(mean, mask, model.settings.final_residual)))


def first_model(halves: tuple[Array, ...], mask: np.ndarray, settings: SolventSettings = SETTINGS) -> SolventModel:
    """The model to start from.

    Noise from two halves is that of their difference. From one tomogram it is taken as white where its spectrum is flat
    near Nyquist (shells 0.70-0.84 of it less than 10 % above shells 0.86-1), at the level of the lowest sixth of its
    shells; otherwise as coloured like the solvent, of whose power it gets four fifths.
    """
    shape = halves[0].shape
    shells = spectra.shells_of(shape, mask)
    whole = [np.asarray(fourier.rfftn(half)) for half in halves]
    parts = tuple(part * shells.mask for part in whole)
    _require_signal(whole, parts, settings)
    enough = shells.count > spectra.MANY
    enough = enough if enough.any() else shells.count > 0
    data = np.mean(np.stack(parts), axis=0)
    total = shells.mean(fourier.power(data))
    error = total / np.sqrt(np.maximum(shells.count, 1))
    if len(parts) == 2:
        rule = NoiseRule.HALVES
        signal = shells.mean(np.real(parts[0] * np.conj(parts[1])))
        noise = shells.mean(fourier.power(parts[0] - parts[1])) / 4
        noise = np.where(enough, noise, np.median(noise[enough]))
    else:
        rule = NoiseRule.WHITE if _flat_tail(shells, total, enough) else NoiseRule.COLOURED
        weakest = np.sort(total[enough])[: max(3, total.size // 6)]
        noise = np.full_like(total, weakest.mean())
        signal = total - noise
    signal = np.maximum(signal, 2 * error)
    signal[0], noise[0] = signal[1], noise[1]
    signal, noise = _positive(signal), _positive(noise)
    if rule is NoiseRule.COLOURED:
        estimate = spectra.blur(np.asarray(fourier.irfftn(jnp.asarray(data), shape)), 1.0)
    else:
        wiener = shells.spread(signal / (signal + noise))
        estimate = np.asarray(fourier.irfftn(jnp.asarray(data * wiener), shape))
    unknown, nothing = np.zeros_like(signal), np.zeros(shape, np.float32)
    model = SolventModel(
        shells=shells,
        halves=parts,
        noise_rule=rule,
        noise=noise,
        mean=nothing,
        signal=signal,
        solvent=unknown,
        particle=unknown,
        widening=np.ones_like(signal),
        envelope=nothing,
        level=0.0,
        settings=settings,
    )
    first = update(model, estimate, settings.first_tightness)
    if first.cleanness > 0:  # its threshold is higher, which is known only now
        first = update(dataclasses.replace(model, cleanness=first.cleanness), estimate, settings.first_tightness)
    return first


def like(model: SolventModel, halves: tuple[Array, ...]) -> SolventModel:
    """The model of a neighbouring tile of the same shape: spectra and level of this one, another envelope."""
    parts = tuple(np.asarray(fourier.rfftn(half)) * model.shells.mask for half in halves)
    other = dataclasses.replace(model, halves=parts, frozen=True)
    wiener = model.shells.spread(model.signal / (model.signal + model.noise))
    estimate = np.asarray(fourier.irfftn(jnp.asarray(other.observation * wiener), model.shells.shape))
    return update(other, estimate, model.settings.first_tightness)


def tightening(model: SolventModel) -> list[float]:
    """Shares of the threshold in the rounds that follow a first model."""
    rounds = model.settings.rounds[1] if model.cleanness > 0 else model.settings.rounds[0]
    return [*np.linspace(model.settings.first_tightness, 1, rounds)[1:].tolist(), 1.0]


def update(model: SolventModel, mean: np.ndarray, tightness: float) -> SolventModel:
    """Model after a look at the posterior mean: envelope, level, solvent and particle spectra, and coloured noise.

    ``tightness`` is the share of the threshold at which solvent is to end.
    """
    shells, given = model.shells, model.settings
    blurred = spectra.blur(mean, model.blur)
    if not model.solvent.any():
        level, spread = spectra.solvent_level(blurred)
        threshold = between(given.largest_threshold, model.cleanness)
    else:
        passed = np.exp(-4 * np.pi**2 * model.blur**2 * fourier.radial_frequency(shells.shape) ** 2)
        multiplicity = np.broadcast_to(fourier.multiplicity(shells.shape), passed.shape)
        spread, particles = (
            float(np.sqrt(np.average(passed * shells.spread(power), weights=multiplicity)))
            for power in (model.solvent, model.particle)
        )
        level = _shifted(model.level, blurred, given.level_width * spread, given.level_shifts)
        largest = between(given.largest_threshold, model.cleanness)
        threshold = float(np.clip(given.particle_share * particles / spread, given.least_threshold, largest))
    level = model.level if model.frozen else level
    softness = between(given.softness, model.cleanness)
    envelope = _envelope((blurred - level) / max(spread, 1e-12), tightness * threshold, given.below, softness)
    model = dataclasses.replace(model, envelope=envelope, level=level)
    return model if model.frozen else _with_moments(model, mean)


def without_middle(
    mask: np.ndarray, shape: tuple[int, ...], geometry: Geometry, settings: SolventSettings = SETTINGS
) -> np.ndarray:
    """``mask`` of a blind model: without the tilts in the middle of the range, a second wedge across the first."""
    low, high = geometry.tilt_range
    hidden = min(settings.hidden * (180 - (high - low)), settings.most_hidden * (high - low))
    middle, tilt, beam = (low + high) / 2, geometry.tilt_axis, geometry.beam_axis
    if abs(middle) > hidden / 2:  # all of one sign: what is kept is no range within +-90 about another axis
        span = (middle - hidden / 2, middle + hidden / 2)
        blind = mask * (1 - np.asarray(wedge_mask(shape, span, tilt_axis=tilt, beam_axis=beam)))
        across = tuple(0 if axis == AXES[beam] else slice(None) for axis in range(3))  # masks always hold this plane
        blind[across] = mask[across]
        return blind
    (third,) = {*AXES} - {tilt, beam}
    # with the third axis for the beam, tilt a is 90 - a
    kept = (hidden / 2 - 90 - middle, 90 - hidden / 2 - middle)
    return mask * np.asarray(wedge_mask(shape, kept, tilt_axis=tilt, beam_axis=third))


def widen(model: SolventModel, mask: np.ndarray, blind: SolventModel, seen: np.ndarray) -> SolventModel:
    """``model`` with the widening of P_s that makes the draws of ``blind`` spread by as much as its mean misses.

    ``blind`` is the model of the same data under ``seen``, the part of ``mask`` that it was shown. What its mean misses
    is measured in the rest of the mask.
    """
    given = model.settings
    hidden = np.where(seen > 0, 0, mask)
    shells = spectra.shells_of(model.shells.shape, hidden)

    def pooled(per_shell: np.ndarray) -> np.ndarray:
        return np.convolve(per_shell, np.ones(given.pooled), "same")

    def energy(spectrum: np.ndarray) -> np.ndarray:
        return pooled(shells.mean(hidden * fourier.power(spectrum)) * shells.count)

    mean = np.asarray(fourier.rfftn(jnp.asarray(blind.mean)))
    noise, count = pooled(blind.noise * shells.count), np.maximum(pooled(shells.count), 1)
    missed = energy(model.observation - mean) - noise
    for number in range(given.widenings):
        keys = jax.random.split(jax.random.key(number), given.blind_draws)
        draws = (np.asarray(fourier.rfftn(blind.draw(key, seen))) for key in keys)
        spread = sum(energy(draw - mean) for draw in draws) / given.blind_draws
        if number == 0:  # a difference within its standard error may be noise
            missed = spread + _beyond(missed - spread, given.significant * (noise + spread) * np.sqrt(2 / count))
        lacking = np.maximum(missed, 0) / np.maximum(spread, 1e-30)
        lacking = np.log(np.clip(lacking, 1 / given.largest_widening, given.largest_widening))
        # pooled once more: otherwise a factor that alternates from shell to shell would grow from round to round
        factor = np.exp(pooled(lacking) / pooled(np.ones_like(lacking)))
        blind = dataclasses.replace(blind, widening=factor * blind.widened / blind.solvent)
    return dataclasses.replace(model, widening=(blind.widened / blind.solvent) ** given.share_of_widening)


def _require_signal(whole: list[np.ndarray], parts: tuple[np.ndarray, ...], settings: SolventSettings) -> None:
    measured, total = (sum(float(np.sum(fourier.power(part.ravel()[1:]))) for part in p) for p in (parts, whole))
    if measured <= settings.least_measured * total:
        raise InputError(
            "no model fits this tomogram: the measured part of its spectrum holds nothing; check tilt_range "
            "and the axes"
        )


def _with_moments(model: SolventModel, mean: np.ndarray) -> SolventModel:
    """Spectra of solvent, particles and coloured noise: moments of the data under the envelope, wedge filled."""
    shells, given = model.shells, model.settings
    flat = float(np.mean(model.envelope**2))
    filling = np.asarray(fourier.rfftn(jnp.asarray(mean))) * (1 - shells.mask)

    def masked(part: np.ndarray) -> np.ndarray:
        volume = np.asarray(fourier.irfftn(jnp.asarray(part + filling), shells.shape))
        return np.asarray(fourier.rfftn(jnp.asarray(model.envelope * (volume - model.level))))

    noise, signal, gain, cleanness = model.noise, model.signal, given.solvent_gain, 0.0
    if model.noise_rule is NoiseRule.COLOURED:
        total = shells.mean(fourier.power(model.observation))
        found = shells.mean(fourier.power(masked(model.observation))) / flat
        found[0] = found[1]
        cleanness = _cleanness(found / np.maximum(total, 1e-30), shells, given.clean_share, given.clean_band)
        found = _positive(np.minimum(shells.plateau(found), 0.98 * total))
        share = between(given.solvent_share, cleanness)
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
        if model.noise_rule is NoiseRule.HALVES:
            cleanness = _cleanness(solvent / signal, shells, given.empty_share, given.clean_band)
    filled = max(float(np.mean((1 - model.envelope) ** 2)), 0.02)
    particle = np.maximum((signal - flat * solvent) / filled, solvent)
    particle[0] = particle[1]
    particle = np.maximum(np.maximum(particle, gain * solvent), given.least_shell * particle.max())
    solvent = np.maximum(gain * solvent, between(given.least_solvent, cleanness) * particle)
    noise = np.maximum(noise, np.maximum(given.least_noise * signal, given.least_shell * signal.max()))
    return dataclasses.replace(
        model, noise=noise, signal=signal, solvent=solvent, particle=particle, cleanness=cleanness
    )


def _cleanness(shares: np.ndarray, shells: Shells, bounds: Pair, band: Pair) -> float:
    """From 0 to 1, on a logarithmic scale between the bounds: how little of each shell's power is found in solvent."""
    (low, high), (most, least) = band, bounds
    share = max(float(np.median(shares[(shells.frequency > low) & (shells.frequency < high)])), 1e-12)
    return float(np.clip(math.log(most / share) / math.log(most / least), 0, 1))


def _shifted(level: float, volume: np.ndarray, width: float, shifts: int) -> float:
    """Mode of the voxels near ``level``, by mean shift (Comaniciu and Meer, PAMI 2002): it moves without jumps."""
    for _ in range(shifts):
        weights = np.exp(-0.5 * ((volume - level) / width) ** 2)
        level = float(np.sum(weights * volume, dtype=np.float64) / max(np.sum(weights, dtype=np.float64), 1e-30))
    return level


def _flat_tail(shells: Shells, total: np.ndarray, enough: np.ndarray) -> bool:
    def tail(low: float, high: float) -> float:
        chosen = (shells.frequency > low) & (shells.frequency < high) & enough
        return float(total[chosen].mean()) if chosen.any() else np.inf

    return tail(0.35, 0.42) < 1.1 * tail(0.43, 0.5)


def _envelope(deviation: np.ndarray, threshold: float, below: float, softness: float) -> np.ndarray:
    """1 where the deviation from the level, in sd, is between ``-below`` and the threshold, falling softly."""

    def under(limit: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(np.clip(limit / softness, -50, 50)))

    return (under(deviation - threshold) * under(-deviation - below)).astype(np.float32)


def _beyond(values: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Values shrunk towards 0, by v max(1 - (error / v)^2, 0): to 0 where they are within their error."""
    return values * np.maximum(1 - (error / np.where(values == 0, 1e-30, values)) ** 2, 0)


def _positive(profile: np.ndarray) -> np.ndarray:
    """The profile with empty or non-positive shells filled by the smallest positive value."""
    good = profile > 0
    return np.where(good, profile, profile[good].min() if good.any() else 1.0)
