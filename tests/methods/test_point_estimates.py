"""CryoGEN-I and -II against closed forms and an optimiser that no one here wrote; limits of the temperature."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import cryowgen_jax as cg
from cryowgen_jax.operators import Wedge
from tests import oracles

SHAPE = (2, 2, 4)
SIZE = 16
LAM, BETA = 300.0, 0.8


def volume(flat):
    return jnp.asarray(np.reshape(flat, (*np.shape(flat)[:-1], *SHAPE)), jnp.float32)


class Problem:
    """A wedge-like posterior with a quadratic or a mixture witness, and dense copies of its parts."""

    def __init__(self, witness, seed=5):
        rng = np.random.default_rng(seed)
        transfer = oracles.symmetric_half(rng, SHAPE, 0.0, 1.0) > 0.5
        self.h = oracles.dense_filter(transfer.astype(float), SHAPE)
        self.x, self.center = self.h @ rng.normal(size=SIZE), rng.normal(size=SIZE)
        if witness == "quadratic":
            curvature = oracles.symmetric_half(rng, SHAPE, 0.2, 2.0)
            self.s, self.mean = oracles.dense_filter(curvature, SHAPE), rng.normal(size=SIZE)
            term = cg.QuadraticWitness(jnp.asarray(curvature), volume(self.mean))
        else:
            self.means, self.pi = rng.normal(size=(3, SIZE)), np.array([0.5, 0.3, 0.2])
            term = cg.GaussianMixtureWitness(jnp.asarray(self.pi, jnp.float32), volume(self.means), 0.5)
        decoder = Wedge(jnp.asarray(transfer, jnp.float32))
        self.posterior = cg.Posterior(term, decoder, volume(self.x), volume(self.center), LAM, BETA)

    def closed_form(self, beta):
        precision = self.s + LAM * self.h.T @ self.h + beta * np.eye(SIZE)
        return np.linalg.solve(precision, self.s @ self.mean + LAM * self.h.T @ self.x + beta * self.center)

    def exponent(self, z):
        """F of the mixture problem in float64."""
        squares = np.sum((z - self.means) ** 2, axis=1)
        w = scipy.special.logsumexp(np.log(self.pi) - squares)
        return w - 0.5 * LAM * np.sum((self.x - self.h @ z) ** 2) - 0.5 * BETA * np.sum((z - self.center) ** 2)

    def best(self):
        """The highest of many ascents by scipy."""
        starts = np.random.default_rng(0).normal(size=(8, SIZE))
        found = [scipy.optimize.minimize(lambda z: -self.exponent(z), start, method="BFGS") for start in starts]
        return max(-result.fun for result in found)


def flat(family):
    return np.asarray(family.mean, float).ravel()


def test_point_estimates_of_a_quadratic_witness_are_the_closed_form(key):
    problem = Problem("quadratic")
    np.testing.assert_allclose(flat(cg.cryogen_map(key, problem.posterior)), problem.closed_form(BETA), atol=2e-4)
    np.testing.assert_allclose(flat(cg.cryogen_ot(key, problem.posterior)), problem.closed_form(0.0), atol=3e-3)
    assert np.max(np.abs(problem.closed_form(BETA) - problem.closed_form(0.0))) > 0.1


def test_a_point_estimate_is_a_family_of_one_without_spread(key):
    family = cg.cryogen_map(key, Problem("quadratic").posterior)
    assert family.samples.shape == (1, *SHAPE)
    np.testing.assert_array_equal(family.weights, [1.0])
    np.testing.assert_array_equal(family.samples[0], family.mean)
    assert not np.any(family.std)


@pytest.mark.parametrize("seed", [5, pytest.param(7, marks=pytest.mark.slow)])
def test_several_starts_find_the_highest_mode(key, seed):
    problem = Problem("mixture", seed)
    family = cg.cryogen_map(key, problem.posterior, num_starts=8)
    assert problem.exponent(flat(family)) > problem.best() - 1e-3
    assert problem.exponent(flat(family) + 0.05) < problem.best() - 1e-3


def test_where_the_witness_is_silent_transport_keeps_the_centre_in_the_wedge(key):
    problem = Problem("quadratic")
    silent = cg.QuadraticWitness(jnp.zeros_like(problem.posterior.witness.curvature), jnp.zeros(SHAPE))
    family = cg.cryogen_ot(key, dataclasses.replace(problem.posterior, witness=silent))
    blind = np.eye(SIZE) - problem.h
    np.testing.assert_allclose(blind @ flat(family), blind @ problem.center, atol=1e-4)
    np.testing.assert_allclose(problem.h @ flat(family), problem.x, atol=1e-4)


@pytest.mark.slow
def test_decoders_without_transfer(key):
    problem = Problem("quadratic")
    matrix = jnp.asarray(problem.h, jnp.float32)
    plain = jax.tree_util.Partial(lambda h, z: (h @ z.ravel()).reshape(SHAPE), matrix)
    family = cg.cryogen_map(key, dataclasses.replace(problem.posterior, decoder=plain))
    np.testing.assert_allclose(flat(family), problem.closed_form(BETA), atol=2e-3)


def test_numbers_that_make_no_ascent_are_refused(key):
    with pytest.raises(ValueError, match="num_steps=0, num_starts=1: give at least 1"):
        cg.cryogen_map(key, Problem("quadratic").posterior, num_steps=0)
