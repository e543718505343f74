"""How well ``restore`` restores simulated tomograms: a table over tilt ranges and noise, against POCS."""

from __future__ import annotations

import argparse
import itertools
import pathlib
import time

import jax
import numpy as np
from pocs import pocs

import cryowgen_jax as cg
from cryowgen_jax.report import markdown_table
from cryowgen_jax.simulation import evaluate_family, simulate_tomogram

TILT_RANGES = ((-60.0, 60.0), (-40.0, 60.0))
NOISE = (0.5, 0.1, 0.03)
COLUMNS = ("tilts", "SNR", "seed", "method", "in-wedge cc", "measured cc", "95 % coverage", "spread / error", "seconds")


def compare(shape: tuple[int, int, int], tilt_range: tuple[float, float], snr: float, seed: int) -> list[list[str]]:
    tomogram = simulate_tomogram(shape, tilt_range, snr, seed)
    case = [f"{tilt_range[0]:.0f} {tilt_range[1]:.0f}", f"{snr:g}", str(seed)]
    rows = []
    started = time.monotonic()
    point = pocs(tomogram.half1, tomogram.half2, tilt_range)
    mask = np.asarray(cg.wedge_mask(shape, tilt_range))
    found = evaluate_family(tomogram.truth, point, point[None], np.ones(1), mask)
    correlations = [f"{found.in_wedge_correlation:.3f}", f"{found.measured_correlation:.3f}"]
    rows.append([*case, "POCS", *correlations, "-", "-", f"{time.monotonic() - started:.0f}"])
    started = time.monotonic()
    family = cg.restore(tomogram.half1, tilt_range, half2=tomogram.half2, key=jax.random.key(seed))
    seconds = time.monotonic() - started
    found = evaluate_family(tomogram.truth, family.mean, family.samples, family.weights, family.wedge)
    correlations = [f"{found.in_wedge_correlation:.3f}", f"{found.measured_correlation:.3f}"]
    calibration = [f"{found.coverage_95:.3f}", f"{found.spread_over_error:.2f}"]
    rows.append([*case, "CryoWGEN-II", *correlations, *calibration, f"{seconds:.0f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(48, 96, 96), metavar=("Z", "Y", "X"))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1))
    parser.add_argument("--output", type=pathlib.Path, help="also write the table here, Markdown")
    arguments = parser.parse_args()
    rows = []
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS), flush=True)
    for tilt_range, snr, seed in itertools.product(TILT_RANGES, NOISE, arguments.seeds):
        for row in compare(tuple(arguments.shape), tilt_range, snr, seed):
            rows.append(row)
            print("| " + " | ".join(row) + " |", flush=True)
    if arguments.output:
        arguments.output.write_text(markdown_table(COLUMNS, rows))


if __name__ == "__main__":
    main()
