"""Parallel tempering: modes that differ only inside the wedge keep their weights, whatever the data weight."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax import samplers
from cryowgen_jax.chains.annealing import even_ladder
from cryowgen_jax.operators import Wedge
from cryowgen_jax.potentials import gaussian_part
from cryowgen_jax.pytrees import as_pytree
from tests import oracles
from tests.samplers.test_stationary import simulate

SHAPE = (4, 1, 4)
WEIGHTS = np.array([0.25, 0.75])
CHAINS, STEPS = 600, 250
POWERS = jnp.array([0.0, 0.035, 0.08, 0.15, 0.27, 0.45, 0.7, 1.0])  # about what ``even_ladder`` finds
STEP_SIZES = jnp.array([1.57, 0.55, 0.55, 0.55, 0.45, 0.4, 0.3, 0.25])
tempered_module = importlib.import_module("cryowgen_jax.samplers.tempered")


class TwoModes:
    """Two clean volumes that differ by one wave along the beam, which the wedge hides."""

    def __init__(self, lam):
        mask = oracles.wedge(SHAPE)
        assert mask[1, 0, 0] == 0
        wave = np.broadcast_to(np.cos(2 * np.pi * np.arange(SHAPE[0]) / SHAPE[0])[:, None, None], SHAPE)
        means = np.stack([wave, -wave]) * 1.2
        rng = np.random.default_rng(0)
        x = np.asarray(Wedge(jnp.asarray(mask))(jnp.asarray(0.1 * rng.normal(size=SHAPE), jnp.float32)), float)
        size, beta, variance = x.size, 0.2, 0.2
        h = oracles.dense_filter(mask, SHAPE)
        flat = means.reshape(2, size)
        self.law = oracles.mixture_posterior(h, x.ravel(), lam, np.zeros(size), beta, WEIGHTS, flat, variance)
        witness = cg.GaussianMixtureWitness(
            jnp.asarray(WEIGHTS, jnp.float32), jnp.asarray(means, jnp.float32), variance
        )
        observed = jnp.asarray(x, jnp.float32)
        self.posterior = cg.Posterior(witness, Wedge(jnp.asarray(mask)), observed, jnp.zeros(SHAPE), lam, beta)
        self.gaussian = gaussian_part(self.posterior)
        self.first = jnp.asarray(means[0], jnp.float32)

    def tempered(self):
        return cg.tempered(self.posterior.witness, self.gaussian, POWERS, STEP_SIZES)

    def score(self, algorithm, key, fault="none"):
        """Standard score of the weight of the first mode; all chains start there."""
        starts = jnp.broadcast_to(self.first, (CHAINS, *SHAPE))
        end = simulate(algorithm, key, starts, STEPS, fault=fault)[-1].reshape(CHAINS, -1)
        shares = self.law.responsibilities(end)[:, 0]
        moments = oracles.mean_scores(end, self.law.mean)
        return np.max(np.abs([oracles.mean_scores(shares, self.law.weights[0]), *moments]))


@pytest.mark.slow
@pytest.mark.parametrize("lam", [1.0, 1e6])
def test_modes_that_the_data_cannot_tell_apart_keep_their_weights(key, lam):
    problem = TwoModes(lam)
    np.testing.assert_allclose(problem.law.weights, WEIGHTS, atol=1e-6)
    assert problem.score(problem.tempered(), key) < 4.5


@pytest.mark.slow
def test_one_chain_without_rungs_stays_where_it_is(key):
    problem = TwoModes(1.0)
    assert problem.score(cg.kinetic(problem.posterior.witness, problem.gaussian, 0.25), key) > 20


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["swaps with the sign turned", "swaps always"])
def test_wrong_swaps_fail(key, fault, monkeypatch):
    problem = TwoModes(1.0)

    def wrong(key, powers, witness, even):
        tries, _ = right(key, powers, witness, even)
        if fault == "swaps always":
            return tries, tries
        return right(key, -powers, witness, even)

    right = tempered_module._swaps
    monkeypatch.setattr(tempered_module, "_swaps", wrong)
    assert problem.score(problem.tempered(), key, fault) > 6


def test_swaps_are_a_permutation_of_neighbours(key):
    powers = jnp.linspace(0, 1, 5)
    for even in (True, False):
        tries, accepted = tempered_module._swaps(key, powers, jnp.zeros(5), jnp.asarray(even))
        assert list(np.flatnonzero(tries)) == ([0, 2] if even else [1, 3])
        np.testing.assert_array_equal(tries, accepted)  # equal witnesses always swap


@jax.jit
def swaps(keys, powers, witness, even):
    return jax.vmap(tempered_module._swaps, (0, None, None, None))(keys, powers, witness, even)


@pytest.mark.parametrize("even", [True, False])
def test_swaps_are_accepted_as_often_as_the_laws_of_both_rungs_ask(key, even):
    """min(1, exp((t_i - t_j) (w_j - w_i))): always where the higher witness comes to the higher power."""
    powers, witness = np.array([0.0, 0.3, 1.0, 1.2, 2.0]), np.array([0.5, 2.0, 1.0, 0.2, 1.2])
    tries, accepted = swaps(
        jax.random.split(key, 2000), *(jnp.asarray(x, jnp.float32) for x in (powers, witness)), even
    )
    lower = [0, 2] if even else [1, 3]
    assert all(list(np.flatnonzero(row)) == lower for row in np.asarray(tries)[:5])
    expected = np.exp(np.minimum(0.0, np.diff(powers) * -np.diff(witness)))[lower]
    assert 0.3 < expected.min() < 0.7
    assert expected.max() == 1
    rate = np.mean(np.asarray(accepted)[:, lower], axis=0)
    assert np.all(np.abs(rate - expected) < 4.5 * np.sqrt(expected * (1 - expected) / 2000) + 1e-9)


@pytest.mark.slow
def test_the_bottom_rung_is_drawn_anew_at_every_step(key):
    problem = TwoModes(1.0)
    algorithm = cg.tempered(problem.posterior.witness, problem.gaussian, jnp.array([0.0, 1.0]), 0.6)
    state = algorithm.init(problem.first, key)
    info = None
    for i in range(2):
        state, info = jax.jit(as_pytree(algorithm.step))(jax.random.fold_in(key, i), state)
    assert 0 <= info.swap_rate <= 1
    fresh = samplers.kinetic(problem.posterior.witness, problem.gaussian, samplers.LONGEST_STEP, power=0.0)
    starts = jnp.broadcast_to(problem.first, (CHAINS, *SHAPE))
    paths = simulate(fresh, key, starts, 1)[-1].reshape(CHAINS, -1)
    exact = oracles.dense_filter(1 / np.asarray(problem.gaussian.precision), SHAPE)
    mean = np.asarray(problem.gaussian.mean, float).ravel()
    scores = oracles.second_moment_scores(paths - mean, np.diag(exact))
    assert np.max(np.abs(scores)) < 4.5


@pytest.mark.slow
def test_rungs_are_about_a_standard_deviation_of_the_witness_apart(key):
    problem = TwoModes(1.0)
    powers, step_sizes, count = even_ladder(key, as_pytree(problem.posterior.witness), problem.gaussian)
    assert powers[0] == 0
    assert powers[-1] == 1
    assert np.all(np.diff(powers) > 0)
    assert len(powers) == len(step_sizes) == count
    draws = jax.vmap(problem.gaussian.draw)(jax.random.split(key, 4000))
    spread = np.std(jax.vmap(problem.posterior.witness)(draws))
    assert 0.4 < spread * float(powers[1]) < 2.5  # from 16 particles


@pytest.mark.slow
def test_a_traced_run_interpolates_its_rungs(key):
    problem = TwoModes(1.0)
    result = jax.jit(
        lambda k: cg.sample(k, problem.posterior, sampler="tempered", num_chains=2, num_steps=4, num_kept=2).samples
    )(key)
    assert result.shape == (2, 2, *SHAPE)
    assert np.all(np.isfinite(result))
