import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.operators import Rotation, Wedge, compose, wedge_mask
from cryowgen_jax.spatial.rotation import cube_rotations, random_rotations, rotate
from cryowgen_jax.types import InputError

SHAPE = (8, 8, 8)
turned = jax.jit(rotate)


@jax.jit
def apply(operator, v):
    return operator(v)


@pytest.fixture
def volume(rng):
    return jnp.asarray(rng.standard_normal(SHAPE), jnp.float32)


@pytest.fixture
def wedge():
    return Wedge(wedge_mask(SHAPE, (-50.0, 40.0)))


def test_outer_is_applied_last(volume, wedge):
    matrix = cube_rotations()[5]
    operator = compose(wedge, Rotation(matrix))
    found = np.asarray(apply(operator, volume))
    np.testing.assert_allclose(found, apply(wedge, turned(volume, matrix)), atol=1e-6)
    assert np.abs(found - turned(apply(wedge, volume), matrix)).max() > 0.1


def test_a_composition_is_a_pytree_that_jits_and_traces_once(volume, wedge, key):
    first, *others = (compose(wedge, Rotation(matrix)) for matrix in np.asarray(random_rotations(key, 3)))
    np.testing.assert_allclose(apply(first, volume), first(volume), atol=1e-5)
    compiled = apply._cache_size()
    assert all(np.all(np.isfinite(apply(operator, volume))) for operator in others)
    assert apply._cache_size() == compiled
    assert len(jax.tree.leaves(first)) == 2


def test_vmaps_over_stacked_matrices(volume, wedge):
    matrices = cube_rotations()
    stacked = compose(wedge, Rotation(matrices))
    axes = compose(Wedge(None), Rotation(0))
    many = np.asarray(jax.jit(jax.vmap(lambda operator, v: operator(v), in_axes=(axes, None)))(stacked, volume))
    for got, matrix in zip(many[::7], np.asarray(matrices)[::7], strict=True):
        np.testing.assert_allclose(got, apply(wedge, turned(volume, matrix)), atol=1e-5)


def test_the_transpose_of_a_composition(volume, wedge, key, rng):
    operator = compose(wedge, Rotation(np.asarray(random_rotations(key, 3))[0]))
    other = rng.standard_normal(SHAPE).astype(np.float32)
    forward, back = jax.jit(lambda o, v, u: (o(v), jax.vjp(o, v)[1](u)[0]))(operator, volume, other)
    assert np.sum(other * np.asarray(forward)) == pytest.approx(np.sum(np.asarray(back) * np.asarray(volume)), abs=1e-3)


def test_plain_functions_compose_too(volume, wedge):
    operator = compose(jnp.tanh, compose(wedge, lambda v: 2 * v))
    np.testing.assert_allclose(apply(operator, volume), np.tanh(2 * np.asarray(apply(wedge, volume))), atol=1e-5)


def test_the_cube_group_sees_all_of_fourier_space():
    """Six masks among the 24, and together they leave nothing out."""
    mask = np.asarray(wedge_mask((9, 9, 9), (-60.0, 60.0)))
    full = np.concatenate([mask, np.flip(np.roll(mask[..., 1:], -1, (0, 1)), (0, 1, 2))], axis=-1)  # Hermitian half
    centred = np.fft.fftshift(full)
    every = np.asarray(jax.jit(jax.vmap(rotate, (None, 0)))(centred, cube_rotations()))
    rotated = {mask.tobytes(): mask for mask in every}
    assert len(rotated) == 6
    assert np.max(list(rotated.values()), axis=0).min() == 1.0
    assert centred.min() == 0.0


def test_only_callables_compose(wedge):
    with pytest.raises(InputError, match="got ndarray"):
        compose(wedge, np.zeros(3))
