"""What was hidden of the tilts, and what restoration says of it: correlation, energy, spread over error; pictures."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

import cryowgen_jax as cg
from cryowgen_jax.report.figures import show_slice
from cryowgen_jax.spatial import fourier

sys.path += [str(pathlib.Path(__file__).resolve().parents[1] / "calibration")]

import intervals

BANDS = ((0.01, 0.05), (0.05, 0.10), (0.10, 0.20), (0.01, 0.25))  # cycles per voxel
COLUMNS = ("cycles per voxel", "cc", "energy", "cc before", "spread / error")


def rows(reference: np.ndarray, seen: np.ndarray, family: cg.Restoration, hidden: np.ndarray) -> list[list[str]]:
    """One row a band, but for bands without any: over the coefficients that only the reference has."""
    shape = reference.shape
    truth, before, mean = intervals.spectra([reference, seen, family.mean])
    members = intervals.spectra(family.samples)
    radius = fourier.radial_frequency(shape)

    def inner(a: np.ndarray, b: np.ndarray, chosen: np.ndarray) -> float:
        return float(np.sum(chosen * fourier.multiplicity(shape) * np.real(a * np.conj(b))))

    found = []
    for low, high in BANDS:
        chosen = hidden & (radius >= low) & (radius < high)
        if not chosen.any():
            continue
        true, restored, given = (inner(a, a, chosen) for a in (truth, mean, before))
        part = intervals.component(truth, members, family.weights, chosen, shape)
        found.append(
            [
                f"{low:.2f}-{high:.2f}",
                f"{inner(mean, truth, chosen) / np.sqrt(restored * true):.3f}",
                f"{restored / true:.2f}",
                f"{inner(before, truth, chosen) / np.sqrt(given * true):.3f}",
                f"{intervals.spread_over_error(part):.2f}",
            ]
        )
    return found


def figure(volumes: Mapping[str, np.ndarray], slices: Sequence[int]) -> Figure:
    """A column for each volume: slices across y, the tilt axis, and power spectrum at ky = 0, in greys of the first."""
    first = next(iter(volumes.values()))
    depth, _, width = first.shape
    height = 3.75 * depth / width + 0.05
    drawn = Figure(figsize=(3.75 * len(volumes), height * (len(slices) + 1) + 0.4), dpi=120, layout="constrained")
    axes = drawn.subplots(len(slices) + 1, len(volumes), squeeze=False)
    low, high = np.percentile(first[:, slices], [0.5, 99.5])
    bottom, top = np.percentile(_log_power(first), [20, 99.9])
    for column, (name, volume) in enumerate(volumes.items()):
        axes[0, column].set_title(name, fontsize=12)
        for row, y in enumerate(slices):
            show_slice(axes[row, column], volume[:, y], low, high, "gray")
        show_slice(axes[-1, column], _log_power(volume), bottom, top, "magma")
    for row, y in enumerate(slices):
        axes[row, 0].set_ylabel(f"xz (z up), y = {y}", fontsize=10)
    axes[-1, 0].set_ylabel("log power", fontsize=10)
    return drawn


def _log_power(volume: np.ndarray) -> np.ndarray:
    spectrum = np.fft.fftshift(np.fft.fftn(volume - volume.mean()))
    return np.log10(np.abs(spectrum[:, volume.shape[1] // 2]) ** 2 + 1e-9)
