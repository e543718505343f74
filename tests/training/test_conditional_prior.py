"""Conditional priors: examples are what operators make of volumes, and the network learns where and how far."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cryowgen_jax.models import prior_network
from cryowgen_jax.operators import wedge_mask
from cryowgen_jax.simulation import crowded_phantom
from cryowgen_jax.spatial import fourier
from cryowgen_jax.training import Specimens, learn_prior, prior_loss
from cryowgen_jax.training.conditional_prior import example, shell_means

BOX = (16, 20, 18)


def test_example_is_the_volume_through_the_wedge_with_the_noise(key, rng):
    truth = jnp.asarray(3 + 5 * rng.normal(size=BOX), jnp.float32)
    noise = jnp.full(fourier.spectrum_shape(BOX), 50.0)
    made = jax.jit(lambda k: example(truth, noise, jnp.array([-60.0, 60.0]), k))(key)
    made = jax.tree.map(np.asarray, made)
    assert np.mean(made.truth) == pytest.approx(0, abs=1e-3)
    scale = np.std(made.truth) / np.std(np.asarray(truth))
    weight = np.broadcast_to(fourier.multiplicity(BOX), made.mask.shape)
    error = np.abs(made.spectrum - made.mask * np.fft.rfftn(made.truth, norm="ortho")) ** 2
    assert not error[made.mask == 0].any()
    count = np.sum(made.mask * weight)
    measured = np.sum(error * weight) / count
    assert measured == pytest.approx(50 * scale**2, rel=4 * float(np.sqrt(2 / count)))
    np.testing.assert_allclose(made.noise, 50 * scale**2, rtol=1e-3)


def test_shell_means_are_means_over_measured_coefficients(rng):
    power, mask = rng.random(fourier.spectrum_shape(BOX)), np.asarray(wedge_mask(BOX, (-60.0, 60.0)))
    found = np.asarray(jax.jit(shell_means, static_argnums=2)(jnp.asarray(power, jnp.float32), mask, BOX))
    shell = np.minimum((fourier.radial_frequency(BOX) * 16).astype(int), 12)
    weight = mask * fourier.multiplicity(BOX)
    for number in (2, 5, 8):
        here = shell == number
        expected = (power * weight)[here].sum() / weight[here].sum()
        np.testing.assert_allclose(found[here], expected, rtol=1e-4)


def test_specimens_are_turned_cut_and_seen_in_many_ways(rng):
    volumes = jnp.asarray(rng.random((2, 24, 24, 24)) ** 8 * 80, jnp.uint8)
    draw = jax.jit(lambda specimens, k: specimens(k))
    made = [draw(Specimens(volumes, BOX), jax.random.key(i)) for i in range(4)]
    assert all(one.truth.shape == BOX for one in made)
    assert len({float(one.noise[0, 0, 1]) for one in made}) == 4
    assert len({tuple(one.tilt_range.tolist()) for one in made}) == 4
    empty = Specimens(jnp.zeros((2, 24, 24, 24), jnp.uint8), BOX)
    for one in (*made, draw(empty, jax.random.key(0))):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(one))


@pytest.mark.slow
@pytest.mark.computes
def test_network_learns_to_fill_the_wedge(rng):
    """Phantoms through any wedge with any noise: a minute teaches a small network what stands out."""
    volumes = [crowded_phantom((40,) * 3, rng, 10.0).density for _ in range(6)]
    draw = Specimens(jnp.asarray(np.stack(volumes[:4])), (32, 40, 36))
    unseen = Specimens(jnp.asarray(np.stack(volumes[4:])), (32, 40, 36))
    start = prior_network(channels=6, levels=2)
    result = learn_prior(jax.random.key(0), start, draw, optimizer=optax.adam(2e-3), num_iterations=30, batch_size=2)
    assert result.status == "ok"
    parts = jax.jit(lambda network, k: prior_loss(network, unseen(k))[1])
    rows = [parts(result.average, jax.random.key(100 + i)) for i in range(8)]
    before = [parts(start, jax.random.key(100 + i)) for i in range(8)]
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    untrained = {name: float(np.mean([row[name] for row in before])) for name in rows[0]}
    assert abs(untrained["wedge_correlation"]) < 0.05, "negative control: a Wiener filter leaves the wedge empty"
    assert mean["wedge_correlation"] > 0.15
    assert mean["distance"] < 0.93 * untrained["distance"]
    assert mean["local"] < untrained["local"] - 0.02, (
        "the missing part errs where particles are, and the network says so"
    )
