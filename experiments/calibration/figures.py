"""One picture: coverage, spread over error by band, ranks, and where errors and spread are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import intervals
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from prior_draws import STATISTICS, Ranked

from cryowgen_jax.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, plain_axes, show_slice

PROBABILITIES = np.array([0.05, *np.arange(0.1, 1, 0.1), 0.95, 0.99])
_LINES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (GREY, "v"))
_LINEAR = slice(0, 3)  # of the statistics, whose ranks show the spread and not the power


class Example(NamedTuple):
    """xz slices (Z, X): truth, mean of the members, and of the wedge |error| and spread; a name for the title."""

    name: str
    truth: np.ndarray
    mean: np.ndarray
    error: np.ndarray
    spread: np.ndarray


def figure(
    parts: Mapping[str, intervals.Part],
    ratios: Mapping[str, Mapping[str, Sequence[float]]],
    shares: Mapping[str, np.ndarray],
    calibrated: Sequence[Ranked],
    example: Example,
) -> Figure:
    """``parts`` of the wedge by name, ``ratios`` by group and region, ``shares`` of ranks by group."""
    drawn = Figure(figsize=(15.5, 7.4), dpi=150, layout="constrained")
    above, below = drawn.subfigures(2, 1, height_ratios=(1.25, 1))
    first, second, third, fourth = above.subplots(1, 4)
    _coverage(first, parts)
    _ratios(second, ratios)
    _ranks(third, shares)
    _simulated_ranks(fourth, calibrated)
    _maps(below, example)
    return drawn


def _coverage(axis: Axes, parts: Mapping[str, intervals.Part]) -> None:
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for (name, part), (colour, marker) in zip(parts.items(), _LINES, strict=False):
        found = intervals.coverage(part, PROBABILITIES)
        axis.plot(PROBABILITIES, found, color=colour, marker=marker, markersize=4, linewidth=1.3, label=name)
    axis.text(0.27, 0.04, "over-confident", color=GREY, fontsize=9)
    axis.text(0.04, 0.93, "too cautious", color=GREY, fontsize=9)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="nominal coverage", ylabel="measured coverage", aspect="equal")
    axis.legend(frameon=False, fontsize=9, loc="lower right")
    _plain(axis, "Missing wedge, by object")


def _ratios(axis: Axes, ratios: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    middles = [sum(band) / 2 for band in intervals.BANDS[:-1]]
    axis.axhline(1, color=GREY, linewidth=1, linestyle=":")
    for (group, regions), (colour, marker) in zip(ratios.items(), _LINES, strict=False):
        for region, values in regions.items():
            style = "-" if region == "wedge" else (0, (4, 2))
            axis.plot(middles, values, color=colour, marker=marker, markersize=4, linestyle=style, linewidth=1.3)
        axis.plot([], [], color=colour, marker=marker, markersize=4, label=group)
    for style, region in (("-", "wedge"), ((0, (4, 2)), "measured")):
        axis.plot([], [], color=GREY, linestyle=style, label=region)
    top = max(max(values) for regions in ratios.values() for values in regions.values())
    axis.set(xlim=(0, intervals.WHOLE[1]), ylim=(0, max(1.6, 1.25 * top)))
    axis.set(xlabel="spatial frequency (cycles/voxel)", ylabel="spread / error (energy)")
    axis.legend(frameon=False, fontsize=9, ncols=2, loc="upper left")
    _plain(axis, "By Fourier band")


def _ranks(axis: Axes, shares: Mapping[str, np.ndarray]) -> None:
    for (group, values), (colour, _) in zip(shares.items(), _LINES, strict=False):
        edges = np.arange(len(values) + 1) - 0.5
        axis.stairs(values * len(values), edges, color=colour, linewidth=1.5, label=group)
    axis.axhline(1, color=GREY, linewidth=1, linestyle=":")
    axis.set(xlabel="members below the truth", ylabel="share of voxels / uniform")
    axis.set_ylim(0, 1.2 * max(2, *(len(v) * v.max() for v in shares.values())))
    axis.legend(frameon=False, fontsize=9, loc="upper center")
    _plain(axis, "Ranks of the truth, wedge")


def _simulated_ranks(axis: Axes, calibrated: Sequence[Ranked]) -> None:
    highest = 2.0
    for each, (colour, _) in zip(calibrated, _LINES, strict=False):
        linear = each.ranks[:, _LINEAR].ravel()
        counts = np.bincount(linear, minlength=each.num_draws + 1) / linear.size * (each.num_draws + 1)
        highest = max(highest, counts.max())
        axis.stairs(counts, np.arange(each.num_draws + 2) - 0.5, color=colour, linewidth=1.5, label=each.name)
    size = calibrated[0].ranks.shape[0] * (_LINEAR.stop - _LINEAR.start)
    scatter = 2 * np.sqrt(calibrated[0].num_draws / size)
    axis.axhspan(1 - scatter, 1 + scatter, color=GREY, alpha=0.2, linewidth=0, label="2 s.d. of chance")
    axis.set(xlabel="draws below the truth", ylabel="share of simulations / uniform", ylim=(0, 1.45 * highest))
    axis.legend(frameon=False, fontsize=9, loc="upper center")
    _plain(axis, "Known prior: " + ", ".join(name.split()[0] for name in STATISTICS[_LINEAR]))


def _maps(part: Figure, example: Example) -> None:
    axes = part.subplots(1, 4)
    low, high = np.percentile(example.truth, [0.5, 99.5])
    for axis, image, title in ((axes[0], example.truth, "truth"), (axes[1], example.mean, "mean of the family")):
        show_slice(axis, image, low, high, "gray")
        axis.set_title(f"{title}, {example.name}" if title == "truth" else title, fontsize=11)
    top = float(np.percentile(example.error, 99.5))
    for axis, image, title in (
        (axes[2], example.error, "|error| in the wedge"),
        (axes[3], example.spread, "spread in the wedge"),
    ):
        shown = show_slice(axis, image, 0, top, "viridis")
        axis.set_title(title, fontsize=11)
    bar = part.colorbar(shown, ax=list(axes[2:]), shrink=0.75, pad=0.01)
    bar.set_label("density", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    axes[0].set_ylabel("xz (z up)", fontsize=10)


def _plain(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=11)
    plain_axes(axis)
