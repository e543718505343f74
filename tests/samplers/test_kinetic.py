"""Kinetic Langevin against the law of its discretisation, its energy error in float64, and wrong kernels that fail."""

import functools
import importlib
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax import samplers
from cryowgen_jax.operators import Wedge
from cryowgen_jax.potentials import FourierGaussian, SumWitness, split
from cryowgen_jax.pytrees import as_pytree, bind
from tests import oracles
from tests.samplers.test_stationary import (
    CHAINS,
    SHAPE,
    TOLERANCE,
    Bimodal,
    Quadratic,
    Skewed,
    exact_draws,
    one_sided,
    simulate,
    soft,
)

QUARTER = np.pi / 2
STEPS, LAGS = 45, (1, 2, 5)
module = importlib.import_module("cryowgen_jax.samplers.kinetic")


@jax.jit
def start(algorithm, key, position):
    return algorithm.init(position, key)


@functools.partial(jax.jit, static_argnames="steps")
def record(algorithm, key, state, steps):
    """States before and after every step of one chain, and infos."""

    def body(state, key):
        new, info = algorithm.step(key, state)
        return new, (state, new, info)

    return jax.lax.scan(body, state, jax.random.split(key, steps))[1]


def recorded(algorithm, key, position, steps=60):
    algorithm = as_pytree(algorithm)
    state = start(algorithm, key, jnp.asarray(position, jnp.float32))
    return jax.tree.map(np.asarray, record(algorithm, key, state, steps))


def at_power(problem, t):
    """Variance of exp(t w) N, the mean of which becomes the problem's."""
    aim_at(problem, t * problem.g / (1 + t * problem.g))
    return problem.c / (1 + t * problem.g)


def aim_at(problem, shift):
    """Move the problem's mean this far on the way from the Gaussian part's to the witness's."""
    mu = np.asarray(problem.gaussian.mean_spectrum, complex)
    m = np.fft.rfftn(np.asarray(problem.witness.mean, float), norm="ortho")
    problem.mean = np.fft.irfftn(mu + shift * (m - mu), SHAPE, axes=(0, 1), norm="ortho")


class Knobs(NamedTuple):
    """One thing wrong each; as they stand here, the adjusted kernel."""

    kicks: float = 1.0  # times h/2
    noise: float = 1.0  # times sqrt(1 - c^2)
    work: float = 1.0  # of the kicks, in the energy error
    sign: float = 1.0  # of the energy error: 0 accepts everything
    turn: float = -1.0  # of the velocity when refused


FAULTS = {
    "kicks of h": Knobs(kicks=2.0),
    "noise sqrt(1 - c)": Knobs(noise=float(1 / np.sqrt(1 + 0.8))),
    "no kinetic work": Knobs(work=0.0),
    "flipped test": Knobs(sign=-1.0),
    "accepts everything": Knobs(sign=0.0),
    "no turn": Knobs(turn=1.0),
}


def knob_step(knobs, witness, gaussian, step_size, persistence, key, state):
    refresh_key, accept_key = jax.random.split(key)
    kept = persistence * state.velocity
    noise = module._refresh(gaussian, step_size, persistence, refresh_key, state).velocity - kept
    state = state._replace(velocity=kept + knobs.noise * noise)
    proposal, energy_error = module._move(witness, gaussian, step_size, knobs.kicks, state)
    potential = state.witness - proposal.witness
    work = energy_error / knobs.kicks - potential
    error = knobs.sign * (potential + knobs.work * work)
    accept = jax.random.uniform(accept_key) < jnp.exp(-error)
    refused = state._replace(velocity=knobs.turn * state.velocity)
    return jax.tree.map(lambda new, old: jnp.where(accept, new, old), proposal, refused), None


def with_knobs(knobs, witness, gaussian, step_size, persistence):
    step = bind(knob_step, knobs, witness, gaussian, step_size, persistence)
    return samplers.algorithm(cg.kinetic(witness, gaussian, step_size).init, step)


# Unadjusted ----------------------------------------------------------------------------------------------------------


