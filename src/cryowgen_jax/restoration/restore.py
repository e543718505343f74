"""Tomogram in, family out."""

from __future__ import annotations

import dataclasses
import pathlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.chains import Progress, sample
from cryowgen_jax.methods import cryowgen_mc
from cryowgen_jax.operators import wedge_mask, wedge_mask_from_tilts
from cryowgen_jax.potentials import Posterior, has_curvature
from cryowgen_jax.restoration import checks, solvent, spectra
from cryowgen_jax.restoration.inspect import WedgeReport, inspect_wedge, wedge_contradiction
from cryowgen_jax.restoration.preparation import Frame, frame_of
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, InputError, PRNGKey

NUM_STEPS, WARMUP = 140, 60
ROUND_STEPS = 20  # of the model's estimation
NUM_FIT_STEPS = ROUND_STEPS * (len(solvent.THRESHOLDS) - 1)
TRUSTED_WEIGHTS = 0.75  # of a weighted family's members that count
COVERED = 0.1  # by a list of tilts: below it a coefficient counts as missing
PERIODIC = 1e-3  # leak into the wedge below which opposite faces are taken to fit

Witness = Callable[[Array], Array]
Contrast = Literal["auto", "bright", "dark"]


class RestorationReport(NamedTuple):
    """How a restoration went.

    Attributes
    ----------
    method, sampler, status
        What ran, and "ok" or where it stopped.
    warnings
        Sentences on what to distrust.
    contrast
        "bright" or "dark": how density looks in the tomogram, given or found.
    noise_rule, noise_std, data_weight, prior_precision
        Where the noise spectrum comes from; its root mean square per voxel in the tomogram's units; lambda and beta for
        the standardised volume.
    ess, r_hat, acceptance, step_size, num_gradients
        As in ``ChainResult``. For "cryowgen_mc" ess is that of the weights.
    wedge_found
        What the tomogram's own spectrum says about its wedge.
    region
        Part of the tomogram that was restored: constant borders are left alone.
    envelope
        Where the model sees particles (1) and solvent (0), (Z, Y, X), 0 outside of ``region``; None for a witness that
        the caller gave.
    seconds
        Wall time.
    """

    method: str
    sampler: str
    status: str
    warnings: tuple[str, ...]
    contrast: str
    noise_rule: str
    noise_std: float
    data_weight: float
    prior_precision: float
    ess: float
    r_hat: float
    acceptance: float
    step_size: float
    num_gradients: int
    wedge_found: WedgeReport
    region: tuple[tuple[int, int], ...]
    envelope: np.ndarray | None
    seconds: float


class Restoration(NamedTuple):
    """A family of restored volumes in the units of the tomogram.

    ``mean`` and ``std`` (Z, Y, X), ``samples`` (K, Z, Y, X), ``weights`` (K,) that sum to 1, ``wedge`` the mask of the
    whole volume in rfftn layout, ``report`` how it went.
    """

    mean: np.ndarray
    std: np.ndarray
    samples: np.ndarray
    weights: np.ndarray
    wedge: np.ndarray
    report: RestorationReport


class _Draws(NamedTuple):
    """Family of the prepared volume with its diagnostics."""

    mean: Array
    std: Array
    samples: Array
    weights: Array
    sampler: str
    status: str
    ess: float
    r_hat: float
    acceptance: float
    step_size: float
    num_gradients: int


