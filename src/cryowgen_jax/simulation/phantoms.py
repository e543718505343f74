"""Procedural densities: macromolecules, a lipid bilayer and helical filaments.

Molecules are sums of Gaussian blobs: rotating one is exact, since only its centres move, and drawing it costs one
matrix product. Lengths are in nanometres and coordinates in (z, y, x) order. Every random choice comes from the
generator that is passed in. The shapes are meant to be as hard to restore as real ones; they are not models of any
molecule.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

Shape = tuple[int, int, int]

_MINIMUM_WIDTH = 0.7  # of a blob, in voxels: narrower ones would alias


class Blobs(NamedTuple):
    """A density sum_i h_i exp(-|r - p_i|^2 / (2 s_i^2)).

    Attributes
    ----------
    positions
        p, (n, 3), nanometres, (z, y, x), about the centre of the object.
    widths
        s, (n,), nanometres.
    heights
        h, (n,), positive.
    """

    positions: np.ndarray
    widths: np.ndarray
    heights: np.ndarray


def compact_chain(rng: np.random.Generator, count: int, step: float = 2.0) -> np.ndarray:
    """Centres (count, 3) of a compact self-avoiding cluster, ``step`` nm apart, centred: a protein of many domains."""
    points = np.zeros((1, 3))
    while len(points) < count:
        directions = rng.standard_normal((16, 3))
        directions *= step / np.linalg.norm(directions, axis=1, keepdims=True)
        candidates = points[rng.integers(len(points), size=16)] + directions
        clearance = np.linalg.norm(candidates[:, None] - points[None], axis=2).min(axis=1)
        free = candidates[clearance > 0.85 * step]
        if len(free):
            nearest = np.argmin(np.linalg.norm(free[:4] - points.mean(axis=0), axis=1))
            points = np.vstack([points, free[nearest]])
    return points - points.mean(axis=0)


def symmetric_copies(positions: np.ndarray, order: int, dihedral: bool) -> np.ndarray:
    """Copies of ``positions`` (n, 3) under the point group C_order about z, or D_order (with a two-fold about x)."""
    angles = 2 * np.pi * np.arange(order) / order
    matrices = Rotation.from_rotvec(np.outer(angles, [0.0, 0.0, 1.0])).as_matrix()
    copies = np.concatenate([turn(positions, matrix) for matrix in matrices])
    if not dihedral:
        return copies
    return np.concatenate([copies, copies * np.array([-1.0, -1.0, 1.0])])


def oligomer(rng: np.random.Generator, order: int, dihedral: bool) -> Blobs:
    """A complex of ``order`` (twice that when dihedral) copies of one random subunit, about 8 to 22 nm across."""
    chain = compact_chain(rng, int(rng.integers(16, 36)))
    radius = np.linalg.norm(chain, axis=1).max()
    out = 0.0 if order == 1 else 0.9 * radius / np.sin(np.pi / order)
    up = 0.9 * radius if dihedral else 0.0
    centres = symmetric_copies(chain + np.array([up, 0.0, out]), order, dihedral)
    widths, heights = _subunit_texture(rng, len(chain))
    copies = len(centres) // len(chain)
    return Blobs(centres, np.tile(widths, copies), np.tile(heights, copies))


def barrel(rng: np.random.Generator) -> Blobs:
    """A hollow stack of rings of six to eight subunits, like a proteasome or a chaperonin: about 15 nm."""
    order = int(rng.integers(6, 9))
    rings = int(rng.choice([2, 4]))
    wall = rng.uniform(4.0, 5.5)
    height = rng.uniform(12.0, 15.0)
    subunit = compact_chain(rng, 5 if rings == 4 else 9, step=1.6)
    positions = []
    for level in (np.arange(rings // 2) + 0.5) * height / rings:
        twist = Rotation.from_rotvec([0.0, 0.0, rng.uniform(0, 2 * np.pi / order)]).as_matrix()
        ring = symmetric_copies(turn(subunit, twist) + np.array([level, 0.0, wall]), order, dihedral=True)
        positions.append(ring)
    widths, heights = _subunit_texture(rng, len(subunit))
    copies = rings * order
    return Blobs(np.concatenate(positions), 0.85 * np.tile(widths, copies), np.tile(heights, copies))


def two_lobed(rng: np.random.Generator) -> Blobs:
    """An irregular lump of two unequal lobes with a cleft and a stalk, like a ribosome: about 25 nm."""
    size = rng.uniform(0.9, 1.1)
    large = _ellipsoid(rng, size * np.array([9.5, 10.5, 8.0]))
    small = _ellipsoid(rng, size * np.array([8.5, 9.0, 5.0])) + np.array([rng.uniform(-2, 2), 0.0, size * 12.0])
    direction = np.array([rng.uniform(-0.4, 0.4), 1.0, rng.uniform(-0.4, 0.4)])
    stalk = size * np.linspace(10.0, 15.0, 4)[:, None] * direction / np.linalg.norm(direction)
    centres = np.concatenate([large, small, stalk])
    widths, heights = _subunit_texture(rng, len(centres))
    return Blobs(centres - centres.mean(axis=0), 1.2 * widths, heights)


def microtubule(length: float) -> Blobs:
    """A helical tube along z: 13 protofilaments at radius 11.2 nm, a 4 nm repeat, a pitch of three repeats a turn."""
    rows = int(np.ceil(length / 4.0)) + 3
    row, strand = np.divmod(np.arange(13 * rows), 13)
    angle = 2 * np.pi * strand / 13
    z = 4.0 * row + 12.0 * strand / 13 - 2.0 * rows - 4.0
    positions = np.stack([z, 11.2 * np.sin(angle), 11.2 * np.cos(angle)], axis=1)
    return Blobs(positions, np.full(len(z), 1.35), np.ones(len(z)))


def thin_filament(length: float) -> Blobs:
    """A two-stranded helix along z like actin: radius 2 nm, rise 2.75 nm and turn -166.6 degrees per subunit."""
    count = int(np.ceil(length / 2.75)) + 3
    index = np.arange(count) - 0.5 * (count - 1)
    angle = np.deg2rad(-166.6) * index
    positions = np.stack([2.75 * index, 2.0 * np.sin(angle), 2.0 * np.cos(angle)], axis=1)
    return Blobs(positions, np.full(count, 1.3), np.ones(count))


def bilayer(signed_distance: np.ndarray, voxel_size_nm: float) -> np.ndarray:
    """Density of a lipid bilayer from the distance (nm) to its middle: heads at 1.9 nm, faint tails between them."""
    width = max(0.8, _MINIMUM_WIDTH * voxel_size_nm)
    heads = sum(np.exp(-0.5 * ((signed_distance - side) / width) ** 2) for side in (-1.9, 1.9))
    tails = 0.15 * np.exp(-0.5 * (signed_distance / 1.5) ** 2)
    return (heads + tails).astype(np.float32)


def membrane(rng: np.random.Generator, shape: Shape, voxel_size_nm: float) -> np.ndarray:
    """Density (Z, Y, X) of a bilayer: a whole vesicle inside the box, or a sheet of one larger than the box."""
    extent = np.array(shape) * voxel_size_nm
    lateral = extent[1:].min()
    if rng.random() < 0.5:
        radius = rng.uniform(0.2, 0.28) * lateral
        centre = np.array([rng.uniform(0.35, 0.65), *rng.uniform(0.3, 0.7, 2)]) * extent
    else:
        radius = rng.uniform(0.6, 1.0) * lateral
        away = rng.uniform(0, 2 * np.pi)
        reach = radius + rng.uniform(0.1, 0.3) * lateral
        centre = 0.5 * extent + reach * np.array([rng.uniform(-0.3, 0.3), np.sin(away), np.cos(away)])
    axes = np.meshgrid(*[(np.arange(n) + 0.5) * voxel_size_nm for n in shape], indexing="ij", sparse=True)
    offset = [axis - c for axis, c in zip(axes, centre, strict=True)]
    distance = np.sqrt(sum(o**2 for o in offset))
    wave = rng.standard_normal((4, 3))
    phase = rng.uniform(0, 2 * np.pi, 4)
    undulation = sum(
        np.cos(sum(3.0 * w * o for w, o in zip(wave[i], offset, strict=True)) / radius + phase[i]) for i in range(4)
    )
    return bilayer(distance - radius * (1 + 0.025 * undulation), voxel_size_nm)


def species(rng: np.random.Generator, voxel_size_nm: float) -> list[Blobs]:
    """Draw the molecules of one phantom: a two-lobed lump, two barrels, five oligomers; density about 1."""
    drawn = [two_lobed(rng), barrel(rng), barrel(rng)]
    for order, dihedral in ((1, False), (2, False), (3, False), (2, True), (4, False)):
        drawn.append(oligomer(rng, order, dihedral))
    return [of_unit_density(blobs, voxel_size_nm) for blobs in drawn]


def draw(blobs: Blobs, voxel: float) -> tuple[np.ndarray, np.ndarray]:
    """Origin (voxels) and float32 density of the smallest patch that reaches four widths beyond the blobs."""
    centres = blobs.positions / voxel - 0.5
    widths = np.maximum(blobs.widths / voxel, _MINIMUM_WIDTH)[:, None]
    low = np.floor((centres - 4 * widths).min(axis=0)).astype(int)
    high = np.ceil((centres + 4 * widths).max(axis=0)).astype(int) + 1
    z, y, x = (
        np.exp(-0.5 * ((np.arange(low[a], high[a]) - centres[:, a : a + 1]) / widths) ** 2).astype(np.float32)
        for a in range(3)
    )
    plane = (y[:, :, None] * x[:, None, :]).reshape(len(z), -1)
    drawn = (z * blobs.heights[:, None].astype(np.float32)).T @ plane
    return low, drawn.reshape(z.shape[1], y.shape[1], x.shape[1])


def of_unit_density(blobs: Blobs, voxel: float) -> Blobs:
    """Scale the heights so that the 90th percentile of the density inside the object is 1."""
    part = Blobs(*(field[:400] for field in blobs))
    _, drawn = draw(part, voxel)
    return blobs._replace(heights=blobs.heights / np.percentile(drawn[drawn > 0.1 * drawn.max()], 90))


def turn(positions: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn (z, y, x) positions by a matrix that acts on (x, y, z)."""
    return (positions[:, ::-1] @ matrix.T)[:, ::-1]


def _ellipsoid(rng: np.random.Generator, semi_axes: np.ndarray, spacing: float = 2.1) -> np.ndarray:
    """Random points at least ``spacing`` nm apart that fill an ellipsoid."""
    points = np.empty((0, 3))
    for candidate in rng.uniform(-1, 1, (2500, 3)):
        if candidate @ candidate > 1:
            continue
        candidate = candidate * semi_axes
        if not len(points) or np.linalg.norm(points - candidate, axis=1).min() > spacing:
            points = np.vstack([points, candidate])
    return points


def _subunit_texture(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Widths (nm) and heights of the blobs of one subunit."""
    return rng.uniform(0.85, 1.25, count), rng.uniform(0.6, 1.5, count)