def move_matrix(g, h):
    """B, R, B on (z, u) with C = 1."""
    kick = np.array([[1, 0], [-0.5 * h * g, 1]])
    return kick @ np.array([[np.cos(h), np.sin(h)], [-np.sin(h), np.cos(h)]]) @ kick


@pytest.mark.parametrize(("h", "c"), [(0.3, 0.4), (1.0, 0.9), (QUARTER, 0.0)])
def test_the_closed_form_is_stationary(h, c):
    for g in (-0.5, 0.0, 0.7, 1.1):
        law = np.diag([oracles.kinetic_variance(1.0, g, h), 1.0])
        refreshed = np.diag([1, c]) @ law @ np.diag([1, c]) + np.diag([0, 1 - c**2])
        np.testing.assert_allclose(move_matrix(g, h) @ refreshed @ move_matrix(g, h).T, law, atol=1e-12)


def path_score(problem, algorithm, key, h, c):
    """Worst score of mean, variance and autocovariances of the unadjusted chain."""
    variance = oracles.kinetic_variance(problem.c, problem.g, h)
    aim_at(problem, oracles.kinetic_shift(problem.g, h))
    starts = exact_draws(problem.gaussian, jax.random.fold_in(key, 1))
    path = simulate(algorithm, key, starts, STEPS)[STEPS - 1 - max(LAGS) :] - problem.mean
    spectra = np.fft.rfftn(path, axes=(2, 3), norm="ortho")
    steps = np.array([[move_matrix(g, h) @ np.diag([1, c]) for g in row] for row in problem.g])
    scores = [oracles.mean_scores(path[0], 0.0).ravel()]
    for k in (0, *LAGS):
        products = np.real(spectra[0] * np.conj(spectra[k]))
        expected = np.linalg.matrix_power(steps, k)[..., 0, 0] * variance
        scores.append(oracles.mean_scores(products, expected).ravel())
    return np.max(np.abs(np.concatenate(scores)))


def critical(h):
    return np.tan(np.pi / 4 - h / 2) ** 2


@pytest.mark.parametrize(("h", "c"), [(0.3, None), (0.9, None), (0.9, 0.6), (0.9, 0.0), (QUARTER, None)])
def test_unadjusted_has_the_law_of_its_discretisation(rng, key, h, c):
    problem = Quadratic(rng)
    algorithm = cg.kinetic(problem.witness, problem.gaussian, h, c, adjusted=False)
    assert path_score(problem, algorithm, key, h, critical(h) if c is None else c) < TOLERANCE


def test_unadjusted_is_not_exact(rng, key):
    """Neither in variance nor, where the witness pulls away from the Gaussian mean, in mean."""
    problem = Quadratic(rng)
    algorithm = cg.kinetic(problem.witness, problem.gaussian, QUARTER, adjusted=False)
    own = oracles.kinetic_variance(problem.c, problem.g, QUARTER)
    assert not problem.score(algorithm, key, own, STEPS) < 5
    aim_at(problem, oracles.kinetic_shift(problem.g, QUARTER))
    assert problem.score(algorithm, key, own, STEPS) < TOLERANCE
    assert not problem.score(algorithm, key, problem.c / (1 + problem.g), STEPS) < 5


def test_wrong_unadjusted_kernels_fail(rng, key):
    problem, h, c = Quadratic(rng), 0.9, 0.8
    witness, gaussian = problem.witness, problem.gaussian

    def score(knobs, c=c, witness=witness):
        return path_score(problem, with_knobs(knobs._replace(sign=0.0), witness, gaussian, h, c), key, h, 0.8)

    assert score(Knobs()) < TOLERANCE
    assert not score(FAULTS["kicks of h"]) < 5
    assert not score(FAULTS["noise sqrt(1 - c)"]) < 5
    assert not score(Knobs(), c=0.6) < 5
    assert not score(Knobs(), witness=cg.QuadraticWitness(-witness.curvature, witness.mean)) < 5


@pytest.mark.parametrize(("c", "adjusted"), [(None, False), (0.0, True)])
def test_without_a_witness_a_quarter_turn_draws_independently(rng, key, c, adjusted):
    problem = Quadratic(rng)
    problem.g = np.zeros_like(problem.g)
    nothing = cg.QuadraticWitness(jnp.zeros((3, 3)), problem.witness.mean)
    algorithm = cg.kinetic(nothing, problem.gaussian, QUARTER, c, adjusted=adjusted)
    assert path_score(problem, algorithm, key, QUARTER, 0.0) < TOLERANCE