def restore(
    tomogram: np.ndarray | Array,
    tilt_range: tuple[float, float],
    *,
    half2: np.ndarray | Array | None = None,
    witness: Witness | Literal["default"] = "default",
    center: np.ndarray | Array | None = None,
    method: str = "cryowgen_langevin",
    num_samples: int = 8,
    key: PRNGKey | None = None,
    tilt_axis: str = "y",
    beam_axis: str = "z",
    tilt_angles: Sequence[float] | np.ndarray | None = None,
    contrast: Contrast = "auto",
    num_steps: int = NUM_STEPS,
    warmup: int = WARMUP,
    num_candidates: int = 64,
    devices: Sequence[jax.Device] | None = None,
    batch_size: int | None = None,
    checkpoint: str | pathlib.Path | None = None,
    progress: bool | Callable[[Progress], None] = False,
) -> Restoration:
    """Restore the missing wedge of a tomogram as a family of volumes.

    The whole tomogram is one Fourier box, so that the wedge is exact and no seam can show; coefficients that were
    measured follow the data within the noise, those in the wedge what the witness and the data leave open.

    Parameters
    ----------
    tomogram
        (Z, Y, X), or the first of two half tomograms.
    tilt_range
        Lowest and highest tilt in degrees.
    half2
        Second half tomogram, from the other tilts or frames: the noise spectrum then comes from their difference, and
        what is restored is their mean.
    witness
        "default" (particles in solvent, estimated from the tomogram: see ``restoration.solvent``), or a pytree callable
        on the standardised volume (zero at the median, unit standard deviation, density positive). One that does not
        bound its own curvature is sampled with the Metropolis-adjusted kernel, which needs more steps.
    center
        A volume in the tomogram's units to tether to, such as another tool's restoration of other data; by default the
        solvent level, loosely.
    method
        "cryowgen_langevin" (chains) or "cryowgen_mc" (importance sampling, whose effective sample size is near 1 on
        volumes: for comparison).
    num_samples
        K, one chain each.
    key
        ``jax.random.key``; ``jax.random.key(0)`` by default.
    tilt_axis, beam_axis
        "x", "y" or "z".
    tilt_angles
        Every tilt in degrees: the mask then knows the gaps between them. Must span ``tilt_range``.
    contrast
        Whether density is "bright" or "dark"; "auto" asks the skewness of the low-passed tomogram.
    num_steps, warmup
        Steps of each chain that count, and before.
    num_candidates
        Candidates of "cryowgen_mc"; never fewer than ``num_samples``.
    devices, batch_size, checkpoint, progress
        As in ``sample``; ``progress`` also hears of the model's estimation.

    Raises
    ------
    InputError
        Where tomogram, halves, tilts or options do not fit.

    Warns
    -----
    UserWarning
        Before it starts, where the tomogram's own spectrum contradicts the stated geometry.
    """
    started = time.monotonic()
    checks.check_options(method, witness, contrast, num_samples, num_steps, warmup)
    checks.check_tilts(tilt_range, tilt_angles)
    volumes = checks.checked_volumes(tomogram, half2, center)
    data = volumes[: 1 if half2 is None else 2]
    average = np.mean(np.stack(data), axis=0)
    whole_mask = _mask(average.shape, tilt_range, tilt_angles, tilt_axis, beam_axis)
    frame = _frame(average, whole_mask, contrast)
    found = inspect_wedge(average[frame.region])
    contradiction = wedge_contradiction(found, tilt_range, tilt_axis, beam_axis)
    if contradiction:
        warnings.warn(contradiction, UserWarning, stacklevel=2)
    key = jax.random.key(0) if key is None else key
    report = _printer(progress)

    halves = tuple(frame.prepare(volume) for volume in data)
    mask = _mask(halves[0].shape, tilt_range, tilt_angles, tilt_axis, beam_axis)
    model, estimate = _fit(jax.random.fold_in(key, 0), halves, mask, report)
    posterior = _posterior(model, mask, witness, None if center is None else frame.prepare(volumes[-1]))
    if method == "cryowgen_mc":
        draws = _by_importance(jax.random.fold_in(key, 1), posterior, max(num_candidates, num_samples), num_samples)
    else:
        draws = _by_chains(
            jax.random.fold_in(key, 1),
            posterior,
            _starts(jax.random.fold_in(key, 2), model, estimate, mask, num_samples) if witness == "default" else None,
            num_samples=num_samples,
            num_steps=num_steps,
            warmup=warmup,
            devices=devices,
            batch_size=batch_size,
            checkpoint=checkpoint,
            report=report,
        )
    return Restoration(
        mean=frame.restore(draws.mean, average),
        std=frame.restore_spread(draws.std),
        samples=np.stack([frame.restore(member, average) for member in draws.samples]),
        weights=np.asarray(draws.weights),
        wedge=np.asarray(whole_mask),
        report=RestorationReport(
            method=method,
            sampler=draws.sampler,
            status=draws.status,
            warnings=_doubts(draws, contradiction, method),
            contrast="bright" if frame.scale > 0 else "dark",
            noise_rule=model.noise_rule,
            noise_std=float(np.sqrt(1 / model.data_weight) * abs(frame.scale)),
            data_weight=float(model.data_weight),
            prior_precision=float(posterior.prior_precision),
            ess=draws.ess,
            r_hat=draws.r_hat,
            acceptance=draws.acceptance,
            step_size=draws.step_size,
            num_gradients=draws.num_gradients + NUM_FIT_STEPS,
            wedge_found=found,
            region=tuple((part.start, part.stop) for part in frame.region),
            envelope=frame.fill(1 - model.envelope) if witness == "default" else None,
            seconds=time.monotonic() - started,
        ),
    )


