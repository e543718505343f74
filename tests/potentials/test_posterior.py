"""The exponent against dense algebra; gradients of Psi in every leaf against moments of laws that are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax.operators import Wedge
from tests import oracles

SHAPE = (3, 2, 4)
SIZE = 24
LAM, BETA = 2.5, 1.5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """A linear decoder without a transfer."""

    matrix: jax.Array

    def __call__(self, position):
        return self.matrix @ position.reshape(-1)


class Problem:
    """One random posterior of each kind with its law in float64."""

    def __init__(self, rng, witness):
        self.transfer = oracles.symmetric_half(rng, SHAPE, 0.0, 1.5)
        self.h = oracles.dense_filter(self.transfer, SHAPE)
        self.x, self.center = rng.normal(size=SIZE), rng.normal(size=SIZE)
        linear = (self.h, self.x, LAM, self.center, BETA)
        if witness == "quadratic":
            self.curvature = oracles.symmetric_half(rng, SHAPE, 0.1, 3.0)
            self.s, self.m = oracles.dense_filter(self.curvature, SHAPE), rng.normal(size=SIZE)
            self.law = oracles.gaussian_posterior(*linear, self.s, self.m)
            self.witness = cg.QuadraticWitness(jnp.asarray(self.curvature), volume(self.m))
        else:
            self.pi, self.means, self.v = np.array([0.7, 1.1, 0.2]), 0.4 * rng.normal(size=(3, SIZE)), 0.8
            self.law = oracles.mixture_posterior(*linear, self.pi, self.means, self.v)
            self.witness = cg.GaussianMixtureWitness(
                jnp.asarray(self.pi, jnp.float32), volume(self.means), jnp.float32(self.v)
            )
        self.posterior = cg.Posterior(
            self.witness,
            Wedge(jnp.asarray(self.transfer)),
            volume(self.x),
            volume(self.center),
            jnp.float32(LAM),
            jnp.float32(BETA),
        )

    def expected(self):
        grads = oracles.psi_gradients(self.law, self.h, self.x, LAM, self.center, BETA, SHAPE)
        mean, covariance = self.law.mean, self.law.covariance
        if hasattr(self, "s"):
            about = covariance + np.outer(mean - self.m, mean - self.m)
            grads["curvature"] = 0.5 * oracles.multiplicity(SHAPE) * oracles.spectral_diagonal(about, SHAPE)
            grads["mean"] = (self.s @ (self.m - mean)).reshape(SHAPE)
            return grads
        om, mu, v = self.law.weights, self.law.means, self.v
        grads["means"] = (-om[:, None] * (mu - self.means) / v).reshape(-1, *SHAPE)
        grads["weights"] = -om / self.pi + 1 / self.pi.sum()
        spread = np.sum((mu - self.means) ** 2, axis=1) + np.trace(self.law.covariances[0])
        grads["variance"] = np.array(-np.sum(om * (spread / (2 * v**2) - SIZE / (2 * v))))
        return grads


@jax.jit
def exponent_and_drift(posterior, positions):
    return jax.vmap(posterior.log_density)(positions), jax.vmap(posterior.drift)(positions)


gradient_of_psi = jax.jit(jax.grad(cg.surrogate))


def volume(flat):
    return jnp.asarray(np.asarray(flat).reshape(*np.shape(flat)[:-1], *SHAPE), jnp.float32)


def leaves(gradient):
    """The gradient of the posterior by name."""
    parts = {f.name: getattr(gradient, f.name) for f in dataclasses.fields(gradient)}
    witness, decoder = parts.pop("witness"), parts.pop("decoder")
    inner = {f.name: getattr(witness, f.name) for f in dataclasses.fields(witness)}
    return parts | inner | {"transfer": decoder.transfer}


def sigma_points(law, rng):
    """Weighted points with exactly the mean and covariance of a Gaussian, unequal weights, one of them zero-sized."""
    size = law.means.shape[1]
    root = np.linalg.cholesky(law.covariance)
    squares = rng.uniform(1.2 * size, 3 * size, size)
    offsets = np.sqrt(squares)[:, None] * root.T
    points = np.concatenate([law.mean + offsets, law.mean - offsets, law.mean[None]])
    weights = np.concatenate([0.5 / squares, 0.5 / squares, [1 - np.sum(1 / squares)]])
    return points, weights


@jax.jit
def exponent(posterior, positions):
    """F and its drift at every position."""
    return jax.vmap(posterior.log_density)(positions), jax.vmap(posterior.drift)(positions)


surrogate_gradient = jax.jit(jax.grad(cg.surrogate))


def worst_error(gradient, expected):
    """Largest error of any leaf, relative to that leaf's size."""
    return max(
        np.max(np.abs(np.asarray(gradient[name]) - value)) / (1 + np.max(np.abs(value)))
        for name, value in expected.items()
    )