def test_default_persistence_damps_a_free_mode_critically():
    """Both eigenvalues of a step are one, and positive."""
    for h in (0.05, 0.4, 1.2, QUARTER):
        c = float(module.critical_persistence(jnp.float32(h)))
        m = move_matrix(0.0, h) @ np.diag([1, c])
        np.testing.assert_allclose(np.trace(m) ** 2, 4 * np.linalg.det(m), atol=1e-6)
        assert np.trace(m) >= 0
    np.testing.assert_allclose(module.critical_persistence(jnp.float32(1e-3)), 1 - 2e-3, atol=1e-5)
    assert module.critical_persistence(jnp.float32(2.0)) == 0


@pytest.mark.parametrize(("part", "stable"), [(0.9, True), (1.2, False)])
def test_stability_limit(rng, key, part, stable):
    """Where h tan(h/2) = 2/g, whatever the precisions."""
    problem, g = Quadratic(rng), 3.0
    low, high = 0.0, 1.5
    for _ in range(50):
        h = 0.5 * (low + high)
        low, high = (h, high) if h * np.tan(h / 2) < part * 2 / g else (low, h)
    problem.g = np.full_like(problem.g, g)
    witness = cg.QuadraticWitness(jnp.asarray(g / problem.c, jnp.float32), problem.witness.mean)
    algorithm = cg.kinetic(witness, problem.gaussian, h, adjusted=False)
    if stable:
        assert path_score(problem, algorithm, key, h, critical(h)) < TOLERANCE
    else:
        end = simulate(algorithm, key, jnp.zeros((CHAINS, *SHAPE)), STEPS)[-1]
        assert np.std(end) > 100


# Adjusted ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("h", "c"), [(0.9, 0.6), (1.3, 0.0), *(pytest.param(h, None, marks=pytest.mark.slow) for h in (0.9, QUARTER))]
)
def test_adjusted_is_exact(rng, key, h, c):
    problem = Quadratic(rng)
    algorithm = cg.kinetic(problem.witness, problem.gaussian, h, c)
    assert problem.score(algorithm, key, problem.c / (1 + problem.g), STEPS) < TOLERANCE


@pytest.mark.parametrize("adjusted", [True, False])
def test_power_0_is_the_gaussian_part_and_powers_between_lie_between(rng, key, adjusted):
    problem = Quadratic(rng)

    def kernel(t):
        return cg.kinetic(problem.witness, problem.gaussian, 0.9, 0.3, power=t, adjusted=adjusted)

    assert problem.score(kernel(0.0), key, at_power(problem, 0.0), STEPS) < TOLERANCE
    half = at_power(problem, 0.5)
    if not adjusted:
        aim_at(problem, oracles.kinetic_shift(0.5 * problem.g, 0.9))
        half = oracles.kinetic_variance(problem.c, 0.5 * problem.g, 0.9)
    assert problem.score(kernel(0.5), key, half, STEPS) < TOLERANCE
    assert not problem.score(kernel(1.0), key, half, STEPS) < 5


def test_wrong_adjusted_kernels_fail(rng, key):
    problem = Quadratic(rng)

    def score(knobs):
        algorithm = with_knobs(knobs, problem.witness, problem.gaussian, 1.4, 0.8)
        return problem.score(algorithm, key, problem.c / (1 + problem.g), STEPS)

    assert score(Knobs()) < TOLERANCE
    for name in FAULTS.keys() - {"no turn"}:  # which shows little where few are refused
        assert not score(FAULTS[name]) < 5, name


