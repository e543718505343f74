"""Networks in place of ascents, against maxima and transports that are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cryowgen_jax as cg
from cryowgen_jax.operators import RotatedWitness, wedge_mask
from cryowgen_jax.spatial import fourier
from cryowgen_jax.training import Amortisation, AmortisedNegatives, Model, Reobservation, learn_map, semidual, train

# Deterministic Gaussian transport: observations N(0, a), clean samples N(0, b), cost lambda |x - z|^2 / 2.
# The map is z = sqrt(b / a) x; as the maximum of F it is lambda x / (lambda + S + beta), and so S + beta is known.
A, B, LAM, SIZE = 1.0, 0.4, 2.0, 4
GAIN = (B / A) ** 0.5
STIFFNESS = LAM * (1 / GAIN - 1)
START = 3.0


def concave(log_curvature, z):
    return -0.5 * jnp.exp(log_curvature) * jnp.sum(z**2)


def scaled(gain, x):
    return gain * x


def nowhere(x):
    return jnp.zeros_like(x)


def clean(key):
    return B**0.5 * jax.random.normal(key, (SIZE,))


def gaussian_model(tether):
    witness = jax.tree_util.Partial(concave, jnp.float32(np.log(START)))
    return Model(witness, cg.Wedge(jnp.ones(SIZE // 2 + 1)), nowhere, jnp.log(LAM), jnp.log(tether))


def trained(key, rng, method, tether, num_iterations=400, **options):
    x = rng.normal(size=(512, SIZE))
    return train(
        key,
        gaussian_model(tether),
        jnp.asarray(x * np.sqrt(A / np.mean(x**2)), jnp.float32),
        clean,
        negatives=AmortisedNegatives(
            jax.tree_util.Partial(scaled, jnp.float32(0.0)), Amortisation(method, **options), optax.adam(0.02)
        ),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.03, num_iterations)),
        num_iterations=num_iterations,
        batch_size=128,
        num_positives=256,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("method", "tether"), [("cryogen_map", 0.5), ("cryogen_ot", 0.5)])
def test_gaussian_transport_without_entropy_has_the_known_map_and_witness(key, rng, method, tether):
    found = trained(key, rng, method, tether)
    stiffness = float(jnp.exp(found.average.witness.args[0])) + (tether if method == "cryogen_map" else 0.0)
    gain = float(found.state.network.args[0])
    assert (found.status, found.warnings) == ("ok", ())
    assert abs(stiffness / STIFFNESS - 1) < 0.03
    assert abs(gain / GAIN - 1) < 0.03
    assert abs(float(found.state.average.args[0]) / GAIN - 1) < 0.03
    assert np.mean(found.log["quality"][-100:]) > 0.95


def test_the_average_is_that_of_the_networks(key, rng):
    """Of three, at a decay of 1/2, the weights are 1, 2 and 4 sevenths."""
    start = jax.tree_util.Partial(scaled, jnp.float32(0.0))
    negatives = AmortisedNegatives(start, optimizer=optax.sgd(0.3), num_steps=2, decay=0.5)
    x = jnp.asarray(rng.normal(size=(8, SIZE)), jnp.float32)
    posteriors = gaussian_model(0.5).posterior
    state, gains = negatives.start(key, posteriors, x), []
    draw = jax.jit(lambda k, state: negatives.draw(k, posteriors, x, jnp.arange(4), state))
    assert float(state.average.args[0]) == 0
    for k in jax.random.split(key, 3):
        found, state = draw(k, state)
        gains.append(float(state.network.args[0]))
        np.testing.assert_allclose(np.asarray(found.samples)[:, 0], gains[-1] * np.asarray(x)[:4], rtol=1e-5)
    assert len(set(gains)) == 3
    np.testing.assert_allclose(state.average.args[0], np.dot([1, 2, 4], gains) / 7, rtol=1e-5)


@pytest.mark.slow
def test_negatives_of_the_wrong_sign_lead_elsewhere(key, rng, monkeypatch):
    right = semidual.surrogate
    monkeypatch.setattr(semidual, "surrogate", lambda *args, **kwargs: -right(*args, **kwargs))
    found = trained(key, rng, "cryogen_ot", 0.5, num_iterations=200)
    assert not abs(float(jnp.exp(found.average.witness.args[0])) / STIFFNESS - 1) < 0.3


@pytest.mark.slow
def test_a_network_that_lags_behind_is_told_of(key, rng):
    """Its gain stays 0, where the witness pulls at nothing and the data pull alone."""
    slow = AmortisedNegatives(jax.tree_util.Partial(scaled, jnp.float32(0.0)), optimizer=optax.sgd(0.0), num_steps=1)
    x = jnp.asarray(rng.normal(size=(32, SIZE)), jnp.float32)
    found = train(key, gaussian_model(0.5), x, clean, negatives=slow, num_iterations=50, batch_size=16)
    assert any("far from the maxima (balance 0.00" in words for words in found.warnings)


# Whole volumes, whose maxima are the means of Gaussian posteriors

SHAPE, BETA = (6, 6, 6), 0.5
MASK = np.asarray(wedge_mask(SHAPE, (-50.0, 50.0)))
CURVATURE = 0.2 + 8.0 * np.asarray(fourier.radial_frequency(SHAPE), np.float32)


def volumes_model():
    witness = cg.QuadraticWitness(curvature=jnp.asarray(CURVATURE), mean=jnp.zeros(SHAPE))
    return Model(witness, cg.Wedge(jnp.asarray(MASK)), nowhere, jnp.log(4.0), jnp.log(BETA))


def filtered(transfer, x):
    return fourier.filter_volume(x, transfer)


@pytest.mark.parametrize(
    ("method", "tether"),
    [("cryogen_map", BETA), pytest.param("cryogen_ot", 1e-3 * BETA, marks=pytest.mark.slow)],
)
def test_learned_maxima_are_those_of_the_posteriors(key, rng, method, tether):
    observations = jnp.asarray(rng.normal(size=(16, *SHAPE)), jnp.float32)
    observations = jax.jit(jax.vmap(cg.Wedge(jnp.asarray(MASK))))(observations)
    start = jax.tree_util.Partial(filtered, jnp.zeros(MASK.shape))
    model = volumes_model()
    found = learn_map(
        key,
        start,
        model.posterior,
        observations,
        Amortisation(method),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.05, 200)),
        num_iterations=200,
    )
    expected = 4.0 * MASK / (4.0 * MASK + tether + CURVATURE)
    np.testing.assert_allclose(np.asarray(found.parameters.args[0])[MASK > 0], expected[MASK > 0], atol=0.01)
    one = np.asarray(observations)[0]
    estimate = {"cryogen_map": cg.cryogen_map, "cryogen_ot": cg.cryogen_ot}[method](key, model.posterior(one))
    np.testing.assert_allclose(jax.jit(lambda network, x: network(x))(found.average, one), estimate.mean, atol=0.02)


def test_noise_and_consistency_pull_at_the_answer(key, rng):
    """The loss is F with the noise that was drawn, and what of the answer is not found again."""
    observation = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    posterior = volumes_model().posterior(observation)
    gain = 0.7
    network = jax.tree_util.Partial(scaled, jnp.float32(gain))
    reobserve = Reobservation(cg.Wedge(jnp.asarray(MASK)), jnp.asarray(0.3 * MASK))

    @jax.jit
    def losses(key):
        plain, _ = Amortisation().loss(network, posterior, key)
        noisy, _ = Amortisation(input_noise=0.5).loss(network, posterior, key)
        both, log = Amortisation(weight=2.0, reobserve=reobserve).loss(network, posterior, key)
        return plain, noisy, both, log["consistency"]

    @jax.jit
    def parts(key):
        noise_key, turn_key, _ = jax.random.split(key, 3)
        noise, cold = jax.random.normal(noise_key, SHAPE), Amortisation().target(posterior)
        answers = gain * observation, gain * (observation + 0.5 * noise)
        return [-cold.log_density(z) / 216 for z in answers], reobserve(turn_key, answers[0])

    plain, noisy, both, consistency = losses(key)
    expected, (seen, turned) = jax.tree.map(np.asarray, parts(key))
    np.testing.assert_allclose([plain, noisy], expected, rtol=1e-5)
    assert np.linalg.norm(turned - gain * np.asarray(observation)) > 0.1
    np.testing.assert_allclose(consistency, np.mean((gain * seen - turned) ** 2), rtol=1e-5)
    np.testing.assert_allclose(both, plain + 2.0 * consistency, rtol=1e-5)


def test_a_random_witness_is_drawn_and_right_on_average(key, rng):
    observation = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    wedge = cg.Wedge(jnp.asarray(MASK))
    curvature = jnp.asarray(CURVATURE * np.float32([[[0.2, 1, 1, 2]]]))
    of_observations = cg.QuadraticWitness(curvature=curvature, mean=jnp.ones(SHAPE))
    witness = RotatedWitness(of_observations, wedge, cg.cube_rotations())
    posterior = dataclasses.replace(volumes_model().posterior(observation), witness=witness)
    network = jax.tree_util.Partial(scaled, jnp.float32(1.0))
    keys = jax.random.split(key, 400)
    losses, _ = jax.jit(jax.vmap(lambda k: Amortisation().loss(network, posterior, k)))(keys)
    assert len(np.unique(np.round(losses, 5))) > 5
    exact = -jax.jit(lambda p, z: Amortisation().target(p).log_density(z))(posterior, observation) / 216
    assert abs(np.mean(losses) - exact) < 4 * np.std(losses) / 20


def test_input_that_does_not_fit_is_refused(key):
    with pytest.raises(ValueError, match="method='cryowgen': give 'cryogen_map' or 'cryogen_ot'"):
        Amortisation("cryowgen")
    with pytest.raises(ValueError, match=r"weight=1\.0: say how volumes are seen again"):
        Amortisation(weight=1.0)
    start = jax.tree_util.Partial(filtered, jnp.zeros(MASK.shape))
    with pytest.raises(ValueError, match="batch_size=9: give 1 to 8"):
        learn_map(key, start, volumes_model().posterior, jnp.zeros((8, *SHAPE)), batch_size=9)
