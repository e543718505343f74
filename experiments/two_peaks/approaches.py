"""The four methods on one observation or on a batch: families by the library, single curves written out here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import signals
from scipy.optimize import linear_sum_assignment

import cryowgen_jax as cg
from cryowgen_jax.chains.annealing import TRACED_RUNGS

CHAINS = 64
SHORT_RUN = 64  # steps
STEP, LONG_STEP = 0.2, 1.5  # in units of 1 / largest curvature: what ``cg.sample`` takes, and close to the limit 2
ASCENT_STEPS = 1000
BATCH_STEPS = 512


class Family(NamedTuple):
    """Draws of equal weight (K, LENGTH), the mean, effective sample size and R-hat (nan where there is none)."""

    draws: np.ndarray
    mean: np.ndarray
    ess: float
    r_hat: float


Sampler = str | Callable[..., object]  # a name, or (log-density, step size) -> BlackJAX algorithm
FamilyMethod = Callable[[jax.Array, cg.Posterior, int, int], Family]  # key, posterior, evaluations, draws


def importance(key: jax.Array, posterior: cg.Posterior, budget: int, draws: int, *, reference: str) -> Family:
    """CryoWGEN-I, resampled to equal weights for its band."""
    weighted = cg.importance_sample(key, posterior, budget, reference=reference, batch_size=4096)
    order = jax.random.choice(jax.random.fold_in(key, budget), budget, (draws,), p=jax.nn.softmax(weighted.log_weights))
    return Family(np.asarray(weighted.samples[order]), np.asarray(weighted.mean), float(weighted.ess), np.nan)


def chains(
    key: jax.Array,
    posterior: cg.Posterior,
    budget: int,
    draws: int,
    *,
    sampler: Sampler,
    step: float = np.nan,
    num_chains: int = CHAINS,
    gradients_per_step: int = 1,
) -> Family:
    """CryoWGEN-II: chains from draws of the Gaussian part, a quarter of the budget for warm-up.

    ``sampler`` is a name that ``cg.sample`` knows, or a kernel of the library with a fixed step, given in units of
    1 / largest curvature.
    """
    steps = budget // num_chains // gradients_per_step
    warmup = steps // 4
    kept = min(draws // num_chains, steps - warmup)
    result = _sample(key, posterior, None, step, sampler, num_chains, steps - warmup, warmup, kept)
    kept = np.asarray(result.samples).reshape(-1, signals.LENGTH)
    return Family(kept, np.asarray(result.mean), float(result.ess), float(result.r_hat))


def short_chains(
    key: jax.Array, posterior: cg.Posterior, budget: int, draws: int, *, sampler: Sampler, step: float = np.nan
) -> Family:
    """CryoWGEN-II in a hurry: as many chains as the budget buys, all from z-bar, the last state of each."""
    del draws
    result = _sample(key, posterior, posterior.center, step, sampler, budget // SHORT_RUN, SHORT_RUN, 0, 1)
    kept = np.asarray(result.samples[:, -1])
    return Family(kept, kept.mean(axis=0), np.nan, np.nan)


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7, 8))
def _sample(
    key: jax.Array,
    posterior: cg.Posterior,
    init: jax.Array | None,
    step: jax.Array,
    sampler: Sampler,
    num_chains: int,
    num_steps: int,
    warmup: int,
    num_kept: int,
) -> cg.ChainResult:
    """``cg.sample`` as one compiled program, the same for all bands and steps."""
    return cg.sample(
        key,
        posterior,
        sampler=sampler if isinstance(sampler, str) else sampler(posterior.log_density, step / signals.STIFFEST),
        num_chains=num_chains,
        num_steps=num_steps,
        warmup=warmup,
        num_kept=num_kept,
        init=init,
    )


MAP, OT = "CryoGEN-I (MAP)", "CryoGEN-II (OT)"
TRAINED_MAP, TRAINED_OT = "CryoGEN-I, trained", "CryoGEN-II, trained"
PUBLISHED_I, GAUSSIAN_I = "I, conditional prior (published)", "I, Gaussian part"
PUBLISHED_II, PCNL, TEMPERED = "II, Langevin (published)", "II, pcnl", "II, tempered"
FAMILIES: dict[str, FamilyMethod] = {
    PUBLISHED_I: functools.partial(importance, reference="conditional_prior"),
    GAUSSIAN_I: functools.partial(importance, reference="gaussian"),
    f"II, Langevin, {SHORT_RUN} steps from z-bar": functools.partial(short_chains, sampler=cg.langevin, step=STEP),
    PUBLISHED_II: functools.partial(chains, sampler=cg.langevin, step=STEP),
    "II, Langevin, long steps": functools.partial(chains, sampler=cg.langevin, step=LONG_STEP),
    "II, Leimkuhler-Matthews, long steps": functools.partial(chains, sampler=cg.leimkuhler_matthews, step=LONG_STEP),
    PCNL: functools.partial(chains, sampler="pcnl"),
    TEMPERED: functools.partial(chains, sampler="tempered", num_chains=16, gradients_per_step=TRACED_RUNGS + 1),
}


def maximum_a_posteriori(observations: np.ndarray, width: int) -> np.ndarray:
    """CryoGEN-I: gradient ascent of the exponent F from z-bar for a batch, (N, LENGTH) -> (N, LENGTH)."""
    return np.asarray(_ascend(signals.posterior(observations[0], width), jnp.asarray(observations, jnp.float32)))


@jax.jit
def _ascend(posterior: cg.Posterior, observations: jax.Array) -> jax.Array:
    def answer(observation: jax.Array) -> jax.Array:
        mine = dataclasses.replace(posterior, observation=observation)

        def rise(_: jax.Array, position: jax.Array) -> jax.Array:
            return position + mine.drift(position) / signals.STIFFEST

        return jax.lax.fori_loop(0, ASCENT_STEPS, rise, posterior.center)

    return jax.vmap(answer)(observations)


def optimal_transport(rng: np.random.Generator, law: signals.Exact, labels: np.ndarray) -> np.ndarray:
    """CryoGEN-II: the cheapest assignment of components to a batch that uses them as often as the prior says.

    The semi-discrete problem of optimal transport between observations and library, at temperature zero and solved
    exactly. Each observation then gets the most probable signal of its component, (N, LENGTH). Where costs tie, every
    assignment is optimal; the shuffle leaves the choice to chance.
    """
    places = rng.permutation(labels)  # component j as often as in the prior
    rows, columns = linear_sum_assignment(law.cost[:, places])
    return law.means[rows, places[columns]]


def one_draw_each(key: jax.Array, observations: np.ndarray, width: int) -> np.ndarray:
    """CryoWGEN-II for a batch: one pcnl chain per observation, the last state of each, (N, LENGTH)."""
    keys = jax.random.split(key, len(observations))
    posterior = signals.posterior(observations[0], width)
    return np.asarray(_last_states(keys, posterior, jnp.asarray(observations, jnp.float32)))


@jax.jit
def _last_states(keys: jax.Array, posterior: cg.Posterior, observations: jax.Array) -> jax.Array:
    def answer(key: jax.Array, observation: jax.Array) -> jax.Array:
        mine = dataclasses.replace(posterior, observation=observation)
        return cg.sample(key, mine, sampler="pcnl", num_chains=1, num_steps=BATCH_STEPS, num_kept=1).samples[0, -1]

    return jax.vmap(answer)(keys, observations)
