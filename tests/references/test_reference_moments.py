"""Chains of our kernels and of BlackJAX's, all in ``cg.sample``, against moments that others state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax import potentials
from tests.references.targets import Target, load

CHAINS = 32
TOLERANCE = 5  # standard errors, the largest of all means and variances of a target


def score(target: Target, samples: jax.Array) -> float:
    """Means and variances in standard errors: the spread between independent chains, and the collection's own."""
    values = np.asarray(jax.jit(target.quantities)(samples), float)
    scores = standard_scores(values, target.mean, target.mean_error)
    squares = (values - target.mean) ** 2
    scores = np.append(scores, standard_scores(squares, target.variance, squares.std((0, 1)) / target.draws**0.5))
    return float(np.max(np.abs(scores)))


def standard_scores(values: np.ndarray, expected: np.ndarray, expected_error: np.ndarray) -> np.ndarray:
    chains = values.mean(axis=1)
    error = chains.std(axis=0, ddof=1) / np.sqrt(len(chains))
    return (chains.mean(axis=0) - expected) / np.hypot(error, expected_error)


def starts(key: jax.Array, target: Target) -> jax.Array:
    return jax.random.normal(key, (CHAINS, target.size))


# Samplers: (key, target) -> posterior or log-density, sampler, and where the chains start, as cg.sample takes them


Sampler = Callable[[jax.Array, Target], tuple[Any, Any, jax.Array | None]]


def by_name(name: str) -> Sampler:
    return lambda key, target: (target.log_density, name, starts(key, target))


def with_step(build: Callable[..., Any], step_size: float) -> Sampler:
    return lambda key, target: (
        target.log_density,
        build(target.log_density, step_size),
        starts(key, target),
    )


