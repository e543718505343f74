"""Real tomograms with the outermost tilts hidden: solvent, learned and adapted witness against what those measured."""

from __future__ import annotations

import argparse
import pathlib
import sys
import time

import numpy as np

import cryowgen_jax as cg
from cryowgen_jax.io import read_tomogram
from cryowgen_jax.report import markdown_table
from cryowgen_jax.restoration import adapt_witness

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE)]

import agreement  # noqa: E402

COLUMNS = ("tomogram", "witness", *agreement.COLUMNS, "seconds")
SLICES = (0.25, 0.5, 0.75)  # of the tilt axis
WITNESSES = ("solvent", "learned", "auto", "adapted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tomograms", type=pathlib.Path, nargs="+", help="tilt axis y, beam z")
    parser.add_argument("--tilt-range", type=float, nargs=2, default=(-60.0, 60.0), metavar=("LO", "HI"))
    parser.add_argument("--hide", type=float, default=15.0, help="degrees at either end")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=200, help="of adapting")
    parser.add_argument("--witnesses", nargs="+", choices=WITNESSES, default=WITNESSES)
    parser.add_argument("--output", type=pathlib.Path, default=HERE / "results")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    low, high = arguments.tilt_range
    seen_range = (low + arguments.hide, high - arguments.hide)
    table = []
    for path in arguments.tomograms:
        reference = np.asarray(read_tomogram(path, permissive=True).data, np.float32)
        seen_mask = cg.wedge_mask(reference.shape, seen_range)
        seen = np.asarray(cg.Wedge(seen_mask)(reference))
        hidden = np.asarray(cg.wedge_mask(reference.shape, (low, high)) * (1 - seen_mask)) > 0
        volumes = {f"all tilts, {low:g} to {high:g}": reference, f"{seen_range[0]:g} to {seen_range[1]:g}": seen}
        for name in arguments.witnesses:
            started = time.monotonic()
            witness = name
            if name == "adapted":
                witness = adapt_witness([seen], seen_range, num_iterations=arguments.iterations).weights
            family = cg.restore(seen, seen_range, witness=witness, num_samples=arguments.samples)
            seconds = f"{time.monotonic() - started:.0f}"
            for row in agreement.rows(reference, seen, family, hidden):
                table.append([path.stem, name, *row, seconds])
                print("| " + " | ".join(table[-1]) + " |", flush=True)
            volumes[f"{name}: mean"] = family.mean
        volumes["one sample"] = family.samples[0]
        slices = [int(share * reference.shape[1]) for share in SLICES]
        agreement.figure(volumes, slices).savefig(arguments.output / f"{path.stem}.png")
    (arguments.output / "tomograms.md").write_text(markdown_table(COLUMNS, table))
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