def found_contrast(tomogram: np.ndarray) -> str:
    """Return "bright" where the low-passed tomogram is skewed upwards, else "dark": density is rarer and stronger."""
    smooth = spectra.blur(tomogram, 2.0).astype(np.float64)
    return "bright" if np.mean((smooth - smooth.mean()) ** 3) >= 0 else "dark"


def _mask(
    shape: tuple[int, ...],
    tilt_range: tuple[float, float],
    tilt_angles: Sequence[float] | np.ndarray | None,
    tilt_axis: str,
    beam_axis: str,
) -> np.ndarray:
    if tilt_angles is None:
        return np.asarray(wedge_mask(shape, tilt_range, tilt_axis=tilt_axis, beam_axis=beam_axis))
    coverage = np.asarray(wedge_mask_from_tilts(shape, tilt_angles, tilt_axis=tilt_axis, beam_axis=beam_axis))
    return np.where(coverage < COVERED, 0, coverage)


def _frame(average: np.ndarray, mask: np.ndarray, contrast: Contrast) -> Frame:
    """How to prepare a tomogram whose halves have this average; their own smooth parts average to the frame's."""
    frame = frame_of(average, periodic=True)
    bright = (found_contrast(average[frame.region]) if contrast == "auto" else contrast) == "bright"
    whole = frame.region == tuple(slice(0, n) for n in average.shape)
    periodic = whole and spectra.wedge_leak(frame.prepare(average), mask) < PERIODIC
    return frame_of(average, bright=bright, periodic=periodic)


def _fit(
    key: PRNGKey, halves: tuple[Array, ...], mask: np.ndarray, report: Callable[[Progress], None] | None
) -> tuple[solvent.SolventModel, Array]:
    """Estimate the model; also the mean of the last short chain."""
    started = time.monotonic()
    model = solvent.first_model(halves, mask)
    position: Array | None = None
    for number, threshold in enumerate(solvent.THRESHOLDS[1:]):
        result = sample(
            jax.random.fold_in(key, number),
            model.posterior(mask),
            sampler="preconditioned",
            num_chains=1,
            num_steps=ROUND_STEPS,
            warmup=0,
            num_kept=1,
            init=position,
        )
        if result.status != "ok":
            raise InputError(
                "no model fits this tomogram: the measured part of its spectrum holds nothing; check tilt_range "
                "and the axes"
            )
        position = result.samples[0, -1]
        model = solvent.update(model, np.asarray(result.mean), threshold)
        if report is not None:
            done = (number + 1) * ROUND_STEPS
            report(Progress("estimating the model", done, NUM_FIT_STEPS, 1.0, time.monotonic() - started))
    return model, result.mean