@pytest.mark.parametrize("witness", ["quadratic", "mixture"])
def test_log_density_and_drift_are_the_dense_exponent_and_its_gradient(rng, witness):
    problem = Problem(rng, witness)
    positions = rng.normal(size=(3, SIZE))
    found = exponent_and_drift(problem.posterior, volume(positions))
    for z, found_f, found_drift in zip(positions, *found, strict=True):
        if witness == "quadratic":
            w, grad_w = -0.5 * (z - problem.m) @ problem.s @ (z - problem.m), -problem.s @ (z - problem.m)
        else:
            logs = (
                np.log(problem.pi / problem.pi.sum())
                - 0.5 * np.sum((z - problem.means) ** 2, axis=1) / problem.v
                - 0.5 * SIZE * np.log(2 * np.pi * problem.v)
            )
            w = np.log(np.sum(np.exp(logs)))
            grad_w = np.exp(logs - w) @ (problem.means - z) / problem.v
        residual = problem.x - problem.h @ z
        f = w - 0.5 * LAM * residual @ residual - 0.5 * BETA * np.sum((z - problem.center) ** 2)
        drift = grad_w + LAM * problem.h.T @ residual - BETA * (z - problem.center)
        np.testing.assert_allclose(found_f, f, rtol=2e-5)
        np.testing.assert_allclose(np.ravel(found_drift), drift, atol=2e-4)


