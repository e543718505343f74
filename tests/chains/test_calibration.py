"""Simulation-based calibration tells a right sampler from one that is too sure, too vague or shifted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax.operators import Wedge
from cryowgen_jax.potentials import gaussian_part, split
from cryowgen_jax.types import InputError
from tests import oracles

SHAPE, LAM, BETA, DRAWS = (4, 1, 4), 3.0, 0.5, 31
MASK = jnp.asarray(oracles.wedge(SHAPE))
PRIOR = cg.Posterior(
    cg.QuadraticWitness(jnp.full(MASK.shape, 0.7), jnp.full(SHAPE, 0.4)),
    Wedge(jnp.zeros_like(MASK)),
    jnp.zeros(SHAPE),
    jnp.zeros(SHAPE),
    1.0,
    BETA,
)


def draw_prior(key):
    return split(PRIOR)[0].draw(key)


def observe(key, truth):
    noise = jax.random.normal(key, SHAPE) / jnp.sqrt(LAM)
    return dataclasses.replace(PRIOR, decoder=Wedge(MASK), observation=Wedge(MASK)(truth) + noise, data_weight=LAM)


def statistics(volume):
    """One voxel, a wave in the wedge, and the energy."""
    wave = jnp.cos(jnp.pi / 2 * jnp.arange(4.0))[:, None, None]
    return jnp.stack([volume[0, 0, 0], jnp.sum(wave * volume), jnp.sum(volume**2)])


def exact(key, posterior):
    return jax.vmap(split(posterior)[0].draw)(jax.random.split(key, DRAWS))


def too_sure(key, posterior):
    draws = exact(key, posterior)
    middle = split(posterior)[0].mean
    return middle[None] + 0.5 * (draws - middle[None])


def without_the_witness(key, posterior):
    return jax.vmap(gaussian_part(posterior).draw)(jax.random.split(key, DRAWS))


def test_exact_draws_are_calibrated(key):
    result = cg.simulation_based_calibration(key, draw_prior, observe, exact, statistics, 320)
    assert result.ranks.shape == (320, 3)
    assert result.num_draws == DRAWS
    assert np.min(result.p_values) > 1e-3
    assert np.min(result.ranks) == 0
    assert np.max(result.ranks) == DRAWS


@pytest.mark.parametrize("sampler", [too_sure, without_the_witness])
def test_wrong_draws_are_not(key, sampler):
    result = cg.simulation_based_calibration(key, draw_prior, observe, sampler, statistics, 320)
    assert np.min(result.p_values) < 1e-6


@pytest.mark.slow
def test_chains_are_calibrated(key):
    def chains(key, posterior):
        return cg.sample(
            key, posterior, sampler="pcnl_unadjusted", num_chains=1, num_steps=DRAWS * 2, num_kept=DRAWS, warmup=0
        ).samples[0]

    result = cg.simulation_based_calibration(key, draw_prior, observe, chains, statistics, 160)
    assert np.min(result.p_values) > 1e-3


def test_too_few_simulations_are_refused(key):
    with pytest.raises(InputError, match="num_simulations=5"):
        cg.simulation_based_calibration(key, draw_prior, observe, exact, statistics, 5)
