"""Semi-dual training against optimal transport with known optimum, with the sign that must make it fail."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from scipy.special import logsumexp

import cryowgen_jax as cg
from cryowgen_jax.training import (
    Descent,
    LangevinNegatives,
    Model,
    MonteCarloNegatives,
    Negatives,
    objective,
    semidual,
    train,
)
from tests import oracles

NEGATIVES = {
    "I": MonteCarloNegatives(num_candidates=128),
    "II": LangevinNegatives(num_steps=6, num_chains=2),
}


# Gaussian entropic transport: observations N(0, a), clean samples N(0, b), cost |x - z|^2 / 2, regularisation e

A, B, E = 1.0, 0.8, 0.5


def optimal_curvature(b):
    """Of the witness, as -w = S z^2 / 2."""
    return (A / (0.5 * (np.sqrt(4 * A * b + E**2) - E)) - 1) / E


CURVATURE = optimal_curvature(B)
SIZE = 4
START = 3.0


def concave(log_curvature, z):
    return -0.5 * jnp.exp(log_curvature) * jnp.sum(z**2)


def identity(size):
    return cg.Wedge(jnp.ones(size // 2 + 1))


def nowhere(observation):
    return jnp.zeros_like(observation)


def clean(key):
    return B**0.5 * jax.random.normal(key, (SIZE,))


def gaussian_model(curvature):
    witness = jax.tree_util.Partial(concave, jnp.float32(np.log(curvature)))
    return Model(witness, identity(SIZE), nowhere, jnp.float32(np.log(1 / E)), jnp.float32(np.log(1e-4)))


def gaussian_observations(rng):
    x = rng.normal(size=(512, SIZE))
    return jnp.asarray(x * np.sqrt(A / np.mean(x**2)), jnp.float32)


def trained_curvature(key, rng, negatives, num_iterations=500, **options):
    schedule = optax.cosine_decay_schedule(0.03, num_iterations)
    found = train(
        key,
        gaussian_model(START),
        gaussian_observations(rng),
        clean,
        negatives=negatives,
        optimizer=optax.adam(schedule),
        num_iterations=num_iterations,
        batch_size=128,
        num_positives=256,
        decay=0.99,
        **options,
    )
    return float(jnp.exp(found.average.witness.args[0])), found


@pytest.mark.slow
@pytest.mark.parametrize("name", NEGATIVES)
def test_gaussian_transport_has_the_known_witness(key, rng, name):
    curvature, found = trained_curvature(key, rng, NEGATIVES[name])
    assert found.status == "ok"
    assert found.warnings == ()
    assert abs(curvature / CURVATURE - 1) < 0.03
    assert abs(START / CURVATURE - 1) > 1
    assert abs(np.mean(found.log["virial"][-100:])) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", NEGATIVES)
def test_negatives_of_the_wrong_sign_lead_elsewhere(key, rng, name, monkeypatch):
    right = semidual.surrogate
    monkeypatch.setattr(semidual, "surrogate", lambda *args, **kwargs: -right(*args, **kwargs))
    curvature, _ = trained_curvature(key, rng, NEGATIVES[name], num_iterations=150)
    assert not abs(curvature / CURVATURE - 1) < 0.3


@pytest.mark.slow
def test_jitter_widens_the_positives_and_the_penalty_flattens_the_witness(key, rng):
    jittered, _ = trained_curvature(key, rng, NEGATIVES["II"], jitter=0.4)
    assert abs(jittered / optimal_curvature(B + 0.16) - 1) < 0.04
    assert abs(jittered / CURVATURE - 1) > 0.1
    braked, _ = trained_curvature(key, rng, NEGATIVES["II"], energy_penalty=0.3)
    assert braked < 0.8 * CURVATURE


# A finite library: everything is a sum


class Library(NamedTuple):
    atoms: np.ndarray
    weights: np.ndarray
    observations: np.ndarray
    strength: float

    def dual(self, values):
        """J of one value of the witness per volume, in float64; to be maximised."""
        cost = 0.5 * self.strength * np.sum((self.observations[:, None] - self.atoms[None]) ** 2, axis=-1)
        psi = -logsumexp(np.asarray(values, float) - cost, axis=1, b=self.weights)
        return self.weights @ values + psi.mean()

    def optimum(self):
        found = scipy.optimize.minimize(lambda v: -self.dual(v), np.zeros(len(self.atoms)), method="BFGS", tol=1e-9)
        return -found.fun


def library(rng, count=10):
    atoms = rng.normal(size=(count, SIZE))
    weights = rng.uniform(0.2, 1.0, count)
    shift = np.linspace(0, 1.5, SIZE)  # observations that do not come from the library
    observations = atoms[rng.integers(count, size=256)] + 0.5 * rng.normal(size=(256, SIZE)) + shift
    return Library(atoms, weights / weights.sum(), observations, 2.0)


def table(values, atoms, z):
    return values[jnp.argmin(jnp.sum((atoms - z[None]) ** 2, axis=-1))]


class Atoms:
    """Draws of the library's law, as positives and as the reference measure."""

    def __init__(self, found):
        self.atoms, self.logits = jnp.asarray(found.atoms, jnp.float32), jnp.log(jnp.asarray(found.weights))

    def __call__(self, key, center=None):
        return self.atoms[jax.random.categorical(key, self.logits)]


