"""The denoiser: any box, begins at the solvent mean, conditions that matter, spectra in units of the signal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.models import denoiser as networks
from cryowgen_jax.models import denoising_network
from cryowgen_jax.spatial import fourier

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


def shaken(network, size=0.1):
    """The same with other weights: none is zero."""
    leaves, structure = jax.tree.flatten(network)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(structure, [leaf + np.float32(size * rng.normal(size=leaf.shape)) for leaf in leaves])


@jax.jit
def answer(network, sight, volume, sigma):
    return network(sight, volume, sigma)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 0.0])
def test_untrained_it_is_the_mean_where_errors_are_white(key, sigma):
    """E[v | z] for v ~ N(m, s^2 I); m itself where sigma is infinite, which 0 stands for."""
    sight, volume = seen(key), jax.random.normal(key, SHAPE)
    found = answer(denoising_network(*SMALL), sight, volume, sigma)
    share = networks.SPREAD**2 / (networks.SPREAD**2 + sigma**2) if sigma else 0.0
    np.testing.assert_allclose(found.volume, sight.mean + share * (volume - sight.mean), atol=1e-6)
    np.testing.assert_array_equal(found.log_gain, 0)
    assert np.ptp(found.log_variance) == 0


def test_it_looks_at_the_noisy_volume_unless_sigma_is_infinite(key):
    network, sight, volume = shaken(denoising_network(*SMALL)), seen(key), jax.random.normal(key, SHAPE)
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
    network, sight = shaken(denoising_network(*SMALL)), seen(key)
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
