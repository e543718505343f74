"""Targets to begin with: what the first network and the solvent model could say together, if they knew the truth.

    python experiments/learned_witness/targets.py --scenes train.npz --output targets.npz

Per scene, per shell of Fourier space, and in the wedge and outside of it apart, the combination of the two means that
is nearest to the truth. Unlike the truth it holds next to nothing that cannot be foretold, so that a small batch
teaches more.
"""

from __future__ import annotations

import argparse
import pathlib

import jax.numpy as jnp
import numpy as np

from cryowgen_jax.operators import wedge_mask
from cryowgen_jax.spatial import fourier

SHELLS = 40  # of a cycle per voxel
SMOOTH = (0.25, 0.5, 0.25)  # over neighbouring shells
RIDGE = 1e-3  # of the power


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=pathlib.Path, required=True, help="what scenes.py wrote")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    scenes = np.load(arguments.scenes)
    columns = (scenes[name] for name in ("truth", "mean", "solvent", "tilt_range"))
    targets = [target(*scene) for scene in zip(*columns, strict=True)]
    np.savez(arguments.output, target=np.stack(targets).astype(np.float16))


def target(truth: np.ndarray, mean: np.ndarray, solvent: np.ndarray, tilt_range: np.ndarray) -> np.ndarray:
    """The nearest combination of ``mean`` and ``solvent``."""
    shape = truth.shape
    index = (fourier.radial_frequency(shape) * SHELLS).astype(int)
    multiplicity = np.broadcast_to(fourier.multiplicity(shape), index.shape)
    spectra = [np.asarray(fourier.rfftn(jnp.asarray(volume, jnp.float32))) for volume in (mean, solvent, truth)]
    first, second, wanted = spectra
    measured = np.asarray(wedge_mask(shape, tuple(tilt_range.tolist()))) > 0.5
    found = np.zeros_like(wanted)
    for region in (measured, ~measured):

        def shells(a: np.ndarray, b: np.ndarray, region: np.ndarray = region) -> np.ndarray:
            sums = np.bincount(index.ravel(), (multiplicity * region * np.real(a * np.conj(b))).ravel())
            return np.convolve(np.pad(sums, 1, mode="edge"), SMOOTH, "valid")

        ridge = RIDGE * (shells(first, first) + shells(second, second)) + 1e-12
        aa, bb, ab = shells(first, first) + ridge, shells(second, second) + ridge, shells(first, second)
        at, bt = shells(first, wanted), shells(second, wanted)
        determinant = aa * bb - ab**2
        one, two = (at * bb - bt * ab) / determinant, (bt * aa - at * ab) / determinant
        found = np.where(region, one[index] * first + two[index] * second, found)
    found[0, 0, 0] = second[0, 0, 0]
    return np.asarray(fourier.irfftn(jnp.asarray(found, jnp.complex64), shape))


if __name__ == "__main__":
    main()
