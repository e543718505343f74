"""Every kernel against the stationary law of its discretisation, and wrong kernels that must fail the same check."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax import samplers
from cryowgen_jax.operators import Wedge
from cryowgen_jax.potentials import FourierGaussian, gaussian_part
from cryowgen_jax.pytrees import as_pytree, bind
from tests import oracles

PRECISION = np.array([0.5, 1.0, 2.0, 4.0])  # beta 0.4 and witness curvatures 0.1, 0.6, 1.6, 3.6
BETA = 0.4
ETA = 0.3
EULER_STEPS = 65  # the same everywhere, so that every kernel is compiled once
CHAINS = 1000
TOLERANCE = 4.5  # standard errors
SHAPE = (3, 4)
pcnl_module = importlib.import_module("cryowgen_jax.samplers.pcnl")


def simulate(algorithm, key, starts, steps, fault="none"):
    """Positions of independent chains after every step, steps leading."""
    return np.asarray(run_chains(as_pytree(algorithm), key, starts, steps, fault), float)


@functools.partial(jax.jit, static_argnames=("steps", "fault"))
def run_chains(algorithm, key, starts, steps, fault):
    """``fault`` only keeps a kernel whose functions were tampered with from the cached trace of the right one."""
    del fault

    def one(key, start):
        def body(state, key):
            state, _ = algorithm.step(key, state)
            return state, state.position

        return jax.lax.scan(body, algorithm.init(start, key), jax.random.split(key, steps))[1]

    return jax.vmap(one, out_axes=1)(jax.random.split(key, len(starts)), starts)


@functools.partial(jax.jit, static_argnames="count")
def exact_draws(gaussian, key, count=CHAINS):
    return jax.vmap(gaussian.draw)(jax.random.split(key, count))


# Euler schemes on a Gaussian --------------------------------------------------------------------------------------


def exponent(precision, z):
    return -0.5 * jnp.sum(precision * z**2)


def density(precision):
    return jax.tree_util.Partial(exponent, jnp.asarray(precision, jnp.float32))


RIGHT = density(PRECISION)
FLIPPED = density(BETA - (PRECISION - BETA))
UNTETHERED = density(PRECISION - BETA)


def euler_step(log_density, noise, key, state):
    xi = jax.random.normal(key, state.position.shape)
    gradient = jax.grad(log_density)(state.position)
    return state._replace(position=state.position + ETA * gradient + noise * jnp.sqrt(2 * ETA) * xi), None


def fresh_noise_step(log_density, key, state):
    one, two = jax.random.normal(key, (2, *state.position.shape))
    kick = jnp.sqrt(0.5 * ETA) * (one + two)
    return state._replace(position=state.position + ETA * jax.grad(log_density)(state.position) + kick), None


def euler(noise):
    """ULA written down once more, with a factor on its noise."""
    return samplers.algorithm(cg.langevin(RIGHT, ETA).init, bind(euler_step, RIGHT, jnp.float32(noise)))


def ula_score(algorithm, key):
    """Variance 1/(q(1 - eta q/2)) and autocovariance (1 - eta q)^k of it."""
    variance = oracles.ula_variance(PRECISION, ETA)
    lags = (1, 2, 5)
    assert 60 + max(lags) == EULER_STEPS
    paths = simulate(algorithm, key, jnp.zeros((CHAINS, 4)), EULER_STEPS)
    now = paths[59]
    scores = [oracles.second_moment_scores(now, variance), oracles.mean_scores(now, 0.0)]
    scores += [oracles.mean_scores(now * paths[59 + k], (1 - ETA * PRECISION) ** k * variance) for k in lags]
    return np.max(np.abs(scores))


def exact_score(algorithm, key):
    """Variance exactly 1/q."""
    end = simulate(algorithm, key, jnp.zeros((CHAINS, 4)), EULER_STEPS)[-1]
    return np.max(np.abs([oracles.second_moment_scores(end, 1 / PRECISION), oracles.mean_scores(end, 0.0)]))


def test_langevin_has_the_variance_and_autocovariance_of_its_discretisation(key):
    assert ula_score(cg.langevin(RIGHT, ETA), key) < TOLERANCE
    assert ula_score(euler(1.0), key) < TOLERANCE


@pytest.mark.parametrize(
    "wrong",
    [euler(0.5), euler(np.sqrt(0.5)), cg.langevin(FLIPPED, ETA), cg.langevin(UNTETHERED, ETA)],
    ids=["half the noise", "sqrt(eta)", "flipped witness", "no tether"],
)
def test_wrong_langevin_kernels_fail(key, wrong):
    assert not ula_score(wrong, key) < 10


def test_leimkuhler_matthews_has_the_exact_variance(key):
    assert exact_score(cg.leimkuhler_matthews(RIGHT, ETA), key) < TOLERANCE
    assert ula_score(cg.leimkuhler_matthews(RIGHT, ETA), key) > 10


def test_wrong_leimkuhler_matthews_kernels_fail(key):
    fresh = samplers.algorithm(cg.langevin(RIGHT, ETA).init, bind(fresh_noise_step, RIGHT))
    for wrong in (cg.langevin(RIGHT, ETA), fresh, cg.leimkuhler_matthews(UNTETHERED, ETA)):
        assert not exact_score(wrong, key) < 8


# Kernels in Fourier space on a Gaussian -----------------------------------------------------------------------------


class Quadratic:
    """Gaussian part with a quadratic witness, several g in one box."""

    def __init__(self, rng):
        precision = oracles.symmetric_half(rng, SHAPE, 0.5, 4.0)
        self.g = np.asarray(oracles.symmetric_half(rng, SHAPE, -0.2, 0.9), float)
        self.c = 1 / np.asarray(precision, float)
        mu, m = rng.normal(size=(2, *SHAPE))
        curvature = self.g / self.c
        spectrum = (np.fft.rfftn(mu, norm="ortho") / self.c + curvature * np.fft.rfftn(m, norm="ortho")) / (
            (1 + self.g) / self.c
        )
        self.mean = np.fft.irfftn(spectrum, SHAPE, axes=(0, 1), norm="ortho")
        self.gaussian = FourierGaussian(
            jnp.asarray(np.fft.rfftn(mu, norm="ortho"), jnp.complex64), jnp.asarray(precision), jnp.zeros(()), SHAPE
        )
        self.witness = cg.QuadraticWitness(jnp.asarray(curvature, jnp.float32), jnp.asarray(m, jnp.float32))

    def score(self, algorithm, key, variance, steps=40, fault="none"):
        starts = exact_draws(self.gaussian, jax.random.fold_in(key, 1))
        end = simulate(algorithm, key, starts, steps, fault=fault)[-1] - self.mean
        power = np.abs(np.fft.rfftn(end, axes=(1, 2), norm="ortho")) ** 2
        own_mirror = np.zeros(variance.shape, bool)  # real coefficients: twice the relative variance of |V|^2
        own_mirror[0, [0, 2]] = True
        spread = np.where(own_mirror, np.sqrt(2.0), 1.0) / np.sqrt(len(end))
        scores = (power.mean(axis=0) / variance - 1) / spread
        return max(np.max(np.abs(scores)), np.max(np.abs(oracles.mean_scores(end, 0.0))))


def step_sizes(rng):
    return [np.full((3, 3), h) for h in (1.0, 0.4, 0.1)] + [oracles.symmetric_half(rng, SHAPE, 0.15, 0.8)]


@pytest.mark.parametrize("which", range(4), ids=["1", "0.4", "0.1", "per coefficient"])
def test_unadjusted_pcnl_has_the_variance_of_its_discretisation(rng, key, which):
    problem, h = Quadratic(rng), step_sizes(rng)[which]
    algorithm = cg.pcnl(problem.witness, problem.gaussian, jnp.asarray(h, jnp.float32), adjusted=False)
    variance = oracles.pcnl_variance(problem.c, problem.g, 1 - np.asarray(h, float))
    assert problem.score(algorithm, key, variance) < TOLERANCE


@pytest.mark.parametrize("which", range(4), ids=["1", "0.4", "0.1", "per coefficient"])
def test_adjusted_pcnl_is_exact(rng, key, which):
    problem, h = Quadratic(rng), step_sizes(rng)[which]
    algorithm = cg.pcnl(problem.witness, problem.gaussian, jnp.asarray(h, jnp.float32))
    assert problem.score(algorithm, key, problem.c / (1 + problem.g)) < TOLERANCE


@pytest.mark.parametrize("eta", [0.2, 0.9])
def test_preconditioned_leimkuhler_matthews_is_exact(rng, key, eta):
    problem = Quadratic(rng)
    algorithm = samplers.preconditioned(problem.witness, problem.gaussian, eta)
    assert problem.score(algorithm, key, problem.c / (1 + problem.g)) < TOLERANCE


def test_independent_draws_have_the_gaussian_law(rng, key):
    problem = Quadratic(rng)
    problem.mean = np.asarray(problem.gaussian.mean, float)
    assert problem.score(samplers.independent(problem.gaussian.draw), key, problem.c, steps=2) < TOLERANCE


@pytest.mark.parametrize("fault", ["unadjusted", "flipped witness", "flipped test", "temperature"])
def test_wrong_pcnl_kernels_fail(rng, key, fault, monkeypatch):
    problem = Quadratic(rng)
    exact = problem.c / (1 + problem.g)
    witness, gaussian = problem.witness, problem.gaussian
    if fault == "flipped witness":
        witness = cg.QuadraticWitness(-witness.curvature, witness.mean)
    if fault == "temperature":
        gaussian = FourierGaussian(gaussian.mean_spectrum, 2 * gaussian.precision, gaussian.log_integral, SHAPE)
    if fault == "flipped test":
        right = pcnl_module._log_acceptance
        monkeypatch.setattr(pcnl_module, "_log_acceptance", lambda *arguments: -right(*arguments))
    algorithm = cg.pcnl(witness, gaussian, jnp.full((3, 3), 0.6), adjusted=fault != "unadjusted")
    assert not problem.score(algorithm, key, exact, fault="flipped" if fault == "flipped test" else "none") < 5


# Targets that are not Gaussian ---------------------------------------------------------------------------------------


def soft(z):
    return -3.0 * jnp.sum(jax.nn.softplus(2.0 * z)) - jax.nn.softplus(2.0 * z[0] - z[-1])


def one_sided(z):
    return -2.0 * jnp.sum(jax.nn.relu(z) ** 2)


class Skewed:
    """A skewed target of one or three dimensions, its moments by quadrature."""

    def __init__(self, rng, witness, size):
        half = oracles.symmetric_half(rng, (size,), 0.6, 2.0)
        mu = 0.5 * rng.normal(size=size)
        self.witness = witness
        self.gaussian = FourierGaussian(
            jnp.asarray(np.fft.rfft(mu, norm="ortho"), jnp.complex64), jnp.asarray(half), jnp.zeros(()), (size,)
        )
        axis = np.linspace(-5, 5, 4001 if size == 1 else 61)
        grid = np.stack(np.meshgrid(*[axis] * size, indexing="ij"), axis=-1).reshape(-1, size)
        precision = oracles.dense_filter(half, (size,))
        w = np.asarray(jax.jit(jax.vmap(witness))(jnp.asarray(grid, jnp.float32)), float)
        logs = w - 0.5 * np.einsum("ki,ij,kj->k", grid - mu, precision, grid - mu)
        mass = np.exp(logs - logs.max())
        self.moments = (mass / mass.sum()) @ self.features(grid)

    def features(self, z):
        """First, second (with cross) and third moments."""
        size = z.shape[-1]
        pairs = [z[..., i] * z[..., j] for i in range(size) for j in range(i, size)]
        return np.stack([*np.moveaxis(z, -1, 0), *pairs, *np.moveaxis(z**3, -1, 0)], axis=-1)

    def score(self, algorithm, key, fault="none"):
        starts = exact_draws(self.gaussian, jax.random.fold_in(key, 1))
        end = simulate(algorithm, key, starts, 40, fault=fault)[-1]
        return np.max(np.abs(oracles.mean_scores(self.features(end), self.moments)))


@pytest.mark.parametrize(
    ("witness", "size", "h"),
    [(soft, 3, 0.3), *(pytest.param(w, 1, h, marks=pytest.mark.slow) for w, h in ((soft, 0.5), (one_sided, 0.2)))],
)
def test_adjusted_pcnl_on_a_skewed_target(rng, key, witness, size, h):
    problem = Skewed(rng, witness, size)
    assert problem.score(cg.pcnl(problem.witness, problem.gaussian, h), key) < TOLERANCE


@pytest.mark.parametrize(
    "fault",
    [
        "sign of a gradient term",
        *(pytest.param(f, marks=pytest.mark.slow) for f in ("accepts everything", "unadjusted", "no gradient terms")),
    ],
)
def test_wrong_metropolis_tests_fail_on_a_skewed_target(rng, key, fault, monkeypatch):
    problem = Skewed(rng, soft, 3)

    def wrong(gaussian, step_size, old, new):
        if fault == "accepts everything":
            return jnp.zeros(())
        if fault == "no gradient terms":
            return new.witness - old.witness
        return right(gaussian, step_size, old._replace(gradient=-old.gradient), new)

    right = pcnl_module._log_acceptance
    if fault != "unadjusted":
        monkeypatch.setattr(pcnl_module, "_log_acceptance", wrong)
    algorithm = cg.pcnl(problem.witness, problem.gaussian, 0.3, adjusted=fault != "unadjusted")
    assert not problem.score(algorithm, key, fault) < 5


class Bimodal:
    """A mixture witness whose modes the data weigh anew."""

    def __init__(self, rng):
        shape, lam, beta, v = (2,), 0.8, 0.5, 0.25
        transfer = oracles.symmetric_half(rng, shape, 0.3, 1.2)
        x, center, pi = np.array([0.4, -0.3]), np.array([0.1, 0.2]), np.array([0.3, 0.7])
        means = np.array([[1.0, 0.6], [-0.6, -0.4]])
        self.law = oracles.mixture_posterior(oracles.dense_filter(transfer, shape), x, lam, center, beta, pi, means, v)
        witness = cg.GaussianMixtureWitness(jnp.asarray(pi, jnp.float32), jnp.asarray(means, jnp.float32), v)
        observed = jnp.asarray(x, jnp.float32)
        self.posterior = cg.Posterior(
            witness, Wedge(jnp.asarray(transfer)), observed, jnp.asarray(center, jnp.float32), lam, beta
        )
        self.gaussian = jax.jit(gaussian_part)(self.posterior)

    def score(self, algorithm, key):
        starts = exact_draws(self.gaussian, jax.random.fold_in(key, 1))
        end = simulate(algorithm, key, starts, 60)[-1]
        products = end[:, :, None] * end[:, None, :]
        second = self.law.covariance + np.outer(self.law.mean, self.law.mean)
        scores = [
            oracles.mean_scores(self.law.responsibilities(end), self.law.weights),
            oracles.mean_scores(end, self.law.mean),
            *oracles.mean_scores(products, second),
        ]
        return np.max(np.abs(scores))


@pytest.mark.slow
def test_adjusted_pcnl_finds_the_mode_weights_of_a_mixture(rng, key):
    problem = Bimodal(rng)
    assert np.min(problem.law.weights) > 0.1
    assert problem.score(cg.pcnl(problem.posterior.witness, problem.gaussian, 0.2), key) < TOLERANCE
    flipped = jax.tree_util.Partial(lambda w, z: -w(z), problem.posterior.witness)
    assert not problem.score(cg.pcnl(flipped, problem.gaussian, 0.2), key) < 5
