"""The two pictures: curves and bands per width and method, and how well the bands are calibrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import signals
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cryowgen_jax.report.figures import plain_axes

AMBER, BROWN, PURPLE, PLUM, GREY = "#E69F00", "#7A3E00", "#CC79A7", "#882255", "#666666"
FREQUENCIES = signals.LENGTH // 2 + 1
_DASHES = (0, (4, 2))
_SINGLE = ((AMBER, 3.2, 2), (BROWN, 1.3, 4))  # colour, line width, height: the second above the truth
_MARKERS = (("#000000", "o"), ("#0072B2", "s"), ("#009E73", "^"), ("#D55E00", "D"))  # Okabe and Ito
_NO_WIDTH = 0.02  # where a band without width is drawn on the logarithmic axis


class Evaluation(NamedTuple):
    """A family against the exact posterior; ``distance`` is the total variation of the mode weights."""

    mean_error: float
    coverage: float
    width: float
    modes: np.ndarray
    distance: float
    ess: float
    r_hat: float


class Shown(NamedTuple):
    """A family as the picture shows it."""

    band: np.ndarray
    mean: np.ndarray
    evaluation: Evaluation


class Panel(NamedTuple):
    """One row of the picture: single curves and families by name."""

    width: int
    truth: np.ndarray
    exact_band: np.ndarray
    curves: Mapping[str, np.ndarray]
    families: Mapping[str, Shown]


def band(draws: np.ndarray) -> np.ndarray:
    """5 and 95 % points, sample by sample, (2, LENGTH)."""
    return np.quantile(draws, (0.05, 0.95), axis=0)


def curves_figure(panels: Sequence[Panel]) -> Figure:
    """Rows: widths of the missing band. Columns: the single curves, then one family each."""
    names = ("CryoGEN-I and -II", *(f"CryoWGEN-{name}".replace(", ", "\n", 1) for name in panels[0].families))
    figure = Figure(figsize=(2.5 * len(names) + 0.5, 2.0 * len(panels) + 1.1), dpi=150, layout="constrained")
    axes = figure.subplots(len(panels), len(names), sharex=True, sharey=True, squeeze=False)
    position = np.arange(signals.LENGTH)
    for line, shown in zip(axes, panels, strict=True):
        for curve, (colour, width, height) in zip(shown.curves.values(), _SINGLE, strict=True):
            line[0].plot(position, curve, color=colour, linewidth=width, zorder=height)
        for axis, family in zip(line[1:], shown.families.values(), strict=True):
            axis.fill_between(position, *family.band, color=PURPLE, alpha=0.55, linewidth=0)
            axis.plot(position, family.mean, color=PLUM, linewidth=1.2)
            words = f"covers {100 * family.evaluation.coverage:.0f} %, width {family.evaluation.width:.2f}"
            _note(axis, words)
        for axis in line:
            axis.plot(position, shown.exact_band.T, color="black", linewidth=0.8)
            axis.plot(position, shown.truth, color=GREY, linewidth=1.4, linestyle=_DASHES, zorder=3)
            plain_axes(axis)
        line[0].set_ylabel(f"{shown.width} of {FREQUENCIES}\nfrequencies missing\nsignal (a.u.)", fontsize=9)
    top = max(float(np.max(shown.exact_band)) for shown in panels)
    axes[0, 0].set(xlim=(0, signals.LENGTH - 1), ylim=(-0.75, top + 0.75))
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("position (samples)", fontsize=10)
    handles = {
        "truth": Line2D([], [], color=GREY, linewidth=1.4, linestyle=_DASHES),
        "exact posterior, 5 and 95 %": Line2D([], [], color="black", linewidth=0.8),
        **{
            name: Line2D([], [], color=colour, linewidth=width)
            for name, (colour, width, _) in zip(panels[0].curves, _SINGLE, strict=True)
        },
        "family, 5 to 95 %": Patch(facecolor=PURPLE, alpha=0.55),
        "mean of the family": Line2D([], [], color=PLUM, linewidth=1.2),
    }
    place = {"loc": "outside lower center", "ncols": len(handles), "frameon": False, "fontsize": 10}
    figure.legend(list(handles.values()), list(handles), **place)
    return figure


def calibration_figure(evaluations: Mapping[int, Mapping[str, Evaluation]]) -> Figure:
    """Coverage of the exact posterior and relative width of every family's 90 % band, one marker per missing band."""
    names = list(next(iter(evaluations.values())))
    figure = Figure(figsize=(10.0, 0.45 * len(names) + 1.5), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(names))[::-1]
    for index, (width, found) in enumerate(evaluations.items()):
        colour, marker = _MARKERS[index % len(_MARKERS)]
        style = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 6, "clip_on": False}
        heights = rows + 0.2 * ((len(evaluations) - 1) / 2 - index)
        left.plot([found[n].coverage for n in names], heights, label=f"{width} of {FREQUENCIES} missing", **style)
        right.plot([max(found[n].width, _NO_WIDTH) for n in names], heights, **style)
    left.axvline(0.9, color=GREY, linewidth=1, linestyle=":")
    right.axvline(1.0, color=GREY, linewidth=1, linestyle=":")
    left.set(xlim=(0, 1), ylim=(-0.6, len(names) - 0.4), xlabel="exact draws inside the 90 % band (share)")
    right.set(xscale="log", xlim=(_NO_WIDTH, 4), xlabel="width of the 90 % band (exact = 1)")
    right.set_xticks([_NO_WIDTH, 0.1, 0.25, 0.5, 1, 2, 4], ["0", "0.1", "0.25", "0.5", "1", "2", "4"])
    right.minorticks_off()
    left.set_yticks(rows, names)
    for axis in (left, right):
        plain_axes(axis)
        axis.tick_params(axis="y", length=0, pad=8, labelsize=10)
    figure.legend(loc="outside lower center", ncols=len(evaluations), frameon=False, fontsize=10)
    return figure


def _note(axis: Axes, words: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
    axis.text(0.5, 0.97, words, transform=axis.transAxes, ha="center", va="top", fontsize=9, bbox=box, zorder=10)
