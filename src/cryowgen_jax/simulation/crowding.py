"""Objects placed in one volume without touching each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import affine_transform, binary_dilation
from scipy.spatial.transform import Rotation

from cryowgen_jax.simulation.phantoms import (
    Blobs,
    Shape,
    draw,
    membrane,
    microtubule,
    of_unit_density,
    species,
    thin_filament,
    turn,
)

MEMBRANE_LABEL = 1
FILAMENT_LABEL = 2
FIRST_PARTICLE_LABEL = 3

_SOLID = 0.12  # density above which a voxel belongs to an object


class Phantom(NamedTuple):
    """Objects on a background of zero.

    Attributes
    ----------
    density
        (Z, Y, X) float32, non-negative, about 1 inside the objects.
    labels
        (Z, Y, X) int16: 0 solvent, 1 membrane, 2 filament, 3 and up one number per particle.
    """

    density: np.ndarray
    labels: np.ndarray


class _Patch(NamedTuple):
    origin: np.ndarray  # index of its first voxel in the volume; may lie outside
    density: np.ndarray
    solid: np.ndarray  # where it counts as taken
    grown: np.ndarray  # the same, grown by one voxel to keep objects apart


def crowded_phantom(shape: Shape, rng: np.random.Generator, voxel_size_angstrom: float) -> Phantom:
    """One piece of membrane, one filament and as many particles as fit, with at least a voxel between any two objects.

    The filament is a microtubule where one fits beside the membrane, else a thin one; a box with room for neither has
    none. Particles may be cut by the faces of the box, as in a tomogram.
    """
    phantom, voxel = surroundings(shape, rng, voxel_size_angstrom), voxel_size_angstrom / 10.0
    kinds = species(rng, voxel)
    share = np.array([0.25] + [0.75 / (len(kinds) - 1)] * (len(kinds) - 1))
    label, failures = FIRST_PARTICLE_LABEL, 0
    patience = max(25, phantom.labels.size // 40_000)
    while failures < patience and label < np.iinfo(np.int16).max:
        kind = kinds[rng.choice(len(kinds), p=share)]
        matrix = Rotation.from_quat(rng.standard_normal(4)).as_matrix()
        patch = _solid_patch(*draw(kind._replace(positions=turn(kind.positions, matrix)), voxel))
        if _place_somewhere(phantom, patch, label, rng):
            label += 1
        else:
            failures += 1
    return phantom


def surroundings(
    shape: Shape,
    rng: np.random.Generator,
    voxel_size_angstrom: float,
    *,
    with_membrane: bool = True,
    with_filament: bool = True,
) -> Phantom:
    """One piece of membrane and one filament, or only one of them, to place particles around."""
    voxel = voxel_size_angstrom / 10.0
    density = membrane(rng, shape, voxel) if with_membrane else np.zeros(shape, np.float32)
    phantom = Phantom(density, np.where(density > _SOLID, MEMBRANE_LABEL, 0).astype(np.int16))
    if with_filament:
        _place_filament(phantom, rng, voxel)
    return phantom


def crowded_maps(
    shape: Shape,
    maps: Sequence[np.ndarray],
    rng: np.random.Generator,
    *,
    scale: float = 1.0,
    most: int | None = None,
    around: Phantom | None = None,
) -> Phantom:
    """Randomly rotated copies of density maps, as many as fit; the largest map is placed first.

    Parameters
    ----------
    shape
        (Z, Y, X).
    maps
        (z, y, x) each, zero around the object, about 1 inside, all of one voxel size.
    rng
        Draws places, orientations and the map of each copy.
    scale
        Voxels of the volume per voxel of the maps.
    most
        Largest number of copies; None for as many as fit.
    around
        What is there already, such as :func:`surroundings`; it is not changed.
    """
    last = FIRST_PARTICLE_LABEL + (np.iinfo(np.int16).max - FIRST_PARTICLE_LABEL if most is None else most)
    phantom = Phantom(np.zeros(shape, np.float32), np.zeros(shape, np.int16))
    if around is not None:
        phantom = Phantom(around.density.copy(), around.labels.copy())
    label, failures = FIRST_PARTICLE_LABEL, 0
    chosen = maps[int(np.argmax([m.size for m in maps]))]
    while failures < max(25, phantom.labels.size // 40_000) and label < last:
        density = _turned(chosen, Rotation.from_quat(rng.standard_normal(4)).as_matrix(), scale)
        if _place_somewhere(phantom, _solid_patch(np.zeros(3, int), density), label, rng):
            label += 1
        else:
            failures += 1
        chosen = maps[int(rng.integers(len(maps)))]
    return phantom


def _turned(density: np.ndarray, matrix: np.ndarray, scale: float) -> np.ndarray:
    size = int(np.ceil(1.2 * scale * max(density.shape))) + 2
    inverse = matrix.T / scale
    offset = (np.array(density.shape) - 1) / 2 - inverse @ np.full(3, (size - 1) / 2)
    return affine_transform(density, inverse, offset, (size,) * 3, order=1)


def _place_filament(phantom: Phantom, rng: np.random.Generator, voxel: float) -> None:
    shape = np.array(phantom.density.shape)
    length = 1.3 * float(np.linalg.norm(shape[1:])) * voxel
    for kind, margin in ((microtubule(length), 14.0), (thin_filament(length), 5.0)):
        kind = of_unit_density(kind, voxel)
        low = np.minimum(margin / voxel, 0.5 * shape)
        for _ in range(100):
            pose = Rotation.from_euler("yz", [90.0 + rng.uniform(-10, 10), rng.uniform(0, 360)], degrees=True)
            middle = rng.uniform(low, shape - low) * voxel
            posed = kind._replace(positions=turn(kind.positions, pose.as_matrix()) + middle)
            if _touches(phantom.labels, posed.positions / voxel):
                continue
            density = np.zeros(phantom.density.shape, np.float32)
            for start in range(0, len(posed.positions), 26):  # batches along the axis keep the patches small
                _add(density, *draw(Blobs(*(field[start : start + 26] for field in posed)), voxel))
            if _place(phantom, _solid_patch(np.zeros(3, int), density), FILAMENT_LABEL):
                return


def _touches(labels: np.ndarray, points: np.ndarray) -> bool:
    """Whether any point (voxels) that lies inside the volume is on a voxel already taken."""
    index = np.floor(points).astype(int)
    inside = index[np.all((index >= 0) & (index < labels.shape), axis=1)]
    return bool(labels[tuple(inside.T)].any())


def _place_somewhere(phantom: Phantom, patch: _Patch, label: int, rng: np.random.Generator) -> bool:
    size, shape = np.array(patch.density.shape), np.array(phantom.density.shape)
    low, high = -size // 3, shape - size + size // 3
    low, high = np.minimum(low, high), np.maximum(low, high)  # of an object larger than the box a part is seen
    for _ in range(60):
        origin = rng.integers(low, high + 1)
        if _place(phantom, patch._replace(origin=origin), label):
            return True
    return False


def _place(phantom: Phantom, patch: _Patch, label: int) -> bool:
    """Add the patch where none of its solid voxels, grown by one, is taken; say whether it was added."""
    inside = _overlap(phantom.density.shape, patch.origin, patch.density.shape)
    if inside is None:
        return False
    here, there = inside
    solid = patch.solid[there]
    if not solid.any() or phantom.labels[here][patch.grown[there]].any():
        return False
    phantom.density[here] += patch.density[there]
    phantom.labels[here][solid] = label
    return True


def _solid_patch(origin: np.ndarray, density: np.ndarray) -> _Patch:
    solid = density > _SOLID
    return _Patch(origin, density, solid, binary_dilation(solid, np.ones((3, 3, 3))))


def _add(volume: np.ndarray, origin: np.ndarray, density: np.ndarray) -> None:
    inside = _overlap(volume.shape, origin, density.shape)
    if inside is not None:
        volume[inside[0]] += density[inside[1]]


def _overlap(
    shape: tuple[int, ...], origin: np.ndarray, size: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Slices of a volume and of a patch placed at ``origin`` where the two overlap, or None."""
    low = np.maximum(origin, 0)
    high = np.minimum(origin + np.array(size), shape)
    if np.any(high <= low):
        return None
    here = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    there = tuple(slice(a, b) for a, b in zip(low - origin, high - origin, strict=True))
    return here, there