def trained_values(key, found, num_iterations=500):
    draw = Atoms(found)
    witness = jax.tree_util.Partial(table, jnp.zeros(len(found.atoms)), draw.atoms)
    model = Model(witness, identity(SIZE), nowhere, jnp.float32(np.log(found.strength)), jnp.float32(0.0))
    result = train(
        key,
        model,
        jnp.asarray(found.observations, jnp.float32),
        lambda k: draw(k),
        negatives=MonteCarloNegatives(num_candidates=64, reference=draw),
        optimizer=optax.chain(optax.masked(optax.set_to_zero(), only_atoms), optax.adam(0.05)),
        num_iterations=num_iterations,
        batch_size=64,
        num_positives=64,
        decay=0.995,
    )
    return np.asarray(result.average.witness.args[0], float)


def only_atoms(parameters):
    """Marks the atoms, which are no parameters, for the optimiser to leave alone."""
    return jax.tree.map(lambda leaf: leaf.ndim == 2, parameters)


@pytest.mark.slow
def test_a_library_reaches_its_concave_optimum(key, rng):
    found = library(rng)
    values = trained_values(key, found)
    best, start = found.optimum(), found.dual(np.zeros(len(found.atoms)))
    assert best - found.dual(values) < 0.01 * abs(best)
    assert best - found.dual(values) < 0.03 * (best - start)


@pytest.mark.slow
def test_a_library_with_negatives_of_the_wrong_sign_does_not(key, rng, monkeypatch):
    right = semidual.surrogate
    monkeypatch.setattr(semidual, "surrogate", lambda *args, **kwargs: -right(*args, **kwargs))
    found = library(rng)
    assert found.dual(trained_values(key, found, num_iterations=200)) < found.dual(np.zeros(len(found.atoms)))


# The estimate itself


