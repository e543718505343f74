"""What real tomograms bring with them and simulated ones lack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from cryowgen_jax.restoration.spectra import through
from cryowgen_jax.simulation import SimulatedTomogram

SMEARED = 4  # voxels around a change that are not judged


class Case(NamedTuple):
    """What happens to a half, and where the result is judged."""

    change: Callable[[np.ndarray], np.ndarray]
    judged: np.ndarray


def cases(tomogram: SimulatedTomogram, mask: np.ndarray, seed: int = 0) -> Mapping[str, Case]:
    """Cases by name; sd is that of a half, and a level the 95th percentile of what is bright in the truth."""
    shape, sd, random = tomogram.truth.shape, float(tomogram.half1.std()), np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    places = np.indices(shape)
    level = float(np.percentile(tomogram.truth[tomogram.labels > 0], 95))
    everywhere = np.ones(shape, bool)

    def added(what: np.ndarray, judged: np.ndarray = everywhere) -> Case:
        return Case(lambda half: half + what, judged)

    def beads(radii: Iterable[float], height: float) -> Case:
        gold, judged = np.zeros(shape), np.ones(shape, bool)
        for radius in radii:
            centre = [random.uniform(4, n - 4) for n in shape]
            distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(places, centre, strict=True)))
            gold += 1 / (1 + np.exp(np.clip((distance - radius) / 0.4, -50, 50)))
            judged &= distance > radius + SMEARED + 1
        return added(through(height * level * gold, mask), judged)

    def border(angle: float, offset: float) -> Case:
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        inside = (np.abs(u) < 0.84) & (np.abs(v) < 0.9)
        judged = (np.abs(u) < 0.74) & (np.abs(v) < 0.8)
        return Case(lambda half: np.where(inside, half + offset * sd, 0), judged)

    hot = np.zeros(shape)
    hot[tuple(random.integers(0, n, 20) for n in shape)] = 60 * sd
    film, blank = y > 0.25, y > 0.5
    return {
        "clean": added(np.zeros(shape)),
        "slope along x, 3 sd": added(3 * sd * x),
        "slope along y, 3 sd": added(3 * sd * y),
        "oblique slope, 1 sd": added(sd * (x + y - z)),
        "slope along x, 0.3 sd": added(0.3 * sd * x),
        "bowl, 2 sd": added(2 * sd * (x**2 + y**2 + z**2)),
        "bump, 3 sd": added(3 * sd * np.exp(-((x - 0.2) ** 2 + (y + 0.4) ** 2) / 0.54)),
        "ball, 3 sd": added(3 * sd * np.exp(-((x + 0.2) ** 2 + y**2 + z**2 / 4) / 0.25)),
        "step, 2 sd": added(2 * sd * (x > -0.2)),
        "oblique step, 2 sd": added(2 * sd * (x + 0.3 * y > 0)),
        "stripes, 1 sd": added(sd * np.sin(17 * (x + 0.25 * y))),
        "border turned by 17 degrees, 3 sd": border(0.3, 3),
        "border turned by 45 degrees, -2 sd": border(np.pi / 4, -2),
        "a quarter blank": Case(lambda half: np.where(blank, 0, half), y < 0.42),
        "six beads of 4": beads([4] * 6, 4),
        "six beads of 12": beads([4] * 6, 12),
        "beads of many sizes": beads([2, 3, 4, 6, 8], 15),
        "erased beads": beads([6, 7], -8),
        "twenty hot voxels": added(through(hot, mask), through(hot, np.ones_like(mask)) < sd),
        "carbon": Case(lambda half: np.where(film, 3 * half + 2 * sd, half), y < 0.1),
    }
