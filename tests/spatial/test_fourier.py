import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.spatial import fourier

SHAPES = [(8,), (7,), (5, 8), (4, 6, 8), (5, 6, 7)]


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

    def filtered_and_slopes(filter_function):
        def loss(v, t):
            filtered = filter_function(v, t)
            return jnp.sum((filtered - target) ** 2) + jnp.sum(filtered**4), filtered

        return jax.grad(loss, argnums=(0, 1), has_aux=True)

    @jax.jit
    def both(v, t):
        return [filtered_and_slopes(function)(v, t) for function in (fourier.filter_volume, plain_filter)]

    (our_slopes, ours), (their_slopes, theirs) = both(volume, transfer)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    for a, b in zip(our_slopes, their_slopes, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)


def test_filter_works_under_jit_and_vmap(rng):
    volume, transfer = random_pair(rng, (5, 6, 8))
    stack = np.stack([volume, 2 * np.asarray(volume)])
    batched = jax.jit(jax.vmap(fourier.filter_volume, in_axes=(0, None)))(stack, transfer)
    np.testing.assert_allclose(batched[1], 2 * np.asarray(fourier.filter_volume(volume, transfer)), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_parseval_needs_the_multiplicity(rng, shape):
    a, b = rng.standard_normal((2, *shape)).astype(np.float32)
    got = jax.jit(lambda a, b: fourier.inner(fourier.rfftn(a), fourier.rfftn(b), shape))(a, b)
    expected = np.sum(a * b, dtype=float)
    assert float(got) == pytest.approx(expected, abs=1e-4 * np.prod(shape) ** 0.5)
    unweighted = np.sum(np.abs(np.fft.rfftn(a, norm="ortho")) ** 2)
    assert abs(unweighted - np.sum(a**2)) > 0.1 * np.sum(a**2)


@pytest.mark.parametrize("shape", SHAPES)
def test_multiplicities_sum_to_the_number_of_voxels(shape):
    assert np.sum(np.broadcast_to(fourier.multiplicity(shape), fourier.spectrum_shape(shape))) == np.prod(shape)


@pytest.mark.parametrize("shape", [(6, 5, 8), (5, 6, 7)])
def test_transforms_are_unitary_inverses(rng, shape):
    volume, _ = random_pair(rng, shape)
    there, back = jax.jit(lambda v: (fourier.rfftn(v), fourier.irfftn(fourier.rfftn(v), shape)))(volume)
    np.testing.assert_allclose(there, np.fft.rfftn(volume, norm="ortho"), atol=1e-5)
    np.testing.assert_allclose(back, volume, atol=1e-6)


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


@pytest.mark.parametrize("shape", [(16, 20, 24), (9, 13, 10), (12, 15, 17)])
def test_half_the_grid_keeps_coarse_waves_and_levels_and_drops_the_rest(shape):
    """Plane waves sampled on either grid, at the same places of the box."""
    smaller = fourier.halved(shape)
    assert smaller == tuple(2 * (n // 4) for n in shape)

    def wave(grid, cycles):
        places = np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij")
        return np.cos(2 * np.pi * sum(c * p for c, p in zip(cycles, places, strict=True)) + 0.3).astype(np.float32)

    coarse, fine = (1, 1 - smaller[1] // 2, smaller[2] // 2 - 1), (0, smaller[1] // 2, 2)
    volume = jnp.asarray(2.0 + wave(shape, coarse) + wave(shape, fine))
    shrunk = fourier.shrink(volume, smaller)
    np.testing.assert_allclose(shrunk, 2.0 + wave(smaller, coarse), atol=1e-5)
    np.testing.assert_allclose(fourier.enlarge(shrunk, shape), 2.0 + wave(shape, coarse), atol=1e-5)
    with_fine = fourier.shrink(jnp.asarray(wave(shape, fine)), smaller)
    assert np.abs(with_fine).max() < 1e-5
