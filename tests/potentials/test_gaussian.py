"""The Gaussian part of a posterior, its mass, its draws, and what splitting leaves of the witness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax.operators import Wedge
from cryowgen_jax.potentials import (
    ScaledWitness,
    ShiftedWitness,
    SumWitness,
    absorb,
    contraction_gap,
    gaussian_part,
    has_curvature,
    split,
)
from tests import oracles

SHAPES = [(7,), (4, 5), (3, 4, 5), (4, 3, 6)]
SHAPES += [pytest.param(shape, marks=pytest.mark.slow) for shape in ((8,), (5, 6), (1, 2, 3))]
LAM, BETA = 4.0, 0.7


def problem(rng, shape, witness=None):
    """Posterior, dense decoder, observation, centre."""
    size = int(np.prod(shape))
    transfer = oracles.symmetric_half(rng, shape, 0.0, 1.5)
    transfer *= transfer > 0.5
    x, center = rng.normal(size=size), rng.normal(size=size)
    witness = witness or cg.QuadraticWitness(jnp.zeros(transfer.shape), jnp.zeros(shape))
    posterior = cg.Posterior(
        witness, Wedge(jnp.asarray(transfer)), volume(x, shape), volume(center, shape), jnp.float32(LAM), BETA
    )
    return posterior, oracles.dense_filter(transfer, shape), x, center


def volume(flat, shape):
    return jnp.asarray(np.asarray(flat).reshape(*np.shape(flat)[:-1], *shape), jnp.float32)


def quadratic(rng, shape, low=0.1, high=3.0):
    curvature = oracles.symmetric_half(rng, shape, low, high)
    return cg.QuadraticWitness(jnp.asarray(curvature), volume(rng.normal(size=int(np.prod(shape))), shape))


def mixture(rng, shape, variance=0.9):
    means = 0.5 * rng.normal(size=(3, int(np.prod(shape))))
    return cg.GaussianMixtureWitness(jnp.array([0.2, 0.5, 0.3]), volume(means, shape), variance)


def soft(position):
    """A witness that says nothing about its curvature."""
    return -jnp.sum(jax.nn.softplus(position))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mean_precision_and_mass_of_the_gaussian_part(rng, shape):
    posterior, h, x, center = problem(rng, shape, mixture(rng, shape))
    law = oracles.gaussian_posterior(h, x, LAM, center, BETA)
    gaussian = jax.jit(gaussian_part)(posterior)
    np.testing.assert_allclose(gaussian.mean.reshape(-1), law.mean, atol=3e-6)
    covariance = oracles.dense_filter(1 / np.asarray(gaussian.precision), shape)
    np.testing.assert_allclose(covariance, law.covariances[0], atol=1e-5)
    np.testing.assert_allclose(gaussian.log_integral, -law.psi, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_psi_with_a_quadratic_witness_moved_over(rng, shape):
    witness = quadratic(rng, shape)
    posterior, h, x, center = problem(rng, shape, witness)
    gaussian, rest = jax.jit(split)(posterior)
    s = oracles.dense_filter(witness.curvature, shape)
    law = oracles.gaussian_posterior(h, x, LAM, center, BETA, s, np.asarray(witness.mean, float).reshape(-1))
    assert rest is None
    np.testing.assert_allclose(gaussian.log_integral, -law.psi, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gaussian.mean.reshape(-1), law.mean, atol=3e-6)


def test_the_gradient_of_the_mass_is_that_of_psi(rng):
    """Autodiff through the closed form and moments of the posterior are two ways to one number."""
    shape = (3, 4, 3)
    posterior, h, x, center = problem(rng, shape)
    gradient = jax.jit(jax.grad(lambda p: -gaussian_part(p).log_integral))(posterior)
    law = oracles.gaussian_posterior(h, x, LAM, center, BETA)
    for name, value in oracles.psi_gradients(law, h, x, LAM, center, BETA, shape).items():
        found = gradient.decoder.transfer if name == "transfer" else getattr(gradient, name)
        np.testing.assert_allclose(found, value, atol=1e-4 * (1 + np.abs(value).max()))


@pytest.mark.parametrize("shape", [pytest.param((6,), marks=pytest.mark.slow), (3, 2, 3)], ids=str)
def test_draws_have_the_mean_and_the_whole_covariance(rng, key, shape):
    posterior, h, x, center = problem(rng, shape)
    law = oracles.gaussian_posterior(h, x, LAM, center, BETA)
    gaussian = gaussian_part(posterior)
    draws = jax.jit(jax.vmap(gaussian.draw))(jax.random.split(key, 20000))
    assert draws.dtype == jnp.float32
    flat = np.asarray(draws, float).reshape(len(draws), -1) - law.mean
    assert scores(flat, law.covariances[0]) < 5
    assert scores(np.sqrt(0.5) * flat, law.covariances[0]) > 20  # half the noise


def scores(centred, covariance):
    products = centred[:, :, None] * centred[:, None, :]
    variances = np.diag(covariance)
    spread = np.sqrt((np.outer(variances, variances) + covariance**2) / len(centred))
    of_covariance = np.abs(products.mean(axis=0) - covariance) / spread
    of_mean = np.abs(centred.mean(axis=0)) / np.sqrt(variances / len(centred))
    return max(of_covariance.max(), of_mean.max())


WITNESSES = {
    "quadratic": lambda rng, shape: quadratic(rng, shape),
    "mixture": lambda rng, shape: mixture(rng, shape),
    "two quadratics": lambda rng, shape: SumWitness((quadratic(rng, shape), quadratic(rng, shape, -0.3, 1.0))),
    "quadratic and mixture": lambda rng, shape: SumWitness((quadratic(rng, shape), mixture(rng, shape))),
    "scaled quadratic": lambda rng, shape: ScaledWitness(jnp.float32(0.4), quadratic(rng, shape)),
    "scaled sum": lambda rng, shape: ScaledWitness(
        jnp.float32(2.5), SumWitness((mixture(rng, shape), ScaledWitness(jnp.float32(0.3), quadratic(rng, shape))))
    ),
    "two mixtures": lambda rng, shape: SumWitness((mixture(rng, shape), mixture(rng, shape, 1.7))),
    "function": lambda rng, shape: soft,
    "function and quadratic": lambda rng, shape: SumWitness((soft, quadratic(rng, shape))),
    "function and mixture": lambda rng, shape: SumWitness((soft, mixture(rng, shape))),
}
SIMPLE = {"quadratic", "mixture", "scaled quadratic", "function"}  # each a part of one of the others


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, marks=pytest.mark.slow if name in SIMPLE else ())
        for name, shape in [*((name, (3, 4, 4)) for name in WITNESSES), ("scaled sum", (7,))]
    ]
    + [pytest.param("quadratic and mixture", (4, 5), marks=pytest.mark.slow)],
)
def test_split_keeps_the_exponent(rng, shape, name):
    """F(z) = w_r(z) + log of the Gaussian measure, at any z, its mass included."""
    posterior, *_ = problem(rng, shape, WITNESSES[name](rng, shape))
    points = 1.5 * rng.normal(size=(6, int(np.prod(shape))))

    @jax.jit
    def evaluate(positions):
        gaussian, rest = split(posterior)
        remainder = jnp.zeros(()) if rest is None else jax.vmap(rest)(positions)
        return gaussian, remainder, jax.vmap(posterior.log_density)(positions)

    gaussian, remainder, exponent = evaluate(volume(points, shape))
    covariance = oracles.dense_filter(1 / np.asarray(gaussian.precision, float), shape)
    mean = np.asarray(gaussian.mean, float).reshape(-1)

    def error(mean):
        measure = float(gaussian.log_integral) + oracles.log_normal(points, mean, covariance)
        return np.max(np.abs(np.asarray(remainder, float) + measure - exponent)) / np.max(np.abs(exponent))

    assert error(mean) < 2e-5
    assert error(1.01 * mean) > 1e-4


def test_absorbing_twice_keeps_the_exponent_in_one_shift(rng):
    shape = (3, 4, 4)
    posterior, *_ = problem(rng, shape, mixture(rng, shape))
    points = volume(1.5 * rng.normal(size=(6, 48)), shape)

    @jax.jit
    def evaluate(positions, curvature, slope):
        gaussian, rest = split(posterior)
        for part in (0.3, 0.7):
            gaussian, rest = absorb(gaussian, rest, part * curvature, part * slope)
        return gaussian, rest, jax.vmap(rest)(positions), jax.vmap(posterior.log_density)(positions)

    curvature = oracles.symmetric_half(rng, shape, 0.0, 2.0)
    slope = np.fft.rfftn(rng.normal(size=shape), norm="ortho")
    gaussian, rest, remainder, exponent = evaluate(points, jnp.asarray(curvature), jnp.asarray(slope, jnp.complex64))
    assert not isinstance(rest.witness, ShiftedWitness)
    covariance = oracles.dense_filter(1 / np.asarray(gaussian.precision, float), shape)
    flat, mean = np.asarray(points, float).reshape(6, -1), np.asarray(gaussian.mean, float).reshape(-1)
    measure = float(gaussian.log_integral) + oracles.log_normal(flat, mean, covariance)
    np.testing.assert_allclose(np.asarray(remainder, float) + measure, exponent, rtol=5e-5)


def test_split_halves_the_curvature_of_a_concave_remainder(rng):
    shape = (3, 4, 4)
    posterior, *_ = problem(rng, shape, mixture(rng, shape, 0.01))
    far = posterior.witness.means * 0  # equal means: exactly Gaussian, 0 < -Hess w = 1 / v
    single = dataclasses.replace(posterior, witness=dataclasses.replace(posterior.witness, means=far))
    gaussian, rest = split(single)
    low, high = rest.curvature_bounds()
    np.testing.assert_allclose([low, high], [0, 0], atol=1e-4)
    np.testing.assert_allclose(contraction_gap(gaussian, rest), 0, atol=1e-6)
    # One-sided: -Hess in [-c, 100] with c > 100 must not lower the Gaussian's precision.
    gaussian, rest = split(posterior)
    assert float(jnp.min(gaussian.precision)) >= BETA * (1 - 1e-6)


def test_contraction_gap_is_the_largest_curvature_over_the_softest_precision(rng):
    shape = (3, 4, 4)
    witness = mixture(rng, shape)
    posterior, *_ = problem(rng, shape, witness)
    gaussian = gaussian_part(posterior)
    low, high = witness.curvature_bounds()
    expected = max(abs(float(low)), abs(float(high))) / np.min(np.asarray(gaussian.precision))
    np.testing.assert_allclose(contraction_gap(gaussian, witness), expected, rtol=1e-6)


def test_a_witness_without_bounds_remains_whole(rng):
    posterior, *_ = problem(rng, (4, 5), soft)
    gaussian, rest = split(posterior)
    assert not has_curvature(rest)
    np.testing.assert_allclose(gaussian.precision, gaussian_part(posterior).precision)
    z = jnp.ones((4, 5))
    np.testing.assert_allclose(rest(z), soft(z), rtol=1e-6)


def test_split_of_a_tempered_posterior_scales_the_quadratic(rng):
    shape = (3, 4, 4)
    witness = quadratic(rng, shape)
    posterior, h, x, center = problem(rng, shape, witness)
    gaussian, rest = split(cg.temper(posterior, 2.0))
    s = oracles.dense_filter(np.asarray(witness.curvature) / 2, shape)
    law = oracles.gaussian_posterior(h, x, LAM / 2, center, BETA, s, np.asarray(witness.mean, float).reshape(-1))
    assert rest is None
    np.testing.assert_allclose(gaussian.log_integral, -law.psi, rtol=1e-5)


def test_a_decoder_without_transfer_has_no_gaussian_part(rng):
    posterior, *_ = problem(rng, (4, 5))
    other = dataclasses.replace(posterior, decoder=jax.tree_util.Partial(jnp.tanh))
    with pytest.raises(TypeError, match="cannot be drawn exactly"):
        gaussian_part(other)


def test_gaussian_part_under_jit_and_vmap(rng):
    shape = (3, 4)
    one, *_ = problem(rng, shape)
    two, *_ = problem(rng, shape)
    stacked = jax.tree.map(lambda a, b: jnp.stack([jnp.asarray(a), jnp.asarray(b)]), one, two)
    masses = jax.jit(jax.vmap(lambda p: gaussian_part(p).log_integral))(stacked)
    np.testing.assert_allclose(masses, [gaussian_part(one).log_integral, gaussian_part(two).log_integral], rtol=1e-5)
