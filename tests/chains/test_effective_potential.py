"""Psi by annealing against closed forms: inside its bracket, and the bracket narrow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax.chains import annealing
from cryowgen_jax.operators import Wedge
from cryowgen_jax.potentials import gaussian_part, log_normaliser
from cryowgen_jax.types import InputError
from tests import oracles
from tests.chains.test_sample import BETA, LAM, SHAPE, Hidden, Problem, volume


class Mixture:
    """Two modes, which the data weigh anew."""

    def __init__(self, lam=4.0, gap=1.5):
        rng = np.random.default_rng(3)
        size = int(np.prod(SHAPE))
        transfer = oracles.symmetric_half(rng, SHAPE, 0.2, 1.0)
        x, center, direction = rng.normal(size=(3, size))
        weights, variance = np.array([0.3, 0.7]), 0.4
        means = 0.5 * gap * np.stack([direction, -direction]) / np.linalg.norm(direction)
        h = oracles.dense_filter(transfer, SHAPE)
        self.law = oracles.mixture_posterior(h, x, lam, center, BETA, weights, means, variance)
        witness = cg.GaussianMixtureWitness(jnp.asarray(weights, jnp.float32), volume_stack(means), variance)
        decoder = Wedge(jnp.asarray(transfer))
        self.posterior = cg.Posterior(witness, decoder, volume(x), volume(center), lam, BETA)


def volume_stack(flat):
    return jnp.asarray(np.reshape(flat, (-1, *SHAPE)), jnp.float32)


def outside(psi, estimate):
    """How many standard errors Psi lies outside the bracket; negative inside."""
    error = max(float(estimate.standard_error), 1e-5 * abs(psi))
    return max(float(estimate.lower) - psi, psi - float(estimate.upper)) / error


def test_a_gaussian_posterior_has_psi_exactly(key):
    problem = Problem()
    estimate = cg.effective_potential(key, problem.open)
    np.testing.assert_allclose(estimate.value, problem.law.psi, rtol=1e-5)
    assert float(estimate.lower) == float(estimate.value) == float(estimate.upper)
    assert float(estimate.standard_error) == 0 == int(estimate.num_gradients)


@pytest.mark.slow
def test_a_quadratic_form_that_the_library_is_not_told_of_is_found(key):
    problem = Problem()
    estimate = cg.effective_potential(key, problem.hidden, num_equilibration=32)
    np.testing.assert_allclose(estimate.value, problem.law.psi, atol=2e-3)
    assert float(estimate.upper - estimate.lower) < 2e-3
    assert int(estimate.num_gradients) > 0


@pytest.mark.slow
def test_psi_of_a_mixture_lies_in_its_bracket(key):
    problem = Mixture()
    draws = volume_stack(problem.law.draw(np.random.default_rng(0), 256))
    estimate = cg.effective_potential(key, problem.posterior, num_particles=256, draws=draws)
    assert outside(problem.law.psi, estimate) < 4.5
    assert abs(float(estimate.value) - problem.law.psi) < 4.5 * float(estimate.standard_error) + 1e-3
    assert float(estimate.upper - estimate.lower) < 0.2
    without = cg.effective_potential(key, problem.posterior, num_particles=256)
    assert outside(problem.law.psi, without) < 4.5
    halved = dataclasses.replace(problem.posterior, witness=jax.tree_util.Partial(half, problem.posterior.witness))
    assert outside(problem.law.psi, cg.effective_potential(key, halved, num_particles=256)) > 20


def half(witness, position):
    return 0.5 * witness(position)


@pytest.mark.computes
@pytest.mark.slow
def test_the_bracket_is_narrow_on_a_tomogram_s_worth_of_coefficients(key):
    """20^3, lambda / beta = 1e4, default budget: the bracket is below half a percent of Psi."""
    shape = (20, 20, 20)
    rng = np.random.default_rng(1)
    mask = jnp.asarray(oracles.wedge(shape))
    curvature = jnp.asarray(0.2 + 8 * oracles.radius(shape), jnp.float32)
    x, center, mean = jnp.asarray(rng.normal(size=(3, *shape)), jnp.float32)
    witness = cg.QuadraticWitness(curvature, mean)
    posterior = cg.Posterior(witness, Wedge(mask), Wedge(mask)(x), center, 1e4, 1.0)
    exact = float(cg.effective_potential(key, posterior).value)
    estimate = cg.effective_potential(key, dataclasses.replace(posterior, witness=Hidden(witness)))
    assert float(estimate.upper - estimate.lower) < 0.005 * abs(exact)
    assert abs(float(estimate.value) - exact) < 0.001 * abs(exact)


def test_particles_follow_the_power_of_the_rung_that_they_reach(key):
    """With moves enough to forget where they came from: N(0, 1 / (1 + t g)) for w = -g z^2 / 2 and C = 1."""
    size, curvature = 8, 6.0
    witness = jax.tree_util.Partial(lambda z: -0.5 * curvature * jnp.sum(z**2))

    @jax.jit
    def end(key, up):
        nowhere = jnp.zeros(size)
        gaussian = gaussian_part(cg.Posterior(witness, Wedge(jnp.zeros(size // 2 + 1)), nowhere, nowhere, 1.0, 1.0))
        ladder = annealing.Ladder(jnp.asarray([0.0, 0.3, 1.0]), jnp.full(3, 0.5), jnp.int32(2))
        start = annealing.exact_states(key, witness, gaussian, 256)
        return annealing.anneal(key, witness, gaussian, ladder, start, 16, up).states.position

    for up, last, before in ((True, 1.0, 0.3), (False, 0.0, 0.3)):
        draws = np.asarray(end(key, up), float)
        here, there = (oracles.second_moment_scores(draws, 1 / (1 + t * curvature)) for t in (before, last))
        assert np.max(np.abs(there)) < 4.5
        assert np.min(np.abs(here)) > 4.5


def test_the_normalised_form(key):
    problem = Problem()
    plain, normalised = (cg.effective_potential(key, problem.open, normalised=n) for n in (False, True))
    size = int(np.prod(SHAPE))
    expected = -0.5 * size * np.log(BETA / (2 * np.pi)) - 0.5 * size * np.log(LAM / (2 * np.pi))  # transfer > 0.2
    np.testing.assert_allclose(normalised.value - plain.value, expected, rtol=1e-5)
    masked = cg.Posterior(None, Wedge(jnp.asarray(oracles.wedge((4, 3, 4)))), *[jnp.zeros((4, 3, 4))] * 2, 2.0, 1.0)
    measured = np.sum(oracles.full_spectrum(oracles.wedge((4, 3, 4)), (4, 3, 4)))
    slope = jax.jit(jax.grad(lambda lam: log_normaliser(dataclasses.replace(masked, data_weight=lam))))(2.0)
    np.testing.assert_allclose(slope, -measured / (2 * 2.0), rtol=1e-6)


def test_descent_in_lambda_and_beta_ends_where_the_normalised_form_says():
    """Stationary: 1/beta = E|z - zbar|^2 / D; without the normaliser the gradient in beta is positive for good."""
    problem = Problem()
    draws = volume_stack(problem.law.draw(np.random.default_rng(0), 64))
    gradient, plain = (
        jax.jit(jax.grad(lambda p, normalised=n: cg.surrogate(p, draws, normalised=normalised)))(problem.open)
        for n in (True, False)
    )
    size = int(np.prod(SHAPE))
    np.testing.assert_allclose(gradient.prior_precision, plain.prior_precision - size / (2 * BETA), rtol=1e-5)
    np.testing.assert_allclose(gradient.data_weight, plain.data_weight - size / (2 * LAM), rtol=1e-5)
    assert plain.prior_precision > 0


def test_what_cannot_be_drawn_is_refused(key):
    problem = Problem()
    turned = dataclasses.replace(problem.open, decoder=jax.tree_util.Partial(jnp.tanh))
    with pytest.raises(TypeError, match="cannot be drawn exactly"):
        cg.effective_potential(key, turned)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"num_particles": 1}, "num_particles=1"),
        ({"spacing": 0.0}, "spacing=0.0"),
        ({"draws": jnp.zeros((3, *SHAPE))}, "draws has shape"),
    ],
    ids=["one particle", "no spacing", "too few draws"],
)
def test_budgets_that_do_not_fit_are_refused(key, budget, message):
    with pytest.raises(InputError, match=message):
        cg.effective_potential(key, Problem().hidden, **budget)
