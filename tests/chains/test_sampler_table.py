"""Samplers by name: a new one is its own file and one row, what it needs is checked, and every row is documented."""

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax import samplers
from cryowgen_jax.chains.sampler_table import DIAGONAL_DECODER, POSTERIOR, SAMPLERS, WITNESS_BOUND, Sampler, parts
from cryowgen_jax.pytrees import bind
from tests.chains.test_sample import SHAPE, TOLERANCE, Problem, moment_score

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = {"num_chains": 64, "num_steps": 300, "num_kept": 50, "warmup": 60}


# What a sampler's own file holds -------------------------------------------------------------------------------------


class ToyState(NamedTuple):
    position: jax.Array


class ToyInfo(NamedTuple):
    acceptance_rate: jax.Array


def build(witness, gaussian, step_size):
    """Random-walk Metropolis in units of the Gaussian part."""
    return samplers.algorithm(init, bind(step, witness, gaussian, step_size))


def init(position, rng_key=None):
    del rng_key
    return ToyState(position)


def step(witness, gaussian, step_size, rng_key, state):
    noise_key, accept_key = jax.random.split(rng_key)
    proposal = state.position + step_size * (gaussian.draw(noise_key) - gaussian.mean)
    gain = [witness(z) + gaussian.log_density(z) for z in (proposal, state.position)]
    rate = jnp.exp(jnp.minimum(gain[0] - gain[1], 0.0))
    taken = jax.random.uniform(accept_key) < rate
    return ToyState(jnp.where(taken, proposal, state.position)), ToyInfo(rate)


def first_step(gap):
    return 1.0 / (1.0 + gap)


TOY = samplers.Recipe(build, first_step, target=0.35, max_step_size=2.0)


# And its row ---------------------------------------------------------------------------------------------------------


ROW = Sampler("toy", (POSTERIOR, DIAGONAL_DECODER, WITNESS_BOUND), parts, TOY, gradients_per_step=3)


@pytest.fixture
def _with_toy(monkeypatch):
    monkeypatch.setitem(SAMPLERS, ROW.name, ROW)


@pytest.fixture(scope="module")
def small():
    return Problem()


@pytest.mark.usefixtures("_with_toy")
def test_a_new_sampler_runs_by_its_name(key, small):
    result = cg.sample(key, small.hidden, sampler="toy", **RUN)
    assert result.sampler == "toy"
    assert result.status == "ok"
    assert result.num_gradients == 3 * 64 * (300 + 60)
    np.testing.assert_allclose(result.acceptance, TOY.target, atol=0.1)  # warm-up steered to it
    assert moment_score(result, small.law.mean, small.law.covariances[0]) < TOLERANCE
    assert moment_score(result, small.law.mean, 0.7 * small.law.covariances[0]) > TOLERANCE
    fixed = cg.sample(key, small.hidden, sampler="toy", num_chains=2, num_steps=4, warmup=0)
    assert 0 < float(fixed.step_size) < 1  # first_step of a bound that is known


@pytest.mark.usefixtures("_with_toy")
def test_a_new_sampler_s_needs_are_checked(key, small):
    with pytest.raises(ValueError, match=r"sampler='toy' needs a cg\.Posterior"):
        cg.sample(key, small.open.log_density, sampler="toy", init=jnp.zeros(SHAPE))
    turned = dataclasses.replace(small.hidden, decoder=jax.tree_util.Partial(jnp.tanh))
    with pytest.raises(TypeError, match="sampler='toy' needs a decoder with a Fourier transfer"):
        cg.sample(key, turned, sampler="toy")
    unknown = dataclasses.replace(small.hidden, witness=jax.tree_util.Partial(jnp.sum))
    with pytest.raises(ValueError, match=r"sampler='toy' takes its step size from a curvature bound"):
        cg.sample(key, unknown, sampler="toy")


@pytest.mark.parametrize("wrong", ["gibbs", 3.0])
def test_the_error_names_what_there_is(key, small, wrong, request):
    def named():
        with pytest.raises(ValueError, match="give one of") as caught:
            cg.sample(key, small.hidden, sampler=wrong)
        return str(caught.value).partition("give one of ")[2].partition(" or a BlackJAX")[0].split(", ")

    assert named() == ["auto", *SAMPLERS]
    assert "toy" not in SAMPLERS
    request.getfixturevalue("_with_toy")
    assert named() == ["auto", *SAMPLERS]
    assert "toy" in SAMPLERS


# All rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_documented(name):
    assert SAMPLERS[name].name == name
    assert f'"{name}"' in cg.sample.__doc__
    assert f'`"{name}"`' in (ROOT / "docs" / "samplers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name, row in SAMPLERS.items() if POSTERIOR in row.needs])
def test_samplers_that_know_the_gaussian_part_draw_it_exactly_where_nothing_else_is_left(key, small, name):
    result = cg.sample(key, small.open, sampler=name, num_chains=2, num_steps=4)
    assert result.sampler == "exact Gaussian draws"
    assert result.num_gradients == 0
