"""Centres learned from halves alone: what was measured as noise2noise has it, the wedge as other orientations show."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import cryowgen_jax as cg
from cryowgen_jax.operators import wedge_mask
from cryowgen_jax.spatial import fourier
from cryowgen_jax.training import Reobservation, learn_center, warmed_adam
from tests import oracles

SHAPE = (8, 8, 8)
MASK = np.asarray(wedge_mask(SHAPE, (-50.0, 50.0)))
WEDGE = cg.Wedge(jnp.asarray(MASK))
NOISE = 0.6  # standard deviation of one half
POWER = (2.0 * np.exp(-8.0 * np.asarray(fourier.radial_frequency(SHAPE)))).astype(np.float32)


@jax.jit
def halves_of(key, fields):
    keys = jax.random.split(key)
    return tuple(jax.vmap(WEDGE)(fields + NOISE * jax.random.normal(k, fields.shape)) for k in keys)


def filtered(transfer, volume):
    return fourier.filter_volume(volume, transfer)


def test_a_volume_is_seen_again_from_another_side(key, rng):
    volume = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    amplitude = np.where(MASK > 0, 1 + np.asarray(fourier.radial_frequency(SHAPE)), 0).astype(np.float32)
    reobserve = Reobservation(WEDGE, jnp.asarray(amplitude))
    again = jax.jit(jax.vmap(lambda k: reobserve(k, volume)))(jax.random.split(key, 1500))
    seen, turned = map(np.asarray, again)
    np.testing.assert_allclose(np.sort(turned[0], axis=None), np.sort(volume, axis=None), atol=1e-6)
    assert len({tuple(np.round(corner, 4)) for corner in turned[:, 0, 0, :4]}) == 24
    noises = np.fft.rfftn(seen, axes=(1, 2, 3), norm="ortho")
    noises = noises - MASK * np.fft.rfftn(turned, axes=(1, 2, 3), norm="ortho")
    assert np.abs(noises[:, MASK == 0]).max() < 1e-5
    power = np.mean(np.abs(noises) ** 2, axis=0)
    np.testing.assert_allclose(power[MASK > 0], (amplitude**2)[MASK > 0], rtol=0.25)  # real ones: sqrt(2 / 1500) * 6


def test_without_consistency_the_measured_part_is_wieners(key, rng):
    """The best linear guess of the other half is P / (P + N) of this one, although nobody says what P and N are."""
    white = np.fft.rfftn(rng.normal(size=(512, *SHAPE)), axes=(1, 2, 3), norm="ortho")
    fields = np.fft.irfftn(white * np.sqrt(POWER), SHAPE, axes=(1, 2, 3), norm="ortho").astype(np.float32)
    found = learn_center(
        key,
        jax.tree_util.Partial(filtered, jnp.zeros(MASK.shape)),
        halves_of(jax.random.fold_in(key, 1), fields),
        Reobservation(WEDGE, jnp.asarray(NOISE * MASK)),
        weight=0.0,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.05, 120)),
        num_iterations=120,
        batch_size=64,
    )
    wiener = POWER / (POWER + NOISE**2)
    learned = np.asarray(found.parameters.args[0])
    weight = MASK * np.broadcast_to(oracles.multiplicity(SHAPE), MASK.shape)
    error = np.sqrt(np.sum(weight * (learned - wiener) ** 2) / np.sum(weight))
    assert error < 0.06  # 512 fields: each ratio is known to 0.04
    assert np.sqrt(np.sum(weight * (learned - 1) ** 2) / np.sum(weight)) > 0.4  # noise2self would copy
    assert np.abs(learned[MASK == 0]).max() < 1e-6


def balls(rng, count):
    """Three Gaussian balls each, at random places: what the wedge smears is round from every other side."""
    grid = np.stack(np.meshgrid(*(np.arange(8),) * 3, indexing="ij"))
    volumes = np.zeros((count, *SHAPE), np.float32)
    for volume in volumes:
        for place in rng.uniform(0, 8, (3, 3)):
            apart = (grid - place[:, None, None, None] + 4) % 8 - 4
            volume += 4 * np.exp(-np.sum(apart**2, axis=0) / (2 * 1.0**2))
    return jnp.asarray(volumes - volumes.mean())


def in_wedge_correlation(network, observations, truths):
    answers = jax.jit(jax.vmap(network))(observations)
    a, b = (np.fft.rfftn(np.asarray(v), axes=(1, 2, 3)) * (MASK == 0) for v in (answers, truths))
    return np.sum(np.real(a * np.conj(b))) / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.slow
def test_consistency_fills_the_wedge_of_objects_never_seen(key, rng):
    def learned(weight):
        found = learn_center(
            key,
            cg.from_nnx(cg.CenterNet(channels=8, levels=0, rngs=nnx.Rngs(0))),
            halves_of(key, balls(rng, 256)),
            Reobservation(WEDGE, jnp.asarray(NOISE * MASK)),
            weight=weight,
            optimizer=warmed_adam(2e-3, 100),
            num_iterations=100,
            batch_size=8,
        )
        assert found.status == "ok"
        return in_wedge_correlation(found.average, others, truths)

    truths = balls(rng, 64)
    others, _ = halves_of(jax.random.fold_in(key, 1), truths)
    assert learned(1.0) > 0.6
    assert learned(0.0) < 0.45  # denoising alone rounds a little of what the wedge has smeared


def test_input_that_does_not_fit_is_refused(key):
    network = jax.tree_util.Partial(filtered, jnp.zeros(MASK.shape))
    reobserve = Reobservation(WEDGE, jnp.asarray(MASK))
    with pytest.raises(ValueError, match="cut both at the same places"):
        learn_center(key, network, (jnp.zeros((4, *SHAPE)), jnp.zeros((3, *SHAPE))), reobserve)
    with pytest.raises(ValueError, match="batch_size=5: give 1 to 4"):
        learn_center(key, network, (jnp.zeros((4, *SHAPE)),) * 2, reobserve, batch_size=5)
