import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.operators import Rotation, Wedge, compose, wedge_mask
from cryowgen_jax.spatial.rotation import cube_rotations, random_rotations, rotate
from cryowgen_jax.types import InputError

SHAPE = (8, 8, 8)


@pytest.fixture
def volume(rng):
    return jnp.asarray(rng.standard_normal(SHAPE), jnp.float32)


@pytest.fixture
def wedge():
    return Wedge(wedge_mask(SHAPE, (-50.0, 40.0)))


def test_outer_is_applied_last(volume, wedge):
    matrix = cube_rotations()[5]
    operator = compose(wedge, Rotation(matrix))
    np.testing.assert_array_equal(operator(volume), wedge(rotate(volume, matrix)))
    assert float(jnp.abs(operator(volume) - rotate(wedge(volume), matrix)).max()) > 0.1


def test_a_composition_is_a_pytree_that_jits_and_traces_once(volume, wedge, key):
    traces = []

    @jax.jit
    def apply(operator, v):
        traces.append(1)
        return operator(v)

    for matrix in random_rotations(key, 3):
        operator = compose(wedge, Rotation(matrix))
        np.testing.assert_allclose(apply(operator, volume), operator(volume), atol=1e-5)
    assert len(traces) == 1
    assert len(jax.tree.leaves(operator)) == 2


def test_vmaps_over_stacked_matrices(volume, wedge):
    matrices = cube_rotations()
    stacked = compose(wedge, Rotation(matrices))
    axes = compose(Wedge(None), Rotation(0))
    many = jax.vmap(lambda operator, v: operator(v), in_axes=(axes, None))(stacked, volume)
    for got, matrix in zip(many[::7], matrices[::7], strict=True):
        np.testing.assert_allclose(got, wedge(rotate(volume, matrix)), atol=1e-5)


def test_the_transpose_of_a_composition(volume, wedge, key, rng):
    operator = compose(wedge, Rotation(random_rotations(key, 1)[0]))
    other = jnp.asarray(rng.standard_normal(SHAPE), jnp.float32)
    forward, transpose = jax.vjp(operator, volume)
    assert float(jnp.sum(other * forward)) == pytest.approx(float(jnp.sum(transpose(other)[0] * volume)), abs=1e-3)


def test_plain_functions_compose_too(volume, wedge):
    operator = compose(jnp.tanh, compose(wedge, lambda v: 2 * v))
    result = jax.jit(lambda o, v: o(v))(operator, volume)
    np.testing.assert_allclose(result, np.tanh(2 * wedge(volume)), atol=1e-5)


def test_the_cube_group_sees_all_of_fourier_space():
    """Six masks among the 24, and together they leave nothing out."""
    mask = np.asarray(wedge_mask((9, 9, 9), (-60.0, 60.0)))
    full = np.concatenate([mask, np.flip(np.roll(mask[..., 1:], -1, (0, 1)), (0, 1, 2))], axis=-1)  # Hermitian half
    centred = jnp.asarray(np.fft.fftshift(full))
    rotated = {np.asarray(rotate(centred, m)).tobytes(): np.asarray(rotate(centred, m)) for m in cube_rotations()}
    assert len(rotated) == 6
    assert np.max(list(rotated.values()), axis=0).min() == 1.0
    assert centred.min() == 0.0


def test_only_callables_compose(wedge):
    with pytest.raises(InputError, match="got ndarray"):
        compose(wedge, np.zeros(3))
