"""What networks are told of the tilts turns with the volume, which shows only where the tilt range is lopsided."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.models import denoising_network, prior_network
from cryowgen_jax.restoration import solvent_fit
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.learned_model import model_of
from cryowgen_jax.restoration.prior_weights import PriorWeights

SHAPE, TILTS = (16, 16, 16), (-70.0, 40.0)
REVERSED = (-40.0, 70.0)


@functools.cache
def weights():
    """Small networks that listen to the tilt range."""
    rng = np.random.default_rng(3)

    def noisy(network):
        leaves, structure = jax.tree.flatten(jax.eval_shape(network))
        drawn = [jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
        return jax.tree.unflatten(structure, drawn)

    first, second = (lambda: prior_network(channels=2, levels=1)), (lambda: denoising_network((4, 4), (1, 1)))
    return PriorWeights(noisy(first), noisy(second))


def solvent(halves, geometry):
    return solvent_fit.fit(halves, geometry.mask(SHAPE), geometry, of_spread=False)


def flipped(volume, axes):
    return np.flip(np.asarray(volume), axes)


@pytest.mark.parametrize(("axes", "tilts"), [((0, 2), TILTS), ((0, 1), REVERSED), ((1, 2), REVERSED)])
def test_a_half_turn_of_the_tomogram_is_one_of_the_answer(axes, tilts):
    """About the tilt axis tilts stay as they are, about another one they are reversed; (Z, Y, X), tilt axis y."""
    rng = np.random.default_rng(0)
    halves = tuple(jnp.asarray(rng.standard_normal(SHAPE), jnp.float32) for _ in range(2))
    straight, other = Geometry(TILTS), Geometry(tilts)
    here = model_of(weights(), solvent(halves, straight), straight.mask(SHAPE), straight)
    seen = solvent(tuple(jnp.asarray(flipped(half, axes)) for half in halves), other)
    there = model_of(weights(), seen, other.mask(SHAPE), other)
    scale = np.std(here.precision)
    np.testing.assert_allclose(flipped(there.precision, axes), here.precision, atol=2e-2 * scale)
    told_otherwise = model_of(weights(), seen, other.mask(SHAPE), Geometry((-tilts[1], -tilts[0])))
    assert np.max(np.abs(flipped(told_otherwise.precision, axes) - here.precision)) > 0.1 * scale