def _starts(key: PRNGKey, model: solvent.SolventModel, estimate: Array, mask: np.ndarray, num_samples: int) -> Array:
    """One start a chain, spread out about as the posterior is."""
    return jnp.stack([model.draw_near(jax.random.fold_in(key, i), estimate, mask) for i in range(num_samples)])


def _posterior(
    model: solvent.SolventModel, mask: np.ndarray, witness: Witness | Literal["default"], center: Array | None
) -> Posterior:
    """Posterior under the default or the given witness; a centre's precision is what its misfit to the data says."""
    posterior = model.posterior(mask)
    if witness != "default":
        posterior = dataclasses.replace(posterior, witness=witness)
    if center is None:
        return posterior
    misfit = spectra.power(np.asarray(fourier.rfftn(center)) - model.observation)
    excess = np.average(misfit - model.shells.spread(model.noise), weights=model.shells.weight)
    precision = 1 / max(float(excess), 1e-3 / float(model.data_weight))
    return dataclasses.replace(posterior, center=center, prior_precision=jnp.float32(precision))


def _by_chains(
    key: PRNGKey,
    posterior: Posterior,
    starts: Array | None,
    *,
    num_samples: int,
    num_steps: int,
    warmup: int,
    devices: Sequence[jax.Device] | None,
    batch_size: int | None,
    checkpoint: str | pathlib.Path | None,
    report: Callable[[Progress], None] | None,
) -> _Draws:
    result = sample(
        key,
        posterior,
        sampler="preconditioned" if has_curvature(posterior.witness) else "pcnl",
        num_chains=num_samples,
        num_steps=num_steps,
        warmup=warmup,
        num_kept=1,
        init=starts,
        devices=devices,
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=report or False,
    )
    if result.samples.shape[1] == 0:
        raise InputError(
            f"the chains diverged before they gave a sample ({result.status}): bound the witness's curvature"
        )
    return _Draws(
        result.mean,
        jnp.sqrt(result.variance),
        result.samples[:, -1],
        jnp.full((num_samples,), 1 / num_samples),
        result.sampler,
        result.status,
        float(result.ess),
        float(result.r_hat),
        float(result.acceptance),
        float(result.step_size),
        result.num_gradients,
    )


def _by_importance(key: PRNGKey, posterior: Posterior, num_candidates: int, num_samples: int) -> _Draws:
    family = cryowgen_mc(key, posterior, num_candidates=num_candidates, num_samples=num_samples, batch_size=1)
    ess = float(1 / jnp.sum(family.weights**2))
    return _Draws(
        family.mean, family.std, family.samples, family.weights, "importance", "ok", ess, np.nan, 1.0, np.nan, 0
    )


def _doubts(draws: _Draws, contradiction: str | None, method: str) -> tuple[str, ...]:
    doubts = [contradiction] if contradiction else []
    if draws.status != "ok":
        doubts.append(f"The run did not finish ({draws.status}).")
    if method == "cryowgen_mc" and draws.ess < TRUSTED_WEIGHTS * len(draws.weights):
        doubts.append(
            f"The weights rest on {draws.ess:.1f} candidates, so the spread says nothing: use cryowgen_langevin."
        )
    if draws.r_hat > 1.2:
        doubts.append(
            f"The chains have not converged (split R-hat {draws.r_hat:.2f}, should be below 1.2): give them more steps."
        )
    if method == "cryowgen_langevin" and np.isnan(draws.r_hat):
        doubts.append("The chains are too short to say whether they have converged: give them more steps.")
    return tuple(doubts)


def _printer(progress: bool | Callable[[Progress], None]) -> Callable[[Progress], None] | None:
    if progress is True:
        return lambda p: print(f"{p.phase}: step {p.step} of {p.num_steps}, {p.seconds:.0f} s", flush=True)
    return progress or None
