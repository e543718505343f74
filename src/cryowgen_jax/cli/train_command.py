"""``cryowgen train``."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import click
import jax
import numpy as np

from cryowgen_jax.cli import console as screen
from cryowgen_jax.cli.options import (
    ANGSTROM,
    BEAM_AXIS,
    CONTRAST,
    DEGREES,
    PATH,
    PERMISSIVE,
    RESUME,
    TILT_AXIS,
    seed_option,
)
from cryowgen_jax.cli.restore_command import LEARNED_VOXEL_SIZES, notes
from cryowgen_jax.io import (
    Tomogram,
    load_weights,
    prepare_output_file,
    prepare_output_folder,
    read_tomogram,
    run_folder,
)
from cryowgen_jax.restoration import adapt_witness, estimate_adaptation, load_witness, save_witness
from cryowgen_jax.restoration.adapt import NUM_ITERATIONS, NUM_ROUNDS
from cryowgen_jax.restoration.checks import checked_volumes
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.preparation import frame_of
from cryowgen_jax.restoration.prior_weights import shipped_weights
from cryowgen_jax.restoration.restore import Contrast
from cryowgen_jax.types import InputError

SUFFIX = ".safetensors"
UNFINISHED = ".unfinished"  # folder beside the output
ADAPTED = "adapted"  # what was asked for, among the settings of the weights


@click.command()
@click.argument("tomograms", type=PATH, nargs=-1, required=True, metavar="TOMOGRAM...")
@click.option(
    "--tilt-range", nargs=2, type=DEGREES, required=True, metavar="LO HI", help="Lowest and highest tilt in degrees."
)
@click.option("--output", "-o", required=True, type=PATH, metavar="WITNESS", help=f"File to write, ending in {SUFFIX}.")
@click.option(
    "--half2",
    type=PATH,
    multiple=True,
    metavar="TOMO2.mrc",
    help="Second half tomogram, TOMOGRAM being the first; once for each TOMOGRAM, in the same order.",
)
@click.option(
    "--start", type=PATH, metavar="FILE", help="Weights to start from, instead of those that come with the program."
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=NUM_ROUNDS,
    show_default=True,
    metavar="N",
    help="How often to restore and learn from that. The second round restores with what the first has learned.",
)
@click.option(
    "--iterations",
    type=click.IntRange(min=1),
    default=NUM_ITERATIONS,
    show_default=True,
    metavar="N",
    help="Steps of learning in each round.",
)
@seed_option("Of the random numbers: the same number gives the same weights.")
@TILT_AXIS
@BEAM_AXIS
@CONTRAST
@click.option("--voxel-size", type=ANGSTROM, metavar="A", help="Angstrom, instead of what the headers say.")
@PERMISSIVE
@RESUME
def command(
    tomograms: tuple[pathlib.Path, ...],
    tilt_range: tuple[float, float],
    output: pathlib.Path,
    half2: tuple[pathlib.Path, ...],
    start: pathlib.Path | None,
    rounds: int,
    iterations: int,
    seed: int,
    tilt_axis: str,
    beam_axis: str,
    contrast: Contrast,
    voxel_size: float | None,
    permissive: bool,
    resume: bool,
) -> None:
    """Adapt the network of 'cryowgen restore --witness learned' to TOMOGRAMs of one kind of specimen.

    No clean volume is needed. The tomograms are restored as a family of volumes; these are turned, seen again through
    a missing wedge and with noise as the tomograms have, and the network learns to find them. Compare the
    restoration with those of '--witness learned' and of the default.

    Writes the file WITNESS, for 'cryowgen restore --witness WITNESS'. While it works, a folder beside it ending in
    '.unfinished' holds what --resume needs.

    Example: cryowgen train tomo.mrc --tilt-range -60 60 --output mine.safetensors
    """
    terminal = screen.terminal()
    Geometry(tilt_range, tilt_axis, beam_axis)
    if half2 and len(half2) != len(tomograms):
        raise InputError(f"{len(tomograms)} tomograms and {len(half2)} second halves: give one --half2 for each")
    if output.suffix != SUFFIX:
        raise InputError(f"'{output}' does not end in {SUFFIX}: name it '{output.name}{SUFFIX}'")
    weights = shipped_weights() if start is None else load_witness(start)
    first, second = ([_read(path, permissive, voxel_size) for path in paths] for paths in (tomograms, half2))
    _check(first, second)
    for note in _notes([*first, *second]):
        terminal.print(f"note: {note}", markup=False)
    settings: dict[str, Any] = {
        **_described("tomogram", tomograms),
        **_described("half2", half2),
        **run_folder.described({"start": start}),
        "tilt_range": tilt_range,
        "tilt_axis": tilt_axis,
        "beam_axis": beam_axis,
        "contrast": contrast,
        "rounds": rounds,
        "iterations": iterations,
        "seed": seed,
        "voxel_size_angstrom": list(first[0].voxel_size_angstrom),
    }
    unfinished = output.with_name(output.name + UNFINISHED)
    if _is_written(output, settings, resume=resume):
        terminal.print(f"'{output}' is complete already, nothing to do", markup=False)
        return
    prepare_output_file(output)
    if resume:
        run_folder.is_complete(unfinished, settings)
    shapes = [volume.data.shape for volume in first]
    cost = estimate_adaptation(shapes, weights, num_rounds=rounds, num_iterations=iterations)
    new = not unfinished.exists()
    prepare_output_folder(unfinished, resume=resume)
    with run_folder.under_way(unfinished, settings, new=new, temporary=True) as checkpoint:
        terminal.print(_plan(shapes, rounds, iterations, cost.seconds, cost.num_bytes), markup=False)
        with screen.warnings_shown(terminal), screen.ProgressDisplay(terminal, output.name) as progress:
            adapted = adapt_witness(
                [volume.data for volume in first],
                tilt_range,
                halves2=[volume.data for volume in second] or None,
                start=weights,
                num_rounds=rounds,
                num_iterations=iterations,
                key=jax.random.key(seed),
                tilt_axis=tilt_axis,
                beam_axis=beam_axis,
                contrast=contrast,
                checkpoint=checkpoint,
                progress=progress,
            )
        save_witness(output, dataclasses.replace(adapted.weights, settings=weights.settings | {ADAPTED: settings}))
    terminal.print(_ending(adapted.log["loss"], tomograms, tilt_range, output), markup=False)


def _read(path: pathlib.Path, permissive: bool, voxel_size: float | None) -> Tomogram:
    return read_tomogram(path, permissive=permissive, voxel_size_override=voxel_size)


def _check(first: Sequence[Tomogram], second: Sequence[Tomogram]) -> None:
    """Refuse, by its name, a tomogram that is too small or does not fit its second half."""
    for i, volume in enumerate(first):
        try:
            frame_of(volume.data, periodic=True)
            checked_volumes(volume.data, second[i].data if second else None, None)
        except InputError as error:
            raise InputError(f"'{volume.path}': {error}") from error


def _described(name: str, paths: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Paths and digests of any number of files under one name, as ``run_folder.described`` has them for one."""
    each = [run_folder.described({name: path}) for path in paths]
    merged = {key: [one[key] for one in each] for key in run_folder.described({name: None})}
    return {key: values or None for key, values in merged.items()}


