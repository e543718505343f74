"""How well the solvent model fills the wedge of maps without noise: mean Fourier shell correlation."""

from __future__ import annotations

import argparse
import pathlib
import time

import jax.numpy as jnp
import numpy as np

import cryowgen_jax as cg
from cryowgen_jax.io import read_tomogram
from cryowgen_jax.operators import Wedge
from cryowgen_jax.report import markdown_table
from cryowgen_jax.spatial import fourier

COLUMNS = ("map", "shape", "wedged", "restored", "seconds")


def mean_shell_correlation(truth: np.ndarray, volume: np.ndarray) -> float:
    """Fourier shell correlation, mean over the shells up to Nyquist, one frequency step of the shortest axis each."""
    shape = truth.shape
    count = min(shape) // 2
    index = np.rint(fourier.radial_frequency(shape) * min(shape)).astype(int)
    inside = (index > 0) & (index <= count)
    weight = np.broadcast_to(fourier.multiplicity(shape), index.shape)[inside]
    a, b = (np.asarray(fourier.rfftn(jnp.asarray(v - v.mean(), jnp.float32)))[inside] for v in (truth, volume))

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(index[inside], values * weight, count + 1)[1:]

    return float(np.mean(sums(np.real(a * np.conj(b))) / np.sqrt(sums(np.abs(a) ** 2) * sums(np.abs(b) ** 2))))


def compare(
    path: pathlib.Path, tilt_range: tuple[float, float], axes: tuple[int, ...]
) -> tuple[str, tuple[int, ...], float, float, float]:
    truth = np.ascontiguousarray(np.asarray(read_tomogram(path, permissive=True).data, np.float32).transpose(axes))
    seen = np.asarray(Wedge(cg.wedge_mask(truth.shape, tilt_range))(jnp.asarray(truth)))
    started = time.monotonic()
    restored = cg.restore(seen, tilt_range, witness="solvent", method="cryogen_map").mean  # that of the family
    seconds = time.monotonic() - started
    before, after = (mean_shell_correlation(truth, volume) for volume in (seen, restored))
    return path.name, truth.shape, before, after, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("maps", type=pathlib.Path, nargs="+", help="density maps (.mrc, .map) without noise")
    parser.add_argument("--tilt-range", type=float, nargs=2, default=(-60.0, 60.0), metavar=("LO", "HI"))
    parser.add_argument("--axes", type=int, nargs=3, default=(0, 1, 2), help="order of the axes: another side to hide")
    arguments = parser.parse_args()
    found = [compare(path, tuple(arguments.tilt_range), tuple(arguments.axes)) for path in arguments.maps]
    rows = [
        [name, " x ".join(map(str, shape)), f"{before:.3f}", f"{after:.3f}", f"{seconds:.0f}"]
        for name, shape, before, after, seconds in found
    ]
    rows.append(["mean", "", *(f"{np.mean([line[i] for line in found]):.3f}" for i in (2, 3)), ""])
    print(markdown_table(COLUMNS, rows))


if __name__ == "__main__":
    main()
