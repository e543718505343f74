"""Scenes to learn from: crowded tomograms with known truth, and what the second network is shown of them.

    python experiments/learned_witness/scenes.py --structures FOLDER --split train --count 96 --output train.npz

``FOLDER`` holds ``index.csv`` (columns id, family, kDa), ``maps_10A.npz`` and ``maps_5A.npz``. Families of
``held_out.json`` are left out of training: those under "validation" serve choices, those under "test" serve nothing but
the last look.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import dataclasses
import functools
import json
import multiprocessing
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter

from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.known_scenes import coarse_scene_of, scene_of, together
from cryowgen_jax.restoration.prior_weights import shipped_weights
from cryowgen_jax.restoration.restore import frame_for
from cryowgen_jax.simulation import crowded_maps, surroundings
from cryowgen_jax.spatial import fourier
from cryowgen_jax.training import CoarseScenes, Scenes

INTERIOR = 3.9  # volts: density inside complexes, which becomes 1
LEAST_KDA = 50.0
SNRS, CLEAR_SNRS, CLEAR_SHARE = (0.01, 1.0), (1.0, 100.0), 0.2  # per half, uniform in the logarithm
LOWEST_TILTS = (38.0, 72.0)  # degrees, either side
SYMMETRIC_SHARE = 0.5
SCALES, ALL_SCALES, ODD_SCALE_SHARE = (0.8, 1.25), (0.5, 2.0), 0.3  # voxels of a scene per 10 A
FINE = 1.25  # scale from which the maps of 5 A are used, where there are any
KINDS = (1, 25)  # of complexes in a scene
LARGEST_TEXTURE = 0.25  # share of the truth's variance
TEXTURE_WIDTHS = (0.7, 2.5)  # voxels
MEMBRANE_SHARE, FILAMENT_SHARE, SPARSE_SHARE = 0.25, 0.25, 0.2
STRENGTHS = (0.8, 1.2)  # density of one kind of complex
CTF_SHARE, DEFOCI = 0.3, (2.0, 8.0)  # micrometres
WAVELENGTH, AMPLITUDE_CONTRAST = 0.0197, 0.07  # angstrom, at 300 kV
BLUR_SHARE, BLURS = 0.5, (0.0, 1.2)  # voxels
GOLD_SHARE, BEADS, BEAD_RADII, BEAD_LEVELS = 0.06, (1, 4), (2.5, 6.0), (3.0, 12.0)  # voxels; density of protein is 1
CARBON_SHARE, CARBON_CONTRASTS, CARBON_LEVELS = 0.08, (1.0, 3.0), (0.0, 1.0)  # texture, mean; density of protein is 1
SLOPE_SHARE, SLOPE_WIDTHS, SLOPE_LEVELS = 0.15, (12.0, 40.0), (0.05, 0.4)  # voxels; density of protein is 1
SPLITS = ("train", "validation", "test")
HELD_OUT = pathlib.Path(__file__).with_name("held_out.json")


class Complex(NamedTuple):
    """One row of the index, and its maps of 10 A and, where there is one, of 5 A; both about 1 inside."""

    name: str
    family: str
    kda: float
    density: np.ndarray
    fine: np.ndarray | None


def complexes(folder: pathlib.Path, split: str) -> list[Complex]:
    """Those of the families of a split."""
    held_out: dict[str, list[str]] = json.loads(HELD_OUT.read_text())
    with (folder / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    coarse, fine = (np.load(folder / f"maps_{size}A.npz", allow_pickle=False) for size in (10, 5))
    aside = {family for families in held_out.values() for family in families}
    chosen = [
        row
        for row in rows
        if (row["family"] in held_out.get(split, ()) if split != "train" else row["family"] not in aside)
    ]
    return [
        Complex(
            name=row["id"],
            family=row["family"],
            kda=float(row["kDa"]),
            density=coarse[row["id"]].astype(np.float32) / INTERIOR,
            fine=fine[row["id"]].astype(np.float32) / INTERIOR if row["id"] in fine else None,
        )
        for row in chosen
        if float(row["kDa"]) >= LEAST_KDA
    ]


def draw_kinds(pool: Sequence[Complex], rng: np.random.Generator, *, fine: bool) -> list[np.ndarray]:
    """The kinds of one scene: families alike likely, large complexes as often as small ones, each with its contrast.

    ``fine`` takes maps of 5 A.
    """
    families: dict[str, list[Complex]] = {}
    for one in pool:
        if not fine or one.fine is not None:
            families.setdefault(one.family, []).append(one)
    names = sorted(families)
    size = np.array([max(one.kda for one in families[name]) for name in names])
    weight = np.clip(size / 100.0, 1.0, 8.0)
    count = min(int(rng.integers(*KINDS, endpoint=True)), len(names))
    chosen = rng.choice(len(names), count, replace=False, p=weight / weight.sum())
    kinds = []
    for name in (names[i] for i in chosen):
        one = families[name][int(rng.integers(len(families[name])))]
        density = one.fine if fine and one.fine is not None else one.density
        kinds.append(density * np.float32(rng.uniform(*STRENGTHS)))
    return kinds


def truth_of(
    pool: Sequence[Complex], shape: tuple[int, int, int], rng: np.random.Generator, *, plain: bool = False
) -> np.ndarray:
    """A crowded volume as a microscope with all tilts and no noise would show it, solvent texture included.

    ``plain`` leaves out odd voxel sizes, optics, gold, carbon and slopes.
    """

    def happens(share: float) -> bool:
        return rng.random() < share and not plain

    odd = happens(ODD_SCALE_SHARE)
    scale = float(np.exp(rng.uniform(*np.log(ALL_SCALES if odd else SCALES))))
    fine = scale > FINE
    around = surroundings(
        shape,
        rng,
        10.0 / scale,
        with_membrane=rng.random() < MEMBRANE_SHARE,
        with_filament=rng.random() < FILAMENT_SHARE,
    )
    most = int(rng.integers(1, 6)) if rng.random() < SPARSE_SHARE else None
    kinds = draw_kinds(pool, rng, fine=fine)
    per_map_voxel = scale / 2 if fine else scale
    density = crowded_maps(shape, kinds, rng, scale=per_map_voxel, most=most, around=around).density
    share, width = max(0.0, rng.uniform(-0.25, 1.0)) * LARGEST_TEXTURE, rng.uniform(*TEXTURE_WIDTHS)
    field = _field(shape, width, rng)
    density = density + field * np.sqrt(share / (1 - share) * density.var())
    if happens(CARBON_SHARE):
        density = density + carbon(shape, rng)
    if happens(GOLD_SHARE):
        density = density + gold(shape, rng)
    if not plain:
        seen = fourier.rfftn(jnp.asarray(density, jnp.float32)) * optics(shape, 10.0 / scale, rng)
        density = np.asarray(fourier.irfftn(seen, shape))
    if happens(SLOPE_SHARE):
        density = density + rng.uniform(*SLOPE_LEVELS) * _field(shape, rng.uniform(*SLOPE_WIDTHS), rng)
    return density.astype(np.float32)


def _field(shape: tuple[int, int, int], width: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian field of variance 1, smooth over ``width`` voxels; the faces of the box fit together."""
    field = gaussian_filter(rng.standard_normal(shape, np.float32), width, mode="wrap")
    return field / field.std()