def _is_written(output: pathlib.Path, settings: run_folder.Settings, *, resume: bool) -> bool:
    """Whether the run has been completed; a file of another run, or one not to be resumed, is left alone."""
    if not output.exists() or output.is_dir():
        return False
    if not resume:
        raise InputError(f"'{output}' exists already: name another file, or delete it")
    _, there = load_weights(output)
    before = there.get(ADAPTED)
    run_folder.require_same(output, before if isinstance(before, dict) else {}, settings)
    return True


def _notes(volumes: Sequence[Tomogram]) -> Iterator[str]:
    """What is odd about the files and does not stop the run."""
    yield from notes(volumes, f"'{volumes[0].path}'", "give voxels of one size")
    size = max(volumes[0].voxel_size_angstrom)
    if not LEARNED_VOXEL_SIZES[0] <= size <= LEARNED_VOXEL_SIZES[1]:
        yield f"voxels of {size:.4g} A: the network that comes with the program learned from 10 A, bin them first"


def _plan(shapes: Sequence[tuple[int, ...]], rounds: int, iterations: int, seconds: float, num_bytes: int) -> str:
    what = f"{len(shapes)} tomogram{'s' * (len(shapes) > 1)}, {rounds} round{'s' * (rounds > 1)} of {iterations} steps"
    return f"{what}: about {screen.duration(seconds)}, {screen.size(num_bytes)} of memory"


def _ending(
    loss: np.ndarray, tomograms: Sequence[pathlib.Path], tilt_range: tuple[float, float], output: pathlib.Path
) -> str:
    few = max(1, len(loss) // 10)
    return (
        f"done: loss {np.mean(loss[:few]):.3f} in the first {few} steps, {np.mean(loss[-few:]):.3f} in the last; next: "
        f"cryowgen restore {tomograms[0]} --tilt-range {tilt_range[0]:g} {tilt_range[1]:g} --witness {output} -o DIR"
    )
