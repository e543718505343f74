"""A real tilt series with half of its tilts hidden: does what is restored agree with what they measured?"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time

import numpy as np
from matplotlib.figure import Figure
from skimage.transform import iradon

import cryowgen_jax as cg
from cryowgen_jax.io import read_tilt_angles, read_tomogram
from cryowgen_jax.report import markdown_table
from cryowgen_jax.report.figures import show_slice
from cryowgen_jax.spatial import fourier

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "calibration")]

import intervals  # noqa: E402

BANDS = ((0.01, 0.05), (0.05, 0.10), (0.10, 0.20), (0.01, 0.25))  # cycles per voxel
COLUMNS = ("cycles per voxel", "cc", "energy", "cc before", "spread / error")


def back_project(tilts: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Weighted back projection, (tilts, Y, X) -> (Z, Y, X), tilt axis y, every angle with the same weight."""
    weight = len(angles)  # iradon divides by their number, as if they always covered 180 degrees
    slices = [
        iradon(tilts[:, y].T, theta=angles, filter_name="hann", circle=True) * weight for y in range(tilts.shape[1])
    ]
    return np.stack(slices, axis=1).astype(np.float32)


def binned(volume: np.ndarray, factor: int) -> np.ndarray:
    z, y, x = (n // factor for n in volume.shape)
    return volume.reshape(z, factor, y, factor, x, factor).mean(axis=(1, 3, 5))


def rows(reference: np.ndarray, seen: np.ndarray, family: cg.Restoration, hidden: np.ndarray) -> list[list[str]]:
    """One row a band: over the coefficients that only the reference has."""
    shape = reference.shape
    truth, before, mean = intervals.spectra([reference, seen, family.mean])
    members = intervals.spectra(family.samples)
    radius = fourier.radial_frequency(shape)

    def inner(a: np.ndarray, b: np.ndarray, chosen: np.ndarray) -> float:
        return float(np.sum(chosen * fourier.multiplicity(shape) * np.real(a * np.conj(b))))

    found = []
    for low, high in BANDS:
        chosen = hidden & (radius >= low) & (radius < high)
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


def figure(reference: np.ndarray, seen: np.ndarray, family: cg.Restoration, angles: tuple[float, float]) -> Figure:
    """Slices across the tilt axis, and their power spectra."""
    y = reference.shape[1] // 2
    volumes = {
        f"all tilts, to {angles[1]:.0f} degrees": reference,
        f"tilts to {angles[0]:.0f} degrees": seen,
        "CryoWGEN-II: mean": family.mean,
        "one sample": family.samples[0],
    }
    drawn = Figure(figsize=(15, 7.6), dpi=120, layout="constrained")
    axes = drawn.subplots(2, 4)
    low, high = np.percentile(reference[:, y], [0.5, 99.5])
    for column, (name, volume) in enumerate(volumes.items()):
        show_slice(axes[0, column], volume[:, y], low, high, "gray")
        axes[0, column].set_title(name, fontsize=12)
        power = np.log10(
            np.abs(np.fft.fftshift(np.fft.fftn(volume - volume.mean()))[:, volume.shape[1] // 2]) ** 2 + 1e-9
        )
        if column == 0:
            bottom, top = np.percentile(power, [20, 99.9])
        show_slice(axes[1, column], power, bottom, top, "magma")
    axes[0, 0].set_ylabel("xz (z up)", fontsize=10)
    axes[1, 0].set_ylabel("log power, kx kz at ky = 0", fontsize=10)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tilts", type=pathlib.Path, help="aligned tilt series (.mrc), tilt axis y")
    parser.add_argument("--angles", type=pathlib.Path, help="by default the .rawtlt beside it")
    parser.add_argument("--largest", type=float, default=50.0, help="tilt beyond which all are hidden, degrees")
    parser.add_argument("--bin", type=int, default=2, dest="factor", help="voxels averaged along each axis")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--output", type=pathlib.Path, default=HERE / "results")
    arguments = parser.parse_args()
    series = np.asarray(read_tomogram(arguments.tilts, permissive=True).data, np.float32)
    angles = np.asarray(read_tilt_angles(arguments.angles or arguments.tilts.with_suffix(".rawtlt")))
    kept = np.abs(angles) <= arguments.largest
    reference, seen = (
        binned(back_project(series[chosen], angles[chosen]), arguments.factor)
        for chosen in (np.full(kept.shape, True), kept)
    )
    tilt_range = (float(angles[kept].min()), float(angles[kept].max()))
    started = time.monotonic()
    family = cg.restore(seen, tilt_range, num_samples=arguments.samples)
    print(f"{family.report.noise_rule}; R-hat {family.report.r_hat:.2f}; {time.monotonic() - started:.0f} s")
    measured = np.asarray(cg.wedge_mask(seen.shape, (float(angles.min()), float(angles.max()))))
    text = markdown_table(COLUMNS, rows(reference, seen, family, (measured > 0) & (family.wedge == 0)))
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "table.md").write_text(text)
    figure(reference, seen, family, (tilt_range[1], float(angles.max()))).savefig(arguments.output / "needle.png")
    print(text)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
