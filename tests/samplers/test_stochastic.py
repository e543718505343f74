"""Stochastic gradients against the law of their discretisation, with and without the correction, and wrong factors."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax import samplers
from cryowgen_jax.potentials import SumWitness
from cryowgen_jax.pytrees import as_pytree, bind
from cryowgen_jax.types import Stochastic
from tests import oracles
from tests.samplers.test_stationary import CHAINS, SHAPE, TOLERANCE, Quadratic, exact_draws

module = importlib.import_module("cryowgen_jax.samplers.stochastic")
STEPS = 25
EVERY = pytest.mark.parametrize("corrected", [True, False])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
    """xi . z"""

    xi: jax.Array

    def __call__(self, position):
        return jnp.sum(self.xi * position)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tilted:
    """Witness plus xi . z, xi = root times white noise."""

    witness: cg.QuadraticWitness
    root: jax.Array

    def __call__(self, position):
        return self.witness(position)

    def at(self, key):
        xi = self.root @ jax.random.normal(key, self.root.shape[:1])
        return SumWitness((self.witness, Linear(xi.reshape(SHAPE))))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unsteady:
    """Quadratic of random curvature (1 + spread t) S, so that its gradient is the noisier the further away it is."""

    witness: cg.QuadraticWitness
    spread: jax.Array

    def __call__(self, position):
        return self.witness(position)

    def at(self, key):
        scale = 1 + self.spread * jax.random.normal(key)
        return cg.QuadraticWitness(scale * self.witness.curvature, self.witness.mean)


class Problem(Quadratic):
    """Gaussian modes, and gradient noise that adds the share r_k of the variance that a step 1 - a injects.

    V_k = r_k (1 - a^2) / ((1 - a)^2 C_k) for the mean of two draws, and twice that for one.
    """

    def __init__(self, a, low=0.1, high=0.45, seed=20261123):
        rng = np.random.default_rng(seed)
        super().__init__(rng)
        self.a = oracles.symmetric_half(rng, SHAPE, 0.2, 0.85).astype(float) if a is None else np.full(self.c.shape, a)
        self.share = np.asarray(oracles.symmetric_half(rng, SHAPE, low, high), float)
        self.wanted = (1 - self.a**2) * self.c
        self.noise = self.share * self.wanted / ((1 - self.a) * self.c) ** 2
        root = oracles.dense_filter(np.sqrt(2 * self.noise), SHAPE)
        self.drawn = Tilted(self.witness, jnp.asarray(root, jnp.float32))
        counts = oracles.multiplicity(SHAPE) * self.wanted
        self.inflation = np.sum(counts * self.share) / np.sum(counts)

    def build(self, **options):
        return samplers.stochastic(self.drawn, self.gaussian, jnp.asarray(1 - self.a, jnp.float32), **options)

    @property
    def clean(self):
        return oracles.pcnl_variance(self.c, self.g, self.a)

    @property
    def inflated(self):
        m = self.a - (1 - self.a) * self.g
        return (self.wanted + (1 - self.a) ** 2 * self.c**2 * self.noise) / (1 - m**2)

    def scores(self, states, variance):
        """Worst score of mean and variance of independent chains."""
        away = states.position - self.mean
        power = np.abs(np.fft.rfftn(away, axes=(1, 2), norm="ortho")) ** 2
        return max(worst(oracles.mean_scores(power, variance)), worst(oracles.mean_scores(away, 0.0)))


@functools.partial(jax.jit, static_argnames="steps")
def ends(algorithm, key, starts, steps):
    """Last state and info of independent chains."""

    def one(key, start):
        init_key, key = jax.random.split(key)
        state, infos = jax.lax.scan(
            lambda state, key: algorithm.step(key, state),
            algorithm.init(start, init_key),
            jax.random.split(key, steps),
        )
        return state, jax.tree.map(lambda x: x[-1], infos)

    return jax.vmap(one)(jax.random.split(key, len(starts)), starts)


def run(problem, algorithm, steps=STEPS, num_chains=CHAINS):
    key = jax.random.key(20261123)
    starts = exact_draws(problem.gaussian, jax.random.fold_in(key, 1), num_chains)
    return jax.tree.map(np.asarray, ends(as_pytree(algorithm), key, starts, steps))


@functools.cache
def solved(a, corrected):
    """Problem, last states and infos; a = None is one step size per coefficient."""
    problem = Problem(a)
    return problem, *run(problem, problem.build(corrected=corrected))


def worst(scores):
    return np.max(np.abs(scores))


# The law -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [0.0, None])
@EVERY
def test_the_law_is_that_of_the_formula(a, corrected):
    """Corrected, the variance of the exact gradient; else the inflated one. Each fails the other's."""
    problem, states, _ = solved(a, corrected)
    right, other = (problem.clean, problem.inflated) if corrected else (problem.inflated, problem.clean)
    assert problem.scores(states, right) < TOLERANCE
    assert not problem.scores(states, other) < 6


def scaled_step(factor, witness, gaussian, step_size, key, state):
    wanted, added = module._variances(gaussian, step_size, state)
    return module._move(witness, gaussian, step_size, jnp.maximum(wanted - factor * added, 0.0), key, state)


@pytest.mark.slow
def test_wrong_factors_fail():
    problem = Problem(None)
    for factor in (1.0, 0.5, 2.0):
        arguments = (jnp.float32(factor), problem.drawn, problem.gaussian, jnp.asarray(1 - problem.a, jnp.float32))
        algorithm = samplers.algorithm(problem.build().init, bind(scaled_step, *arguments))
        score = problem.scores(run(problem, algorithm, num_chains=4 * CHAINS)[0], problem.clean)
        assert score < TOLERANCE if factor == 1.0 else not score < 6


