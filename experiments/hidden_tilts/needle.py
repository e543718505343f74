"""A real tilt series with half of its tilts hidden: does what is restored agree with what they measured?"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time

import numpy as np
from skimage.transform import iradon

import cryowgen_jax as cg
from cryowgen_jax.io import read_tilt_angles, read_tomogram
from cryowgen_jax.report import markdown_table

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE)]

import agreement  # noqa: E402


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
    text = markdown_table(
        agreement.COLUMNS, agreement.rows(reference, seen, family, (measured > 0) & (family.wedge == 0))
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "table.md").write_text(text)
    volumes = {
        f"all tilts, to {angles.max():.0f} degrees": reference,
        f"tilts to {tilt_range[1]:.0f} degrees": seen,
        "CryoWGEN-II: mean": family.mean,
        "one sample": family.samples[0],
    }
    agreement.figure(volumes, [reference.shape[1] // 2]).savefig(arguments.output / "needle.png")
    print(text)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