def carbon(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """A film beyond a plane along the beam, with another mean and another texture."""
    angle, at = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3) * min(shape[1:])
    y, x = (np.arange(n) - n / 2 for n in shape[1:])
    beyond = np.cos(angle) * x[None, :] + np.sin(angle) * y[:, None] > at
    film = rng.uniform(*CARBON_LEVELS) + 0.3 * rng.uniform(*CARBON_CONTRASTS) * _field(
        shape, rng.uniform(*TEXTURE_WIDTHS), rng
    )
    return film * beyond


def gold(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Beads anywhere, all of one size and level."""
    radius, level = rng.uniform(*BEAD_RADII), np.exp(rng.uniform(*np.log(BEAD_LEVELS)))
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    beads = np.zeros(shape)
    for _ in range(int(rng.integers(*BEADS, endpoint=True))):
        distance = np.linalg.norm(grid - rng.uniform(0, shape), axis=-1)
        beads = np.maximum(beads, level * np.clip(radius + 0.5 - distance, 0, 1))
    return beads


def optics(shape: tuple[int, int, int], voxel: float, rng: np.random.Generator) -> np.ndarray:
    """Transfer of contrast: a blur, and a CTF as it is, with its phases flipped, or divided out where it is large."""
    radius = fourier.radial_frequency(shape)
    blur = rng.uniform(*BLURS) if rng.random() < BLUR_SHARE else 0.0
    transfer = np.exp(-2 * (np.pi * blur * radius) ** 2)
    if rng.random() < CTF_SHARE:
        phase = np.pi * WAVELENGTH * 1e4 * rng.uniform(*DEFOCI) * (radius / voxel) ** 2 + np.arcsin(AMPLITUDE_CONTRAST)
        contrast = np.sin(phase)
        transfer = transfer * (contrast, np.abs(contrast), 1.1 * contrast**2 / (contrast**2 + 0.1))[rng.integers(3)]
    return transfer.astype(np.float32)


def make_scene(
    seed: int, pool: Sequence[Complex], shape: tuple[int, int, int], *, fixed: bool = False, third: bool = False
) -> Scenes | CoarseScenes:
    """One scene, for the second network or the ``third``.

    ``fixed`` takes +-60 degrees, SNR 0.1, white noise and a plain truth in place of what is drawn.
    """
    rng = np.random.default_rng(seed)
    truth = truth_of(pool, shape, rng, plain=fixed)
    high = rng.uniform(*LOWEST_TILTS)
    low = high if rng.random() < SYMMETRIC_SHARE else rng.uniform(*LOWEST_TILTS)
    snr = float(np.exp(rng.uniform(*np.log(CLEAR_SNRS if rng.random() < CLEAR_SHARE else SNRS))))
    colour = rng.uniform(0.0, 0.8) if rng.random() < 0.5 else 0.0
    if fixed:
        low, high, snr, colour = 60.0, 60.0, 0.1, 0.0
    geometry = Geometry((-low, high))
    mask = geometry.mask(shape)
    spectrum = 1.0 - colour * (1.0 - np.exp(-((fourier.radial_frequency(shape) / 0.2) ** 2)))
    spectrum = spectrum / np.sqrt(
        np.average(spectrum**2 * np.ones(mask.shape), weights=np.broadcast_to(fourier.multiplicity(shape), mask.shape))
    )
    sd = np.float32(np.sqrt(truth.var() / snr))

    def half() -> np.ndarray:
        noise = fourier.rfftn(jnp.asarray(sd * rng.standard_normal(shape, np.float32))) * spectrum
        return np.asarray(fourier.irfftn((fourier.rfftn(jnp.asarray(truth)) + noise) * mask, shape))

    halves = [half(), half()]
    average = 0.5 * (halves[0] + halves[1])
    frame = frame_for(average, mask, "bright", in_tiles=False)
    prepared = tuple(frame.prepare(part) for part in halves)
    make = coarse_scene_of if third else scene_of
    return make(shipped_weights(), (truth - frame.level) / frame.scale, prepared, geometry)


def main() -> None:
    arguments = parse()
    pool = complexes(arguments.structures, arguments.split)
    print(f"{arguments.split}: {len(pool)} complexes of {len({one.family for one in pool})} families", flush=True)
    work = functools.partial(
        make_scene, pool=pool, shape=tuple(arguments.shape), fixed=arguments.fixed, third=arguments.third
    )
    first = {"train": 0, "validation": 10**6, "test": 2 * 10**6}[arguments.split] + arguments.first
    context = multiprocessing.get_context("spawn")
    scenes: list[Scenes | CoarseScenes] = []
    with concurrent.futures.ProcessPoolExecutor(arguments.workers, mp_context=context) as workers:
        for scene in workers.map(work, range(first, first + arguments.count)):
            scenes.append(scene)
            if len(scenes) % 10 == 0:
                print(f"{len(scenes)} of {arguments.count}", flush=True)
    save(arguments.output, scenes)


def save(path: pathlib.Path, scenes: Sequence[Scenes | CoarseScenes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = dataclasses.asdict(together(scenes))
    np.savez(path, **{name: column for name, column in columns.items() if name != "box"})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--structures", type=pathlib.Path, required=True, help="folder with index.csv, maps_10A.npz, maps_5A.npz"
    )
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    parser.add_argument("--shape", type=int, nargs=3, default=(40, 64, 64))
    parser.add_argument("--fixed", action="store_true", help="+-60 degrees, SNR 0.1, white noise, plain")
    parser.add_argument("--third", action="store_true", help="for the third network: half the grid")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
