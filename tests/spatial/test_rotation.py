import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation as ScipyRotation

from cryowgen_jax.spatial.rotation import cube_rotations, random_rotations, rotate, turn_cube
from cryowgen_jax.types import InputError

# Rotations by 90 degrees about the axes z, y, x of (z, y, x) offsets, with what NumPy does to the array.
# The matrix about z takes the unit vector along y to that along x; np.rot90 over axes (1, 2) does the same.
QUARTER_TURNS = [
    ([[1, 0, 0], [0, 0, -1], [0, 1, 0]], (1, 2)),
    ([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], (2, 0)),
    ([[0, -1, 0], [1, 0, 0], [0, 0, 1]], (0, 1)),
]


turned = jax.jit(rotate)


@jax.jit
def turned_and_back(v, u, matrix):
    """v rotated, and what the transpose of the rotation makes of u."""
    forward, transpose = jax.vjp(lambda x: rotate(x, matrix), v)
    return forward, transpose(u)[0]


def random_volume(rng, shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def some_rotation(seed=3):
    return ScipyRotation.random(random_state=seed).as_matrix()


@pytest.mark.parametrize("n", [8, 7])
@pytest.mark.parametrize(("matrix", "axes"), QUARTER_TURNS)
def test_quarter_turns_are_numpys(rng, n, matrix, axes):
    volume = random_volume(rng, (n, n, n))
    rotated = turned(volume, jnp.asarray(matrix, jnp.float32))
    np.testing.assert_array_equal(rotated, np.rot90(volume, 1, axes=axes))
    assert not np.array_equal(rotated, np.rot90(volume, -1, axes=axes))  # the other sense must not pass


def as_numpy_permutation(volume, matrix):
    """Transpose, then flip: output axis i runs along input axis order[i], reversed where the entry is -1."""
    order = np.argmax(np.abs(matrix), axis=1)
    moved = np.transpose(volume, order)
    return np.flip(moved, [i for i in range(3) if matrix[i, order[i]] < 0])


@pytest.mark.parametrize("n", [6, 9])
def test_cube_rotations_are_exact_permutations_of_a_cube(rng, n):
    volume = random_volume(rng, (n, n, n))
    rotated = jax.jit(jax.vmap(rotate, in_axes=(None, 0)))(volume, cube_rotations())
    for got, matrix in zip(rotated, np.asarray(cube_rotations()), strict=True):
        np.testing.assert_array_equal(got, as_numpy_permutation(np.asarray(volume), matrix))


@pytest.mark.parametrize("n", [15, 16])
def test_rounding_in_the_matrix_does_not_spoil_a_permutation(rng, n):
    volume = random_volume(rng, (n, n, n))
    exact = np.asarray(cube_rotations()[7])
    noisy = exact + rng.uniform(-2e-7, 2e-7, (3, 3))
    np.testing.assert_array_equal(turned(volume, jnp.asarray(noisy, jnp.float32)), as_numpy_permutation(volume, exact))


def test_the_rotation_is_active():
    volume = np.zeros((9, 9, 9), np.float32)
    volume[4, 4, 7] = 1.0  # three voxels from the centre along x
    about_z_by_90 = jnp.asarray(QUARTER_TURNS[0][0], jnp.float32)
    moved_to = np.asarray(about_z_by_90) @ np.array([0, 0, 3])
    rotated = np.asarray(turned(jnp.asarray(volume), about_z_by_90))
    assert rotated[tuple((4 + moved_to).astype(int))] == 1.0


@pytest.mark.parametrize("shape", [(12, 12, 12), (9, 14, 11)])
def test_agrees_with_scipy_in_the_interior(rng, shape):
    volume = random_volume(rng, shape)
    matrix = some_rotation()
    centre = (np.array(shape) - 1) / 2
    expected = affine_transform(np.asarray(volume, np.float64), matrix.T, centre - matrix.T @ centre, order=1, cval=0)
    inside = affine_transform(np.ones(shape), matrix.T, centre - matrix.T @ centre, order=1, cval=0) > 0.999
    got, passive = (np.asarray(turned(volume, jnp.asarray(m, jnp.float32))) for m in (matrix, matrix.T))
    assert inside.sum() > 100
    np.testing.assert_allclose(got[inside], expected[inside], atol=1e-3)
    assert np.abs(passive[inside] - expected[inside]).max() > 0.5


def test_zeros_come_in_from_outside():
    eighth = ScipyRotation.from_euler("z", 45, degrees=True).as_matrix()
    rotated = np.asarray(turned(jnp.ones((9, 9, 9)), jnp.asarray(eighth, jnp.float32)))
    assert rotated.min() == 0.0
    assert rotated[4, 4, 4] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("shape", [(8, 8, 8), (7, 9, 6)])
@pytest.mark.parametrize("matrix", [some_rotation(), np.asarray(cube_rotations()[5])])
def test_the_transpose_is_exact(rng, shape, matrix):
    v, u = random_volume(rng, shape), random_volume(rng, shape)
    forward, back = turned_and_back(v, u, jnp.asarray(matrix, jnp.float32))
    left = np.sum(np.asarray(u, np.float64) * np.asarray(forward))
    right = np.sum(np.asarray(back, np.float64) * np.asarray(v))
    assert left == pytest.approx(right, abs=1e-4)


def test_the_transpose_is_the_inverse_only_for_cube_rotations(rng):
    v = random_volume(rng, (8, 8, 8))
    matrix = some_rotation().astype(np.float32)
    cube = np.asarray(cube_rotations())[11]
    np.testing.assert_array_equal(turned_and_back(v, turned(v, cube), cube)[1], v)
    assert np.abs(np.subtract(turned_and_back(v, v, matrix)[1], turned(v, matrix.T))).max() > 0.1


def test_derivative_in_the_matrix(rng):
    grid = np.stack(np.meshgrid(*[np.arange(12.0) - 5.5] * 3, indexing="ij"))
    volume = jnp.asarray(np.exp(-0.1 * (grid[0] ** 2 + 2 * grid[1] ** 2 + 3 * (grid[2] - 1) ** 2)), jnp.float32)
    matrix, direction = some_rotation(8), rng.standard_normal((3, 3))
    weights = random_volume(rng, (12, 12, 12))

    @jax.jit
    @jax.value_and_grad
    def value_and_gradient(m):
        return jnp.sum(weights * rotate(volume, m))

    def value(m):
        return float(value_and_gradient(jnp.asarray(m, jnp.float32))[0])

    gradient = value_and_gradient(jnp.asarray(matrix, jnp.float32))[1]
    step = 2e-3
    numeric = (value(matrix + step * direction) - value(matrix - step * direction)) / (2 * step)
    assert float(np.sum(np.asarray(gradient) * direction)) == pytest.approx(numeric, rel=0.05)


def test_derivative_in_the_matrix_passes_through_the_rounding_at_the_identity(rng):
    volume = random_volume(rng, (6, 6, 6))
    gradient = jax.jit(jax.grad(lambda m: jnp.sum(volume * rotate(volume, m))))(jnp.eye(3))
    assert np.abs(gradient).max() > 0.1


def test_types_and_errors():
    cube = jnp.zeros((4, 4, 4))
    assert rotate(cube, jnp.eye(3)).dtype == jnp.float32
    assert rotate(jnp.ones((4, 4, 4), jnp.int8), np.eye(3)).dtype == jnp.float32
    with pytest.raises(InputError, match=r"got shape \(4, 4\)"):
        rotate(jnp.zeros((4, 4)), jnp.eye(3))
    with pytest.raises(InputError, match=r"got shape \(2, 3, 3\)"):
        rotate(cube, jnp.zeros((2, 3, 3)))


def test_random_rotations_are_rotations(key):
    matrices = np.asarray(random_rotations(key, 200), np.float64)
    np.testing.assert_allclose(
        matrices @ matrices.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (200, 3, 3)), atol=2e-6
    )
    np.testing.assert_allclose(np.linalg.det(matrices), 1.0, atol=1e-5)


