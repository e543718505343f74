"""The network of the conditional prior: any box, conditions that matter, spectra in units of the signal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cryowgen_jax.models import prior_net as priors
from cryowgen_jax.models import prior_network
from cryowgen_jax.models.unet import UNet
from cryowgen_jax.spatial import fourier

SHAPE = (9, 12, 10)
HALF = fourier.spectrum_shape(SHAPE)


@jax.jit
def seen(key, scale=1.0, noise=0.5):
    volume = scale * jax.random.normal(key, SHAPE)
    signal = jnp.full(HALF, scale**2)
    return priors.features(fourier.rfftn(volume), noise * signal, signal, jnp.array([-60.0, 50.0]), SHAPE)


def test_untrained_network_returns_what_the_wiener_filter_says(key):
    told = seen(key, noise=1.0)
    answer = jax.jit(lambda t: prior_network(channels=2, levels=2)(t))(told)
    np.testing.assert_allclose(answer.center, 0.5 * told.channels[..., 0], atol=1e-5)
    np.testing.assert_array_equal(answer.log_gain, 0)
    assert np.ptp(answer.log_variance) == 0


def test_features_do_not_depend_on_the_unit_of_the_data(key):
    one, other = seen(key), seen(key, scale=30.0)
    assert float(other.scale) == pytest.approx(30 * float(one.scale), rel=1e-5)
    np.testing.assert_allclose(one.channels, other.channels, atol=1e-5)
    np.testing.assert_allclose(one.conditions, other.conditions, atol=1e-5)
    assert np.abs(np.subtract(seen(key, noise=5.0).conditions, one.conditions)).max() > 0.5


def test_conditions_reach_every_block(key):
    network = UNet(1, 1, channels=2, levels=1, conditions=3, rngs=nnx.Rngs(0))
    structure, state = nnx.split(network)
    state = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.1), state)
    volume = jax.random.normal(key, (4, 4, 4, 1))

    def run(conditions):
        return nnx.merge(structure, state)(volume, conditions)

    slope = jax.jit(jax.jacobian(lambda c: jnp.sum(run(c) ** 2)))(jnp.zeros(3))
    assert np.all(np.abs(slope) > 1e-4)


def test_power_is_interpolated_between_the_knots(rng):
    gain = rng.normal(size=(2, len(priors.KNOTS))).astype(np.float32)
    measured = (rng.random(HALF) > 0.5).astype(np.float32)
    signal = rng.random(HALF).astype(np.float32)
    radius = fourier.radial_frequency(SHAPE)
    apart = [np.interp(radius, priors.KNOTS, values) for values in gain]
    expected = signal * np.exp(np.where(measured > 0, *apart))
    power = priors.residual_power(jnp.asarray(gain), jnp.asarray(signal), jnp.asarray(measured), SHAPE)
    np.testing.assert_allclose(power, expected, rtol=1e-4)
