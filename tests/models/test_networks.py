"""Decoder and centre network: shapes, what they can represent, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cryowgen_jax.models import CenterNet, DataConsistent, Decoder
from cryowgen_jax.operators import Wedge, wedge_mask
from cryowgen_jax.types import InputError


@pytest.mark.parametrize(("latent", "shape"), [(3, (8, 8, 8)), ((2, 2, 2), (5, 9, 6))])
def test_decoder_makes_volumes_of_its_box(key, latent, shape):
    decoder = Decoder(latent, shape, channels=4, rngs=nnx.Rngs(0))
    latents = jax.random.normal(key, (2, latent) if isinstance(latent, int) else (2, *latent))
    volumes = np.asarray(jax.jit(jax.vmap(decoder))(latents))
    assert volumes.shape == (2, *shape)
    assert volumes.dtype == jnp.float32
    assert 0.1 < float(volumes.std()) < 10
    assert np.abs(volumes[0] - volumes[1]).max() > 0.01


def test_decoder_without_levels_is_linear_in_its_latent(key):
    decoder = Decoder(3, (4, 5, 6), channels=2, levels=0, rngs=nnx.Rngs(0))
    a, b = np.asarray(jax.random.normal(key, (2, 3)))
    of_a, of_b, of_both, of_nothing = jax.jit(jax.vmap(decoder))(jnp.asarray(np.stack([a, b, a + b, 0 * a])))
    np.testing.assert_allclose(np.add(of_a, of_b), np.add(of_both, of_nothing), atol=1e-5)


def test_untrained_centre_is_its_input(key):
    volume = jax.random.normal(key, (5, 8, 7))
    np.testing.assert_array_equal(jax.jit(CenterNet(channels=2, rngs=nnx.Rngs(0)))(volume), volume)


def test_what_was_measured_is_kept(rng):
    mask = wedge_mask((6, 5, 8), (-50.0, 40.0))
    wedge = Wedge(mask)
    apply = jax.jit(lambda function, v: function(v))
    observation, other = (apply(wedge, v) for v in jnp.asarray(rng.normal(size=(2, 6, 5, 8)), jnp.float32))
    gain = jnp.asarray(3.0 + rng.normal(size=(6, 5, 8)), jnp.float32)
    network = jax.tree_util.Partial(lambda gain, y: gain * y + 1.0, gain)
    answer = DataConsistent(network, wedge)
    answered, guessed = apply(answer, observation), apply(network, observation)
    np.testing.assert_allclose(apply(wedge, answered), observation, atol=1e-5)
    hidden = np.subtract(answered, apply(wedge, answered))
    np.testing.assert_allclose(hidden, np.subtract(guessed, apply(wedge, guessed)), atol=1e-5)
    assert np.linalg.norm(hidden) > 1
    slope = jax.jit(jax.grad(lambda answer: jnp.sum((answer(observation) - other) ** 2)))(answer)
    assert np.linalg.norm(slope.network.args[0]) > 1
    np.testing.assert_array_equal(slope.decoder.transfer, jnp.zeros(mask.shape))


def test_centre_learns(rng):
    """A few steps of descent towards a smoothed volume must get closer than the input is."""
    volume = rng.normal(size=(5, 9, 6)).astype(np.float32)
    target = 0.5 * volume + 0.25 * np.roll(volume, 1, 0) + 0.25 * np.roll(volume, -1, 0)
    structure, state = nnx.split(CenterNet(channels=4, levels=1, rngs=nnx.Rngs(0)))

    def loss(s):
        return jnp.mean((nnx.merge(structure, s)(volume) - target) ** 2)

    @jax.jit
    def step(s):
        value, slope = jax.value_and_grad(loss)(s)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, s, slope)

    values = []
    for _ in range(31):
        value, state = step(state)
        values.append(float(value))
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda rngs: Decoder(0, (4, 4, 4), rngs=rngs),
        lambda rngs: Decoder(3, (4, 4), rngs=rngs),
        lambda rngs: CenterNet(channels=0, rngs=rngs),
        lambda rngs: CenterNet(channels=1, levels=0, rngs=rngs)(jnp.zeros((4, 4))),
        lambda rngs: Decoder(3, (4, 4, 4), channels=1, levels=0, rngs=rngs)(jnp.zeros(4)),
    ],
)
def test_impossible_shapes_are_refused(make):
    with pytest.raises(InputError):
        make(nnx.Rngs(0))
