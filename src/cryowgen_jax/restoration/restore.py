"""Tomogram in, family out."""

from __future__ import annotations

import dataclasses
import pathlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from cryowgen_jax.chains import Progress
from cryowgen_jax.restoration import checks, spectra
from cryowgen_jax.restoration.artefacts import find_artefacts
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.missed_density import missed_density
from cryowgen_jax.restoration.preparation import Frame, frame_of
from cryowgen_jax.restoration.prior_weights import PriorWeights, shipped_weights
from cryowgen_jax.restoration.tiles import first_piece, restore_tiles
from cryowgen_jax.restoration.volume_family import (
    Diagnostics,
    Plan,
    PreparedVolume,
    WitnessChoice,
    default_chains,
    draws_members,
    family_of,
)
from cryowgen_jax.restoration.wedge_inspection import WedgeReport, inspect_wedge
from cryowgen_jax.restoration.witness_choice import choose
from cryowgen_jax.types import Array, PRNGKey

NUM_STEPS, WARMUP = 140, 60
TRUSTED_WEIGHTS = 0.75  # of a weighted family's members that count
PERIODIC = 1e-3  # leak into the wedge below which opposite faces are taken to fit

Contrast = Literal["auto", "bright", "dark"]


class RestorationReport(NamedTuple):
    """How a restoration went.

    Attributes
    ----------
    method, sampler, status
        What ran, and "ok" or where it stopped.
    warnings
        Sentences on what to distrust.
    witness
        What was taken: "solvent", "learned", "weights" (a network of the caller's) or "given" (a callable).
    hidden_tilt_agreement
        Correlation of each candidate's mean with tilts that were hidden from it, by name; empty where none was chosen.
    widening
        Factor by which those tilts asked for more variance of the learned family in the wedge, which it got; else 1.
    contrast
        "bright" or "dark": how density looks in the tomogram, given or found.
    found
        A line on each kind of thing in the tomogram that is no specimen and was kept away from the model: empty parts,
        background, hot voxels, beads, another texture.
    noise_rule, noise_std, data_weight, prior_precision
        Where the noise spectrum comes from; its root mean square per voxel in the tomogram's units; lambda and beta for
        the standardised volume.
    ess, r_hat, acceptance, step_size, num_gradients
        As in ``ChainResult``. For "cryowgen_mc" ess is that of the weights.
    wedge_found
        What the tomogram's own spectrum says about its wedge.
    missed_share
        How much of the density the mean is expected not to show (``Restoration.missed``); nan for point estimates.
    region
        Box around what was restored: constant borders are left alone.
    specimen
        1 where the tomogram was taken for specimen and solvent, 0 where it is empty, has a spot or another texture,
        (Z, Y, X); None where all of it was.
    model_input
        The tomogram without what was found, (Z, Y, X); None where nothing was.
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
    witness: str
    hidden_tilt_agreement: dict[str, float]
    widening: float
    contrast: str
    found: tuple[str, ...]
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
    missed_share: float
    region: tuple[tuple[int, int], ...]
    specimen: np.ndarray | None
    model_input: np.ndarray | None
    envelope: np.ndarray | None
    seconds: float


class Restoration(NamedTuple):
    """A family of restored volumes in the units of the tomogram.

    ``mean`` and ``std`` (Z, Y, X), ``samples`` (K, Z, Y, X), ``weights`` (K,) that sum to 1, ``wedge`` the mask of the
    whole volume in rfftn layout, ``missed`` (Z, Y, X) the probability of density that the mean does not show
    (``restoration.missed_density``), ``report`` how it went.
    """

    mean: np.ndarray
    std: np.ndarray
    samples: np.ndarray
    weights: np.ndarray
    wedge: np.ndarray
    missed: np.ndarray
    report: RestorationReport


def restore(
    tomogram: np.ndarray | Array,
    tilt_range: tuple[float, float],
    *,
    half2: np.ndarray | Array | None = None,
    witness: WitnessChoice = "auto",
    center: np.ndarray | Array | None = None,
    method: str = "cryowgen_langevin",
    sampler: str = "auto",
    num_samples: int = 8,
    key: PRNGKey | None = None,
    tilt_axis: str = "y",
    beam_axis: str = "z",
    tilt_angles: Sequence[float] | np.ndarray | None = None,
    contrast: Contrast = "auto",
    inside: np.ndarray | Array | None = None,
    as_given: bool = False,
    num_steps: int = NUM_STEPS,
    warmup: int = WARMUP,
    num_chains: int | None = None,
    num_candidates: int = 64,
    tile_shape: tuple[int, int, int] | None = None,
    devices: Sequence[jax.Device] | None = None,
    batch_size: int | None = None,
    checkpoint: str | pathlib.Path | None = None,
    progress: bool | Callable[[Progress], None] = False,
) -> Restoration:
    """Restore the missing wedge of a tomogram as a family of volumes.

    Unless ``tile_shape`` is given the tomogram is one Fourier box: the wedge is exact and no seam can show.
    Coefficients that were measured follow the data within the noise, those in the wedge what witness and data leave
    open.

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
        What volumes are like. "solvent": particles in solvent, estimated from the tomogram
        (``restoration.solvent_model``). "learned": a network that comes with the package
        (``restoration.learned_model``), or what ``load_witness`` returns. "auto": whichever of the two foretells tilts
        better that are hidden from both. Or w itself: a pytree callable on the standardised volume (zero at the median,
        unit standard deviation, density positive). One that does not bound its curvature is sampled with the
        Metropolis-adjusted kernel, which needs more steps.
    center
        A volume in the tomogram's units to tether to, such as another tool's restoration of other data; by default the
        solvent level, loosely.
    method
        "cryowgen_langevin" (draws of the posterior); for comparison "cryowgen_mc" (importance sampling from the
        Gaussian that the model is or begins at; with a centre or another witness its effective sample size is near 1),
        and the point estimates "cryogen_ot" and "cryogen_map" (one sample, no spread).
    sampler
        Of "cryowgen_langevin". "auto": independent members, unless a witness or a centre is given, which need chains:
        exact draws of the solvent model, whose posterior is Gaussian, and annealed Langevin dynamics of the learned one
        (``restoration.annealed_family``). A name that ``sample`` knows, such as "preconditioned", asks for chains, of
        the Gaussian that the learned model begins at.
    num_samples
        K. Spread and intervals that are taken from few members are too narrow (Student's t has wider tails than a
        Gaussian); ``std`` rests on more than the members.
    key
        ``jax.random.key``; ``jax.random.key(0)`` by default.
    tilt_axis, beam_axis
        "x", "y" or "z".
    tilt_angles
        Every tilt in degrees: the mask then knows the gaps between them. Must span ``tilt_range``.
    contrast
        Whether density is "bright" or "dark"; "auto" asks the skewness of the low-passed tomogram.
    inside
        (Z, Y, X), 0 where there is no specimen, such as around a lamella. What lies there stays as it is and counts
        neither as specimen nor as noise.
    as_given
        Take all of the tomogram for specimen and noise. Otherwise empty parts, a background, hot voxels, gold beads and
        parts of another texture are looked for, kept away from the model, and put back as they were
        (``restoration.artefacts``).
    num_steps, warmup
        Steps of each chain that count, and before, where there are chains.
    num_chains
        By default K, but 8 at most, from each of which draws are then taken at even distances.
    num_candidates
        Candidates of "cryowgen_mc"; never fewer than ``num_samples``.
    tile_shape
        Restore in overlapping tiles of about this shape, 64 voxels or more along each axis that is cut, where the
        tomogram as one box does not fit in memory. Chains of all tiles share their noise, so that members meet.
    devices, batch_size, checkpoint, progress
        As in ``sample``; ``progress`` also hears of the model's estimation.

    Returns
    -------
    Restoration
        Mean, standard deviation and members of the family, and a report on how it went.

    Raises
    ------
    InputError
        Where tomogram, halves, tilts or options do not fit.

    Warns
    -----
    UserWarning
        Before it starts, where the tomogram's own spectrum contradicts the stated geometry, or the halves have nothing
        in common.

    Examples
    --------
    >>> import cryowgen_jax as cg
    >>> from cryowgen_jax.simulation import simulate_tomogram
    >>> seen = simulate_tomogram((24, 32, 32), snr=0.5)
    >>> restored = cg.restore(seen.half1, (-60, 60), half2=seen.half2)
    >>> restored.samples.shape
    (8, 24, 32, 32)
    """
    started = time.monotonic()
    num_chains = default_chains(num_samples, num_steps) if num_chains is None else num_chains
    checks.check_options(method, witness, contrast, num_samples, num_steps, warmup, tile_shape, num_chains, sampler)
    geometry = Geometry(tilt_range, tilt_axis, beam_axis, tilt_angles)
    volumes = checks.checked_volumes(tomogram, half2, center)
    number, outside = 1 if half2 is None else 2, checks.checked_outside(inside, volumes[0].shape)
    whole_mask = geometry.mask(volumes[0].shape)
    strangers = checks.check_halves(volumes[0], volumes[1], whole_mask) if number == 2 else None
    artefacts = find_artefacts(volumes[:number], geometry, outside, as_given=as_given)
    parts = [artefacts.without(volume, half if half < number else None) for half, volume in enumerate(volumes)]
    average = np.mean(np.stack(parts[:number]), axis=0)
    frame = frame_for(average, artefacts.mask, contrast, in_tiles=tile_shape is not None)
    inner = tuple(
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(artefacts.inner, frame.region, strict=True)
    )
    found = inspect_wedge(average[inner])
    doubts = tuple(doubt for doubt in (geometry.contradiction(found), strangers) if doubt)
    for doubt in doubts:
        warnings.warn(doubt, UserWarning, stacklevel=2)
    prepared = [frame.prepare(part) for part in parts]
    volume = PreparedVolume(
        halves=tuple(prepared[:number]),
        geometry=geometry,
        witness=witness if not isinstance(witness, str) else "solvent" if witness == "solvent" else shipped_weights(),
        center=None if center is None else prepared[-1],
        lost=artefacts.lost if tile_shape is None else None,
    )
    plan = Plan(num_samples, num_chains, num_steps, warmup, method, sampler, num_candidates, devices, batch_size)
    key = jax.random.key(0) if key is None else key
    told = _print_progress if progress is True else progress or None
    taken, agreement = _name_of(witness), dict[str, float]()
    if isinstance(volume.witness, PriorWeights) and taken == "auto":
        judged = volume if tile_shape is None else first_piece(volume, tile_shape)
        taken, chosen, agreement, widening = choose(judged, volume.witness, told, of_spread=draws_members(volume, plan))
        volume = dataclasses.replace(volume, witness=chosen, widening=widening)
    if tile_shape is None:
        family = family_of(key, volume, plan, checkpoint=checkpoint, progress=told)
    else:
        family = restore_tiles(key, volume, tile_shape, plan, checkpoint=checkpoint, progress=told)
    model, diagnostics = family.model, family.diagnostics
    missed, share = np.zeros(family.mean.shape, np.float32), np.nan
    if len(family.weights) > 1:
        given = (np.asarray(values) for values in (family.mean, family.samples, family.weights, family.firmness))
        missed, share = missed_density(*given)
    mean = frame.restore(family.mean, average)
    members = (mean + artefacts.strength * (frame.restore(member, average) - mean) for member in family.samples)
    return Restoration(
        mean=artefacts.put_back(mean),
        std=artefacts.put_back_spread(frame.restore_spread(family.std)),
        samples=np.stack([artefacts.put_back(member) for member in members]),
        weights=np.asarray(family.weights),
        wedge=np.asarray(volume.mask if volume.mask.shape == whole_mask.shape else whole_mask),
        missed=artefacts.fill(frame.fill(missed)),
        report=RestorationReport(
            method=method,
            witness=taken,
            hidden_tilt_agreement=agreement,
            widening=volume.widening,
            warnings=doubts + _doubts(diagnostics, len(family.weights), method),
            contrast="bright" if frame.scale > 0 else "dark",
            found=artefacts.found,
            noise_rule=model.noise_rule.value,
            noise_std=float(np.sqrt(1 / model.data_weight) * abs(frame.scale)),
            data_weight=float(model.data_weight),
            wedge_found=found,
            missed_share=share,
            region=tuple(
                (box.start + part.start, box.start + part.stop) for box, part in zip(artefacts.box, inner, strict=True)
            ),
            specimen=artefacts.fill(~artefacts.apart) if artefacts.apart.any() else None,
            model_input=artefacts.fill(average) if artefacts.found else None,
            envelope=None if callable(witness) else artefacts.fill(frame.fill(1 - family.firmness)),
            seconds=time.monotonic() - started,
            **diagnostics._asdict(),
        ),
    )


def _name_of(witness: WitnessChoice) -> str:
    if isinstance(witness, str):
        return witness
    return "weights" if isinstance(witness, PriorWeights) else "given"


def found_contrast(tomogram: np.ndarray) -> str:
    """Return "bright" where the low-passed tomogram is skewed upwards, else "dark": density is rarer and stronger."""
    smooth = spectra.blur(tomogram, 2.0).astype(np.float64)
    return "bright" if np.mean((smooth - smooth.mean()) ** 3) >= 0 else "dark"


def frame_for(average: np.ndarray, mask: np.ndarray, contrast: Contrast, *, in_tiles: bool) -> Frame:
    """How to prepare a tomogram whose halves have this average; tiles take off smooth parts of their own."""
    frame = frame_of(average, periodic=True)
    bright = (found_contrast(average[frame.region]) if contrast == "auto" else contrast) == "bright"
    whole = frame.region == tuple(slice(0, n) for n in average.shape)
    periodic = in_tiles or (whole and spectra.wedge_leak(frame.prepare(average), mask) < PERIODIC)
    return frame_of(average, bright=bright, periodic=periodic)


def _doubts(diagnostics: Diagnostics, num_members: int, method: str) -> tuple[str, ...]:
    doubts = []
    if diagnostics.status != "ok":
        doubts.append(f"The run did not finish ({diagnostics.status}).")
    if method == "cryowgen_mc" and diagnostics.ess < TRUSTED_WEIGHTS * num_members:
        doubts.append(
            f"The weights rest on {diagnostics.ess:.1f} candidates, so the spread says nothing: use cryowgen_langevin."
        )
    if method in checks.POINT_METHODS:
        doubts.append("A point estimate has no spread: std is 0 everywhere and says nothing of the error.")
    if diagnostics.r_hat > 1.2:
        doubts.append(
            f"The chains have not converged (split R-hat {diagnostics.r_hat:.2f}, should be below 1.2): give them more "
            "steps."
        )
    if method == "cryowgen_langevin" and diagnostics.num_gradients and np.isnan(diagnostics.r_hat):
        doubts.append("The chains are too short to say whether they have converged: give them more steps.")
    return tuple(doubts)


def _print_progress(progress: Progress) -> None:
    print(f"{progress.phase}: step {progress.step} of {progress.num_steps}, {progress.seconds:.0f} s", flush=True)