@pytest.mark.slow
def test_the_gradient_is_that_of_the_dual_in_every_part(rng):
    """Quadratic witness, Gaussian posteriors: exact moments as weighted negatives give the exact gradient."""
    curvature, lam, beta = 0.7, 2.0, 0.5
    x, z = rng.normal(size=(3, SIZE)), rng.normal(size=(5, SIZE))
    center = rng.normal(size=SIZE)

    def dual(log_curvature, log_lam, log_beta, center):
        s, lam, beta = np.exp(log_curvature), np.exp(log_lam), np.exp(log_beta)
        psi = [oracles.gaussian_posterior(np.eye(SIZE), y, lam, center, beta, s * np.eye(SIZE)).psi for y in x]
        norm = -0.5 * SIZE * (np.log(beta / (2 * np.pi)) + np.log(lam / (2 * np.pi)))
        return np.mean([-0.5 * s * v @ v for v in z]) + np.mean(psi) + norm

    samples = []
    for y in x:
        law = oracles.gaussian_posterior(np.eye(SIZE), y, lam, center, beta, curvature * np.eye(SIZE))
        root = np.linalg.cholesky(SIZE * law.covariance)
        samples.append(np.concatenate([law.mean + root.T, law.mean - root.T]))  # these have its moments
    negatives = Negatives(jnp.asarray(np.stack(samples), jnp.float32), jnp.full((3, 2 * SIZE), 0.5 / SIZE), jnp.ones(3))
    model = Model(
        jax.tree_util.Partial(concave, jnp.float32(np.log(curvature))),
        identity(SIZE),
        jax.tree_util.Partial(lambda c, y: c, jnp.asarray(center, jnp.float32)),
        jnp.float32(np.log(lam)),
        jnp.float32(np.log(beta)),
    )
    found = jax.grad(objective)(model, jnp.asarray(z, jnp.float32), jnp.asarray(x, jnp.float32), negatives)
    point = (np.log(curvature), np.log(lam), np.log(beta), center)
    step = 1e-5

    def slope(index, direction=1.0):
        moved = [[p + sign * step * direction if i == index else p for i, p in enumerate(point)] for sign in (1, -1)]
        return (dual(*moved[0]) - dual(*moved[1])) / (2 * step)

    np.testing.assert_allclose(found.witness.args[0], slope(0), rtol=1e-4)
    np.testing.assert_allclose(found.log_data_weight, slope(1), rtol=1e-4)
    np.testing.assert_allclose(found.log_prior_precision, slope(2), rtol=1e-4)
    direction = rng.normal(size=SIZE)
    np.testing.assert_allclose(np.asarray(found.center.args[0]) @ direction, slope(3, direction), rtol=1e-3)


@pytest.mark.parametrize("settled", [(1, 1), (1, 0), (0, 0)])
def test_draws_that_do_not_count_yet_are_left_out_unless_there_are_no_others(rng, settled):
    x, z, samples = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, SIZE), (5, SIZE), (2, 3, SIZE)))
    negatives = Negatives(samples, jnp.asarray(settled, jnp.float32)[:, None] * jnp.full((2, 3), 1 / 3), jnp.ones(2))
    model = gaussian_model(START)
    found = jax.grad(lambda w: objective(dataclasses.replace(model, witness=w), z, x, negatives))(model.witness).args[0]
    used = np.asarray(samples)[np.asarray(settled) > 0] if any(settled) else np.asarray(samples)
    expected = -0.5 * START * (np.mean(np.sum(z**2, axis=-1)) - np.mean(np.sum(used**2, axis=-1)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_chains_that_start_anew_count_visits_anew(key):
    """From far away only chains that start anew come back; they have no weight until their second visit."""
    negatives, far = LangevinNegatives(num_steps=1, num_chains=32, restart=0.5, visits_to_settle=2), 1e3

    @jax.jit
    def draw(key, visits):
        posterior = gaussian_model(START).posterior(jnp.zeros(SIZE))
        start = negatives.start_one(key, posterior)
        away = start._replace(positions=jnp.full_like(start.positions, far), visits=visits)
        return start.visits, *negatives.draw_one(key, posterior, away)

    visits = np.full(32, 2)
    for i in range(3):
        first, found, state = draw(jax.random.fold_in(key, i), visits)
        np.testing.assert_array_equal(first, 2)
        anew = np.max(np.abs(found.samples), axis=1) < 0.5 * far
        assert 0 < np.sum(anew) < 32
        visits = np.where(anew, 1, visits + 1)
        np.testing.assert_array_equal(state.visits, visits)
        np.testing.assert_allclose(found.weights, (visits >= 2) / 32)
    assert set(visits) > {1, 2}


@pytest.mark.slow
def test_lambda_and_beta_are_learned_from_data(key, rng):
    """No witness: 1/lambda + 1/beta is the variance of the data about the centre, and lambda is given."""
    beta = 2.0
    observations = jnp.asarray(rng.normal(size=(400, SIZE)) * np.sqrt(1 / 8.0 + 1 / beta), jnp.float32)
    model = dataclasses.replace(
        gaussian_model(1e-6), log_data_weight=jnp.float32(np.log(8.0)), log_prior_precision=jnp.float32(0.0)
    )
    found = train(
        key,
        model,
        observations,
        clean,
        learn=("log_prior_precision",),
        negatives=LangevinNegatives(num_steps=4, num_chains=2),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.05, 300)),
        num_iterations=300,
        batch_size=100,
    )
    exact = 1 / (float(jnp.mean(observations**2)) - 1 / 8.0)
    np.testing.assert_allclose(np.exp(found.average.log_prior_precision), exact, rtol=0.05)
    assert float(found.model.witness.args[0]) == float(model.witness.args[0])


