"""The standard error of Psi is the spread that estimates with other keys have."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax import samplers
from cryowgen_jax.chains import annealing
from cryowgen_jax.samplers.kinetic import KineticState

REPEATS = 48


def bimodal():
    means = jnp.asarray([[1.0, -0.5], [-1.0, 0.5]])
    witness = cg.GaussianMixtureWitness(jnp.asarray([0.3, 0.7]), means, 0.3)
    return cg.Posterior(witness, cg.Wedge(jnp.ones(2)), jnp.asarray([0.5, 0.2]), jnp.zeros(2), 1.0, 1.0)


@functools.cache
def estimates():
    """Of a posterior with two modes, each from a few particles."""
    posterior = bimodal()
    keys = jax.random.split(jax.random.key(3), REPEATS)
    return jax.jit(jax.vmap(lambda key: cg.effective_potential(key, posterior, num_particles=32)))(keys)


def test_the_standard_error_is_the_spread_of_the_estimates():
    """The standard deviation of 48 values is itself known to 1 / sqrt(2 * 47) of it: 4 times that is 0.41."""
    found = np.asarray(estimates().value, float)
    stated = np.sqrt(np.mean(np.asarray(estimates().standard_error, float) ** 2))
    assert np.std(found, ddof=1) > 1e-4
    assert abs(np.log(np.std(found, ddof=1) / stated)) < 0.41


def test_the_bracket_holds_on_average():
    lower, value, upper = (np.asarray(x, float) for x in (estimates().lower, estimates().value, estimates().upper))
    np.testing.assert_allclose(value, 0.5 * (lower + upper), rtol=1e-4)
    assert np.mean(lower) < np.mean(upper)


@pytest.mark.parametrize("correlation", [0.95, 0.0, -0.95])
def test_the_standard_error_knows_that_a_particle_goes_up_and_down(key, rng, monkeypatch, correlation):
    """The value is the mean of (down - up) / 2 over particles, whatever the two log-weights of one have in common."""
    up, down = rng.multivariate_normal([1.0, -1.5], [[1.0, correlation], [correlation, 1.0]], 64).T
    particles = KineticState(*(rng.normal(size=s).astype(np.float32) for s in ((64, 2),) * 3 + ((64,), (64, 2))))
    ladder = annealing.Ladder(jnp.asarray([0.0, 1.0]), jnp.ones(2), jnp.int32(1))

    def climb(key, witness, gaussian, states, spacing):
        return ladder, states

    def carry(key, witness, gaussian, ladder, states, upwards):
        return annealing.Annealed(jnp.asarray(up if upwards else down, jnp.float32), states)

    def settle(key, witness, gaussian, ladder, states):
        return states, tuple(jnp.mean(x, axis=0) for x in samplers.regressors(states))

    module = sys.modules[cg.effective_potential.__module__]
    monkeypatch.setattr(module, "_programs", lambda *_: (climb, carry, settle))
    monkeypatch.setattr(annealing, "exact_states", lambda *_: particles)
    estimate = jax.jit(lambda key: cg.effective_potential(key, bimodal(), num_particles=64))(key)
    halves = (down - up) / 2
    np.testing.assert_allclose(estimate.upper - estimate.lower, -np.mean(up + down), rtol=1e-4)
    np.testing.assert_allclose(estimate.value - estimate.lower, -np.mean(up + down) / 2, rtol=1e-4)
    np.testing.assert_allclose(estimate.standard_error, np.std(halves, ddof=1) / np.sqrt(64), rtol=1e-4)
    if correlation:
        assert abs(np.log(np.std(up + down) / np.std(up - down))) > 1
