"""CryoWGEN-I against closed forms: Psi, moments, effective sample sizes, and what a family holds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax.methods import DefensiveMixture
from cryowgen_jax.operators import Wedge
from cryowgen_jax.potentials import gaussian_part, informed_part
from cryowgen_jax.spatial import fourier
from tests import oracles
from tests.methods.problem import BETA, LAM, SHAPE, Problem, volume

FEW, MANY, BATCH = 40, 20000, 2000  # few sizes: each compiles once


@pytest.fixture(scope="module", params=["quadratic", "mixture"])
def problem(request):
    return Problem(request.param)


@pytest.mark.parametrize("reference", ["gaussian", "conditional_prior"])
def test_importance_sampling_finds_psi_and_the_moments(key, problem, reference):
    count, law = 40000, problem.law
    sample = jax.jit(lambda k: cg.importance_sample(k, problem.posterior, count, reference=reference, batch_size=2000))
    family = sample(key)
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
    assert abs(cg.importance_sample(key, other, MANY, batch_size=BATCH).psi - problem.law.psi) > 0.3


def test_an_amortised_reference_that_is_right_makes_all_weights_alike(key):
    """Where a network says what tether and quadratic witness together would, nothing is left to weigh."""
    problem = Problem("quadratic")
    posterior, term = problem.posterior, problem.posterior.witness
    precision = BETA + term.curvature
    both = BETA * fourier.rfftn(posterior.center) + term.curvature * fourier.rfftn(term.mean)
    right = informed_part(posterior, fourier.irfftn(both / precision, SHAPE), 1 / precision)
    family = cg.importance_sample(key, posterior, FEW, reference=right)
    np.testing.assert_allclose(family.ess, FEW, rtol=1e-4)
    np.testing.assert_allclose(family.psi, problem.law.psi, atol=1e-3)
    half = cg.importance_sample(key, posterior, FEW, reference=informed_part(posterior, term.mean, 0.5 / precision))
    assert half.ess < 0.9 * FEW


def test_a_bad_reference_is_made_safe(key, problem):
    law, gaussian = problem.law, gaussian_part(problem.posterior)
    off = informed_part(problem.posterior, volume(law.mean + 6.0), jnp.full(gaussian.precision.shape, 0.1))

    def from_reference(reference):
        return cg.importance_sample(key, problem.posterior, MANY, reference=reference, batch_size=BATCH)

    plain, bad, safe = (
        from_reference(gaussian),
        from_reference(off),
        from_reference(DefensiveMixture(off, gaussian, 0.5)),
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
    family = cg.importance_sample(key, problem.posterior, MANY, batch_size=BATCH)
    np.testing.assert_allclose(family.ess / MANY, problem.ess_per_candidate, rtol=0.03)
    prior = cg.importance_sample(key, problem.posterior, MANY, reference="conditional_prior", batch_size=BATCH)
    assert prior.ess < 0.5 * family.ess


def test_weights_are_those_of_the_two_references(key):
    """l = F(z) - log r(z): against the Gaussian part F = w + log of its measure, against kappa the prior cancels."""
    problem = Problem("mixture")
    posterior = problem.posterior
    reference = oracles.gaussian_posterior(problem.h, problem.x, LAM, problem.center, BETA)
    prior = oracles.Law(np.ones(1), problem.center[None], np.eye(6)[None] / BETA, 0.0)
    for name, law in (("gaussian", reference), ("conditional_prior", prior)):
        family = cg.importance_sample(key, posterior, FEW, reference=name)
        flat = np.asarray(family.samples, float).reshape(FEW, 6)
        exponent = np.asarray(jax.vmap(posterior.log_density)(family.samples), float)
        expected = exponent - oracles.log_normal(flat, law.means[0], law.covariances[0])
        np.testing.assert_allclose(family.log_weights, expected, atol=2e-4)


def test_the_prior_as_reference_collapses_to_one_candidate_and_says_so(key):
    """12^3 voxels at lambda / beta = 1e4, as published: the effective sample size is 1, Psi far too high."""
    shape = (12, 12, 12)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    witness = cg.QuadraticWitness(jnp.full((12, 12, 7), 0.1), jnp.zeros(shape))
    posterior = cg.Posterior(witness, Wedge(jnp.asarray(oracles.wedge(shape))), x, jnp.zeros(shape), 1e4, 1.0)
    collapsed = cg.importance_sample(key, posterior, 64, reference="conditional_prior")
    np.testing.assert_allclose(collapsed.ess, 1.0, atol=1e-3)
    informed = cg.importance_sample(key, posterior, 64)
    assert informed.ess > 10
    assert collapsed.psi > informed.psi + 1e5
    assert np.all(np.isfinite(collapsed.mean))


def test_candidates_do_not_depend_on_the_batch(key):
    problem = Problem("mixture")
    one = cg.importance_sample(key, problem.posterior, FEW)
    other = cg.importance_sample(key, problem.posterior, FEW, batch_size=7)
    np.testing.assert_allclose(other.samples, one.samples, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other.log_weights, one.log_weights, rtol=1e-5)


def test_weighted_draws_drive_the_gradient_of_psi(key):
    """Self-normalised weights in place of equal ones give the same expectations."""
    problem = Problem("mixture")
    family = cg.importance_sample(key, problem.posterior, MANY, batch_size=BATCH)
    gradient = jax.grad(cg.surrogate)(problem.posterior, family.samples, jax.nn.softmax(family.log_weights))
    expected = oracles.psi_gradients(problem.law, problem.h, problem.x, LAM, problem.center, BETA, SHAPE)
    for name in ("observation", "center", "data_weight", "prior_precision"):
        scale = 1 + np.abs(expected[name]).max()
        np.testing.assert_allclose(getattr(gradient, name), expected[name], atol=6 * scale / np.sqrt(family.ess))


def test_a_decoder_without_transfer_has_only_the_prior_as_reference(key):
    problem = Problem("mixture")
    other = dataclasses.replace(problem.posterior, decoder=jax.tree_util.Partial(jnp.tanh))
    with pytest.raises(TypeError, match="cannot be drawn exactly"):
        cg.importance_sample(key, other, 4)
    family = cg.importance_sample(key, other, 4, reference="conditional_prior")
    assert np.isfinite(family.psi)


def test_a_witness_may_be_a_plain_function(key):
    problem = Problem("mixture")
    witness = problem.posterior.witness
    plain = dataclasses.replace(problem.posterior, witness=lambda z: witness(z))
    for reference in ("gaussian", "conditional_prior"):
        one = cg.importance_sample(key, problem.posterior, FEW, reference=reference)
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
    np.testing.assert_array_equal(family.samples, every.samples[heaviest])
    weights = np.exp(np.asarray(every.log_weights, float)[heaviest])
    np.testing.assert_allclose(family.weights, weights / weights.sum(), rtol=1e-4)
    np.testing.assert_allclose(family.mean, every.mean, rtol=1e-6)
    np.testing.assert_allclose(family.std, np.sqrt(every.variance), rtol=1e-6)
    few = cg.cryowgen_mc(key, posterior, num_candidates=3, num_samples=8)
    assert few.samples.shape == (3, *SHAPE)
