"""SK-ROCK against the law of its discretisation: one step exactly, chains in law, and what its step size may be."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import Chebyshev

import cryowgen_jax as cg
from cryowgen_jax import samplers
from cryowgen_jax.potentials import largest_curvature
from cryowgen_jax.pytrees import as_pytree, bind
from cryowgen_jax.types import InputError
from tests import oracles

CHAINS = 1000
TOLERANCE = 4.5  # standard errors
DT = 0.7
MEAN = np.array([0.4, -1.0, 0.2, 2.0, 0.5, -0.3])
module = importlib.import_module("cryowgen_jax.samplers.sk_rock")


def law(stiffness, s, eta=0.05):
    """A, B and the variance for dt = 1 on modes of precision dt q: Pereyra, Vargas and Zygalakis (2020)."""
    t = Chebyshev.basis(s)
    slope = t.deriv()  # s U_{s-1}
    w0 = 1 + eta / s**2
    w1 = t(w0) / slope(w0)
    x = w0 - w1 * stiffness
    a, b = t(x) / t(w0), (1 - w1 * stiffness / 2) * slope(x) / slope(w0)
    return a, b, 2 * b**2 / (1 - a**2)


def limit(s, eta=0.05):
    """The dt q where |A| = 1."""
    t = Chebyshev.basis(s)
    w0 = 1 + eta / s**2
    return 2 * w0 * t.deriv()(w0) / t(w0)


def stiffness_of(s):
    """Values of dt q from soft to the largest that the rule allows."""
    return np.array([0.1, 0.5, *np.array([0.25, 0.6, 0.9, 1.0]) * float(samplers.largest_sk_rock_step(1.0, s))])


def exponent(precision, mean, z):
    return -0.5 * jnp.sum(precision * (z - mean) ** 2)


def density(stiffness):
    return jax.tree_util.Partial(exponent, jnp.asarray(stiffness / DT, jnp.float32), jnp.asarray(MEAN, jnp.float32))


@functools.partial(jax.jit, static_argnames="steps")
def chains(algorithm, key, starts, steps):
    """Positions of independent chains before and after the last of their steps."""

    def one(key, start):
        def body(carry, key):
            state, _ = carry
            return (algorithm.step(key, state)[0], state.position), None

        first = (algorithm.init(start), start)
        (state, before), _ = jax.lax.scan(body, first, jax.random.split(key, steps))
        return before, state.position

    return jax.vmap(one)(jax.random.split(key, len(starts)), starts)


def score(algorithm, key, stiffness, variance, lag_one, steps=120):
    """Worst standard score of mean, variance and autocovariance at lag 1, modes with precision dt q / dt."""
    starts = jnp.broadcast_to(jnp.asarray(MEAN, jnp.float32), (CHAINS, len(MEAN)))
    before, after = (np.asarray(x, float) - MEAN for x in chains(as_pytree(algorithm), key, starts, steps))
    scores = [oracles.second_moment_scores(after, variance), oracles.mean_scores(after, 0.0)]
    return np.max(np.abs([*scores, oracles.mean_scores(before * after, lag_one * variance)]))


def own_score(algorithm, key, s):
    stiffness = stiffness_of(s)
    a, _, variance = law(stiffness, s)
    return score(algorithm, key, stiffness, DT * variance, a)


STAGES = pytest.mark.parametrize("s", [5, *(pytest.param(s, marks=pytest.mark.slow) for s in (2, 15))])


@pytest.mark.parametrize("s", [2, 5, 40])
def test_one_step_on_a_gaussian_exactly(key, s):
    stiffness = stiffness_of(s)
    a, b, _ = law(stiffness, s)
    algorithm = cg.sk_rock(density(stiffness), DT, s)
    offset = np.array([1.0, -2.0, 0.7, 1.5, -1.0, 0.5])
    start = jnp.asarray(MEAN + offset, jnp.float32)
    state, info = jax.jit(lambda k, z: algorithm.step(k, algorithm.init(z)))(key, start)
    xi = np.asarray(jax.random.normal(key, (6,)), float)
    expected = MEAN + a * offset + b * np.sqrt(2 * DT) * xi
    np.testing.assert_allclose(state.position, expected, atol=1e-5 * s)
    left = jax.jit(lambda f, z: f(z))(density(stiffness), start)
    np.testing.assert_allclose(info.log_density, left, rtol=1e-6)  # of the position it left
    assert info.acceptance_rate == 1


@STAGES
def test_stationary_law_is_that_of_the_discretisation(key, s):
    """And not the exact law 1 / q, nor near it: stiff modes come out too tight."""
    stiffness = stiffness_of(s)
    a, _, variance = law(stiffness, s)
    algorithm = cg.sk_rock(density(stiffness), DT, s)
    assert score(algorithm, key, stiffness, DT * variance, a) < TOLERANCE
    assert not score(algorithm, key, stiffness, DT / stiffness, a) < 10
    assert np.all(variance * stiffness < 1)
    assert np.all(variance[-2:] * stiffness[-2:] < 0.7)


def tampered(fault, s):
    """The kernel with one thing wrong."""
    rows, target = module._coefficients(s), density(stiffness_of(s))
    if fault == "half the noise":
        rows[:, 3:] *= np.sqrt(0.5)
    elif fault == "gradient without the noise":
        rows[0, 3] = 0.0
    elif fault == "mu of the first stage throughout":
        rows[1:, 0] = rows[0, 0]
    elif fault == "no momentum":
        rows[1:, 1:3] = 1.0, 0.0
    return samplers.algorithm(module.init, bind(module.step, target, DT, rows, None))


@pytest.mark.parametrize(
    "fault", ["half the noise", "gradient without the noise", "mu of the first stage throughout", "no momentum"]
)
def test_wrong_kernels_fail(key, fault):
    s, stiffness = 5, stiffness_of(5)
    a, _, variance = law(stiffness, s)
    assert not score(tampered(fault, s), key, stiffness, DT * variance, a) < 8


def end(step_size, s, steps=200):
    """Where a chain of unit precision ends that starts at 1."""
    target = jax.tree_util.Partial(exponent, jnp.ones(1), jnp.zeros(1))
    algorithm = as_pytree(cg.sk_rock(target, step_size, s))
    return np.abs(chains(algorithm, jax.random.key(0), jnp.ones((20, 1)), steps)[1]).max()


@STAGES
def test_the_rule_is_stable_and_steps_above_the_limit_are_not(s):
    rule = float(samplers.largest_sk_rock_step(1.0, s))
    _, _, variance = law(rule, s)
    assert end(rule, s) < 6 * np.sqrt(rule * variance)
    assert end(0.98 * limit(s), s) < 100
    assert not end(1.05 * limit(s), s) < 1e6


def test_the_rule_stays_below_the_limit_and_grows_with_the_square_of_the_stages():
    for s in (2, 3, 5, 12, 40):
        assert float(samplers.largest_sk_rock_step(1.0, s)) < limit(s)
    for s in (5, 10, 30):
        ratio = samplers.largest_sk_rock_step(3.0, 2 * s) / samplers.largest_sk_rock_step(3.0, s)
        np.testing.assert_allclose(ratio, 4.0, rtol=0.2)
    np.testing.assert_allclose(samplers.largest_sk_rock_step(2.0, 10), (9.5**2 * (2 - 0.2 / 3) - 1.5) / 2, rtol=1e-6)


def test_preconditioned_chains_have_the_law_of_their_coordinates(rng, key):
    """Modes of a volume: Var_k = P_k v(dt P_k q_k) with v of the law."""
    shape, s, count, steps = (3, 4), 3, 1000, 50
    precision = oracles.symmetric_half(rng, shape, 0.5, 80.0)
    p = (oracles.symmetric_half(rng, shape, 0.3, 1.5) / precision).astype(np.float32)
    stiffness = np.asarray(p, float) * precision  # of P^{1/2} H P^{1/2}
    dt = float(samplers.largest_sk_rock_step(stiffness.max(), s))
    mean = rng.normal(size=shape)
    witness = cg.QuadraticWitness(jnp.asarray(precision), jnp.asarray(mean, jnp.float32))
    expected = p * dt * law(dt * stiffness, s)[2]

    def worst(algorithm):
        starts = jnp.broadcast_to(witness.mean, (count, *shape))
        end = np.asarray(chains(as_pytree(algorithm), key, starts, steps)[1], float) - mean
        power = np.abs(np.fft.rfftn(end, axes=(1, 2), norm="ortho")) ** 2
        of_power = (power.mean(axis=0) / expected - 1) / np.sqrt(2 / count)  # complex modes are tighter still
        return max(np.max(np.abs(of_power)), np.max(np.abs(oracles.mean_scores(end, 0.0))))

    assert worst(cg.sk_rock(witness, dt, s, jnp.asarray(p))) < TOLERANCE
    assert not worst(cg.sk_rock(witness, dt, s, jnp.asarray(p**2))) < 10


def apply(matrix, z):
    return (matrix @ z.reshape(-1)).reshape(z.shape)


def rotated_wedge(key, shape):
    """T_M R with an interpolated R, and its dense matrix."""
    size = int(np.prod(shape))
    decoder = cg.compose(cg.Wedge(jnp.asarray(oracles.wedge(shape))), cg.Rotation(cg.random_rotations(key, 1)[0]))
    columns = jax.jit(jax.vmap(decoder))(jnp.eye(size).reshape(size, *shape))
    return decoder, np.asarray(columns, float).reshape(size, size).T


def dense(key, shape):
    size = int(np.prod(shape))
    matrix = jax.random.normal(key, (size, size)) / np.sqrt(size)
    return jax.tree_util.Partial(apply, matrix), np.asarray(matrix, float)


@pytest.mark.slow
@pytest.mark.parametrize(("operator", "preconditioned"), [(dense, True), (rotated_wedge, False), (rotated_wedge, True)])
def test_a_posterior_that_the_fft_does_not_diagonalise(rng, key, operator, preconditioned):
    """Direction by direction, at the longest step that the estimated curvature allows."""
    shape, s, lam, beta, count, steps = (2, 4, 3), 5, 60.0, 0.7, 1500, 40
    decoder, h = operator(key, shape)
    x, center, m = rng.normal(size=(3, *shape))
    curvature = oracles.symmetric_half(rng, shape, 0.2, 40.0)
    witness = cg.QuadraticWitness(jnp.asarray(curvature), jnp.asarray(m, jnp.float32))
    observed, tether = jnp.asarray(x, jnp.float32), jnp.asarray(center, jnp.float32)
    posterior = cg.Posterior(witness, decoder, observed, tether, jnp.float32(lam), beta)
    stiff = oracles.dense_filter(curvature, shape)
    exact = oracles.gaussian_posterior(h, x.reshape(-1), lam, center.reshape(-1), beta, stiff, m.reshape(-1))
    p = jnp.asarray(1 / (beta + curvature)) if preconditioned else None
    bound = jax.jit(functools.partial(largest_curvature, num_points=0))
    dt = samplers.largest_sk_rock_step(bound(posterior, key, metric=p), s)

    root = oracles.dense_filter(np.sqrt(1 / (beta + curvature)), shape) if preconditioned else np.eye(x.size)
    values, vectors = np.linalg.eigh(root @ np.linalg.inv(exact.covariances[0]) @ root)
    a, _, variance = law(float(dt) * values, s)
    starts = jnp.broadcast_to(jnp.asarray(exact.mean.reshape(shape), jnp.float32), (count, *shape))
    algorithm = as_pytree(cg.sk_rock(posterior.log_density, dt, s, p))
    after = np.asarray(chains(algorithm, key, starts, steps)[1], float).reshape(count, -1) - exact.mean
    modes = after @ np.linalg.inv(root) @ vectors
    variance = float(dt) * variance * (1 - a ** (2 * steps))  # of chains that started at the mean
    scores = [oracles.second_moment_scores(modes, variance), oracles.mean_scores(modes, 0.0)]
    assert np.max(np.abs(scores)) < TOLERANCE
    assert np.max(np.abs(oracles.second_moment_scores(modes, 1 / values))) > 20


def test_a_step_takes_as_many_gradients_as_stages(key):
    calls = []

    def counted(z):
        calls.append(0)
        return -0.5 * jnp.sum(z**2)

    algorithm = cg.sk_rock(counted, 0.1, 3)
    state = algorithm.init(jnp.ones(2))
    jax.eval_shape(algorithm.step, key, state)
    assert len(calls) == 2  # stages share one trace; the other is of the log-density that the info carries
    calls.clear()
    with jax.disable_jit():  # scans run as loops in Python
        algorithm.step(key, state)
    assert len(calls) == 3 + 1


@pytest.mark.parametrize("num_stages", [1, 0, -3, 2.0, True, None, jnp.asarray(4)], ids=repr)
def test_stages_that_are_no_number_of_stages_are_refused(num_stages):
    for build in (functools.partial(cg.sk_rock, jnp.sum, 0.1), functools.partial(samplers.largest_sk_rock_step, 1.0)):
        with pytest.raises(InputError, match=r"^num_stages=.* give a Python integer of at least 2$"):
            build(num_stages)


def test_a_preconditioner_of_another_shape_is_refused(key):
    algorithm = cg.sk_rock(density(stiffness_of(2)), 0.1, 2, jnp.ones(6))
    with pytest.raises(InputError, match=r"preconditioner of shape \(6,\) .* give \(4,\), the layout of rfftn"):
        algorithm.step(key, algorithm.init(jnp.zeros(6)))


@pytest.mark.parametrize("step_size", [0.05, np.float64(0.05), np.float32(0.05), jnp.float32(0.05)], ids=repr)
def test_float32_whatever_the_step_size(key, step_size):
    assert module._coefficients(10).dtype == np.float32
    for preconditioner in (None, jnp.ones(4), np.ones(4)):
        algorithm = cg.sk_rock(density(stiffness_of(2)), step_size, np.int64(3), preconditioner)
        state, info = jax.eval_shape(algorithm.step, key, jax.eval_shape(algorithm.init, jnp.zeros(6)))
        assert state.position.dtype == info.log_density.dtype == jnp.float32
