"""The four methods and a classical baseline on the same tomogram: one table, one picture."""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

import cryowgen_jax as cg
from cryowgen_jax.report import markdown_table
from cryowgen_jax.report.figures import show_slice
from cryowgen_jax.restoration.checks import METHODS
from cryowgen_jax.simulation import evaluate_family
from cryowgen_jax.spatial import fourier

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "calibration"), str(HERE.parent / "restoration_quality")]

import intervals  # noqa: E402
import tomograms  # noqa: E402
from pocs import pocs  # noqa: E402

SAMPLES = 8
QUICK = {"num_samples": 4, "num_steps": 30, "warmup": 10, "num_candidates": 8}
NAMES = {
    "cryogen_map": "CryoGEN-I (map)",
    "cryogen_ot": "CryoGEN-II (ot)",
    "cryowgen_mc": "CryoWGEN-I (mc)",
    "cryowgen_langevin": "CryoWGEN-II (langevin)",
}
FEWEST = 2.0  # effective members below which a spread says nothing
COLUMNS = (
    "tomogram",
    "method",
    *(f"cc {low:.2f}-{high:.2f}" for low, high in intervals.BANDS[:-1]),
    "in-wedge cc",
    "measured cc",
    "wedge energy",
    "FSC area",
    "spread / error",
    "95 % coverage",
    "cc error, spread",
    "ESS",
    "seconds",
)


class Answer(NamedTuple):
    """Mean and weighted members of a method, standard deviation or None, ESS of its mean and seconds."""

    mean: np.ndarray
    members: np.ndarray
    weights: np.ndarray
    std: np.ndarray | None
    ess: float
    seconds: float


def alone(volume: np.ndarray, seconds: float = np.nan) -> Answer:
    """A point estimate."""
    return Answer(volume, volume[None], np.ones(1), None, np.nan, seconds)


def answers(tomogram: tomograms.Tomogram, witness: str, options: dict[str, int]) -> dict[str, Answer]:
    found = {"tomogram itself": alone(0.5 * (tomogram.half1 + tomogram.half2))}
    started = time.monotonic()
    classical = pocs(tomogram.half1, tomogram.half2, tomogram.tilt_range)
    found["POCS"] = alone(classical, time.monotonic() - started)
    for method, name in NAMES.items():
        family = tomograms.family(tomogram, witness, method=method, **options)
        std = family.std if family.std.any() else None
        report = family.report
        found[name] = Answer(family.mean, family.samples, family.weights, std, report.ess, report.seconds)
        print(f"{tomogram.group}, {name}: {report.seconds:.0f} s", flush=True)
    return found


def row(tomogram: tomograms.Tomogram, name: str, answer: Answer) -> list[str]:
    shape, truth = tomogram.truth.shape, tomogram.truth
    mask = np.asarray(cg.wedge_mask(shape, tomogram.tilt_range))
    found = evaluate_family(truth, answer.mean, answer.members, answer.weights, mask)
    true, mean = intervals.spectra([truth, answer.mean])
    bands = [
        band_correlation(true, mean, intervals.selection(mask, shape, "wedge", band), shape)
        for band in intervals.BANDS[:-1]
    ]
    ratio = covered = sees = np.nan
    if 1 / np.sum(answer.weights**2) >= FEWEST:
        members = intervals.spectra(found.gain * answer.members)
        chosen = intervals.selection(mask, shape, "wedge", intervals.WHOLE)
        part = intervals.component(true, members, answer.weights, chosen, shape)
        ratio, covered = intervals.spread_over_error(part), intervals.coverage(part, (0.95,))[0]
        sees = found.error_spread_correlation
    correlations = (*bands, found.in_wedge_correlation, found.measured_correlation, found.wedge_energy_ratio)
    area = float(np.mean(shell_correlation(true, mean, shape)))
    return [
        tomogram.group,
        name,
        *(number(value, 3) for value in (*correlations, area)),
        number(ratio, 2),
        number(covered, 3),
        number(sees, 3),
        number(answer.ess, 0 if answer.ess >= 10 else 1),
        number(answer.seconds, 0),
    ]


def means(rows: list[list[str]]) -> list[list[str]]:
    """One row a method, the mean over tomograms of what it has numbers for."""
    found = []
    for name in dict.fromkeys(line[1] for line in rows):
        columns = list(zip(*(line[2:] for line in rows if line[1] == name), strict=True))
        texts = []
        for values in columns:
            digits = max(len(value.partition(".")[2]) for value in values)
            texts.append("-" if "-" in values else number(float(np.mean([float(v) for v in values])), digits))
        found.append(["mean", name, *texts])
    return found