@pytest.mark.parametrize(
    ("witness", "size", "h", "c"),
    [
        (soft, 3, 1.3, 0.8),
        pytest.param(soft, 1, 1.0, None, marks=pytest.mark.slow),
        pytest.param(one_sided, 1, 0.6, 0.5, marks=pytest.mark.slow),
    ],
)
def test_adjusted_on_a_skewed_target(rng, key, witness, size, h, c):
    problem = Skewed(rng, witness, size)
    assert problem.score(cg.kinetic(problem.witness, problem.gaussian, h, c), key) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_adjusted_kernels_fail_on_a_skewed_target(rng, key, fault):
    problem = Skewed(rng, soft, 3)
    assert not problem.score(with_knobs(FAULTS[fault], problem.witness, problem.gaussian, 1.3, 0.8), key) < 5


def test_adjusted_finds_the_mode_weights_of_a_mixture(rng, key):
    problem = Bimodal(rng)
    witness, gaussian = problem.posterior.witness, problem.gaussian
    assert np.min(problem.law.weights) > 0.1
    assert problem.score(cg.kinetic(witness, gaussian, 0.6), key) < TOLERANCE
    swapped = cg.GaussianMixtureWitness(witness.weights[::-1], witness.means, witness.variance)
    assert not problem.score(cg.kinetic(swapped, gaussian, 0.6), key) < 5


# Energy error --------------------------------------------------------------------------------------------------------


def bend(height, slope, z):
    """Minus the sum of log cosh: smooth, and as large as one likes."""
    x = jnp.abs(slope * z)
    return -height * jnp.sum(x + jnp.log1p(jnp.exp(-2 * x)) - np.float32(np.log(2)))


def fenced(edge, beyond, height, slope, z):
    """The same, with another value beyond an edge."""
    return jnp.where(jnp.max(jnp.abs(z)) > edge, beyond, bend(height, slope, z))


def smooth(height, slope, edge=np.inf, beyond=0.0):
    return jax.tree_util.Partial(fenced, *(jnp.float32(x) for x in (edge, beyond, height, slope)))


class Float64:
    """A move and its energies for log-cosh witnesses, in numpy."""

    def __init__(self, gaussian, height, slope, h, t):
        self.mu, self.q = np.asarray(gaussian.mean_spectrum, complex), np.asarray(gaussian.precision, float)
        self.shape, self.height, self.slope = gaussian.shape, height, slope
        self.h, self.t = float(np.float32(h)), t

    def witness(self, z):
        x = self.slope * np.fft.irfftn(self.mu + z, self.shape, axes=range(z.ndim), norm="ortho")
        value = -self.height * np.sum(np.logaddexp(x, -x) - np.log(2))
        return value, np.fft.rfftn(-self.height * self.slope * np.tanh(x), norm="ortho")

    def energy(self, z, u):
        """-t w + 1/2 |z'|^2 + 1/2 |u|^2, the norms those of C^-1."""
        squares = self.q * (np.abs(z) ** 2 + np.abs(u) ** 2)
        return -self.t * self.witness(z)[0] + 0.5 * np.sum(squares * oracles.multiplicity(self.shape))

    def move(self, z, u):
        h = self.h
        u = u + 0.5 * h * self.t / self.q * self.witness(z)[1]
        z, u = np.cos(h) * z + np.sin(h) * u, np.cos(h) * u - np.sin(h) * z
        return z, u + 0.5 * h * self.t / self.q * self.witness(z)[1]


def rough_gaussian(rng, shape, spread=1.5):
    mu = np.fft.rfftn(spread * rng.normal(size=shape), norm="ortho")
    precision = jnp.asarray(oracles.symmetric_half(rng, shape, 0.5, 4.0))
    return FourierGaussian(jnp.asarray(mu, jnp.complex64), precision, jnp.zeros(()), shape)