def test_a_decoder_without_transfer_gives_the_same_exponent(rng):
    problem = Problem(rng, "quadratic")
    matrix = jnp.asarray(problem.h, jnp.float32)
    dense = dataclasses.replace(
        problem.posterior, decoder=Dense(matrix), observation=jnp.asarray(problem.x, jnp.float32)
    )
    z = volume(rng.normal(size=(4, SIZE)))
    (exponent, drift), (expected, expected_drift) = (exponent_and_drift(p, z) for p in (dense, problem.posterior))
    np.testing.assert_allclose(exponent, expected, rtol=1e-5)
    np.testing.assert_allclose(drift, expected_drift, atol=2e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_surrogate_gradients_of_a_gaussian_posterior_are_exact_in_every_leaf(rng, weighted):
    """F is quadratic in z, so points with the exact first two moments give the exact gradients of Psi."""
    problem = Problem(rng, "quadratic")
    points, weights = sigma_points(problem.law, rng)
    if weighted:
        weights = jnp.asarray(7.0 * weights, jnp.float32)
    else:  # equal weights: all points at the radius sqrt(D)
        root = np.sqrt(SIZE) * np.linalg.cholesky(problem.law.covariance).T
        points, weights = np.concatenate([problem.law.mean + root, problem.law.mean - root]), None
    gradient = leaves(gradient_of_psi(problem.posterior, volume(points), weights))
    expected = problem.expected()
    assert set(expected) == set(gradient)
    assert worst_error(gradient, expected) < 5e-5
    if weighted:
        ignored = leaves(gradient_of_psi(problem.posterior, volume(points), jnp.ones(len(points))))
        assert worst_error(ignored, expected) > 1e-2


def test_surrogate_gradient_of_a_dense_decoder(rng):
    """d Psi / d H = -lambda [x mu^T - H (Q^-1 + mu mu^T)]."""
    problem = Problem(rng, "quadratic")
    points, weights = sigma_points(problem.law, rng)
    posterior = dataclasses.replace(
        problem.posterior,
        decoder=Dense(jnp.asarray(problem.h, jnp.float32)),
        observation=jnp.asarray(problem.x, jnp.float32),
    )
    gradient = gradient_of_psi(posterior, volume(points), jnp.asarray(weights, jnp.float32)).decoder.matrix
    mean = problem.law.mean
    second = problem.law.covariance + np.outer(mean, mean)
    np.testing.assert_allclose(gradient, -LAM * (np.outer(problem.x, mean) - problem.h @ second), atol=2e-4)


@jax.jit
def of_blocks(posterior, blocks, weights):
    return jax.lax.map(lambda block: jax.grad(cg.surrogate)(posterior, *block), (blocks, weights))


def block_gradients(problem, draws, weights=None):
    """Gradients from 64 blocks of draws: independent estimates, hence a standard error."""
    blocks = volume(draws).reshape(64, -1, *SHAPE)
    weights = None if weights is None else jnp.asarray(weights, jnp.float32).reshape(64, -1)
    weights = jnp.ones(blocks.shape[:2]) if weights is None else weights
    return leaves(gradients_of_blocks(problem.posterior, blocks, weights))


gradients_of_blocks = jax.jit(jax.vmap(jax.grad(cg.surrogate), in_axes=(None, 0, 0)))


def worst_score(gradients, expected):
    return max(np.max(np.abs(oracles.mean_scores(np.asarray(gradients[name]), e))) for name, e in expected.items())


@pytest.mark.parametrize("witness", ["quadratic", "mixture"])
def test_surrogate_gradients_from_exact_draws(rng, witness):
    problem = Problem(rng, witness)
    draws = problem.law.draw(rng, 64 * 300)
    expected = problem.expected()
    assert set(expected) == set(leaves(problem.posterior))
    assert worst_score(block_gradients(problem, draws), expected) < 5
    half_the_noise = problem.law.mean + np.sqrt(0.5) * (draws - problem.law.mean)
    assert worst_score(block_gradients(problem, half_the_noise), expected) > 20


def test_surrogate_gradients_from_weighted_draws_of_a_mixture(rng):
    """Equally many draws of every component, weighted by omega: the weights must restore the weights of its modes."""
    problem = Problem(rng, "mixture")
    per_mode, law = 100, problem.law
    root = np.linalg.cholesky(law.covariances[0])
    noise = rng.normal(size=(64, per_mode, 3, SIZE)) @ root.T
    draws = (law.means + noise).reshape(-1, SIZE)
    weights = np.broadcast_to(5.0 * law.weights, (64, per_mode, 3)).reshape(-1)
    assert worst_score(block_gradients(problem, draws, weights), problem.expected()) < 5
    assert worst_score(block_gradients(problem, draws), problem.expected()) > 20


def test_a_flipped_witness_sign_is_caught(rng):
    problem = Problem(rng, "quadratic")
    points, weights = sigma_points(problem.law, rng)
    flipped = dataclasses.replace(
        problem.posterior, witness=cg.QuadraticWitness(-problem.witness.curvature, problem.witness.mean)
    )
    gradient = leaves(gradient_of_psi(flipped, volume(points), jnp.asarray(weights, jnp.float32)))
    assert worst_error(gradient, problem.expected()) > 0.1


def test_samples_and_weights_are_constants(rng):
    problem = Problem(rng, "mixture")
    draws, weights = volume(problem.law.draw(rng, 5)), jnp.arange(1.0, 6.0)
    to_samples, to_weights = jax.jit(jax.grad(cg.surrogate, argnums=(1, 2)))(problem.posterior, draws, weights)
    assert not np.any(to_samples)
    assert not np.any(to_weights)


@pytest.mark.parametrize("gamma", [0.5, 3.0])
def test_temper_divides_witness_and_data_weight_and_leaves_beta(rng, gamma):
    problem = Problem(rng, "mixture")
    tempered = cg.temper(problem.posterior, gamma)
    assert tempered.prior_precision == problem.posterior.prior_precision
    np.testing.assert_allclose(tempered.data_weight, LAM / gamma, rtol=1e-6)
    z = rng.normal(size=SIZE)
    residual = problem.x - problem.h @ z
    w = float(jax.jit(lambda witness, z: witness(z))(problem.witness, volume(z)))
    expected = w / gamma - 0.5 * LAM / gamma * residual @ residual - 0.5 * BETA * np.sum((z - problem.center) ** 2)
    np.testing.assert_allclose(exponent_and_drift(tempered, volume(z[None]))[0], [expected], rtol=2e-5)


def test_temper_is_differentiable_in_the_temperature(rng):
    """d Phi_gamma / d gamma = KL >= 0 needs d F / d gamma = -(w - lambda/2 |x - A|^2) / gamma^2."""
    problem = Problem(rng, "quadratic")
    z = rng.normal(size=SIZE)
    residual = problem.x - problem.h @ z
    w = -0.5 * (z - problem.m) @ problem.s @ (z - problem.m)
    slope = jax.jit(jax.grad(lambda gamma: cg.temper(problem.posterior, gamma).log_density(volume(z))))(2.0)
    np.testing.assert_allclose(slope, -(w - 0.5 * LAM * residual @ residual) / 4, rtol=2e-5)
