"""Which way a step of training goes: up in the witness, down in all else; and what its running average keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cryowgen_jax as cg
from cryowgen_jax.training import Model, MonteCarloNegatives, descend, train

SIZE = 4


def concave(log_curvature, z):
    return -0.5 * jnp.exp(log_curvature) * jnp.sum(z**2)


def nowhere(observation):
    return jnp.zeros_like(observation)


def model():
    witness = jax.tree_util.Partial(concave, jnp.zeros(()))
    return Model(witness, cg.Wedge(jnp.ones(SIZE // 2 + 1)), nowhere, jnp.zeros(()), jnp.zeros(()))


@pytest.mark.parametrize("larger", ["positives", "negatives"])
def test_one_step_brings_the_witness_nearer_to_the_positives(key, larger):
    """Where positives are larger than the negatives, w has to fall less with |z|: its curvature goes down, else up."""
    observations = jnp.ones((8, SIZE)) * (0.1 if larger == "positives" else 20.0)
    positives = jnp.ones((8, SIZE)) * (20.0 if larger == "positives" else 0.1)
    step = {"optimizer": optax.sgd(1e-3), "num_iterations": 1, "batch_size": 4}
    found = train(key, model(), observations, positives, negatives=MonteCarloNegatives(32), **step)
    moved = float(found.model.witness.args[0])
    assert moved < -1e-3 if larger == "positives" else moved > 1e-3
    gap = found.log["gap"][0]
    assert gap < 0 if larger == "positives" else gap > 0


@pytest.mark.parametrize("distance", [0.0, 20.0])
def test_one_step_brings_the_data_weight_nearer_to_the_misfit(key, distance):
    """Psi goes down in lambda: it falls where the misfit is larger than 1 / lambda per element, and rises elsewhere."""
    observations = jnp.full((8, SIZE), distance)
    step = {"optimizer": optax.sgd(1e-3), "num_iterations": 1, "batch_size": 4}
    options = {"learn": ("log_data_weight",), "negatives": MonteCarloNegatives(32), **step}
    found = train(key, model(), observations, jnp.zeros((8, SIZE)), **options)
    moved = float(found.model.log_data_weight)
    assert moved < -1e-4 if distance else moved > 1e-4


def steadily(key, parameters, state):
    del key
    return jnp.ones_like(parameters), state, {"loss": jnp.sum(parameters)}


@pytest.mark.parametrize("decay", [0.99, 0.3])
def test_the_running_average_is_that_of_its_formula(key, decay):
    """a_i = d a_{i-1} + (1 - d) p_i with d = min(decay, i / (i + 9)), p_i = -(i + 1) here."""
    found = descend(key, steadily, jnp.zeros(()), (), optimizer=optax.sgd(1.0), num_iterations=12, decay=decay)
    average = 0.0
    for i in range(12):
        kept = min(decay, i / (i + 9))
        average = kept * average - (1 - kept) * (i + 1)
    np.testing.assert_allclose(found.average, average, rtol=1e-5)
    assert float(found.parameters) == -12.0
    assert abs(average + 12.0) > 0.4