@pytest.mark.parametrize("adjusted", [False, True])
def test_energy_error_is_the_difference_of_energies(rng, key, adjusted):
    """Over every step, and added up over a path without refreshment; a refused step turns the velocity round."""
    gaussian = rough_gaussian(rng, (4, 3, 5))
    refused = 0
    for h, t in ((0.3, 1.0), (1.2, 1.0), (0.8, 0.5), (0.8, 0.0)):
        algorithm = cg.kinetic(smooth(2.0, 1.25), gaussian, h, 1.0, power=t, adjusted=adjusted)
        old, new, info = recorded(algorithm, key, gaussian.mean)
        exact = Float64(gaussian, 2.0, 1.25, h, t)
        moved = [exact.move(z, u) for z, u in zip(old.offset, old.velocity, strict=True)]
        before = np.array([exact.energy(z, u) for z, u in zip(old.offset, old.velocity, strict=True)])
        error = np.array([exact.energy(z, u) for z, u in moved]) - before
        if t == 0:
            np.testing.assert_array_equal(info.energy_error, 0.0)
        np.testing.assert_allclose(info.energy_error, error, atol=2e-4)
        taken = info.is_accepted
        refused += np.sum(~taken)
        for i in np.flatnonzero(taken):
            np.testing.assert_allclose(new.offset[i], moved[i][0], atol=5e-5)
            np.testing.assert_allclose(new.velocity[i], moved[i][1], atol=5e-5)
        for field in ("position", "offset", "witness", "gradient"):
            np.testing.assert_array_equal(getattr(new, field)[~taken], getattr(old, field)[~taken])
        np.testing.assert_array_equal(new.velocity[~taken], -old.velocity[~taken])
        if t == 1:
            without_work = old.witness - new.witness
            assert np.max(np.abs(without_work - error)[taken]) > 0.5
        if adjusted:
            np.testing.assert_allclose(info.acceptance_rate, np.minimum(1, np.exp(-error)), atol=1e-3)
        else:
            drift = exact.energy(new.offset[-1], new.velocity[-1]) - before[0]
            np.testing.assert_allclose(np.sum(info.energy_error), drift, atol=1e-3)
    assert refused > 10 if adjusted else refused == 0


@pytest.mark.slow
@pytest.mark.parametrize(("spread", "size"), [(1.0, 1e5), (6.0, 1e6)])
def test_energy_error_in_a_large_box_is_as_good_as_the_witness_value(rng, key, spread, size):
    """What float32 leaves of a witness of 10^5 or 10^6 is the error; all the Gaussian terms would cost is not there.

    The value is kept with its position, so that the chain is an exact one of the rounded witness.
    """
    gaussian, h = rough_gaussian(rng, (64, 64, 64), spread), 0.1
    settle = cg.kinetic(smooth(1.0, 1.0), gaussian, 0.5, 0.3, adjusted=False)
    settled = recorded(settle, key, gaussian.mean, 15)[1].position[-1]
    algorithm = cg.kinetic(smooth(1.0, 1.0), gaussian, h, 1.0, adjusted=False)
    old, new, info = recorded(algorithm, key, settled, 15)
    exact = Float64(gaussian, 1.0, 1.0, h, 1.0)
    for i in range(2):
        z, u = exact.move(old.offset[i], old.velocity[i])
        potential = exact.witness(old.offset[i])[0] - exact.witness(z)[0]
        error = exact.energy(z, u) - exact.energy(old.offset[i], old.velocity[i])
        assert size / 2 < abs(old.witness[i]) < 2 * size
        assert abs(info.energy_error[i] - error) < 6 * np.spacing(np.float32(size))
        work = info.energy_error[i] - np.float64(old.witness[i] - new.witness[i])
        np.testing.assert_allclose(work, error - potential, atol=5e-3)


def test_moves_are_reversible(rng, key):
    """With the velocity turned round, a path without refreshment runs back."""
    gaussian = rough_gaussian(rng, (4, 3, 5))
    algorithm = as_pytree(cg.kinetic(smooth(2.0, 1.25), gaussian, 0.5, 1.0, adjusted=False))
    old, there, forth = recorded(algorithm, key, gaussian.mean)
    turn = jax.tree.map(lambda x: x[9], there)
    _, back, home = record(algorithm, key, turn._replace(velocity=-turn.velocity), 60)
    assert np.max(np.abs(turn.position - old.position[0])) > 0.5
    assert np.max(np.abs(forth.energy_error[:10])) > 0.02
    np.testing.assert_allclose(home.energy_error[:10], -forth.energy_error[9::-1], atol=2e-4)
    for field in ("position", "offset", "witness", "gradient"):
        np.testing.assert_allclose(getattr(back, field)[9], getattr(old, field)[0], atol=1e-4)
    np.testing.assert_allclose(back.velocity[9], -old.velocity[0], atol=1e-4)


