"""CryoWGEN-I against closed forms: Psi, moments, effective sample sizes, and what a family holds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax.methods import DefensiveMixture
from cryowgen_jax.operators import Wedge
from cryowgen_jax.potentials import gaussian_part, informed_part
from tests import oracles
from tests.methods.problem import BETA, LAM, SHAPE, Problem, volume

FEW, MANY, BATCH = 40, 10000, 2000  # few sizes: each compiles once


@pytest.fixture(scope="module", params=["quadratic", "mixture"])
def problem(request):
    return Problem(request.param)


@functools.partial(jax.jit, static_argnames=("count", "reference"))
def drawn(key, posterior, count=MANY, reference="gaussian"):
    return cg.importance_sample(key, posterior, count, reference=reference, batch_size=min(count, BATCH))


@functools.partial(jax.jit, static_argnames="count")
def drawn_from(key, posterior, reference, count=MANY):
    return cg.importance_sample(key, posterior, count, reference=reference, batch_size=min(count, BATCH))


@pytest.mark.parametrize("reference", ["gaussian", "conditional_prior"])
def test_importance_sampling_finds_psi_and_the_moments(key, problem, reference):
    law = problem.law
    family = drawn(key, problem.posterior, 4 * MANY, reference)
    ess = float(family.ess)
    assert ess > 200
    np.testing.assert_allclose(family.psi, law.psi, atol=5 / np.sqrt(ess))
    sd = np.sqrt(np.diag(law.covariance)).reshape(SHAPE)
    np.testing.assert_allclose(family.mean, law.mean.reshape(SHAPE), atol=5 * sd.max() / np.sqrt(ess))
    np.testing.assert_allclose(family.variance, sd**2, rtol=5 * np.sqrt(2 / ess) + 0.02)


def test_a_flipped_witness_sign_gives_another_psi(key):
    problem = Problem("mixture")
    flipped = jax.tree_util.Partial(lambda w, z: -w(z), problem.posterior.witness)
    other = dataclasses.replace(problem.posterior, witness=flipped)
    assert abs(drawn(key, other).psi - problem.law.psi) > 0.3


def test_an_amortised_reference_that_is_right_makes_all_weights_alike(key):
    """Where a network says what tether and quadratic witness together would, nothing is left to weigh."""
    problem = Problem("quadratic")
    posterior, term = problem.posterior, problem.posterior.witness
    precision = BETA + np.asarray(term.curvature)
    center, mean = (np.fft.rfftn(v, norm="ortho") for v in (posterior.center, term.mean))
    both = np.fft.irfftn((BETA * center + term.curvature * mean) / precision, SHAPE, axes=(0, 1, 2), norm="ortho")
    part = jax.jit(informed_part)
    right = part(posterior, jnp.asarray(both, jnp.float32), 1 / precision)
    family = drawn_from(key, posterior, right, FEW)
    np.testing.assert_allclose(family.ess, FEW, rtol=1e-4)
    np.testing.assert_allclose(family.psi, problem.law.psi, atol=1e-3)
    half = drawn_from(key, posterior, part(posterior, term.mean, 0.5 / precision), FEW)
    assert half.ess < 0.9 * FEW


def test_a_bad_reference_is_made_safe(key):
    problem = Problem("mixture")
    law, gaussian = problem.law, jax.jit(gaussian_part)(problem.posterior)
    far = volume(law.mean + 6.0), jnp.full(gaussian.precision.shape, 0.1)
    off = jax.jit(informed_part)(problem.posterior, *far)
    plain, bad, safe = (
        drawn_from(key, problem.posterior, reference)
        for reference in (gaussian, off, DefensiveMixture(off, gaussian, 0.5))
    )
    assert bad.ess < 0.1 * safe.ess
    assert safe.ess > 0.4 * plain.ess
    for family in (plain, safe):
        tolerance = 5 / np.sqrt(family.ess)
        np.testing.assert_allclose(family.psi, law.psi, atol=tolerance)
        sd = np.sqrt(np.diag(law.covariance)).max()
        np.testing.assert_allclose(family.mean, law.mean.reshape(SHAPE), atol=sd * tolerance)
    assert abs(bad.psi - law.psi) > 5 / np.sqrt(safe.ess)


def test_ess_of_the_gaussian_reference_is_the_closed_form(key):
    """ESS / K = prod over modes of sqrt(1 + 2 g) / (1 + g), g = C_k S_k, for a witness centred on the reference."""
    problem = Problem("quadratic")
    family, prior = (drawn(key, problem.posterior, 4 * MANY, name) for name in ("gaussian", "conditional_prior"))
    np.testing.assert_allclose(family.ess / (4 * MANY), problem.ess_per_candidate, rtol=0.03)
    assert prior.ess < 0.5 * family.ess


def test_weights_are_those_of_the_two_references(key):
    """l = F(z) - log r(z): against the Gaussian part F = w + log of its measure, against kappa the prior cancels."""
    problem = Problem("mixture")
    posterior = problem.posterior
    reference = oracles.gaussian_posterior(problem.h, problem.x, LAM, problem.center, BETA)
    prior = oracles.Law(np.ones(1), problem.center[None], np.eye(6)[None] / BETA, 0.0)
    for name, law in (("gaussian", reference), ("conditional_prior", prior)):
        family = drawn(key, posterior, FEW, name)
        flat = np.asarray(family.samples, float).reshape(FEW, 6)
        exponent = np.asarray(jax.jit(jax.vmap(posterior.log_density))(family.samples), float)
        expected = exponent - oracles.log_normal(flat, law.means[0], law.covariances[0])
        np.testing.assert_allclose(family.log_weights, expected, atol=2e-4)


def test_the_prior_as_reference_collapses_to_one_candidate_and_says_so(key):
    """12^3 voxels at lambda / beta = 1e4, as published: the effective sample size is 1, Psi far too high."""
    shape = (12, 12, 12)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    witness = cg.QuadraticWitness(jnp.full((12, 12, 7), 0.1), jnp.zeros(shape))
    posterior = cg.Posterior(witness, Wedge(jnp.asarray(oracles.wedge(shape))), x, jnp.zeros(shape), 1e4, 1.0)
    collapsed = drawn(key, posterior, 64, "conditional_prior")
    np.testing.assert_allclose(collapsed.ess, 1.0, atol=1e-3)
    informed = drawn(key, posterior, 64)
    assert informed.ess > 10
    assert collapsed.psi > informed.psi + 1e5
    assert np.all(np.isfinite(collapsed.mean))


def test_candidates_do_not_depend_on_the_batch(key):
    problem = Problem("mixture")
    one = drawn(key, problem.posterior, FEW)
    other = cg.importance_sample(key, problem.posterior, FEW, batch_size=7)
    np.testing.assert_allclose(other.samples, one.samples, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other.log_weights, one.log_weights, rtol=1e-5)


def test_weighted_draws_drive_the_gradient_of_psi(key):
    """Self-normalised importance weights in the surrogate: expectations under the posterior become weighted sums."""
    problem = Problem("mixture")
    family = drawn(key, problem.posterior)
    weights = jnp.exp(family.log_weights - jnp.max(family.log_weights))
    gradient = jax.jit(jax.grad(cg.surrogate))(problem.posterior, family.samples, weights)
    expected = oracles.psi_gradients(problem.law, problem.h, problem.x, LAM, problem.center, BETA, SHAPE)
    for name in ("observation", "center", "data_weight", "prior_precision"):
        scale = 1 + np.abs(expected[name]).max()
        np.testing.assert_allclose(getattr(gradient, name), expected[name], atol=6 * scale / np.sqrt(family.ess))


def test_a_decoder_without_transfer_has_only_the_prior_as_reference(key):
    problem = Problem("mixture")
    other = dataclasses.replace(problem.posterior, decoder=jax.tree_util.Partial(jnp.tanh))
    with pytest.raises(TypeError, match="cannot be drawn exactly"):
        cg.importance_sample(key, other, 4)
    family = drawn(key, other, 4, "conditional_prior")
    assert np.isfinite(family.psi)


def test_a_witness_may_be_a_plain_function(key):
    problem = Problem("mixture")
    witness = problem.posterior.witness
    plain = dataclasses.replace(problem.posterior, witness=lambda z: witness(z))
    for reference in ("gaussian", "conditional_prior"):
        one = drawn(key, problem.posterior, FEW, reference)
        two = cg.importance_sample(key, plain, FEW, reference=reference)
        np.testing.assert_allclose(two.log_weights, one.log_weights, rtol=1e-5)


def test_input_that_does_not_fit_is_refused(key):
    posterior = Problem("mixture").posterior
    for arguments, words in (
        ({"num_candidates": 0}, "num_candidates=0"),
        ({"num_candidates": 4, "batch_size": 0}, "batch_size=0"),
        ({"num_candidates": 4, "reference": "prior"}, "reference='prior'"),
    ):
        with pytest.raises(ValueError, match=words):
            cg.importance_sample(key, posterior, **arguments)


def test_cryowgen_mc_returns_the_heaviest_candidates(key):
    posterior = Problem("mixture").posterior
    family = cg.cryowgen_mc(key, posterior, num_candidates=FEW, num_samples=5)
    every = cg.importance_sample(key, posterior, FEW)
    heaviest = np.argsort(-np.asarray(every.log_weights))[:5]
    np.testing.assert_array_equal(family.samples, np.asarray(every.samples)[heaviest])
    weights = np.exp(np.asarray(every.log_weights, float)[heaviest])
    np.testing.assert_allclose(family.weights, weights / weights.sum(), rtol=1e-4)
    np.testing.assert_allclose(family.mean, every.mean, rtol=1e-6)
    np.testing.assert_allclose(family.std, np.sqrt(every.variance), rtol=1e-6)
    few = jax.eval_shape(lambda k: cg.cryowgen_mc(k, posterior, num_candidates=3, num_samples=8).samples, key)
    assert few.shape == (3, *SHAPE)
