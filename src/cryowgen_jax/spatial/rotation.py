r"""Rotations of volumes about the box centre, with an exact transpose, and draws from SO(3) and the cube group.

A rotation matrix acts on column vectors of voxel offsets (z, y, x) from the centre o = (n - 1) / 2 of the box, and the
convention is active: what was at o + c is at o + R c afterwards.
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.types import Array, InputError, PRNGKey

_SIGNED_PERMUTATIONS = (
    np.diag(signs) @ np.eye(3)[list(order)]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
)
_CUBE = np.stack([m for m in _SIGNED_PERMUTATIONS if np.linalg.det(m) > 0]).astype(np.float32)
_SNAP = 1e-4  # voxels: far above float32 rounding of a coordinate, far below what interpolation resolves


def rotate(volume: Array, rotation_matrix: Array) -> Array:
    r"""Rotate a volume about its box centre by trilinear interpolation, with zeros outside the box.

    .. math:: (\mathcal R v)(o + p) = v(o + R^T p), \qquad o = (n - 1) / 2,

    so that a feature at o + c moves to o + R c. Linear in the volume; its transpose under ``jax.vjp`` is the transpose
    of the interpolation, which differs from the rotation by R^T unless R is one of :func:`cube_rotations`.

    Parameters
    ----------
    volume
        Shape (Z, Y, X), any box. Integers are converted to float32.
    rotation_matrix
        Shape (3, 3), acting on offsets (z, y, x). Batches go through ``jax.vmap``.

    Returns
    -------
    Array
        Shape and dtype of the volume.

    Raises
    ------
    InputError
        If the volume is not 3-D or the matrix is not (3, 3).

    Notes
    -----
    Sample positions within 1e-4 voxel of a grid point are taken as that point, so the 24 rotations of the cube are
    exact permutations of a cubic box, odd or even. The derivative in the matrix ignores that rounding; where a position
    lies on the grid it is a one-sided one.

    Examples
    --------
    >>> import jax.numpy as jnp, cryowgen_jax as cg
    >>> volume = jnp.zeros((5, 5, 5)).at[2, 2, 4].set(1.0)  # at offset (0, 0, 2) from the centre
    >>> matrix = jnp.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])  # x -> z
    >>> float(cg.rotate(volume, matrix)[4, 2, 2])
    1.0
    """
    volume, rotation_matrix = jnp.asarray(volume), jnp.asarray(rotation_matrix)
    if volume.ndim != 3:
        raise InputError(f"rotate needs a (Z, Y, X) volume, got shape {volume.shape}; use jax.vmap for batches")
    if rotation_matrix.shape != (3, 3):
        raise InputError(
            f"rotate needs one (3, 3) rotation matrix, got shape {rotation_matrix.shape}; use jax.vmap for batches"
        )
    if not jnp.issubdtype(volume.dtype, jnp.floating):
        volume = volume.astype(jnp.float32)
    return _rotate(volume, rotation_matrix.astype(volume.dtype))


@jax.jit
def _rotate(volume: Array, matrix: Array) -> Array:
    return _interpolate(volume, _sample_positions(volume.shape, matrix))


def _sample_positions(shape: tuple[int, ...], matrix: Array) -> list[Array]:
    """Return o + R^T p for every voxel p, one array of the box's shape per axis; exact for signed permutations."""
    offsets = [
        (jnp.arange(n, dtype=matrix.dtype) - (n - 1) / 2).reshape([-1 if i == j else 1 for j in range(3)])
        for i, n in enumerate(shape)
    ]
    positions = []
    for axis, n in enumerate(shape):  # sums, not a matrix product: accelerators round those to fewer digits
        position = sum(matrix[i, axis] * offsets[i] for i in range(3)) + (n - 1) / 2
        to_grid = jax.lax.stop_gradient(jnp.round(position) - position)
        positions.append(position + jnp.where(jnp.abs(to_grid) < _SNAP, to_grid, 0.0))
    return positions


