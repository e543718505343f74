"""Weighted draws against a one-dimensional integral; the references of CryoWGEN-I are held in tests/methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.samplers import weigh

CENTER, WIDTH = 0.7, 1.3


def draw(key):
    return CENTER + WIDTH * jax.random.normal(key, (2,))


def log_weight(z):
    return -jnp.sum(jax.nn.softplus(2.0 * z))


@functools.partial(jax.jit, static_argnums=(1, 2))
def weighed(key, count, batch_size):
    return weigh(key, draw, log_weight, jnp.zeros(()), count, batch_size)


def expected():
    """Mass, mean and variance under e^w N, and E[W]^2 / E[W^2], coordinate by coordinate."""
    z = np.linspace(CENTER - 9 * WIDTH, CENTER + 9 * WIDTH, 20001)
    density = np.exp(-0.5 * ((z - CENTER) / WIDTH) ** 2)
    density /= density.sum()
    w = 1 / (1 + np.exp(2.0 * z))
    mass, square = density @ w, density @ w**2
    mean = density @ (w * z) / mass
    return mass, mean, density @ (w * (z - mean) ** 2) / mass, mass**2 / square


def test_psi_mean_variance_and_ess_against_quadrature(key):
    mass, mean, variance, per_coordinate = expected()
    count, log_integral = 20000, jnp.float32(1.7)
    family = jax.jit(lambda k: weigh(k, draw, log_weight, log_integral, count, 1000))(key)
    ess = count * per_coordinate**2
    np.testing.assert_allclose(family.psi, -2 * np.log(mass) - 1.7, atol=5 * np.sqrt(1 / ess))
    np.testing.assert_allclose(family.mean, mean, atol=5 * np.sqrt(variance / ess))
    np.testing.assert_allclose(family.variance, variance, rtol=5 * np.sqrt(2 / ess))
    np.testing.assert_allclose(family.ess, ess, rtol=0.03)
    z = np.asarray(family.samples, float)
    np.testing.assert_allclose(family.log_weights, 1.7 - np.sum(np.logaddexp(0, 2.0 * z), axis=1), atol=1e-5)
    plain = np.mean(np.asarray(family.samples), axis=0)
    assert np.all(np.abs(plain - mean) > 14 * np.sqrt(variance / ess))  # without weights it is another law


def test_the_moments_are_those_of_the_weights(key):
    family = weighed(key, 37, 5)
    log_weights, samples = np.asarray(family.log_weights, float), np.asarray(family.samples, float)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    mean = weights @ samples
    np.testing.assert_allclose(family.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(family.variance, weights @ (samples - mean) ** 2, rtol=1e-5)
    np.testing.assert_allclose(family.ess, 1 / np.sum(weights**2), rtol=1e-5)
    np.testing.assert_allclose(family.psi, -np.log(np.mean(np.exp(log_weights))), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_candidates_do_not_depend_on_the_batch(key, batch_size):
    one, other = weighed(key, 37, 5), weighed(key, 37, batch_size)
    np.testing.assert_allclose(other.samples, one.samples, rtol=1e-6)
    np.testing.assert_allclose(other.log_weights, one.log_weights, rtol=1e-5)


def test_more_candidates_keep_the_first_ones(key):
    few, many = weighed(key, 10, 5), weighed(key, 37, 5)
    np.testing.assert_allclose(np.asarray(many.samples)[:10], few.samples, rtol=1e-6)


def test_one_candidate_carries_all(key):
    """Weights a hundred orders of magnitude apart: no overflow, ESS 1, said honestly."""
    family = jax.jit(lambda k: weigh(k, draw, lambda z: 300.0 * jnp.sum(z), jnp.zeros(()), 50, 50))(key)
    np.testing.assert_allclose(family.ess, 1.0, rtol=1e-3)
    assert np.isfinite(family.psi)
    np.testing.assert_allclose(family.mean, np.asarray(family.samples)[np.argmax(family.log_weights)], rtol=1e-3)
