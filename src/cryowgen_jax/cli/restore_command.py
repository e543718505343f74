"""``cryowgen restore``."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import click
import jax
import numpy as np
from rich.markup import escape

from cryowgen_jax.cli import console as screen
from cryowgen_jax.cli import results
from cryowgen_jax.cli.options import (
    ANGSTROM,
    BEAM_AXIS,
    CONTRAST,
    DEGREES,
    MOST_STEPS,
    PATH,
    PERMISSIVE,
    RESUME,
    TILT_AXIS,
    seed_option,
)
from cryowgen_jax.io import Tomogram, prepare_output_folder, read_tilt_angles, read_tomogram, run_folder
from cryowgen_jax.restoration import Cost, Restoration, estimate_cost, load_witness, restore
from cryowgen_jax.restoration.checks import METHODS, SAMPLER_NAMES, WITNESSES, check_options
from cryowgen_jax.restoration.geometry import ANGLE_TOLERANCE, Geometry
from cryowgen_jax.restoration.restore import NUM_STEPS, WARMUP, Contrast
from cryowgen_jax.restoration.volume_family import MOST_CHAINS, default_chains
from cryowgen_jax.types import InputError

LEARNED_VOXEL_SIZES = (7.5, 13.0)  # angstrom
SAME_VOXEL_SIZE = 0.01  # relative difference between files of one specimen that headers' rounding explains


@click.command()
@click.argument("tomogram", type=PATH)
@click.option("--tilt-range", nargs=2, type=DEGREES, metavar="LO HI", help="Lowest and highest tilt in degrees.")
@click.option(
    "--tilt-angles",
    type=PATH,
    metavar="FILE",
    help="Text file with one tilt angle a line (.tlt, .rawtlt), instead of the range: gaps between tilts then count.",
)
@click.option("--output", "-o", required=True, type=PATH, metavar="DIR", help="Folder to make.")
@click.option(
    "--half2",
    type=PATH,
    metavar="TOMO2.mrc",
    help="Second half tomogram, TOMOGRAM being the first. Their mean is restored; their difference measures the noise.",
)
@click.option(
    "--center",
    type=PATH,
    metavar="CENTER.mrc",
    help="Volume to stay close to, such as another program's restoration made from other data.",
)
@click.option(
    "--witness",
    default=WITNESSES[0],
    show_default=True,
    metavar="NAME|FILE",
    help="What volumes are like: 'solvent' (particles stand out from solvent), 'learned' (a network that comes with "
    "the program), 'auto' (whichever foretells tilts better that are hidden from both), or a file of weights.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    metavar="NAME",
    default=METHODS[0],
    show_default=True,
    help="cryowgen_langevin; to compare it with cryowgen_mc (importance sampling, poor with --center), or "
    "cryogen_ot and cryogen_map, which give one volume and no spread.",
)
@click.option(
    "--sampler",
    type=click.Choice(SAMPLER_NAMES),
    metavar="NAME",
    default=SAMPLER_NAMES[0],
    show_default=True,
    help="Of cryowgen_langevin. 'auto' draws members one by one; 'preconditioned' runs chains of the Gaussian model.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=2),
    default=8,
    show_default=True,
    metavar="K",
    help=f"How many restored volumes to draw, 2 or more; those beyond {MOST_CHAINS} cost room and hardly any time.",
)
@click.option(
    "--steps",
    type=click.IntRange(1, MOST_STEPS),
    default=NUM_STEPS,
    show_default=True,
    metavar="N",
    help="Sampling steps for each of them. More take longer and give better diagnostics.",
)
@click.option(
    "--warmup",
    type=click.IntRange(0, MOST_STEPS),
    default=WARMUP,
    show_default=True,
    metavar="N",
    help="Steps before those, which do not count.",
)
@seed_option("Of the random numbers: the same number gives the same volumes.")
@click.option(
    "--tile",
    nargs=3,
    type=click.IntRange(min=64),
    metavar="Z Y X",
    help="Restore in overlapping tiles of about this many voxels, where the whole does not fit in memory. 64 or more.",
)
@TILT_AXIS
@BEAM_AXIS
@CONTRAST
@click.option(
    "--mask",
    type=PATH,
    metavar="MASK.mrc",
    help="0 where there is no specimen, as around a lamella: counts neither as specimen nor as noise.",
)
@click.option(
    "--as-given",
    is_flag=True,
    help="Do not look for empty parts, a background, hot voxels, gold and parts of another texture.",
)
@click.option("--voxel-size", type=ANGSTROM, metavar="A", help="Angstrom, instead of what the header says.")
@PERMISSIVE
@RESUME
def command(
    tomogram: pathlib.Path,
    tilt_range: tuple[float, float] | None,
    tilt_angles: pathlib.Path | None,
    output: pathlib.Path,
    half2: pathlib.Path | None,
    center: pathlib.Path | None,
    witness: str,
    method: str,
    sampler: str,
    samples: int,
    steps: int,
    warmup: int,
    seed: int,
    tile: tuple[int, int, int] | None,
    tilt_axis: str,
    beam_axis: str,
    contrast: Contrast,
    mask: pathlib.Path | None,
    as_given: bool,
    voxel_size: float | None,
    permissive: bool,
    resume: bool,
) -> None:
    """Restore TOMOGRAM: a family of volumes, their mean and their spread.

    TOMOGRAM is a reconstruction in MRC format with its missing wedge unfilled. 'cryowgen inspect' finds its tilt range
    and axes.

    Writes into the folder DIR: report.html (look at this first), mean.mrc (the restoration), std.mrc (how far the
    volumes of the family differ: where it is large, the mean is a guess), missed.mrc (how likely there is density that
    the mean does not show), samples/ (the family), wedge.mrc (which Fourier coefficients count as measured, zero
    frequency in the middle) and run.json (all settings and diagnostics). Where a background, empty parts, gold beads,
    hot voxels or parts of another texture were found, mask.mrc says where.

    Example: cryowgen restore tomo.mrc --tilt-range -60 60 --output restored
    """
    terminal = screen.terminal()
    angles, span = _tilts(tilt_range, tilt_angles)
    Geometry(span, tilt_axis, beam_axis, angles)
    check_options(method, WITNESSES[0], contrast, samples, steps, warmup, tile, sampler=sampler)
    files = {"tomogram": tomogram, "half2": half2, "center": center, "mask": mask}
    weights = None if witness in WITNESSES else pathlib.Path(witness)
    chosen: Any = witness if weights is None else load_witness(weights)
    volumes = _volumes(files, permissive, voxel_size)
    whole = volumes["tomogram"]
    for note in (*notes(volumes.values(), "the tomogram", "the tomogram's are used"), *_scale(whole, witness)):
        terminal.print(f"note: {note}", markup=False)
    settings: dict[str, Any] = {
        **run_folder.described(files | {"witness": weights}),
        "model": witness if weights is None else None,
        "tilt_range": span,
        "tilt_angles": None if angles is None else angles.tolist(),
        "tilt_axis": tilt_axis,
        "beam_axis": beam_axis,
        "contrast": contrast,
        "as_given": as_given,
        "method": method,
        "sampler": sampler,
        "samples": samples,
        "steps": steps,
        "warmup": warmup,
        "seed": seed,
        "tile": tile,
        "voxel_size_angstrom": list(whole.voxel_size_angstrom),
    }
    if resume and run_folder.is_complete(output, settings):
        terminal.print(f"'{output}' is complete already, nothing to do", markup=False)
        return
    chains = default_chains(samples, steps) if sampler != SAMPLER_NAMES[0] or center is not None else 0
    cost = estimate_cost(
        whole.data.shape,
        samples,
        steps,
        warmup,
        tile,
        witness=witness if weights is None else "weights",
        with_chains=chains > 0,
    )
    new = not output.exists()
    if not resume:
        results.require_space(output, whole, samples, chains)
    prepare_output_folder(output, resume=resume)
    with run_folder.under_way(output, settings, new=new) as checkpoint:
        terminal.print(_plan(whole, cost, samples, chains if method == METHODS[0] else 0, steps + warmup), markup=False)
        with screen.warnings_shown(terminal) as shown, screen.ProgressDisplay(terminal, tomogram.name) as progress:
            restoration = restore(
                whole.data,
                span,
                half2=volumes["half2"].data if "half2" in volumes else None,
                center=volumes["center"].data if "center" in volumes else None,
                witness=chosen,
                method=method,
                sampler=sampler,
                num_samples=samples,
                key=jax.random.key(seed),
                tilt_axis=tilt_axis,
                beam_axis=beam_axis,
                tilt_angles=angles,
                contrast=contrast,
                inside=volumes["mask"].data if "mask" in volumes else None,
                as_given=as_given,
                num_steps=steps,
                warmup=warmup,
                tile_shape=tile,
                batch_size=cost.batch_size,
                checkpoint=checkpoint,
                progress=progress,
            )
        results.write_all(output, restoration, settings, _seen(volumes), estimated_seconds=cost.seconds)
    for sentence in restoration.report.warnings:
        if sentence not in shown:
            terminal.print(f"[bold]warning:[/bold] {escape(sentence)}")
    terminal.print(_ending(restoration, output), markup=False)


def _tilts(
    tilt_range: tuple[float, float] | None, tilt_angles: pathlib.Path | None
) -> tuple[np.ndarray | None, tuple[float, float]]:
    if tilt_angles is not None:
        angles = read_tilt_angles(tilt_angles)
        span = (float(angles.min()), float(angles.max()))
        if tilt_range is not None and max(abs(a - b) for a, b in zip(span, tilt_range, strict=True)) > ANGLE_TOLERANCE:
            raise InputError(
                f"the angles of '{tilt_angles}' span {span[0]:g} to {span[1]:g} degrees and --tilt-range says "
                f"{tilt_range[0]:g} to {tilt_range[1]:g}: leave one of them out"
            )
        return angles, span
    if tilt_range is None:
        raise InputError("no tilt range: give --tilt-range LO HI or --tilt-angles FILE ('cryowgen inspect' finds it)")
    return None, tilt_range


def _volumes(
    files: Mapping[str, pathlib.Path | None], permissive: bool, voxel_size: float | None
) -> dict[str, Tomogram]:
    """Read the files that were given; ``InputError`` where their shapes differ."""
    volumes = {
        name: read_tomogram(path, permissive=permissive, voxel_size_override=voxel_size)
        for name, path in files.items()
        if path is not None
    }
    whole = volumes["tomogram"]
    for volume in volumes.values():
        if volume.data.shape != whole.data.shape:
            raise InputError(
                f"'{volume.path}' has shape (Z, Y, X) {volume.data.shape} and '{whole.path}' {whole.data.shape}: "
                "give volumes of one shape"
            )
    return volumes


def _seen(volumes: Mapping[str, Tomogram]) -> Tomogram:
    """What was restored: the tomogram, or the mean of its halves."""
    whole = volumes["tomogram"]
    if "half2" not in volumes:
        return whole
    return dataclasses.replace(whole, data=0.5 * (whole.data + volumes["half2"].data))


def notes(volumes: Collection[Tomogram], first: str, then: str) -> Iterator[str]:
    """What is odd about files and does not stop a run; voxels are compared with those of the ``first``."""
    size = next(iter(volumes)).voxel_size_angstrom
    for volume in volumes:
        for note in volume.notes:
            yield f"'{volume.path}': {note}"
        if not np.allclose(volume.voxel_size_angstrom, size, rtol=SAME_VOXEL_SIZE):
            there, here = (" x ".join(f"{edge:.4g}" for edge in edges) for edges in (volume.voxel_size_angstrom, size))
            yield f"'{volume.path}' says voxels of {there} A, {first} of {here} A: {then}"


def _scale(whole: Tomogram, witness: str) -> Iterator[str]:
    """Whether a learned witness meets voxels of another size than it learned from."""
    size = max(whole.voxel_size_angstrom)
    if witness not in ("auto", "solvent") and not LEARNED_VOXEL_SIZES[0] <= size <= LEARNED_VOXEL_SIZES[1]:
        yield f"voxels of {size:.4g} A: the network learned from 10 A, bin the tomogram or leave out --witness"


def _plan(whole: Tomogram, cost: Cost, samples: int, chains: int, steps: int) -> str:
    shape = " x ".join(str(n) for n in whole.data.shape)
    work = f"{samples} samples" + (f" of {chains} chains of {steps} steps" if chains else "")
    return f"{shape} voxels, {work}: about {screen.duration(cost.seconds)}, {screen.size(cost.num_bytes)} of memory"


def _ending(restoration: Restoration, output: pathlib.Path) -> str:
    outcome = restoration.report
    said = [f"done in {screen.duration(outcome.seconds)}"]
    if outcome.found:
        said.append(f"beside the specimen: {', '.join(outcome.found)}")
    if outcome.hidden_tilt_agreement:
        agreement = ", ".join(f"{name} {value:.3f}" for name, value in outcome.hidden_tilt_agreement.items())
        said.append(f"witness {outcome.witness} (correlation with hidden tilts: {agreement})")
    if outcome.num_gradients:
        said.append(
            f"effective samples {screen.number(outcome.ess, '.0f')}, R-hat {screen.number(outcome.r_hat, '.2f')} "
            "(1 is best)"
        )
    return "; ".join([*said, f"look at {output / 'report.html'}"])