def _interpolate(volume: Array, positions: list[Array]) -> Array:
    """Trilinear interpolation of the volume, extended by zeros, at the given positions."""
    floors = [jax.lax.stop_gradient(jnp.floor(p)) for p in positions]
    sides = []  # per axis: (index, weight) of the lower and the upper neighbour
    for position, floor, n in zip(positions, floors, volume.shape, strict=True):
        fraction = position - floor
        lower = floor.astype(jnp.int32)
        sides.append(
            [
                (jnp.clip(index, 0, n - 1), jnp.where((index >= 0) & (index < n), weight, 0.0))
                for index, weight in ((lower, 1.0 - fraction), (lower + 1, fraction))
            ]
        )
    _, size_y, size_x = volume.shape
    flat = volume.reshape(-1)
    total = jnp.zeros_like(volume)
    for (z, weight_z), (y, weight_y), (x, weight_x) in itertools.product(*sides):
        total = total + weight_z * weight_y * weight_x * flat[(z * size_y + y) * size_x + x]
    return total


def random_rotations(key: PRNGKey, n: int) -> Array:
    """Draw rotation matrices uniformly (Haar) on SO(3), from normalised Gaussian quaternions.

    Source: Shoemake, "Uniform random rotations", Graphics Gems III (1992).

    Parameters
    ----------
    key
        PRNG key.
    n
        How many.

    Returns
    -------
    Array
        Shape (n, 3, 3), acting on offsets (z, y, x) as :func:`rotate` has it.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, cryowgen_jax as cg
    >>> matrix = cg.random_rotations(jax.random.key(0), 3)[1]
    >>> bool(jnp.allclose(jnp.linalg.inv(matrix), matrix.T, atol=1e-5))
    True
    """
    quaternion = jax.random.normal(key, (n, 4))
    quaternion = quaternion / jnp.linalg.norm(quaternion, axis=-1, keepdims=True)
    w, a, b, c = jnp.moveaxis(quaternion, -1, 0)
    rows = [
        [1 - 2 * (b * b + c * c), 2 * (a * b - c * w), 2 * (a * c + b * w)],
        [2 * (a * b + c * w), 1 - 2 * (a * a + c * c), 2 * (b * c - a * w)],
        [2 * (a * c - b * w), 2 * (b * c + a * w), 1 - 2 * (a * a + b * b)],
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def cube_rotations() -> Array:
    """Return the 24 rotations of the cube, shape (24, 3, 3), the identity first.

    They are the signed permutation matrices of determinant 1; :func:`rotate` by one of them is an exact permutation of
    the voxels of a cubic box.

    Examples
    --------
    >>> import jax.numpy as jnp, cryowgen_jax as cg
    >>> volume = jnp.arange(27.0).reshape(3, 3, 3)
    >>> sorted(cg.rotate(volume, cg.cube_rotations()[7]).ravel().tolist()) == sorted(volume.ravel().tolist())
    True
    """
    return jnp.asarray(_CUBE)


def axis_permutations() -> Array:
    """Return six of :func:`cube_rotations`, shape (6, 3, 3): one for each permutation of the axes.

    The others differ from these by half turns about an axis, which leave the wedge of a symmetric tilt range unchanged:
    the six give all the wedges that the 24 give.
    """
    by_permutation = {tuple(np.argmax(np.abs(matrix), axis=1)): matrix for matrix in _CUBE}
    return jnp.asarray(np.stack(list(by_permutation.values())))


def turn_cube(volume: Array, number: Array) -> Array:
    """Rotate a cubic box by ``cube_rotations()[number]``: transposes and reverses axes, exact and fast."""
    return jax.lax.switch(number, [functools.partial(_permuted, matrix=matrix) for matrix in _CUBE], volume)


def _permuted(volume: Array, matrix: np.ndarray) -> Array:
    order = [int(i) for i in np.argmax(np.abs(matrix), axis=1)]
    turned = jnp.transpose(volume, order)
    return turned[tuple(slice(None, None, int(matrix[i, order[i]])) for i in range(3))]