# Runs


def small_run(key, rng, **options):
    defaults = {"num_iterations": 30, "batch_size": 16, "negatives": LangevinNegatives(num_steps=2)}
    return train(key, gaussian_model(START), gaussian_observations(rng)[:32], clean, **(defaults | options))


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(key, tmp_path):
    whole = small_run(key, np.random.default_rng(0), num_iterations=100)

    def stop(progress):
        if progress.step >= 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_run(key, np.random.default_rng(0), num_iterations=100, checkpoint=tmp_path, progress=stop)
    told = []
    again = small_run(key, np.random.default_rng(0), num_iterations=100, checkpoint=tmp_path, progress=told.append)
    assert [progress.step for progress in told] == [100]
    given = ({"witness": again.average.witness}, again.state)
    jax.tree.map(np.testing.assert_array_equal, (told[0].average, told[0].state), given)
    jax.tree.map(np.testing.assert_array_equal, (whole.model, whole.average), (again.model, again.average))
    np.testing.assert_array_equal(whole.log["gap"], again.log["gap"])


@pytest.mark.slow
def test_a_run_that_is_not_finite_stops_with_what_was_good(key, rng):
    found = small_run(key, rng, optimizer=optax.sgd(1e30), num_iterations=60)
    assert found.status.startswith("stopped at iteration")
    assert np.isfinite(found.model.witness.args[0])
    assert found.warnings[0].startswith("Training stopped")


@pytest.mark.parametrize(
    ("name", "values", "negatives", "words"),
    [
        ("quality", np.full(100, 0.1), "II", "accept 0.10"),
        ("quality", np.full(100, 0.01), "I", "1.0 % of the candidates"),
        ("gap", np.exp(np.linspace(0, 5, 100)), "II", "gap between positives and negatives grew"),
        ("virial", np.full(100, -0.5), "II", "virial -0.50"),
        ("gap", np.sin(np.arange(100.0)), "II", None),
    ],
)
def test_trouble_is_put_in_words(name, values, negatives, words):
    rng = np.random.default_rng(1)
    log = {"gap": rng.normal(size=100), "quality": np.full(100, 0.7), "virial": 0.1 * rng.normal(size=100)}
    found = semidual.trouble(Descent(None, None, None, log | {name: values}, "ok"), NEGATIVES[negatives])
    assert [words in sentence for sentence in found] == ([True] if words else [])


def test_input_that_does_not_fit_is_refused(key, rng):
    with pytest.raises(ValueError, match="learn=\\('lambda',\\): give one or more of witness"):
        small_run(key, rng, learn=("lambda",))
    with pytest.raises(ValueError, match=r"learn='witness.gain': .* no attribute 'gain'"):
        small_run(key, rng, learn=("witness.gain",))
    with pytest.raises(ValueError, match="batch_size=33: give 1 to 32"):
        small_run(key, rng, batch_size=33)