def tethered(target: Target, precision: float) -> cg.Posterior:
    """The target as e^w N(0, I / precision), w all that its log-density has beyond this Gaussian."""

    def witness(position: jax.Array) -> jax.Array:
        return target.log_density(position) + 0.5 * precision * jnp.sum(position**2)

    nothing, unseen = jnp.zeros(target.size), cg.Wedge(jnp.zeros(target.size // 2 + 1))
    return cg.Posterior(witness, unseen, nothing, nothing, jnp.float32(1.0), jnp.float32(precision))


def of_a_posterior(name: str) -> Sampler:
    return lambda key, target: (tethered(target, 1.0), name, None)


def of_its_parts(build: Callable[..., Any], step_size: float) -> Sampler:
    """A kernel of ours for a Gaussian part that is of twice the target's variance, so that the witness has a say."""

    def sampler(key: jax.Array, target: Target) -> tuple[Any, Any, jax.Array]:
        posterior = tethered(target, 0.5)
        kernel = build(posterior.witness, potentials.gaussian_part(posterior), step_size)
        return posterior, kernel, starts(key, target)

    return sampler


def adapted(build: Callable[..., Any], num_steps: int, *, diagonal: bool = True, **parameters: int) -> Sampler:
    """A kernel of BlackJAX after its own window adaptation of every chain, which leaves the chains warmed up.

    All take the mean of the chains' mass matrices and a step size that three quarters of them exceed.
    """

    def sampler(key: jax.Array, target: Target) -> tuple[Any, Any, jax.Array]:
        adaptation = blackjax.window_adaptation(
            build, target.log_density, is_mass_matrix_diagonal=diagonal, **parameters
        )

        def warm_up(key: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            (state, found), _ = adaptation.run(key, start, num_steps=num_steps)
            return state.position, found["step_size"], found["inverse_mass_matrix"]

        keys = jax.random.split(jax.random.fold_in(key, 1), CHAINS)
        positions, step_sizes, masses = jax.jit(jax.vmap(warm_up))(keys, starts(key, target))
        step_size = float(jnp.quantile(step_sizes, 0.25))
        kernel = build(target.log_density, step_size, jnp.mean(masses, axis=0), **parameters)
        return target.log_density, kernel, positions

    return sampler


def adapted_hmc(num_steps: int, num_integration_steps: int, *, diagonal: bool = True) -> Sampler:
    return adapted(blackjax.hmc, num_steps, diagonal=diagonal, num_integration_steps=num_integration_steps)


def coordinate_slices(width: float, most_doublings: int) -> Sampler:
    """Neal's, which needs no gradient and no scale."""

    def sampler(key: jax.Array, target: Target) -> tuple[Any, Any, jax.Array]:
        kernel = blackjax.coordinate_slice(target.log_density, initial_widths=width, max_expansions=most_doublings)
        return target.log_density, kernel, starts(key, target)

    return sampler


def blackjax_hmc(size: int, num_integration_steps: int) -> Callable[..., Any]:
    return lambda log_density, step_size: blackjax.hmc(log_density, step_size, jnp.ones(size), num_integration_steps)


class Case(NamedTuple):
    """A target, a sampler for it, and the steps of every chain."""

    target: str
    sampler: Sampler
    num_steps: int
    warmup: int = 0


def draw(key: jax.Array, target: Target, case: Case) -> cg.ChainResult:
    posterior, sampler, positions = case.sampler(jax.random.fold_in(key, 2), target)
    return cg.sample(
        key,
        posterior,
        sampler=sampler,
        init=positions,
        num_chains=CHAINS,
        num_steps=case.num_steps,
        num_kept=case.num_steps // 2,
        warmup=case.warmup,
        devices=jax.local_devices()[:1],  # any number gives the same samples; each compiles anew
    )


CASES = {
    "leimkuhler_matthews, brownian motion": Case("brownian motion", with_step(cg.leimkuhler_matthews, 0.05), 1600, 200),
    "blackjax mala, brownian motion": Case("brownian motion", with_step(blackjax.mala, 0.04), 2000, 500),
    "auto, brownian motion": Case("brownian motion", of_a_posterior("auto"), 600, 200),
    "tempered by name, quartic": Case("quartic", of_a_posterior("tempered"), 600, 100),
    "mala by name, quartic": Case("quartic", by_name("mala"), 3000, 500),
    "langevin, eight schools": Case("eight schools", with_step(cg.langevin, 0.01), 4000, 1000),
    "leimkuhler_matthews, gaussian": Case("gaussian", with_step(cg.leimkuhler_matthews, 0.2), 600, 100),
    "blackjax nuts, eight schools": Case("eight schools", adapted(blackjax.nuts, 200), 100),
    "blackjax hmc, banana": Case("banana", with_step(blackjax_hmc(2, 20), 0.1), 800, 100),
    "blackjax hmc, ill-conditioned gaussian": Case(
        "ill-conditioned gaussian", adapted_hmc(300, 8, diagonal=False), 200
    ),
    "blackjax hmc, stock volatility": Case("stock volatility", adapted_hmc(150, 16), 150),
    "blackjax hmc, lorenz bridge": Case("lorenz bridge", with_step(blackjax_hmc(90, 16), 0.2), 150, 50),
    "blackjax hmc, stock volatility, logarithms": Case("stock volatility, logarithms", adapted_hmc(150, 16), 150),
    "blackjax coordinate slices, funnel": Case("funnel", coordinate_slices(2.0, 6), 800, 200),
}
COMPUTES = {
    "kinetic, item response": Case("item response", of_its_parts(cg.kinetic, 0.4), 180, 30),
    "pcnl, cox process": Case("cox process", of_its_parts(cg.pcnl, 0.15), 240, 40),
}
CASES |= COMPUTES


def marked(name: str) -> Any:
    return pytest.param(name, marks=[pytest.mark.computes] if name in COMPUTES else [])


@pytest.mark.slow
@pytest.mark.parametrize("name", [marked(name) for name in CASES])
def test_chains_reach_the_stated_moments(key, name):
    case = CASES[name]
    target = load(case.target)
    result = draw(key, target, case)
    assert result.status == "ok"
    assert score(target, result.samples) < TOLERANCE
    assert score(target._replace(variance=0.5 * target.variance), result.samples) > TOLERANCE


@pytest.mark.slow
def test_chains_at_half_the_temperature_do_not(key):
    case = CASES["leimkuhler_matthews, brownian motion"]
    target = load(case.target)
    colder = target._replace(log_density=lambda position: 2.0 * target.log_density(position))
    result = draw(key, colder, case)
    assert score(target, result.samples) > 2 * TOLERANCE
    assert score(target._replace(variance=0.5 * target.variance), result.samples) < TOLERANCE
