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
from cryowgen_jax.cli.options import PATH, seed_option
from cryowgen_jax.cli.simulate_command import AXIS_LENGTH, write_simulation
from cryowgen_jax.io import prepare_output_folder, read_tomogram, write_bytes_atomic, write_text_atomic
from cryowgen_jax.restoration import Restoration, restore
from cryowgen_jax.restoration.checks import METHODS
from cryowgen_jax.restoration.volume_family import WitnessChoice
from cryowgen_jax.simulation import (
    Evaluation,
    SimulatedTomogram,
    coverage_curve,
    evaluate_family,
    simulate_tomogram,
    wedge_errors,
)
from cryowgen_jax.simulation.tomogram import SMALLEST_AXIS
from cryowgen_jax.types import InputError

NAMES = {
    "cryowgen_langevin": "CryoWGEN-II",
    "cryowgen_mc": "CryoWGEN-I",
    "cryogen_ot": "CryoGEN-II",
    "cryogen_map": "CryoGEN-I",
}
HOW = {
    "cryowgen_langevin": "draws of the posterior",
    "cryowgen_mc": "importance sampling, from draws of the model itself",
    "cryogen_ot": "optimal transport, one answer",
    "cryogen_map": "maximum a posteriori, one answer",
}
LEGEND = "\n".join(f"{NAMES[method]}: {HOW[method]}." for method in METHODS)
COLUMNS = {
    "in-wedge correlation": "with the truth, inside the missing wedge; 1 is best",
    "measured correlation": "with the truth, outside of it; 1 is best",
    "95 % coverage": "how often the truth lies in the 95 % interval, inside the missing wedge; 0.95 is best",
    "spread over error": "predicted over actual squared error, inside the missing wedge; below 1 is over-confident",
    "effective samples": "how many independent samples mean and spread rest on",
    "time": "of the restoration",
}
CAPTIONS = {
    "Slices": "What is in the truth and not in a mean was not recovered; std (the spread of the family) should be "
    f"large there. {LEGEND} Where one sample has all the weight, its std is zero and says nothing.",
    "Power spectra": "Dashed: the edge of the missing wedge, which is the empty double triangle of the tomogram.",
    "Coverage in the wedge": "How often the truth lies within the interval that the family states. A method whose "
    "family has collapsed onto one sample is left out.",
}
TITLE = "Against the truth, for details coarser than 4 voxels"
BEST = f"Best: correlations 1, coverage 0.95, spread over error 1; '-' where there is no family.\n{LEGEND}"
PROBABILITIES = np.array([0.1, 0.25, 0.5, 0.75, 0.8, 0.9, 0.95, 0.99])


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method on the simulated tomogram."""

    name: str
    restoration: Restoration
    evaluation: Evaluation
    seconds: float


@click.command()
@click.option(
    "--output",
    "-o",
    type=PATH,
    default=pathlib.Path("cryowgen-demo"),
    show_default=True,
    metavar="DIR",
    help="Folder to make.",
)
@click.option(
    "--shape",
    nargs=3,
    type=AXIS_LENGTH,
    default=(48, 96, 96),
    metavar="Z Y X",
    help=f"Voxels along each axis, {SMALLEST_AXIS} or more.  [default: 48 96 96]",
)
@seed_option("Another number makes another tomogram.")
def command(output: pathlib.Path, shape: tuple[int, int, int], seed: int) -> None:
    """Simulate a tomogram with known truth, restore it by every method, and compare with the truth.

    Takes about a minute. Leaves in the folder DIR report.html (look at this first), a picture (demo.png), a table
    (table.md), the simulated tomogram with its truth, and one folder of volumes for each method.
    """
    terminal = screen.terminal()
    if output.is_dir() and any(output.iterdir()):
        raise InputError(f"folder '{output}' is not empty: delete it, or name another with --output")
    prepare_output_folder(output)
    simulated = simulate_tomogram(shape, seed=seed)
    paths = write_simulation(simulated, output / "tomogram.mrc")
    frame = read_tomogram(paths[0])
    terminal.print(f"simulated {' x '.join(map(str, shape))} voxels, wedge of -60 to 60 degrees", markup=False)
    entries: list[Entry] = []
    witness: WitnessChoice = "auto"
    for method in METHODS:
        terminal.print(f"{NAMES[method]}: {HOW[method]}", markup=False)
        started = time.monotonic()
        with screen.warnings_shown(terminal), screen.ProgressDisplay(terminal, NAMES[method]) as progress:
            restoration = restore(
                simulated.half1,
                simulated.tilt_range,
                half2=simulated.half2,
                witness=witness,
                method=method,
                key=jax.random.key(seed),
                progress=progress,
            )
        seconds = time.monotonic() - started
        witness = "learned" if restoration.report.witness == "learned" else "solvent"  # chosen once
        results.write_volumes(output / method, restoration, frame)
        entries.append(Entry(NAMES[method], restoration, _evaluation(simulated, restoration), seconds))
    _write_comparison(output, simulated, entries, seed)
    screen.show_table(TITLE, ("", *COLUMNS), _rows(simulated, entries), caption=BEST)
    terminal.print(f"see {output / 'report.html'} and {output / 'demo.png'}", markup=False)


def _evaluation(simulated: SimulatedTomogram, restoration: Restoration) -> Evaluation:
    return evaluate_family(
        simulated.truth, restoration.mean, restoration.samples, restoration.weights, restoration.wedge
    )


def _rows(simulated: SimulatedTomogram, entries: list[Entry]) -> list[tuple[str, ...]]:
    tomogram = 0.5 * (simulated.half1 + simulated.half2)
    only = np.ones(1)
    before = evaluate_family(simulated.truth, tomogram, tomogram[None], only, entries[0].restoration.wedge)
    rows = [("tomogram itself", *(screen.number(value, ".2f") for value in _quality(before)), *"--")]
    for entry in entries:
        numbers = [screen.number(value, ".2f") for value in _quality(entry.evaluation)]
        rows.append(
            (entry.name, *numbers, screen.number(entry.restoration.report.ess, ".0f"), screen.duration(entry.seconds))
        )
    return rows


def _quality(found: Evaluation) -> tuple[float, ...]:
    return found.in_wedge_correlation, found.measured_correlation, found.coverage_95, found.spread_over_error


def _write_comparison(output: pathlib.Path, simulated: SimulatedTomogram, entries: list[Entry], seed: int) -> None:
    size = simulated.voxel_size_angstrom
    volumes = {"truth": simulated.truth, "tomogram": 0.5 * (simulated.half1 + simulated.half2)}
    curves = {}
    for entry in entries:
        volumes[f"{entry.name}: mean"] = entry.restoration.mean
        if np.any(entry.restoration.std):
            volumes[f"{entry.name}: std"] = entry.restoration.std
        restored = entry.restoration
        errors = wedge_errors(simulated.truth, restored.mean, restored.samples, restored.weights, restored.wedge)
        curve = coverage_curve(errors, PROBABILITIES)
        if np.isfinite(curve).all():
            curves[entry.name] = curve
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
    summary = [
        (
            name[0].upper() + name[1:],
            ", ".join(f"{row[0]} {row[column]}" for row in rows if row[column] != "-"),
            meaning,
        )
        for column, (name, meaning) in enumerate(COLUMNS.items(), start=1)
    ]
    settings = {
        "shape": simulated.truth.shape,
        "tilt_range": simulated.tilt_range,
        "voxel_size_angstrom": size,
        "seed": seed,
        "versions": results.versions(),
    }
    page = report.render_report(
        "Demo: methods against the truth", summary, warnings, figures, settings, captions=CAPTIONS
    )
    write_text_atomic(output / "report.html", page)
    write_bytes_atomic(output / "demo.png", report.figure_png(slices))
    write_text_atomic(output / "table.md", report.markdown_table(("", *COLUMNS), rows))
