"""The standard error of Psi is the spread that estimates with other keys have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import cryowgen_jax as cg

REPEATS = 48


@functools.cache
def estimates():
    """Of a posterior with two modes, each from a few particles."""
    means = jnp.asarray([[1.0, -0.5], [-1.0, 0.5]])
    witness = cg.GaussianMixtureWitness(jnp.asarray([0.3, 0.7]), means, 0.3)
    posterior = cg.Posterior(witness, cg.Wedge(jnp.ones(2)), jnp.asarray([0.5, 0.2]), jnp.zeros(2), 1.0, 1.0)
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
