"""``cryowgen restore``."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import click
import jax
import numpy as np
from rich.console import Console

from cryowgen_jax.cli import console as screen
from cryowgen_jax.cli import results
from cryowgen_jax.io import Tomogram, prepare_output_folder, read_tilt_angles, read_tomogram, write_text_atomic
from cryowgen_jax.restoration import Restoration, estimate_cost, restore
from cryowgen_jax.restoration.restore import NUM_STEPS, WARMUP, Contrast
from cryowgen_jax.types import InputError

AXES = click.Choice(["x", "y", "z"])
FILE = click.Path(path_type=pathlib.Path)


@click.command()
@click.argument("tomogram", type=FILE)
@click.option("--tilt-range", nargs=2, type=float, metavar="LO HI", help="Lowest and highest tilt in degrees.")
@click.option("--tilt-angles", type=FILE, help="File with one tilt angle a line (.tlt, .rawtlt), instead of the range.")
@click.option("--output", "-o", required=True, type=FILE, help="Folder to make.")
@click.option("--half2", type=FILE, help="Second half tomogram (TOMOGRAM is the first): noise is measured.")
@click.option("--center", type=FILE, help="Volume to tether to, e.g. the output of another tool on other data.")
@click.option(
    "--method",
    type=click.Choice(["cryowgen_langevin", "cryowgen_mc"]),
    default="cryowgen_langevin",
    show_default=True,
    help="Langevin chains, or importance sampling for comparison.",
)
@click.option("--samples", type=click.IntRange(min=2), default=8, show_default=True, help="Volumes in the family.")
@click.option("--steps", type=click.IntRange(min=1), default=NUM_STEPS, show_default=True, help="Steps of every chain.")
@click.option("--warmup", type=click.IntRange(min=0), default=WARMUP, show_default=True, help="Steps before those.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same family.")
@click.option("--tilt-axis", type=AXES, default="y", show_default=True, help="Axis that the specimen was tilted about.")
@click.option("--beam-axis", type=AXES, default="z", show_default=True, help="Axis along the beam.")
@click.option(
    "--contrast",
    type=click.Choice(["auto", "bright", "dark"]),
    default="auto",
    show_default=True,
    help="Whether protein is bright or dark.",
)
@click.option("--voxel-size", type=float, help="Angstrom, instead of what the header says.")
@click.option("--permissive", is_flag=True, help="Read files that break the MRC standard but can be understood.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run in the same folder.")
def command(
    tomogram: pathlib.Path,
    tilt_range: tuple[float, float] | None,
    tilt_angles: pathlib.Path | None,
    output: pathlib.Path,
    half2: pathlib.Path | None,
    center: pathlib.Path | None,
    method: str,
    samples: int,
    steps: int,
    warmup: int,
    seed: int,
    tilt_axis: str,
    beam_axis: str,
    contrast: Contrast,
    voxel_size: float | None,
    permissive: bool,
    resume: bool,
) -> None:
    """Restore TOMOGRAM: a family of volumes, their mean and their spread.

    Writes into OUTPUT: mean.mrc, std.mrc, samples/, wedge.mrc (the mask that was used), run.json (all settings and
    diagnostics) and report.html (look at this first). Where std is large the family disagrees, and the mean there is a
    guess.

    Example: cryowgen restore tomo.mrc --tilt-range -60 60 --output restored
    """
    terminal = screen.terminal()
    volumes = {
        name: read_tomogram(path, permissive=permissive, voxel_size_override=voxel_size)
        for name, path in (("tomogram", tomogram), ("half2", half2), ("center", center))
        if path is not None
    }
    whole = volumes["tomogram"]
    angles, span = _tilts(tilt_range, tilt_angles)
    settings: dict[str, Any] = {
        "tomogram": str(tomogram),
        "half2": None if half2 is None else str(half2),
        "center": None if center is None else str(center),
        "tilt_range": span,
        "tilt_angles": None if angles is None else [float(angle) for angle in angles],
        "tilt_axis": tilt_axis,
        "beam_axis": beam_axis,
        "contrast": contrast,
        "method": method,
        "samples": samples,
        "steps": steps,
        "warmup": warmup,
        "seed": seed,
        "voxel_size_angstrom": list(whole.voxel_size_angstrom),
    }
    for name, volume in volumes.items():
        for note in volume.notes:
            terminal.print(f"note: {name}: {note}", markup=False)
    cost = estimate_cost(whole.data.shape, samples, steps, warmup)
    if resume and (output / "run.json").exists():
        terminal.print(f"'{output}' is complete already", markup=False)
        return
    prepare_output_folder(output, resume=resume)
    results.require_space(output, whole, samples)
    _agree_with_interrupted(output, settings)
    shape = " x ".join(str(n) for n in whole.data.shape)
    terminal.print(
        f"{shape} voxels, {samples} samples of {warmup + steps} steps: about {screen.duration(cost.seconds)}, "
        f"{screen.size(cost.num_bytes)} of memory",
        markup=False,
    )
    with screen.warnings_shown(terminal), screen.ProgressDisplay(terminal, tomogram.name) as progress:
        restoration = restore(
            whole.data,
            span,
            half2=volumes["half2"].data if "half2" in volumes else None,
            center=volumes["center"].data if "center" in volumes else None,
            method=method,
            num_samples=samples,
            key=jax.random.key(seed),
            tilt_axis=tilt_axis,
            beam_axis=beam_axis,
            tilt_angles=angles,
            contrast=contrast,
            num_steps=steps,
            warmup=warmup,
            batch_size=cost.batch_size,
            checkpoint=output / "checkpoint",
            progress=progress,
        )
    _finish(output, restoration, settings, whole, terminal)


def _finish(
    output: pathlib.Path, restoration: Restoration, settings: dict[str, Any], whole: Tomogram, terminal: Console
) -> None:
    outcome = restoration.report
    record = results.run_record(restoration, settings)
    results.write_volumes(output, restoration, whole)
    results.write_report(output, restoration, record, whole)
    results.write_record(output, record)
    (output / "settings.json").unlink(missing_ok=True)
    shutil.rmtree(output / "checkpoint", ignore_errors=True)
    for sentence in outcome.warnings:
        terminal.print(f"warning: {sentence}", markup=False)
    terminal.print(
        f"done in {screen.duration(outcome.seconds)}; smallest effective sample size {outcome.ess:.0f}, largest split "
        f"R-hat {outcome.r_hat:.2f}; see {output / 'report.html'}",
        markup=False,
    )


def _tilts(
    tilt_range: tuple[float, float] | None, tilt_angles: pathlib.Path | None
) -> tuple[np.ndarray | None, tuple[float, float]]:
    if tilt_angles is not None:
        angles = read_tilt_angles(tilt_angles)
        span = (float(angles.min()), float(angles.max()))
        if tilt_range is not None and max(abs(a - b) for a, b in zip(span, tilt_range, strict=True)) > 1.0:
            raise InputError(
                f"the angles of '{tilt_angles}' span {span[0]:g} to {span[1]:g} degrees and --tilt-range says "
                f"{tilt_range[0]:g} to {tilt_range[1]:g}: leave one of them out"
            )
        return angles, span
    if tilt_range is None:
        raise InputError("no tilt range: give --tilt-range LO HI or --tilt-angles FILE (cryowgen inspect finds it)")
    return None, tilt_range


def _agree_with_interrupted(output: pathlib.Path, settings: dict[str, Any]) -> None:
    """Keep the settings of an unfinished run, and refuse to go on with others."""
    path = output / "settings.json"
    now = json.dumps(settings, indent=2)
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in settings if before.get(name) != json.loads(now)[name]]
        if different:
            name = different[0]
            raise InputError(
                f"the run in '{output}' was started with {name}={before.get(name)!r}, not {settings[name]!r}: resume "
                "it with the same settings, or name another folder"
            )
    write_text_atomic(path, now + "\n")