def test_the_closed_form_is_that_of_euler_steps_where_they_are_small():
    """Step 1 - a = eta, C = 1, q = 1 + g: against (2 + eta V)/(2 q - eta q^2) to first order."""
    g, v = 0.7, 3.0
    for eta in (1e-3, 1e-4):
        a, q = 1 - eta, 1 + g
        ours = (1 - a**2 + eta**2 * v) / (1 - (a - eta * g) ** 2)
        euler = (2 + eta * v) / (2 * q - eta * q**2)
        # pCNL injects 2 eta - eta^2 where Euler steps inject 2 eta
        assert euler - ours == pytest.approx(0.5 * eta / q, rel=10 * eta)


@pytest.mark.slow
@EVERY
def test_noise_that_grows_with_the_distance_is_removed_on_average(corrected):
    problem = Problem(0.6)
    witness = Unsteady(problem.witness, jnp.float32(1.5))
    algorithm = samplers.stochastic(witness, problem.gaussian, 0.4, corrected=corrected)
    score = problem.scores(run(problem, algorithm, steps=150)[0], problem.clean)
    assert score < TOLERANCE if corrected else not score < 6


# What is measured -----------------------------------------------------------------------------------------------------


@EVERY
def test_variance_of_the_gradient_and_inflation_are_measured(corrected):
    problem, state, info = solved(None, corrected)
    assert worst(oracles.mean_scores(state.gradient_variance, problem.noise)) < TOLERANCE
    assert worst(oracles.mean_scores(info.inflation, problem.inflation)) < TOLERANCE
    np.testing.assert_array_equal(state.draws, STEPS + 1)
    np.testing.assert_array_equal(info.acceptance_rate, 1.0)
    if corrected:
        assert np.median(info.remaining) < 1e-6
        assert np.mean(info.remaining) < 0.01
    else:
        np.testing.assert_allclose(info.remaining, info.inflation, rtol=1e-5)
    # of one draw, not of the mean of two; and every coefficient counted once
    assert not worst(oracles.mean_scores(state.gradient_variance, 2 * problem.noise)) < 7
    once = np.sum(problem.wanted * problem.share) / np.sum(problem.wanted)
    assert not worst(oracles.mean_scores(info.inflation, once)) < 7


@jax.jit
def path(algorithm, keys, position):
    """First state, and state and info after every step, of a chain that starts without a key."""

    def body(state, key):
        state, info = algorithm.step(key, state)
        return state, (state, info)

    first = algorithm.init(position)
    return first, *jax.lax.scan(body, first, keys)[1]


def test_the_running_mean_is_the_mean_of_what_was_drawn(key):
    """Two gradients of the position that the step arrived at, by hand."""
    problem = Problem(0.6)
    keys = jax.random.split(key, 5)
    _, states, _ = jax.tree.map(np.asarray, path(as_pytree(problem.build()), keys, jnp.zeros(SHAPE)))
    estimates, size = [], int(np.prod(SHAPE))
    for i, k in enumerate(keys):
        white = [jax.random.normal(d, (size,)) for d in jax.random.split(jax.random.split(k)[1])]
        one, two = (np.fft.rfftn((problem.drawn.root @ w).reshape(SHAPE), norm="ortho") for w in white)
        away = np.fft.rfftn(states.position[i] - problem.witness.mean, norm="ortho")
        np.testing.assert_allclose(states.gradient[i], 0.5 * (one + two) - problem.g / problem.c * away, atol=1e-4)
        estimates.append(0.25 * np.abs(one - two) ** 2)
        np.testing.assert_allclose(states.gradient_variance[i], np.mean(estimates, axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(states.draws, 1 + np.arange(5))


def test_without_a_key_the_first_gradient_is_the_expected_one(rng, key):
    problem = Problem(0.6)
    position = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    first, _, info = path(as_pytree(problem.build()), jax.random.split(key, 5), position)
    away = np.fft.rfftn(position - problem.witness.mean, norm="ortho")
    np.testing.assert_allclose(first.gradient, -problem.g / problem.c * away, atol=1e-5)
    assert int(first.draws) == 0
    assert float(info.inflation[0]) == float(info.remaining[0]) == 0.0
    assert np.all(info.inflation[1:] > 0)


def test_more_noise_than_a_step_may_have_stays_finite_and_is_reported():
    """At the floor nothing is injected, and the law is that of gradient noise alone."""
    problem = Problem(0.6, low=8.0, high=12.0)
    state, info = run(problem, problem.build())
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    assert np.min(info.inflation) > 1
    np.testing.assert_allclose(info.remaining, info.inflation - 1, rtol=1e-4)
    assert worst(oracles.mean_scores(info.remaining, problem.inflation - 1)) < TOLERANCE
    alone = problem.inflated - problem.wanted / (1 - (problem.a - (1 - problem.a) * problem.g) ** 2)
    assert problem.scores(state, alone) < TOLERANCE
    assert not problem.scores(state, problem.clean) < 14


def test_a_witness_that_cannot_be_drawn_is_refused():
    problem = Problem(0.6)
    assert isinstance(problem.drawn, Stochastic)
    assert not isinstance(problem.witness, Stochastic)
    for witness in (problem.witness, jnp.sum):
        with pytest.raises(TypeError, match="cannot be drawn"):
            samplers.stochastic(witness, problem.gaussian, 0.4)
