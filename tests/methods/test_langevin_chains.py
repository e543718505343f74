"""CryoWGEN-II against closed forms and against CryoWGEN-I."""

import numpy as np
import pytest

import cryowgen_jax as cg
from tests.methods.problem import SHAPE, Problem


@pytest.mark.slow
def test_cryowgen_langevin_returns_one_draw_per_chain_and_the_moments(key):
    problem = Problem("mixture")
    law = problem.law
    family = cg.cryowgen_langevin(key, problem.posterior, num_samples=32, num_steps=300)
    assert family.samples.shape == (32, *SHAPE)
    np.testing.assert_allclose(family.weights, np.full(32, 1 / 32))
    sd = np.sqrt(np.diag(law.covariance)).reshape(SHAPE)
    effective = 1000  # of 9600 steps
    np.testing.assert_allclose(family.mean, law.mean.reshape(SHAPE), atol=5 * sd.max() / np.sqrt(effective))
    np.testing.assert_allclose(family.std, sd, rtol=5 * np.sqrt(0.5 / effective))
    apart = np.abs(np.mean(family.samples, axis=0) - family.mean)
    assert np.all(apart < 5 * sd / np.sqrt(32))
    assert np.min(np.std(family.samples, axis=0) / sd) > 0.4  # one draw per chain, not one for all


@pytest.mark.slow
def test_families_of_the_two_methods_agree(key):
    posterior = Problem("mixture").posterior
    one = cg.cryowgen_mc(key, posterior, num_candidates=20000, batch_size=2000)
    two = cg.cryowgen_langevin(key, posterior, num_samples=32, num_steps=300)
    np.testing.assert_allclose(one.mean, two.mean, atol=0.15)
    np.testing.assert_allclose(one.std, two.std, rtol=0.15)
