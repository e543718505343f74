"""The denoiser: any box, begins at the solvent mean, conditions that matter, spectra in units of the signal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.models import denoiser as networks
from cryowgen_jax.models import denoising_network
from cryowgen_jax.spatial import fourier
from tests.networks import shaken

SHAPE = (9, 12, 10)
HALF = fourier.spectrum_shape(SHAPE)
SMALL = ((2, 3), (1, 1))


@jax.jit
def seen(key, scale=1.0, noise=0.5, level=0.0):
    data, solvent, mean = scale * jax.random.normal(key, (3, *SHAPE))
    signal = jnp.full(HALF, scale**2)
    envelope = jax.random.uniform(key, SHAPE)
    tilts = jnp.array([-60.0, 50.0])
    return networks.sight_of(
        fourier.rfftn(data), solvent + level, envelope, mean + level, noise * signal, signal, tilts
    )


@jax.jit
def answer(network, sight, volume, sigma):
    return network(sight, volume, sigma)


POWER = 2 * np.exp(-((fourier.radial_frequency(SHAPE) / 0.2) ** 2)).astype(np.float32) + np.float32(0.01)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 0.0])
def test_untrained_it_is_the_mean_under_a_gaussian(key, sigma):
    """E[v | z] for v ~ N(m, V), and its expected error; m itself where sigma is infinite, which 0 stands for."""
    sight = seen(key)._replace(power=jnp.asarray(POWER))
    true_key, noise_key = jax.random.split(key)
    truth = sight.mean + fourier.filter_volume(jax.random.normal(true_key, SHAPE), jnp.sqrt(POWER))
    volume = truth + sigma * jax.random.normal(noise_key, SHAPE)
    found = answer(denoising_network(*SMALL), sight, volume, sigma)
    share = POWER / (POWER + sigma**2) if sigma else 0.0 * POWER
    off = np.fft.irfftn(share * np.fft.rfftn(volume - sight.mean), SHAPE, axes=(0, 1, 2))
    np.testing.assert_allclose(found.volume, sight.mean + off, atol=1e-5)
    np.testing.assert_array_equal(found.volume, found.begun)
    np.testing.assert_array_equal(found.log_gain, 0)
    weight = np.broadcast_to(fourier.multiplicity(SHAPE), HALF) / np.prod(SHAPE)
    expected = np.sqrt(np.sum(weight * share * sigma**2)) if sigma else networks.SPREAD
    assert found.reach == pytest.approx(expected, rel=1e-4)
    if sigma:
        assert np.sqrt(np.mean((found.volume - truth) ** 2)) == pytest.approx(expected, rel=0.15)
    assert np.ptp(found.log_variance) == 0


def test_it_looks_at_the_noisy_volume_unless_sigma_is_infinite(key):
    network, volume = shaken(denoising_network(*SMALL), 0.1, 1), jax.random.normal(key, SHAPE)
    sight = seen(key)._replace(power=jnp.asarray(POWER))
    untrained = denoising_network(*SMALL)
    for sigma, looks in ((0.3, True), (0.0, False)):
        here, there = (answer(network, sight, z, sigma).volume for z in (volume, volume + 1))
        plain = [answer(untrained, sight, z, sigma).volume for z in (volume, volume + 1)]
        assert np.any(np.abs((there - here) - (plain[1] - plain[0])) > 1e-3) == looks


def test_what_it_is_shown_does_not_depend_on_the_unit_of_the_data_nor_on_its_level(key):
    one, other = seen(key), seen(key, scale=30.0, level=7.0)
    assert float(other.scale) == pytest.approx(30 * float(one.scale), rel=1e-5)
    np.testing.assert_allclose(one.channels, other.channels, atol=2e-5)
    np.testing.assert_allclose(one.conditions, other.conditions, atol=1e-5)
    assert np.abs(np.subtract(seen(key, noise=5.0).conditions, one.conditions)).max() > 0.5


def test_conditions_reach_every_pair(key):
    """With FiLM weights in one pair only, the answer still depends on the conditions."""
    network, sight = shaken(denoising_network(*SMALL), 0.1, 1), seen(key)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(network)]
    kernels = [path for path in paths if "film" in path and "kernel" in path]
    assert len(kernels) == 3

    def slope(kept):
        leaves, structure = jax.tree.flatten(network)
        alone = [leaf * (path == kept or "film" not in path) for path, leaf in zip(paths, leaves, strict=True)]
        only = jax.tree.unflatten(structure, alone)

        def energy(conditions):
            return jnp.sum(answer(only, sight._replace(conditions=conditions), sight.mean, 0.0).volume ** 2)

        return jax.grad(energy)(sight.conditions)

    for kernel in kernels:
        assert np.all(np.abs(slope(kernel)) > 1e-5)
    np.testing.assert_array_equal(slope("none"), 0)


def test_a_shrunk_sight_is_that_of_half_the_grid(key):
    """Channels keep their levels and low frequencies; V is that of a volume that was shrunk."""
    shape = (16, 20, 24)
    channels = jax.random.normal(key, (*shape, 5)) + 3.0
    power = np.exp(-((fourier.radial_frequency(shape) / 0.15) ** 2)).astype(np.float32) + np.float32(1e-3)
    sight = networks.Sight(channels, jnp.zeros(14), jnp.float32(2.0))
    small = networks.shrunk(sight, jnp.asarray(power))
    assert small.channels.shape == (8, 10, 12, 5)
    np.testing.assert_allclose(small.channels.mean((0, 1, 2)), channels.mean((0, 1, 2)), rtol=1e-5)

    def energy(key):
        field = fourier.filter_volume(jax.random.normal(key, shape), jnp.sqrt(power))
        return jnp.abs(fourier.rfftn(fourier.shrink(field, (8, 10, 12)))) ** 2

    found = np.mean(jax.lax.map(energy, jax.random.split(key, 2000)), axis=0)
    inside = np.asarray(small.power) > networks.LEAST_POWER
    np.testing.assert_allclose(found[inside], np.asarray(small.power)[inside], rtol=6 * np.sqrt(1 / 1000))
    assert 0.5 < inside.mean() < 1
    assert found[~inside].max() < 1e-10
