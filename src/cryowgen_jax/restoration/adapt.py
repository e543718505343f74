r"""Adapting the learned model to one's own tomograms, of which no clean volume is known.

Monte Carlo expectation-maximisation (Wei and Tanner, JASA 1990) of the conditional prior, phi its network:

.. math:: \phi \leftarrow \arg\max_\phi \; E_{v \sim \rho(\cdot \mid y_1), \rho(\cdot \mid y_2), \ldots} \;
          E_{y' \mid v} \; \log \rho_\phi(v \mid y').

The E step draws volumes v from the posteriors of the tomograms. The M step (``training.learn_prior``) turns cubes of
them by rotations of the cube, puts them through a wedge and noise like those of the tomograms (y'), fits the solvent
model to y', and trains the second network to find v, starting from its present weights. In a turned volume, what was
measured lies in the new wedge, where it teaches the network what belongs there (Liu et al., Nature Communications
2022). Draws are used and not their mean: the mean is smooth where it is unsure, and a network trained on it would be
sure of smooth places.

The first draws come from the solvent model, which makes other errors than the network; the network could learn nothing
new from itself. In later rounds the draws come from the adapted network.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax import io
from cryowgen_jax.chains import Progress
from cryowgen_jax.chains.parallel import largest_divisor
from cryowgen_jax.restoration import checks
from cryowgen_jax.restoration.artefacts import find_artefacts
from cryowgen_jax.restoration.cost import Cost, convolution_seconds, estimate_cost, fit_seconds
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.known_scenes import scene_of, together
from cryowgen_jax.restoration.preparation import frame_of
from cryowgen_jax.restoration.prior_weights import PriorWeights, shipped_weights
from cryowgen_jax.restoration.restore import Contrast, frame_for
from cryowgen_jax.restoration.volume_family import PreparedVolume, ProgressFn, by_draws, model_of
from cryowgen_jax.restoration.wedge_inspection import inspect_wedge
from cryowgen_jax.spatial import fourier
from cryowgen_jax.spatial.rotation import turn_cube
from cryowgen_jax.training import Scenes, TrainingProgress, correction_loss, learn_prior, warmed_adam
from cryowgen_jax.types import Array, InputError, PRNGKey

NUM_ROUNDS, NUM_ITERATIONS = 1, 200
NUM_DRAWS = 8  # of one tomogram
LARGEST_PART = 128  # voxels: of a larger tomogram the middle is drawn
LARGEST_CUBE = 48  # voxels, of what is turned and learned from
MULTIPLE = 8  # voxels: networks halve their grid
NUM_SCENES = 48  # to learn from, of all tomograms together
LEVELS_ABOUT, TILTS_ABOUT = 2.0, 4.0  # largest factor of the noise, largest shift of tilts in degrees
RATE = 3e-5  # ten times as much makes a trained network worse, even on true volumes: one example is a small batch
CHUNK = 10  # iterations between reports, or fewer
BATCH_SIZE = 1
CONVOLUTIONS = 50.0  # what an example costs in convolutions of the finest grid, measured
BOX_VOLUMES = 600  # of the box's size, that learning needs, measured
COMPILING = 45.0  # seconds
LEARNING = "learning"  # the phase


class AdaptationProgress(NamedTuple):
    """What a progress callback is told; ``loss`` is the mean since the last report, nan while volumes are drawn."""

    phase: str
    step: int
    num_steps: int
    loss: float
    seconds: float


class Adaptation(NamedTuple):
    """The adapted weights, and ``log``: by name one value per iteration, all rounds (see ``training.prior_loss``)."""

    weights: PriorWeights
    log: dict[str, np.ndarray]


def adapt_witness(
    tomograms: Sequence[np.ndarray | Array],
    tilt_range: tuple[float, float],
    *,
    halves2: Sequence[np.ndarray | Array] | None = None,
    start: PriorWeights | None = None,
    num_rounds: int = NUM_ROUNDS,
    num_iterations: int = NUM_ITERATIONS,
    key: PRNGKey | None = None,
    tilt_axis: str = "y",
    beam_axis: str = "z",
    contrast: Contrast = "auto",
    checkpoint: str | pathlib.Path | None = None,
    progress: Callable[[AdaptationProgress], None] | None = None,
) -> Adaptation:
    """Adapt the learned model to tomograms, for ``restore(..., witness=...)`` and ``save_witness``.

    Parameters
    ----------
    tomograms
        (Z, Y, X) each, of the same kind of specimen and tilt range; the middle of those larger than 128 voxels is used.
    tilt_range
        Lowest and highest tilt in degrees.
    halves2
        Second half tomograms, ``tomograms`` being the first ones.
    start
        Where to start from; by default the weights that come with the package.
    num_rounds, num_iterations
        Rounds, and optimiser steps of each; without either the weights come back as they were.
    key
        ``jax.random.key``; ``jax.random.key(0)`` by default.
    tilt_axis, beam_axis, contrast
        As in ``restore``.
    checkpoint
        Folder to keep what was drawn and learned in, and to go on from: the same result bit for bit.
    progress
        Told of draws and learning.

    Raises
    ------
    InputError
        Where tomograms, halves, tilts or numbers do not fit, or learning breaks off.

    Warns
    -----
    UserWarning
        Where a tomogram's own spectrum contradicts the stated geometry.

    Examples
    --------
    >>> from cryowgen_jax.simulation import simulate_tomogram
    >>> seen = simulate_tomogram((32, 48, 48), snr=0.5)
    >>> adapted = cg.adapt_witness([seen.half1], (-60, 60), halves2=[seen.half2], num_rounds=0)  # one takes minutes
    >>> adapted.log
    {}
    """
    if num_rounds < 0 or num_iterations < 0:
        raise InputError(f"num_rounds={num_rounds}, num_iterations={num_iterations}: give 0 or more")
    geometry = Geometry(tilt_range, tilt_axis, beam_axis)
    parts = _parts(tomograms, halves2, geometry, contrast)
    edge = _cube_edge([part.halves[0].shape for part in parts])
    weights = shipped_weights() if start is None else start
    key = jax.random.key(0) if key is None else key
    logs: list[dict[str, np.ndarray]] = []
    for number in range(num_rounds if num_iterations else 0):
        of = f"round {number + 1} of {num_rounds}, " if num_rounds > 1 else ""
        folder = None if checkpoint is None else pathlib.Path(checkpoint) / f"round_{number}"
        draw_key, learn_key = jax.random.split(jax.random.fold_in(key, number))
        chosen: PriorWeights | Literal["solvent"] = weights if number else "solvent"
        seen_by = [dataclasses.replace(part, witness=chosen) for part in parts]
        scenes = _drawn(draw_key, weights, seen_by, edge, folder, of, progress)
        learned = learn_prior(
            learn_key,
            weights.second,
            scenes,
            loss=correction_loss,
            optimizer=warmed_adam(RATE, num_iterations),
            num_iterations=num_iterations,
            batch_size=BATCH_SIZE,
            chunk=largest_divisor(num_iterations, CHUNK),  # a last one of another length would compile too
            checkpoint=None if folder is None else folder / "network",
            progress=_from_learning(of, progress),
        )
        if learned.status != "ok":
            raise InputError(f"learning {learned.status}: check the tilt range, or give other tomograms")
        weights = dataclasses.replace(weights, second=learned.average)
        logs.append(learned.log)
    return Adaptation(weights, {name: np.concatenate([log[name] for log in logs]) for name in (logs or [{}])[0]})


def estimate_adaptation(
    shapes: Sequence[tuple[int, ...]],
    start: PriorWeights,
    *,
    num_rounds: int = NUM_ROUNDS,
    num_iterations: int = NUM_ITERATIONS,
) -> Cost:
    """Estimate time and memory of ``adapt_witness`` for tomograms of these shapes; good to about a factor of two.

    Raises
    ------
    InputError
        Where a tomogram does not fit in memory.
    """
    parts = [tuple(min(n, LARGEST_PART) for n in shape) for shape in shapes]
    draws = [estimate_cost(part, NUM_DRAWS, 1, 0, witness="solvent") for part in parts]
    box = max(_cube_edge(parts), MULTIPLE)
    width = int(json.loads(str(start.settings["widths"]))[0])
    learning = num_iterations * BATCH_SIZE * CONVOLUTIONS * convolution_seconds((box // 2,) * 3, width)
    scenes = max(NUM_SCENES, len(parts)) * fit_seconds((box,) * 3)
    seconds = num_rounds * (sum(draw.seconds for draw in draws) + scenes + COMPILING + learning)
    return Cost(seconds, max(4 * box**3 * BOX_VOLUMES, *(draw.num_bytes for draw in draws)), None)


def _cube_edge(shapes: Sequence[tuple[int, ...]]) -> int:
    """Edge of the cubes that are cut from tomograms of these shapes: they have to be cubes to be turned."""
    edge = min(LARGEST_CUBE, *(n for shape in shapes for n in shape))
    return edge - edge % MULTIPLE


def _parts(
    tomograms: Sequence[np.ndarray | Array],
    halves2: Sequence[np.ndarray | Array] | None,
    geometry: Geometry,
    contrast: Contrast,
) -> list[PreparedVolume]:
    """Check and prepare all tomograms; an error says which one it is about."""
    if not len(tomograms):
        raise InputError("no tomogram: give one or more")
    if halves2 is not None and len(halves2) != len(tomograms):
        raise InputError(f"{len(tomograms)} tomograms and {len(halves2)} second halves: give as many, in one order")
    parts = []
    for i, tomogram in enumerate(tomograms):
        try:
            parts.append(_part(tomogram, None if halves2 is None else halves2[i], geometry, contrast))
        except InputError as error:
            which = f"tomogram {i + 1} of {len(tomograms)}: " if len(tomograms) > 1 else ""
            raise InputError(f"{which}{error}") from error
    return parts


def _part(
    tomogram: np.ndarray | Array, half2: np.ndarray | Array | None, geometry: Geometry, contrast: Contrast
) -> PreparedVolume:
    """The middle of a tomogram without its constant borders, ready for chains."""
    volumes = checks.checked_volumes(tomogram, half2, None)
    region = frame_of(np.mean(np.stack(volumes), axis=0), periodic=True).region
    starts = [part.start + max(0, part.stop - part.start - LARGEST_PART) // 2 for part in region]
    middle = tuple(
        slice(start, min(part.stop, start + LARGEST_PART)) for start, part in zip(starts, region, strict=True)
    )
    artefacts = find_artefacts([volume[middle] for volume in volumes], geometry)
    volumes = [artefacts.without(volume[middle], half) for half, volume in enumerate(volumes)]
    average = np.mean(np.stack(volumes), axis=0)
    contradiction = geometry.contradiction(inspect_wedge(average))
    if contradiction:
        warnings.warn(contradiction, UserWarning, stacklevel=4)
    frame = frame_for(average, geometry.mask(average.shape), contrast, in_tiles=False)
    return PreparedVolume(tuple(frame.prepare(volume) for volume in volumes), geometry, lost=artefacts.lost)


def _drawn(
    key: PRNGKey,
    weights: PriorWeights,
    parts: Sequence[PreparedVolume],
    edge: int,
    folder: pathlib.Path | None,
    of: str,
    progress: Callable[[AdaptationProgress], None] | None,
) -> Scenes:
    """Scenes made of draws of all tomograms, or those that were made before an interruption."""
    made: list[Scenes] = []
    counts = [len(share) for share in np.array_split(np.arange(max(NUM_SCENES, len(parts))), len(parts))]
    for i, (part, count) in enumerate(zip(parts, counts, strict=True)):
        kept = None if folder is None else folder / f"tomogram_{i}"
        found = None if kept is None else io.load_checkpoint(kept, _blank(count, edge))
        if found is not None:
            made.append(found[1])
            continue
        this = f"{of}tomogram {i + 1} of {len(parts)}, " if len(parts) > 1 else of
        made.append(_scenes_of(jax.random.fold_in(key, i), weights, part, edge, count, _from_chains(this, progress)))
        if kept is not None:
            io.save_checkpoint(kept, 1, made[-1])
    return together(made)


def _scenes_of(
    key: PRNGKey, weights: PriorWeights, part: PreparedVolume, edge: int, count: int, progress: ProgressFn | None
) -> Scenes:
    """Cubes at random places of draws of one tomogram, turned, and seen again as that was."""
    model = model_of(part, progress)
    family = by_draws(key, model, part.mask, NUM_DRAWS, progress=progress)
    draws = np.asarray(family.samples).transpose(0, *(1 + axis for axis in part.geometry.order))
    generator = np.random.default_rng(np.asarray(jax.random.bits(jax.random.fold_in(key, 3), (4,))))
    started, rows = time.monotonic(), list[Scenes]()
    for number in range(count):
        draw = draws[number % NUM_DRAWS]
        corner = [int(generator.integers(0, n - edge + 1)) for n in draw.shape]
        cube = jnp.asarray(draw[tuple(slice(start, start + edge) for start in corner)])
        truth = np.asarray(turn_cube(cube, jnp.asarray(generator.integers(24))))
        low, high = part.geometry.tilt_range
        tilts = np.array((low, high) if generator.random() < 0.5 else (-high, -low))
        tilts = np.clip(tilts + generator.uniform(-TILTS_ABOUT, TILTS_ABOUT, 2), -90, 90)
        level = LEVELS_ABOUT ** generator.uniform(-1, 1)
        radius = fourier.radial_frequency(truth.shape)
        noise = level * np.interp(radius, model.shells.frequency, model.noise)
        geometry = Geometry((float(tilts[0]), float(tilts[1])))
        halves = _seen_again(generator, truth, noise, geometry, len(part.halves))
        rows.append(scene_of(weights, truth, halves, geometry))
        if progress is not None:
            progress(Progress("making scenes", number + 1, count, 1.0, time.monotonic() - started))
    return together(rows)


def _seen_again(
    generator: np.random.Generator, truth: np.ndarray, noise: np.ndarray, geometry: Geometry, num_halves: int
) -> tuple[Array, ...]:
    """A volume through a wedge, with noise of power ``noise`` per coefficient in the mean of as many halves."""
    spectrum, halves = np.asarray(fourier.rfftn(jnp.asarray(truth))), []
    for _ in range(num_halves):
        white = np.asarray(fourier.rfftn(jnp.asarray(generator.standard_normal(truth.shape), jnp.float32)))
        noisy = geometry.mask(truth.shape) * (spectrum + np.sqrt(num_halves * noise) * white)
        halves.append(fourier.irfftn(jnp.asarray(noisy, jnp.complex64), truth.shape))
    return tuple(halves)


def _blank(count: int, edge: int) -> Scenes:
    """Scenes of the right shapes, for what is read from a checkpoint."""
    _, shells = fourier.wide_shell_index((edge,) * 3)
    volumes, spectra = np.zeros((count, edge, edge, edge), np.float16), np.zeros((count, shells), np.float32)
    return Scenes(volumes, volumes, volumes, volumes, volumes, spectra, spectra, np.zeros((count, 2), np.float32))


def _from_chains(of: str, progress: Callable[[AdaptationProgress], None] | None) -> ProgressFn | None:
    """A callback for chains that passes on what it hears."""
    if progress is None:
        return None
    return lambda p: progress(AdaptationProgress(of + p.phase, p.step, p.num_steps, math.nan, p.seconds))


def _from_learning(
    of: str, progress: Callable[[AdaptationProgress], None] | None
) -> Callable[[TrainingProgress], None] | None:
    """A callback for learning that passes on what it hears."""
    if progress is None:
        return None
    return lambda p: progress(AdaptationProgress(of + LEARNING, p.step, p.num_steps, p.log["loss"], p.seconds))
