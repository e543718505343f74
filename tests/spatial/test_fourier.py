import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.spatial import fourier

SHAPES = [(7,), (6, 8), (4, 6, 8), (4, 6, 7)]
SHAPES += [pytest.param(shape, marks=pytest.mark.slow) for shape in ((8,), (5, 7), (5, 7, 9))]


def plain_filter(volume, transfer):
    """The formula, with NumPy-style transforms and no hand-written gradient."""
    axes = tuple(range(volume.ndim))
    return jnp.fft.irfftn(transfer * jnp.fft.rfftn(volume), s=volume.shape, axes=axes)


def random_pair(rng, shape):
    volume = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    transfer = jnp.asarray(rng.random(fourier.spectrum_shape(shape)), jnp.float32)
    return volume, transfer


@pytest.mark.parametrize("shape", SHAPES)
def test_filter_and_its_gradients_are_those_of_the_formula(rng, shape):
    volume, transfer = random_pair(rng, shape)
    target = jnp.asarray(rng.standard_normal(shape), jnp.float32)

    def loss(filter_function):
        return lambda v, t: jnp.sum((filter_function(v, t) - target) ** 2) + jnp.sum(filter_function(v, t) ** 4)

    np.testing.assert_allclose(fourier.filter_volume(volume, transfer), plain_filter(volume, transfer), atol=2e-6)
    ours = jax.jit(jax.grad(loss(fourier.filter_volume), argnums=(0, 1)))(volume, transfer)
    theirs = jax.jit(jax.grad(loss(plain_filter), argnums=(0, 1)))(volume, transfer)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)


def test_filter_works_under_jit_and_vmap(rng):
    volume, transfer = random_pair(rng, (5, 6, 8))
    stack = jnp.stack([volume, 2 * volume])
    batched = jax.jit(jax.vmap(fourier.filter_volume, in_axes=(0, None)))(stack, transfer)
    np.testing.assert_allclose(batched[1], 2 * fourier.filter_volume(volume, transfer), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_parseval_needs_the_multiplicity(rng, shape):
    a, b = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2))
    got = float(fourier.inner(fourier.rfftn(a), fourier.rfftn(b), shape))
    expected = float(np.sum(np.asarray(a, np.float64) * np.asarray(b)))
    assert got == pytest.approx(expected, abs=1e-4 * np.prod(shape) ** 0.5)
    unweighted = float(jnp.sum(jnp.abs(fourier.rfftn(a)) ** 2))
    assert abs(unweighted - float(jnp.sum(a**2))) > 0.1 * float(jnp.sum(a**2))


@pytest.mark.parametrize("shape", SHAPES)
def test_multiplicities_sum_to_the_number_of_voxels(shape):
    assert np.sum(np.broadcast_to(fourier.multiplicity(shape), fourier.spectrum_shape(shape))) == np.prod(shape)


@pytest.mark.parametrize("shape", [(6, 5, 8), (5, 6, 7)])
def test_transforms_are_unitary_inverses(rng, shape):
    volume, _ = random_pair(rng, shape)
    np.testing.assert_allclose(fourier.irfftn(fourier.rfftn(volume), shape), volume, atol=1e-6)
    constant = fourier.rfftn(jnp.ones(shape))
    assert float(jnp.real(constant[0, 0, 0])) == pytest.approx(np.sqrt(np.prod(shape)), rel=1e-6)


def test_shells_cover_everything_but_the_zero_frequency(rng):
    shape = (8, 12, 10)
    index = fourier.shell_index(shape, 4)
    assert index[0, 0, 0] == -1
    assert (index.ravel()[1:] >= 0).all()
    assert index[0, 0, 4] == 3  # 0.4 cycles per voxel lies in the last of four shells up to 0.5
    assert index[0, 1, 0] == 0  # 1/12 in the first
    values = rng.random(index.shape).astype(np.float32)
    sums = fourier.shell_sums(jnp.asarray(values), index, 4)
    np.testing.assert_allclose(sums, [values[index == i].sum() for i in range(4)], rtol=1e-5)
