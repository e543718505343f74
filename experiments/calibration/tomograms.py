"""Tomograms with known truth: simulated, or read from folders."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import cryowgen_jax as cg
from cryowgen_jax.io import read_tomogram
from cryowgen_jax.restoration import load_witness
from cryowgen_jax.restoration.checks import WITNESSES
from cryowgen_jax.simulation import simulate_tomogram
from cryowgen_jax.simulation.crowding import FILAMENT_LABEL, FIRST_PARTICLE_LABEL, MEMBRANE_LABEL

TILT_RANGES = ((-60.0, 60.0), (-40.0, 60.0))
SNR = 0.1
QUICK_SHAPE, QUICK_SNR = (24, 32, 32), 0.5


class Tomogram(NamedTuple):
    """Truth and halves, (Z, Y, X); ``labels`` as of ``simulate_tomogram`` or None. Rows of a ``group`` are pooled."""

    group: str
    truth: np.ndarray
    half1: np.ndarray
    half2: np.ndarray
    labels: np.ndarray | None
    tilt_range: tuple[float, float]
    voxel_size_angstrom: float
    seed: int


def add_arguments(
    parser: argparse.ArgumentParser,
    shape: tuple[int, int, int],
    tilt_ranges: tuple[tuple[float, float], ...],
    seeds: tuple[int, ...],
) -> None:
    """Options that say which tomograms, and what is simulated by default."""
    parser.add_argument(
        "--tomograms",
        type=pathlib.Path,
        nargs="+",
        metavar="DIR",
        help="folders with truth.mrc, half1.mrc, half2.mrc and maybe labels.mrc, in place of simulated tomograms",
    )
    both = " and ".join(f"{low:g} {high:g}" for low, high in tilt_ranges)
    metavar = ("LO", "HI")
    parser.add_argument("--tilt-range", type=float, nargs=2, metavar=metavar, help=f"degrees; simulated: {both}")
    parser.add_argument("--shape", type=int, nargs=3, default=shape, metavar=("Z", "Y", "X"), help="if simulated")
    parser.add_argument("--snr", type=float, default=SNR, help="of a half, if simulated")
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds, help="if simulated")
    parser.set_defaults(tilt_ranges=tilt_ranges)


def chosen(arguments: argparse.Namespace) -> Iterator[Tomogram]:
    """One by one what the arguments ask for; ``--quick`` is one small tomogram."""
    given = None if arguments.tilt_range is None else tuple(arguments.tilt_range)
    if arguments.tomograms:
        if given is None:
            raise SystemExit("--tomograms: give --tilt-range too")
        yield from (read(folder, given) for folder in arguments.tomograms)
        return
    tilt_ranges = arguments.tilt_ranges if given is None else (given,)
    shape, snr, seeds = tuple(arguments.shape), arguments.snr, arguments.seeds
    if arguments.quick:
        tilt_ranges, shape, snr, seeds = tilt_ranges[:1], QUICK_SHAPE, QUICK_SNR, seeds[:1]
    for tilt_range in tilt_ranges:
        for seed in seeds:
            made = simulate_tomogram(shape, tilt_range, snr, seed)
            group = f"{tilt_range[0]:g} {tilt_range[1]:g}"
            yield Tomogram(
                group, made.truth, made.half1, made.half2, made.labels, tilt_range, made.voxel_size_angstrom, seed
            )


def read(folder: pathlib.Path, tilt_range: tuple[float, float]) -> Tomogram:
    truth, half1, half2 = (read_tomogram(folder / f"{name}.mrc") for name in ("truth", "half1", "half2"))
    path = folder / "labels.mrc"
    labels = np.rint(read_tomogram(path).data).astype(np.int32) if path.exists() else None
    size = truth.voxel_size_angstrom[0]
    return Tomogram(folder.name, truth.data, half1.data, half2.data, labels, tilt_range, size, 0)


def family(tomogram: Tomogram, witness: str, **options: Any) -> cg.Restoration:
    """``restore`` from both halves; ``witness`` as on the command line, ``options`` as of ``restore``."""
    return cg.restore(
        tomogram.half1,
        tomogram.tilt_range,
        half2=tomogram.half2,
        witness=witness if witness in WITNESSES else load_witness(witness),
        key=jax.random.key(tomogram.seed),
        **options,
    )


def kinds(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Voxels of every kind of object that there is."""
    every = {
        "solvent": labels == 0,
        "membrane": labels == MEMBRANE_LABEL,
        "filament": labels == FILAMENT_LABEL,
        "particles": labels >= FIRST_PARTICLE_LABEL,
    }
    return {name: voxels for name, voxels in every.items() if voxels.any()}