@pytest.mark.parametrize("adjusted", [True, False])
@pytest.mark.parametrize("beyond", [np.nan, np.inf, -np.inf])
def test_proposals_that_are_not_finite_are_refused(rng, key, beyond, adjusted):
    """A witness that is nan or infinite beyond 1.5: every position stays inside, and chains go on."""
    gaussian = rough_gaussian(rng, (4, 3, 5), 0.1)
    algorithm = cg.kinetic(smooth(0.5, 1.25, 1.5, beyond), gaussian, 0.3, 0.5, adjusted=adjusted)
    _, new, info = recorded(algorithm, key, np.zeros((4, 3, 5)))
    assert np.max(np.abs(new.position)) <= 1.5
    outside = ~np.isfinite(info.energy_error)
    assert np.sum(outside) > 3
    np.testing.assert_array_equal(info.acceptance_rate[outside], 0.0)
    assert not np.any(info.is_accepted[outside])
    assert np.any(info.is_accepted[np.argmax(outside) :])
    assert np.all(np.isfinite(info.acceptance_rate))


def test_chains_start_with_a_velocity_of_the_gaussian_law(rng, key):
    problem = Quadratic(rng)
    algorithm = cg.kinetic(problem.witness, problem.gaussian, 0.5)
    keys = jax.random.split(key, CHAINS)
    velocity = jax.jit(jax.vmap(lambda k: algorithm.init(jnp.zeros(SHAPE), k).velocity))(keys)
    assert np.max(np.abs(oracles.mean_scores(np.abs(np.asarray(velocity, complex)) ** 2, problem.c))) < TOLERANCE
    at_rest = jax.jit(lambda z: algorithm.init(z).velocity)(jnp.zeros(SHAPE))
    np.testing.assert_array_equal(at_rest, 0.0)


def test_a_step_takes_one_gradient(key):
    calls = []

    def counted(z):
        calls.append(0)
        return -jnp.sum(z**4)

    gaussian = FourierGaussian(jnp.zeros((2, 2), jnp.complex64), jnp.ones((2, 2)), jnp.zeros(()), (2, 2))
    for adjusted in (True, False):
        algorithm = cg.kinetic(counted, gaussian, 0.1, adjusted=adjusted)
        state = jax.eval_shape(algorithm.init, jnp.ones((2, 2)))
        calls.clear()
        jax.eval_shape(algorithm.step, key, state)
        assert len(calls) == 1


# What warm-up asks of it ---------------------------------------------------------------------------------------------


@jax.jit
def means_at(algorithm, positions):
    values = jax.vmap(lambda z: samplers.regressors(algorithm.init(z)))(positions)
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), values)


def regressed(witness, gaussian, positions, least):
    """S, b, and how far b - S z is at the mean position from the mean gradient."""
    algorithm = as_pytree(cg.kinetic(witness, gaussian, 0.5))
    means = means_at(algorithm, jnp.asarray(positions, jnp.float32))
    curvature, slope = (np.asarray(x) for x in samplers.regression(gaussian, means, least))
    at_mean = slope - curvature * np.fft.rfftn(np.mean(positions, axis=0), norm="ortho")
    return curvature, slope, np.max(np.abs(at_mean - means[1]))


def test_regression_finds_a_quadratic_witness_from_any_positions(rng):
    problem = Quadratic(rng)
    curvature, slope, misfit = regressed(problem.witness, problem.gaussian, 3 * rng.normal(size=(6, *SHAPE)) + 1, 0.1)
    expected = np.asarray(problem.witness.curvature) * np.fft.rfftn(problem.witness.mean, norm="ortho")
    np.testing.assert_allclose(curvature, problem.witness.curvature, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-3)
    assert misfit < 1e-3


def test_regression_leaves_some_of_the_precision(rng):
    """Of a witness that would take all of it away, and the line is right where the chain was."""
    problem = Quadratic(rng)
    gaussian = problem.gaussian
    convex = cg.QuadraticWitness(-2 * gaussian.precision, problem.witness.mean)
    positions = rng.normal(size=(6, *SHAPE))
    for least in (0.1, 0.5):
        curvature, _, misfit = regressed(convex, gaussian, positions, least)
        np.testing.assert_allclose(curvature, (least - 1) * np.asarray(gaussian.precision), rtol=1e-6)
        assert misfit < 1e-3


