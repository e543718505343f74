"""Tomograms with backgrounds, borders, gold and carbon: what a restoration loses by them."""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import mrcfile
import numpy as np

import cryowgen_jax as cg
from cryowgen_jax.report import markdown_table
from cryowgen_jax.restoration.spectra import through
from cryowgen_jax.simulation import simulate_tomogram
from cryowgen_jax.spatial import fourier

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent / "restoration_quality")]

from pocs import pocs  # noqa: E402
from spoiled import cases  # noqa: E402

TILTS = (-60.0, 60.0)
HIGHEST = 0.25  # cycles per voxel
COLUMNS = ("case", "seed", "POCS", "as given", "restored", "witness", "seconds", "found")


class Spoiled(NamedTuple):
    """A tomogram with a name, its truth, and where it is judged."""

    name: str
    seed: str
    truth: np.ndarray
    halves: tuple[np.ndarray, np.ndarray]
    judged: np.ndarray


def simulated(shape: tuple[int, int, int], seed: int) -> Iterator[Spoiled]:
    """Our own cases on our own phantoms."""
    tomogram = simulate_tomogram(shape, TILTS, snr=0.1, seed=seed)
    mask = np.asarray(cg.wedge_mask(shape, TILTS))
    for name, case in cases(tomogram, mask, seed).items():
        first, second = (np.asarray(case.change(half), np.float32) for half in (tomogram.half1, tomogram.half2))
        yield Spoiled(name, str(seed), tomogram.truth, (first, second), case.judged)


def made(truth: pathlib.Path, folder: pathlib.Path) -> Iterator[Spoiled]:
    """Cases of other code: folders with half1.mrc, half2.mrc and keep.mrc, which is 0 where nothing is judged."""

    def read(path: pathlib.Path) -> np.ndarray:
        return np.asarray(mrcfile.read(path), np.float32)

    for case in sorted(path.parent for path in folder.glob("*/half1.mrc")):
        halves = (read(case / "half1.mrc"), read(case / "half2.mrc"))
        yield Spoiled(case.name, folder.name, read(truth), halves, read(case / "keep.mrc") > 0.5)


def agreement(spoiled: Spoiled, volume: np.ndarray) -> float:
    """Correlation with the truth in the wedge, below a quarter of a cycle per voxel, where the case is judged.

    Three lines across the beam are left out, since a background may stay in the result.
    """
    shape = volume.shape
    _, ky, kx = fourier.frequencies(shape)
    lines = (np.abs(ky) * shape[1] < 1.5) & (np.abs(kx) * shape[2] < 1.5)
    missing = np.asarray(cg.wedge_mask(shape, TILTS)) == 0
    chosen = missing & (fourier.radial_frequency(shape) < HIGHEST) & ~lines
    parts = (through(part, chosen)[spoiled.judged] for part in (volume, spoiled.truth))
    return float(np.corrcoef(*parts)[0, 1])


def row(spoiled: Spoiled, witness: str, method: str, *, compared: bool) -> list[str]:
    first, second = spoiled.halves
    others = [None, None]
    if compared:
        given = cg.restore(first, TILTS, half2=second, witness=witness, method=method, as_given=True)
        others = [pocs(first, second, TILTS), given.mean]
    started = time.monotonic()
    restored = cg.restore(first, TILTS, half2=second, witness=witness, method=method)
    seconds = time.monotonic() - started
    scores = ["-" if volume is None else f"{agreement(spoiled, volume):.3f}" for volume in (*others, restored.mean)]
    found = "; ".join(restored.report.found) or "-"
    return [spoiled.name, spoiled.seed, *scores, restored.report.witness, f"{seconds:.0f}", found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(48, 96, 96), metavar=("Z", "Y", "X"))
    parser.add_argument("--seeds", type=int, nargs="+", default=(31, 32, 33))
    parser.add_argument("--made", type=pathlib.Path, nargs=2, action="append", metavar=("TRUTH", "FOLDER"), default=[])
    parser.add_argument("--witness", default="auto")
    parser.add_argument("--method", default="cryogen_map")
    parser.add_argument(
        "--alone", action="store_true", help="without POCS and the tomogram as given, which take longer"
    )
    parser.add_argument("--output", type=pathlib.Path, help="also write the table here, Markdown")
    arguments = parser.parse_args()
    sources = [made(truth, folder) for truth, folder in arguments.made]
    sources = sources or [simulated(tuple(arguments.shape), seed) for seed in arguments.seeds]
    rows = []
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS), flush=True)
    for source in sources:
        for spoiled in source:
            rows.append(row(spoiled, arguments.witness, arguments.method, compared=not arguments.alone))
            print("| " + " | ".join(rows[-1]) + " |", flush=True)
    if arguments.output:
        arguments.output.write_text(markdown_table(COLUMNS, rows))


if __name__ == "__main__":
    main()
