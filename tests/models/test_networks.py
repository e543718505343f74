"""Decoder and centre network: shapes, what they can represent, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cryowgen_jax.models import CenterNet, DataConsistent, Decoder
from cryowgen_jax.operators import Wedge, wedge_mask
from cryowgen_jax.types import InputError

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("latent", "shape"),
    [(3, (5, 9, 6)), ((2, 2, 2), (8, 8, 8)), pytest.param(3, (8, 8, 8), marks=SLOW),
     pytest.param((2, 2, 2), (5, 9, 6), marks=SLOW)],
)  # fmt: skip
def test_decoder_makes_volumes_of_its_box(key, latent, shape):
    decoder = Decoder(latent, shape, channels=4, rngs=nnx.Rngs(0))
    latents = jax.random.normal(key, (2, latent) if isinstance(latent, int) else (2, *latent))
    volumes = jax.jit(jax.vmap(decoder))(latents)
    assert volumes.shape == (2, *shape)
    assert volumes.dtype == jnp.float32
    assert 0.1 < float(volumes.std()) < 10
    assert float(jnp.abs(volumes[0] - volumes[1]).max()) > 0.01


def test_decoder_without_levels_is_linear_in_its_latent(key):
    decoder = Decoder(3, (4, 5, 6), channels=2, levels=0, rngs=nnx.Rngs(0))
    a, b = jax.random.normal(key, (2, 3))
    np.testing.assert_allclose(decoder(a) + decoder(b), decoder(a + b) + decoder(0 * a), atol=1e-5)


def test_untrained_centre_is_its_input(key):
    volume = jax.random.normal(key, (5, 8, 7))
    np.testing.assert_array_equal(jax.jit(CenterNet(channels=2, rngs=nnx.Rngs(0)))(volume), volume)


def test_what_was_measured_is_kept(key):
    mask = wedge_mask((6, 5, 8), (-50.0, 40.0))
    wedge = Wedge(mask)
    observation, other = jax.vmap(wedge)(jax.random.normal(key, (2, 6, 5, 8)))
    network = jax.tree_util.Partial(lambda gain, y: gain * y + 1.0, 3.0 + jax.random.normal(key, (6, 5, 8)))
    answer = DataConsistent(network, wedge)
    np.testing.assert_allclose(wedge(answer(observation)), observation, atol=1e-5)
    hidden = answer(observation) - wedge(answer(observation))
    np.testing.assert_allclose(hidden, network(observation) - wedge(network(observation)), atol=1e-5)
    assert float(jnp.linalg.norm(hidden)) > 1
    slope = jax.jit(jax.grad(lambda answer: jnp.sum((answer(observation) - other) ** 2)))(answer)
    assert float(jnp.linalg.norm(slope.network.args[0])) > 1
    np.testing.assert_array_equal(slope.decoder.transfer, jnp.zeros(mask.shape))


@pytest.mark.parametrize("shape", [pytest.param((8, 8, 8), marks=SLOW), (5, 9, 6)])
def test_centre_learns(key, shape):
    """A few steps of descent towards a smoothed volume must get closer than the input is."""
    volume = jax.random.normal(key, shape)
    target = 0.5 * volume + 0.25 * jnp.roll(volume, 1, 0) + 0.25 * jnp.roll(volume, -1, 0)
    structure, state = nnx.split(CenterNet(channels=4, levels=1, rngs=nnx.Rngs(0)))

    def loss(s):
        return jnp.mean((nnx.merge(structure, s)(volume) - target) ** 2)

    first, step = jax.jit(loss)(state), jax.jit(lambda s: jax.tree.map(lambda p, g: p - 0.1 * g, s, jax.grad(loss)(s)))
    for _ in range(30):
        state = step(state)
    assert float(jax.jit(loss)(state)) < 0.7 * float(first)


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