def haar_moments_hold(matrices):
    """Moments of the Haar measure on SO(3): E R = 0, E R_ij^2 = 1/3, E (tr R)^2 = 1, within 5 standard errors."""
    n = len(matrices)
    trace = np.trace(matrices, axis1=1, axis2=2)
    samples = [
        (matrices.reshape(n, 9), 0.0),
        (matrices.reshape(n, 9) ** 2, 1 / 3),
        (trace[:, None], 0.0),
        (trace[:, None] ** 2, 1.0),
    ]
    return all((np.abs(s.mean(0) - mean) < 5 * s.std(0) / np.sqrt(n)).all() for s, mean in samples)


def test_random_rotations_are_uniform(key):
    matrices = np.asarray(random_rotations(key, 20_000), np.float64)
    assert haar_moments_hold(matrices)
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (20_000, 3))  # uniform Euler angles are not uniform
    assert not haar_moments_hold(ScipyRotation.from_euler("zyx", angles).as_matrix())


def test_cube_rotations_are_the_group_of_24():
    matrices = np.asarray(cube_rotations())
    assert matrices.shape == (24, 3, 3)
    assert matrices.dtype == np.float32
    np.testing.assert_array_equal(matrices[0], np.eye(3))
    members = {m.astype(int).tobytes() for m in matrices}
    assert len(members) == 24
    assert all(np.linalg.det(m) == pytest.approx(1) for m in matrices)
    assert all((a @ b).astype(int).tobytes() in members for a, b in itertools.product(matrices, repeat=2))


@pytest.mark.parametrize("number", [0, 5, 14, 23])
def test_turned_cube_is_the_rotated_cube(rng, number):
    volume = random_volume(rng, (5, 5, 5))
    turned = jax.jit(turn_cube)(volume, number)
    np.testing.assert_array_equal(turned, rotate(volume, cube_rotations()[number]))