def test_regression_of_a_single_position_finds_no_curvature(rng):
    problem = Quadratic(rng)
    positions = np.repeat(rng.normal(size=(1, *SHAPE)), 6, axis=0)
    curvature, _, misfit = regressed(problem.witness, problem.gaussian, positions, 0.1)
    assert np.max(np.abs(curvature) / np.asarray(problem.gaussian.precision)) < 0.01
    assert misfit < 1e-3


def test_regression_on_gaussian_draws_is_the_mean_curvature(rng, key):
    """E[-w''], by Stein: the same in every mode, since w acts on every element alike."""
    gaussian, height, slope = rough_gaussian(rng, SHAPE, 0.5), 2.0, 1.5
    draws = exact_draws(gaussian, key)
    curvature, _, _ = regressed(smooth(height, slope), gaussian, draws, 0.1)

    mean = np.asarray(gaussian.mean, float)
    variance = np.mean(oracles.full_spectrum(1 / np.asarray(gaussian.precision, float), SHAPE))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    bent = height * slope**2 / np.cosh(slope * (mean[..., None] + np.sqrt(variance) * nodes)) ** 2
    expected = np.mean(bent @ weights) / weights.sum()

    z = np.asarray(draws, float)
    v, g = (np.fft.rfftn(x, axes=(1, 2), norm="ortho") for x in (z, -height * slope * np.tanh(slope * z)))
    v, g = v - v.mean(axis=0), g - g.mean(axis=0)
    residual = np.real((g + expected * v) * np.conj(v))
    spread = np.std(residual, axis=0) / np.mean(np.abs(v) ** 2, axis=0) / np.sqrt(CHAINS)
    assert np.max(np.abs(curvature - expected) / spread) < TOLERANCE
    at_mean = np.mean(height * slope**2 / np.cosh(slope * mean) ** 2)
    assert not np.max(np.abs(curvature - at_mean) / spread) < 5


def test_score_is_the_gradient_of_the_log_density(rng, key):
    """Whatever went into the Gaussian part, at full power whatever the kernel's."""
    shape = (4, 3, 5)
    x, center, position = jnp.asarray(rng.normal(size=(3, *shape)), jnp.float32)
    witness = cg.QuadraticWitness(jnp.asarray(oracles.symmetric_half(rng, shape, 0.1, 1.0)), x)
    witness = SumWitness((witness, smooth(2.0, 1.25)))
    posterior = cg.Posterior(witness, Wedge(jnp.asarray(oracles.wedge(shape))), x, center, 3.0, 0.7)
    gaussian, rest = jax.jit(split)(posterior)
    state = start(as_pytree(cg.kinetic(rest, gaussian, 0.5, power=0.3)), key, position)
    expected = np.fft.rfftn(jax.jit(jax.grad(posterior.log_density))(position), norm="ortho")
    np.testing.assert_allclose(samplers.score(gaussian, state), expected, atol=1e-4)


def test_acceptance_of_a_part():
    """2 Phi(-|dH| / 2) of all modes; of fewer it is higher."""

    def rate(fraction, error):
        error = jnp.float32(error)
        return samplers.acceptance_of_a_part(fraction, module.KineticInfo(error, error > 0, error))

    for fraction in (1.0, 0.1, jnp.float32(1e-3)):
        assert rate(fraction, 0.0) == 1
        rates = [float(rate(fraction, error)) for error in (0.0, 0.1, 1.0, 10.0, 100.0)]
        assert np.all(np.diff(rates) <= 0)
        assert rates[3] < rates[0]
    normal = statistics.NormalDist()
    for error in (0.01, 0.5, 2.0, 6.0):
        for sign in (1, -1):
            np.testing.assert_allclose(rate(1.0, sign * error), 2 * normal.cdf(-error / 2), rtol=1e-5)
            np.testing.assert_allclose(rate(0.25, sign * error), 2 * normal.cdf(-error / 4), rtol=1e-5)
