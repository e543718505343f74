"""Figures of volumes, spectra and diagnostics. Functions return a matplotlib Figure and never show it.

They use ``Figure`` itself and not pyplot, which has global state and would have to be closed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from cryowgen_jax.operators import tilt_slope
from cryowgen_jax.spatial.fourier import rfftn
from cryowgen_jax.types import InputError

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"  # Okabe and Ito
_CYCLE = (BLUE, ORANGE, GREEN, PURPLE)
_SPREAD_MAP = "viridis"
_COLUMN_INCHES = 2.9
_ROWS = ("xy (y up)", "xz (z up)", "yz (z up)")


def slice_figure(
    volumes: Mapping[str, np.ndarray],
    *,
    voxel_size_angstrom: float | None = None,
    spread: Collection[str] = (),
    centre: Sequence[int] | None = None,
) -> Figure:
    """Slices of several volumes side by side: a column per volume, rows xy, xz and yz.

    Parameters
    ----------
    volumes
        Name to (Z, Y, X) array, all of one shape. Every volume has a grey scale of its own, from the 0.5th to the
        99.5th percentile of its three slices.
    voxel_size_angstrom
        Draws a scale bar in nanometres.
    spread
        Names of volumes that are standard deviations: these get a colour map that starts at zero and a colour bar.
    centre
        Index (z, y, x) of the slices; the middle of the box by default.

    Raises
    ------
    InputError
        No volume, volumes of different shapes, or a centre outside the box.
    """
    shape = _common_shape(volumes)
    middle = tuple(n // 2 for n in shape) if centre is None else tuple(centre)
    if len(middle) != 3 or not all(0 <= c < n for c, n in zip(middle, shape, strict=True)):
        raise InputError(f"centre is {middle}: give an index (z, y, x) inside the box of shape {shape}")
    heights = (shape[1], shape[0], shape[0])
    widths = (shape[2], shape[2], shape[1])
    scale = _COLUMN_INCHES / max(widths)
    size = (_COLUMN_INCHES * len(volumes) + 0.5, scale * sum(heights) + (1.3 if set(spread) & set(volumes) else 0.5))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(4, len(volumes), squeeze=False, height_ratios=(*heights, 0.06 * max(widths)))
    for column, (name, volume) in enumerate(volumes.items()):
        is_spread = name in spread
        slices = _slices(np.asarray(volume), middle)
        low, high = _limits(slices, is_spread)
        for row, (axis, image) in enumerate(zip(axes[:3, column], slices, strict=True)):
            drawn = show_slice(axis, image, low, high, _SPREAD_MAP if is_spread else "gray")
            axis.set_xlim(-0.5 - (max(widths) - widths[row]) / 2, widths[row] - 0.5 + (max(widths) - widths[row]) / 2)
            if column == 0:
                axis.set_ylabel(_ROWS[row], fontsize=9)
        axes[0, column].set_title(name, fontsize=11)
        if is_spread:
            bar = figure.colorbar(drawn, cax=axes[3, column], orientation="horizontal")
            bar.ax.tick_params(labelsize=8)
            bar.set_label("standard deviation", fontsize=9)
        else:
            axes[3, column].remove()
    if voxel_size_angstrom is not None:
        _scale_bar(axes[0, 0], shape[2], voxel_size_angstrom)
    return figure


def spectrum_figure(
    volumes: Mapping[str, np.ndarray],
    *,
    voxel_size_angstrom: float | None = None,
    tilt_range: tuple[float, float] | None = None,
) -> Figure:
    r"""Power spectra in the kx-kz plane, on which a missing wedge about kz is an empty double triangle.

    Shows :math:`\log_{10}` of the mean of :math:`|F v|^2` over :math:`|k_y| < 0.1` cycles per voxel, the zero frequency
    left out, over four decades below the brightest half per cent of each volume.

    Parameters
    ----------
    volumes
        Name to (Z, Y, X) array, all of one shape; beam z, tilt axis y.
    voxel_size_angstrom
        Labels the axes in 1/nm instead of cycles per voxel.
    tilt_range
        Lowest and highest tilt, degrees: draws the edges of what was measured.
    """
    _common_shape(volumes)
    unit = 1.0 if voxel_size_angstrom is None else 10.0 / voxel_size_angstrom
    label = "cycles per voxel" if voxel_size_angstrom is None else "1/nm"
    figure = Figure(figsize=(_COLUMN_INCHES * len(volumes) + 1.4, _COLUMN_INCHES + 0.5), layout="constrained")
    axes = figure.subplots(1, len(volumes), squeeze=False)[0]
    for column, (name, volume) in enumerate(volumes.items()):
        axis = axes[column]
        logs, extent = _plane_power(np.asarray(volume, np.float32))
        drawn = axis.imshow(
            np.maximum(logs - np.percentile(logs, 99.5), -4.0),
            cmap="magma",
            vmin=-4.0,
            vmax=0.0,
            origin="lower",
            interpolation="nearest",
            extent=tuple(unit * e for e in extent),
            aspect="equal",
        )
        for tilt in tilt_range or ():
            axis.axline((0, 0), slope=tilt_slope(tilt), color="white", linewidth=1.0, linestyle=(0, (4, 3)), alpha=0.9)
        axis.set_title(name, fontsize=11)
        axis.set_xlabel(f"kx ({label})", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.set_xlim(unit * extent[0], unit * extent[1])
        axis.set_ylim(unit * extent[2], unit * extent[3])
    axes[0].set_ylabel(f"kz, along the beam ({label})", fontsize=9)
    bar = figure.colorbar(drawn, ax=list(axes), shrink=0.7, pad=0.02)
    bar.set_label("log10 power, relative", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def shell_figure(
    quantities: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    voxel_size_angstrom: float | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Figure:
    """Diagnostics against spatial frequency, measured and wedge coefficients apart: one panel per quantity.

    Parameters
    ----------
    quantities
        Name (such as "R-hat") to its values (measured, wedge), one per Fourier shell of equal width up to Nyquist;
        nan where a shell has none.
    voxel_size_angstrom
        Labels the frequencies in 1/nm instead of cycles per voxel.
    thresholds
        Name to a value that a dashed line marks, such as 1.01 for R-hat.

    Raises
    ------
    InputError
        No quantity, a threshold without its quantity, or two curves of different lengths.
    """
    thresholds = thresholds or {}
    if not quantities or set(thresholds) - set(quantities):
        raise InputError(f"quantities are {list(quantities)} and thresholds {list(thresholds)}: give every one a curve")
    unit = 0.5 if voxel_size_angstrom is None else 5.0 / voxel_size_angstrom
    figure = Figure(figsize=(4.2 * len(quantities), 3.3), layout="constrained")
    axes = figure.subplots(1, len(quantities), squeeze=False)[0]
    for axis, (name, (measured, wedge)) in zip(axes, quantities.items(), strict=True):
        measured, wedge = np.asarray(measured, np.float64), np.asarray(wedge, np.float64)
        if measured.shape != wedge.shape:
            raise InputError(f"{name} has {measured.size} measured and {wedge.size} wedge shells: give as many of both")
        frequency = unit * (np.arange(len(measured)) + 0.5) / len(measured)
        axis.plot(frequency, measured, color=BLUE, marker="o", markersize=4, label="measured")
        axis.plot(frequency, wedge, color=ORANGE, marker="s", markersize=4, linestyle="--", label="missing wedge")
        if name in thresholds:
            axis.axhline(thresholds[name], color=GREY, linewidth=1, linestyle=":")
        shown = np.concatenate([measured, wedge])
        shown = shown[np.isfinite(shown)]
        if shown.size and shown.min() > 0 and shown.max() > 30 * shown.min():
            axis.set_yscale("log")
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("spatial frequency " + ("(cycles per voxel)" if voxel_size_angstrom is None else "(1/nm)"))
        plain_axes(axis)
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def coverage_figure(nominal: np.ndarray, actual: Mapping[str, np.ndarray]) -> Figure:
    """Share of voxels inside intervals against their stated probability; on the diagonal where a family is calibrated.

    Parameters
    ----------
    nominal
        Stated probabilities, in [0, 1].
    actual
        Name to the observed shares, one per stated probability.

    Raises
    ------
    InputError
        No curve, or one whose length is not that of ``nominal``.
    """
    nominal = np.asarray(nominal, np.float64)
    if not actual or any(np.shape(curve) != nominal.shape for curve in actual.values()):
        sizes = {name: np.shape(curve) for name, curve in actual.items()}
        raise InputError(f"curves have shapes {sizes}: give at least one, each of shape {nominal.shape}")
    figure = Figure(figsize=(4.2, 4.0), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for index, (name, curve) in enumerate(actual.items()):
        axis.plot(nominal, curve, color=_CYCLE[index % len(_CYCLE)], marker="os^D"[index % 4], markersize=4, label=name)
    axis.text(0.05, 0.9, "too cautious", color=GREY, fontsize=9)
    axis.text(0.95, 0.07, "over-confident", color=GREY, fontsize=9, ha="right")
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="stated probability", ylabel="share of voxels inside", aspect="equal")
    plain_axes(axis)
    axis.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2)
    return figure


def _common_shape(volumes: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    shapes = {np.shape(volume) for volume in volumes.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise InputError(f"volumes have shapes {sorted(shapes)}: give one or more of one shape (Z, Y, X)")
    return next(iter(shapes))


def _slices(volume: np.ndarray, centre: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z, y, x = centre
    return volume[z], volume[:, y], volume[:, :, x]


def _limits(slices: Sequence[np.ndarray], is_spread: bool) -> tuple[float, float]:
    values = np.concatenate([image.ravel() for image in slices]).astype(np.float64)
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, [0.5, 99.5]) if values.size else (0.0, 1.0)
    low = 0.0 if is_spread else low
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def show_slice(axis: Axes, image: np.ndarray, low: float, high: float, colours: str) -> AxesImage:
    """An image without ticks or frame, its first row at the bottom; returns it for a colour bar."""
    drawn = axis.imshow(image, cmap=colours, vmin=low, vmax=high, origin="lower", interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)
    return drawn


def _scale_bar(axis: Axes, width: int, voxel_size_angstrom: float) -> None:
    """Draw a bar of a round length, about a quarter of the picture, on its lower left."""
    quarter = 0.25 * width * voxel_size_angstrom / 10.0
    decade = 10.0 ** np.floor(np.log10(quarter))
    length = decade * max(step for step in (1, 2, 5) if step * decade <= quarter)
    voxels = length * 10.0 / voxel_size_angstrom
    start = 0.05 * width
    axis.plot([start, start + voxels], [start, start], color="black", linewidth=5, solid_capstyle="butt")
    axis.plot([start, start + voxels], [start, start], color="white", linewidth=3, solid_capstyle="butt")
    axis.text(
        start + voxels / 2,
        start + 0.02 * width,
        f"{length:g} nm",
        color="white",
        fontsize=9,
        ha="center",
        va="bottom",
        bbox={"facecolor": "black", "alpha": 0.5, "edgecolor": "none", "pad": 1.5},
    )


def _plane_power(volume: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Log power over (kz, kx), both from low to high, and the picture's extent in cycles per voxel."""
    nz, ny, nx = volume.shape
    power = np.abs(np.asarray(rfftn(jnp.asarray(volume)))) ** 2
    slab = power[:, np.abs(np.fft.fftfreq(ny)) < 0.1]
    # |F(-k)| = |F(k)|, and the slab has -ky with every ky, so that the other half is the mirror image of this one
    half = slab.mean(axis=1)
    half[0, 0] = half[0, 1]
    mirrored = half[-np.arange(nz) % nz][:, 1 : (nx + 1) // 2][:, ::-1]
    plane = np.fft.fftshift(np.concatenate([half, mirrored], axis=1))
    z, x = np.fft.fftshift(np.fft.fftfreq(nz)), np.fft.fftshift(np.fft.fftfreq(nx))
    extent = (x[0] - 0.5 / nx, x[-1] + 0.5 / nx, z[0] - 0.5 / nz, z[-1] + 0.5 / nz)
    floor = np.finfo(np.float32).tiny
    return np.log10(np.maximum(plane, floor)), extent


def plain_axes(axis: Axes) -> None:
    """A light grid behind the curves, no frame above or on the right."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9)
