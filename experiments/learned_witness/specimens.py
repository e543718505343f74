"""Crowded volumes to learn from: density maps at 10 A per voxel, and the package's own phantoms.

    python experiments/learned_witness/specimens.py --maps FOLDER --output volumes.npz

A volume holds maps of one group of related complexes, of all of them ("mixed"), or phantoms, so that a group can be
left out of training with everything that is like it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import multiprocessing
import pathlib
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from cryowgen_jax.io import read_tomogram
from cryowgen_jax.simulation import crowded_maps, crowded_phantom

GROUPS = {
    "ribosomes": ("1f4a", "4v7r", "5mrc", "6qzp", "4v4r"),
    "proteasomes": ("3j9i", "4cr2", "6utj", "7n4y", "1bxn"),
    "chaperonins": ("4v94", "6pxm", "8tux", "1aon", "emd_1832"),
}
COUNTS = {"ribosomes": 50, "proteasomes": 50, "chaperonins": 50, "phantoms": 60, "mixed": 50}
SIZE = 96  # voxels
VOXEL_SIZE = 10.0  # angstrom
SCALES = (0.85, 1.25)
FEWEST_MAPS = 2
STRENGTHS = (0.75, 1.25)  # density of a kind of object
LONELY_SHARE = 0.15  # of the volumes of maps hold three objects or fewer
STEP = 1 / 80  # of the density that is stored


def load_map(path: pathlib.Path) -> np.ndarray:
    """A map without its background, at 10 A per voxel, about 1 inside."""
    tomogram = read_tomogram(path, permissive=True)
    density, voxel = np.array(tomogram.data), tomogram.voxel_size_angstrom[0]
    density = density - np.median(density)
    density[density < 0.05 * np.percentile(density, 99.8)] = 0.0
    if voxel < 0.95 * VOXEL_SIZE:
        density = zoom(gaussian_filter(density, 0.4 * VOXEL_SIZE / voxel), voxel / VOXEL_SIZE, order=1)
    return density / np.percentile(density[density > 0.1 * density.max()], 90)


def make_volume(seed: int, maps: Sequence[np.ndarray]) -> np.ndarray:
    """One crowded cube of some of the maps, or of phantoms where there are none; unsigned bytes of 1/80 each."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(*SCALES)
    shape = (SIZE,) * 3
    most = int(rng.integers(1, 4)) if rng.random() < LONELY_SHARE else None
    if maps:
        count = rng.integers(min(FEWEST_MAPS, len(maps)), len(maps) + 1)
        chosen = [maps[i] * np.float32(rng.uniform(*STRENGTHS)) for i in rng.permutation(len(maps))[:count]]
        density = crowded_maps(shape, chosen, rng, scale=scale, most=most).density
    else:
        density = crowded_phantom(shape, rng, VOXEL_SIZE / scale).density
    return np.clip(np.round(density / STEP), 0, 255).astype(np.uint8)


def maps_of(kind: str, paths: Sequence[pathlib.Path]) -> list[np.ndarray]:
    """The maps that volumes of this kind are made of."""
    names = [name for group in GROUPS.values() for name in group] if kind == "mixed" else GROUPS.get(kind, ())
    return [load_map(path) for path in paths if any(name in path.name for name in names)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=pathlib.Path, required=True, help="folder of density maps (.mrc, .map)")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    paths = sorted(p for p in arguments.maps.rglob("*") if p.suffix in (".mrc", ".map"))
    volumes = {}
    with concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for number, (kind, count) in enumerate(COUNTS.items()):
            work = functools.partial(make_volume, maps=maps_of(kind, paths))
            volumes[kind] = np.stack(list(pool.map(work, range(1000 * number, 1000 * number + count))))
            print(f"{kind}: {count} volumes", flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.output, **volumes)


if __name__ == "__main__":
    main()
