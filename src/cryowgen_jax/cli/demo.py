"""``cryowgen demo``."""

from __future__ import annotations

import dataclasses
import pathlib
import time

import click
import jax
import numpy as np

from cryowgen_jax import report
from cryowgen_jax.cli import console as screen
from cryowgen_jax.cli import results
from cryowgen_jax.cli.simulate import write_simulation
from cryowgen_jax.io import prepare_output_folder, read_tomogram, write_bytes_atomic, write_text_atomic
from cryowgen_jax.restoration import Restoration, restore
from cryowgen_jax.restoration.checks import METHODS
from cryowgen_jax.simulation import (
    Score,
    SimulatedTomogram,
    coverage_curve,
    score_family,
    simulate_tomogram,
    wedge_errors,
)

NAMES = {"cryowgen_langevin": "CryoWGEN-II, Langevin", "cryowgen_mc": "CryoWGEN-I, Monte Carlo"}
COLUMNS = (
    "",
    "in-wedge correlation",
    "measured correlation",
    "95 % coverage",
    "spread / error",
    "effective samples",
    "s",
)
PROBABILITIES = np.array([0.1, 0.25, 0.5, 0.75, 0.8, 0.9, 0.95, 0.99])


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method on the simulated tomogram."""

    name: str
    restoration: Restoration
    score: Score
    seconds: float


@click.command()
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=pathlib.Path),
    default=pathlib.Path("cryowgen-demo"),
    show_default=True,
    help="Folder to make.",
)
@click.option("--shape", nargs=3, type=int, default=(48, 96, 96), show_default=True, metavar="Z Y X", help="Voxels.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Other seed, other tomogram.")
def command(output: pathlib.Path, shape: tuple[int, int, int], seed: int) -> None:
    """Simulate a tomogram with known truth, restore it by every method, and compare with the truth.

    Leaves in OUTPUT the volumes, a picture (demo.png), a table (table.md) and report.html.
    """
    terminal = screen.terminal()
    prepare_output_folder(output)
    simulated = simulate_tomogram(shape, seed=seed)
    paths = write_simulation(simulated, output / "tomogram.mrc")
    frame = read_tomogram(paths[0])
    terminal.print(f"simulated {' x '.join(map(str, shape))} voxels, wedge of -60 to 60 degrees", markup=False)
    entries = []
    for method in METHODS:
        started = time.monotonic()
        with screen.warnings_shown(terminal), screen.ProgressDisplay(terminal, NAMES[method]) as progress:
            restoration = restore(
                simulated.half1,
                simulated.tilt_range,
                half2=simulated.half2,
                method=method,
                key=jax.random.key(seed),
                progress=progress,
            )
        seconds = time.monotonic() - started
        folder = output / method
        folder.mkdir()
        results.write_volumes(folder, restoration, frame)
        entries.append(Entry(NAMES[method], restoration, _score(simulated, restoration), seconds))
    _write_comparison(output, simulated, entries)
    screen.show_table("Against the truth, below 0.25 cycles per voxel", COLUMNS, _rows(simulated, entries))
    terminal.print(f"see {output / 'report.html'} and {output / 'demo.png'}", markup=False)


def _score(simulated: SimulatedTomogram, restoration: Restoration) -> Score:
    return score_family(simulated.truth, restoration.mean, restoration.samples, restoration.weights, restoration.wedge)


def _rows(simulated: SimulatedTomogram, entries: list[Entry]) -> list[tuple[str, ...]]:
    tomogram = 0.5 * (simulated.half1 + simulated.half2)
    only = np.ones(1)
    before = score_family(simulated.truth, tomogram, tomogram[None], only, entries[0].restoration.wedge)
    rows = [("tomogram as it is", f"{before.in_wedge_correlation:.2f}", f"{before.measured_correlation:.2f}", *"----")]
    for entry in entries:
        score = entry.score
        rows.append(
            (
                entry.name,
                f"{score.in_wedge_correlation:.2f}",
                f"{score.measured_correlation:.2f}",
                f"{score.coverage_95:.2f}",
                f"{score.spread_over_error:.2f}",
                f"{entry.restoration.report.ess:.0f}",
                f"{entry.seconds:.0f}",
            )
        )
    return rows


def _write_comparison(output: pathlib.Path, simulated: SimulatedTomogram, entries: list[Entry]) -> None:
    size = simulated.voxel_size_angstrom
    volumes = {"truth": simulated.truth, "tomogram": 0.5 * (simulated.half1 + simulated.half2)}
    curves = {}
    for entry in entries:
        volumes[f"{entry.name}: mean"] = entry.restoration.mean
        volumes[f"{entry.name}: std"] = entry.restoration.std
        restored = entry.restoration
        errors = wedge_errors(simulated.truth, restored.mean, restored.samples, restored.weights, restored.wedge)
        curves[entry.name] = coverage_curve(errors, PROBABILITIES)
    spread = tuple(name for name in volumes if name.endswith(": std"))
    slices = report.slice_figure(volumes, voxel_size_angstrom=size, spread=spread)
    spectra = {name: volume for name, volume in volumes.items() if name not in spread}
    figures = {
        "Slices": slices,
        "Power spectra": report.spectrum_figure(spectra, voxel_size_angstrom=size, tilt_range=simulated.tilt_range),
        "Coverage in the wedge": report.coverage_figure(PROBABILITIES, curves),
    }
    rows = _rows(simulated, entries)
    warnings = [f"{entry.name}: {text}" for entry in entries for text in entry.restoration.report.warnings]
    summary = [(f"{row[0]}: {name}", value) for row in rows for name, value in zip(COLUMNS[1:], row[1:], strict=True)]
    page = report.render_report("Demo: methods against the truth", summary, warnings, figures, results.versions())
    write_text_atomic(output / "report.html", page)
    write_bytes_atomic(output / "demo.png", report.figure_png(slices))
    lines = [" | ".join(COLUMNS), " | ".join(["---"] * len(COLUMNS)), *(" | ".join(row) for row in rows)]
    write_text_atomic(output / "table.md", "".join(f"| {line} |\n" for line in lines))
