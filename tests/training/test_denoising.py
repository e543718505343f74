"""Denoising score matching of Gaussian samples, whose noisy density is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import cryowgen_jax as cg
from cryowgen_jax.spatial import fourier
from cryowgen_jax.training import denoising_loss, descend, match_scores
from cryowgen_jax.types import InputError
from tests import oracles

SIZE, VARIANCE, LEVEL = 4, 0.6, 0.5
ADAM = optax.adam(optax.cosine_decay_schedule(0.05, 700))


def concave(log_curvature, z):
    return -0.5 * jnp.exp(log_curvature) * jnp.sum(z**2)


def tethered(z):
    return -0.25 * jnp.sum(z**2)


def clean(key):
    return VARIANCE**0.5 * jax.random.normal(key, (SIZE,))


def curvature(key, levels, known=None):
    start = jax.tree_util.Partial(concave, jnp.float32(1.5))
    found = match_scores(
        key, start, clean, levels, known=known, optimizer=ADAM, num_iterations=700, batch_size=256, decay=0.99
    )
    assert found.status == "ok"
    return float(jnp.exp(found.average.args[0])), found


@pytest.mark.slow
@pytest.mark.parametrize("known", [None, tethered])
def test_at_one_level_the_witness_is_the_log_density_of_noisy_samples(key, known):
    expected = 1 / (VARIANCE + LEVEL**2) - (0.5 if known else 0.0)
    found, run = curvature(key, (LEVEL, LEVEL), known)
    assert abs(found / expected - 1) < 0.03
    assert abs(np.exp(1.5) / expected - 1) > 1
    least = 0.5 * VARIANCE / (VARIANCE + LEVEL**2)  # no function of the noisy sample does better
    np.testing.assert_allclose(np.mean(run.log["loss"][-50:]), least, rtol=0.05)


def test_over_a_range_it_is_between_the_levels(key):
    found, _ = curvature(key, (0.1, 1.0))
    assert 1 / (VARIANCE + 1.0) < found < 1 / (VARIANCE + 0.01)


def steep(slope, z):
    return slope * jnp.sum(z)


def test_logarithms_of_noise_levels_are_uniform(key):
    """Of so steep a witness, which a step of 0 leaves as it is, the loss is 0.5 (slope sigma)^2, whatever the noise."""
    low, high, slope = 0.05, 4.0, 1e5
    start = jax.tree_util.Partial(steep, jnp.float32(slope))
    found = match_scores(key, start, clean, (low, high), optimizer=optax.sgd(0.0), num_iterations=2000, batch_size=1)
    levels = np.sqrt(2 * np.asarray(found.log["loss"], float)) / slope
    place = np.log(levels / low) / np.log(high / low)
    assert -1e-3 < place.min() < 0.01
    assert 0.99 < place.max() < 1 + 1e-3
    for power in (1, 2, 4):
        assert abs(oracles.mean_scores(place**power, 1 / (power + 1))) < 4.5
    assert abs(oracles.mean_scores((levels - low) / (high - low), 0.5)) > 4.5


def test_loss_of_a_flat_witness_is_a_half(rng):
    flat = jax.tree_util.Partial(concave, jnp.float32(-100.0))
    noise = jnp.asarray(rng.normal(size=10000), jnp.float32)
    loss = jax.jit(lambda noise: denoising_loss(flat, None, jnp.zeros(10000), jnp.float32(1.0), noise))(noise)
    np.testing.assert_allclose(loss, 0.5 * np.mean(np.asarray(noise) ** 2), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.computes
def test_a_convolutional_witness_learns_a_coloured_field(key):
    """Its loss falls from that of no witness towards the best that any function can do."""
    shape = (8, 8, 8)
    power = 0.02 + 3.0 * np.exp(-20 * fourier.radial_frequency(shape) ** 2)
    root = jnp.asarray(np.sqrt(power), jnp.float32)
    start = cg.from_nnx(cg.ConvWitness((4, 4), curvature=4.0, rngs=nnx.Rngs(0)))
    field = jax.tree_util.Partial(lambda r, k: fourier.filter_volume(jax.random.normal(k, shape), r), root)
    found = match_scores(
        key, start, field, (LEVEL, LEVEL), optimizer=optax.adam(0.01), num_iterations=300, batch_size=4
    )
    weight = np.broadcast_to(fourier.multiplicity(shape), power.shape)
    least = 0.5 * np.average(power / (power + LEVEL**2), weights=weight)
    reached = np.mean(found.log["loss"][-50:])
    assert found.log["loss"][0] > 0.4
    assert reached < least + 0.3 * (0.5 - least)
    assert reached > 0.98 * least


def test_later_chunks_are_not_compiled_anew(key):
    """Numbers written as plain Python floats are weakly typed in JAX; results are not."""
    traced = []

    def gradient(key, parameter, state):
        traced.append(parameter)
        return parameter, state, {"loss": parameter}

    def run(length):
        traced.clear()
        descend(key, gradient, jnp.asarray(1.0), (), optimizer=optimizer, num_iterations=length, chunk=1)
        return len(traced)

    optimizer = optax.adam(0.1)
    first = run(1)
    assert first >= 2  # for the names of what is logged, and to be compiled
    assert run(4) < first


def test_levels_that_make_no_sense_are_refused(key):
    with pytest.raises(InputError, match="the smaller first"):
        match_scores(key, concave, clean, (1.0, 0.5))
    with pytest.raises(InputError, match="batch_size=0"):
        match_scores(key, concave, clean, (0.5, 1.0), batch_size=0)