def number(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


def band_correlation(truth: np.ndarray, mean: np.ndarray, chosen: np.ndarray, shape: tuple[int, ...]) -> float:
    """0 where the mean is empty."""
    weight = chosen * fourier.multiplicity(shape)
    power = np.sum(weight * np.abs(truth) ** 2) * np.sum(weight * np.abs(mean) ** 2)
    scale = np.sum(weight * np.abs(truth) ** 2) ** 2
    return float(np.sum(weight * np.real(truth * np.conj(mean))) / np.sqrt(power)) if power > 1e-10 * scale else 0.0


def shell_correlation(truth: np.ndarray, mean: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Fourier shell correlation over all directions, shell by shell up to a quarter of a cycle per voxel."""
    count = min(shape) // 2
    index = fourier.shell_index(shape, count)
    inside = (index >= 0) & (fourier.radial_frequency(shape) < intervals.WHOLE[1])
    weight = np.broadcast_to(fourier.multiplicity(shape), index.shape)[inside]

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(index[inside], values[inside] * weight, count)[: count // 2]

    powers = sums(np.abs(truth) ** 2) * sums(np.abs(mean) ** 2)
    return sums(np.real(truth * np.conj(mean))) / np.sqrt(np.maximum(powers, 1e-30))


def figure(tomogram: tomograms.Tomogram, found: Mapping[str, Answer], correlations: Mapping[str, str]) -> Figure:
    """Middle xz slices, with in-wedge correlations in the titles."""
    y = tomogram.truth.shape[1] // 2
    volumes = {"truth": tomogram.truth, **{name: answer.mean for name, answer in found.items()}}
    family = found[NAMES["cryowgen_langevin"]]
    columns = 4
    rows = -(-(len(volumes) + 1) // columns)
    aspect = tomogram.truth.shape[0] / tomogram.truth.shape[2]
    drawn = Figure(figsize=(4.2 * columns, rows * (4.2 * aspect + 0.45)), dpi=150, layout="constrained")
    axes = drawn.subplots(rows, columns).ravel()
    for axis, (name, volume) in zip(axes, volumes.items(), strict=False):
        low, high = np.percentile(volume[:, y], [0.5, 99.5])
        show_slice(axis, volume[:, y], low, high, "gray")
        axis.set_title(f"{name}, cc {correlations[name]}" if name in correlations else name, fontsize=12)
    if family.std is not None:
        axis, image = axes[len(volumes)], family.std[:, y]
        top = np.percentile(image, 99.5)
        shown = show_slice(axis, image, 0, top, "viridis")
        axis.set_title("CryoWGEN-II: standard deviation", fontsize=12)
        bar = drawn.colorbar(shown, ax=axis, shrink=0.8, pad=0.02)
        bar.set_label("density", fontsize=9)
        bar.ax.tick_params(labelsize=9)
    for axis in axes[len(volumes) + (family.std is not None) :]:
        axis.set_axis_off()
    for axis in axes[::columns]:
        axis.set_ylabel("xz (z up)", fontsize=10)
    return drawn


def main() -> None:
    if set(NAMES) != set(METHODS):
        raise SystemExit(f"the methods are {METHODS}")
    parser = argparse.ArgumentParser(description=__doc__)
    tomograms.add_arguments(parser, (48, 96, 96), tomograms.TILT_RANGES[:1], (0,))
    parser.add_argument("--witness", default="auto", help="auto, solvent, learned, or a file of weights")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="members of each family")
    parser.add_argument("--output", type=pathlib.Path, default=HERE / "results", help="folder of pictures and table")
    parser.add_argument("--quick", action="store_true", help="one small tomogram, short chains")
    arguments = parser.parse_args()
    options = QUICK if arguments.quick else {"num_samples": arguments.samples}
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for count, tomogram in enumerate(tomograms.chosen(arguments)):
        found = answers(tomogram, arguments.witness, options)
        new = [row(tomogram, name, answer) for name, answer in found.items()]
        rows += new
        correlations = {line[COLUMNS.index("method")]: line[COLUMNS.index("in-wedge cc")] for line in new}
        figure(tomogram, found, correlations).savefig(
            arguments.output / f"four_methods{f'_{count}' if count else ''}.png"
        )
    if len({line[0] for line in rows}) > 1:
        rows += means(rows)
    text = markdown_table(COLUMNS, rows)
    (arguments.output / "table.md").write_text(text)
    print(text)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
