"""Samplers of other libraries for ``samplers.py``, all on one interface, each tuned by its own library's adaptation.

Positions are flat arrays. Chains run one by one in a compiled scan, as large chains of this library do on CPUs, in
programs compiled with the same options.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import timing
from blackjax.adaptation.base import get_filter_adapt_info_fn
from blackjax.adaptation.step_size import dual_averaging_adaptation

import cryowgen_jax as cg
from cryowgen_jax import platform
from cryowgen_jax.chains.summaries import ShellSummary

MALA_TARGET = 0.574
MAX_DOUBLINGS, TUNING_DOUBLINGS = 8, 5  # of NUTS; shallow in warm-up, so that it can be long enough to find its step
CHUNKS = 8

LogDensity = Callable[[jax.Array], jax.Array]


class Target(NamedTuple):
    """A pytree: what to sample, what to record, and the largest curvature of the exponent."""

    posterior: cg.Posterior
    summary: ShellSummary
    stiffest: jax.Array

    def flat(self, position: jax.Array) -> jax.Array:
        """Log-density of a flat position."""
        return self.posterior.log_density(position.reshape(self.posterior.center.shape))


class Lengths(NamedTuple):
    """Steps of every chain: to tune with, to throw away after it, records, and steps between records."""

    tuning: int
    burn_in: int
    records: int
    stride: int


class Peer(NamedTuple):
    """A sampler.

    ``tune``: (target, steps, keys, flat starts), chains leading -> states, chains leading, and gradients of all chains.
    ``step``: (target, key, state of one chain) -> state, flat position, gradients. ``label`` says what is special.
    """

    tune: Callable[[Target, int, jax.Array, jax.Array], tuple[Any, jax.Array]]
    step: Callable[[Target, jax.Array, Any], tuple[Any, jax.Array, jax.Array]]
    label: str = ""


class Outcome(NamedTuple):
    """Records (chains, draws, summaries), mean volume over them, gradients, and processor seconds per gradient."""

    records: jax.Array
    mean: jax.Array
    warmup_gradients: int
    gradients: int
    seconds_per_gradient: float
    label: str


def run(peer: Peer, target: Target, key: jax.Array, starts: jax.Array, lengths: Lengths) -> Outcome:
    """Tune, burn in and sample, in ``CHUNKS`` calls of one program, of which the first is not timed."""
    shape = target.posterior.center.shape
    keys = jax.random.split(key, starts.shape[0])
    tuned = platform.jit(functools.partial(_tune, peer, lengths.tuning))
    burnt = platform.jit(functools.partial(_advance, peer, 1, max(1, lengths.burn_in)))
    advance = platform.jit(functools.partial(_advance, peer, lengths.records // CHUNKS, lengths.stride))
    states, tuning = tuned(target, _fold(keys, 0), starts.reshape(starts.shape[0], -1))
    states, _, _, burning = burnt(target, _fold(keys, 1), states)
    warmup = int(tuning) + int(burning)
    records, means, gradients, timed, seconds = [], [], 0, 0, 0.0
    for chunk in range(CHUNKS):
        start = timing.now()
        states, recorded, mean, count = jax.block_until_ready(advance(target, _fold(keys, 2 + chunk), states))
        gradients += int(count)
        if chunk > 0:
            timed, seconds = timed + int(count), seconds + timing.since(start).processor
        records.append(recorded)
        means.append(mean)
    mean = jnp.mean(jnp.stack(means), (0, 1)).reshape(shape)
    return Outcome(jnp.concatenate(records, 1), mean, warmup, gradients, seconds / timed, peer.label)


def _fold(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _tune(peer: Peer, steps: int, target: Target, keys: jax.Array, starts: jax.Array) -> tuple[Any, jax.Array]:
    return peer.tune(target, steps, keys, starts)


def _advance(
    peer: Peer, records: int, stride: int, target: Target, keys: jax.Array, states: Any
) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """States, records, mean position per chain, and gradients of all chains."""
    shape = target.posterior.center.shape

    def chain(inputs: tuple[jax.Array, Any]) -> Any:
        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            state, _, count = carry
            state, position, gradients = peer.step(target, key, state)
            return (state, position, count + gradients), None

        def record(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            (state, total, count) = carry
            inside = (state, jnp.zeros_like(total), count)
            (state, position, count), _ = jax.lax.scan(step, inside, jax.random.split(key, stride))
            return (state, total + position, count), target.summary(position.reshape(shape))

        zero = jnp.zeros(target.posterior.center.size)
        carry = (inputs[1], zero, jnp.zeros((), jnp.int32))
        (state, total, count), recorded = jax.lax.scan(record, carry, jax.random.split(inputs[0], records))
        return state, recorded, total / records, count

    states, recorded, means, counts = jax.lax.map(chain, (keys, states))
    return states, recorded, means, jnp.sum(counts)


def over_chains(function: Callable[..., Any], *arrays: jax.Array) -> Any:
    return jax.lax.map(lambda inputs: function(*inputs), arrays)


# blackjax.sgld: nothing to tune but the step, which comes from the stability limit


def sgld(fraction: float) -> Peer:
    """Step ``fraction`` of the stability limit 2 / (largest curvature): a stiff mode's variance is 1/(1 - fraction)."""

    def tune(target: Target, steps: int, keys: jax.Array, starts: jax.Array) -> tuple[jax.Array, jax.Array]:
        del target, steps, keys
        return starts, jnp.zeros((), jnp.int32)

    def step(target: Target, key: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        algorithm = blackjax.sgld(lambda position, _: jax.grad(target.flat)(position))
        state = algorithm.step(key, state, None, 2 * fraction / target.stiffest)
        return state, state, 1

    return Peer(tune, step, f"step {fraction:g} of the stability limit")


# blackjax.mala with dual averaging


def mala() -> Peer:
    def tune(target: Target, steps: int, keys: jax.Array, starts: jax.Array) -> tuple[Any, jax.Array]:
        begin, update, final = dual_averaging_adaptation(MALA_TARGET)

        def chain(key: jax.Array, start: jax.Array) -> Any:
            def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
                state, averages = carry
                state, info = blackjax.mala(target.flat, jnp.exp(averages.log_step_size)).step(key, state)
                return (state, update(averages, jnp.nan_to_num(info.acceptance_rate))), None

            first = (blackjax.mala(target.flat, 1.0).init(start), begin(0.1 / target.stiffest))
            (state, averages), _ = jax.lax.scan(step, first, jax.random.split(key, steps))
            return state, jnp.log(final(averages))

        states, logs = over_chains(chain, keys, starts)
        pooled = jnp.full(starts.shape[0], jnp.exp(jnp.mean(logs)))
        return (states, pooled), jnp.int32(starts.shape[0] * (steps + 1))

    def step(target: Target, key: jax.Array, state: Any) -> tuple[Any, jax.Array, int]:
        inner, step_size = state
        inner, _ = blackjax.mala(target.flat, step_size).step(key, inner)
        return (inner, step_size), inner.position, 1

    return Peer(tune, step, f"dual averaging to {MALA_TARGET}")


# blackjax.nuts with window adaptation


def nuts() -> Peer:
    def tune(target: Target, steps: int, keys: jax.Array, starts: jax.Array) -> tuple[Any, jax.Array]:
        adaptation = blackjax.window_adaptation(
            blackjax.nuts,
            target.flat,
            initial_step_size=jax.lax.rsqrt(target.stiffest),
            adaptation_info_fn=get_filter_adapt_info_fn(info_keys={"num_integration_steps"}),
            max_num_doublings=TUNING_DOUBLINGS,
        )

        def chain(key: jax.Array, start: jax.Array) -> Any:
            (state, parameters), info = adaptation.run(key, start, steps)
            tuned = (parameters["step_size"], parameters["inverse_mass_matrix"])
            return (state, *tuned), jnp.sum(info.info.num_integration_steps)

        states, counts = over_chains(chain, keys, starts)
        return states, jnp.sum(counts)

    def step(target: Target, key: jax.Array, state: Any) -> tuple[Any, jax.Array, jax.Array]:
        inner, step_size, metric = state
        algorithm = blackjax.nuts(target.flat, step_size, metric, max_num_doublings=MAX_DOUBLINGS)
        inner, info = algorithm.step(key, inner)
        return (inner, step_size, metric), inner.position, jnp.int32(info.num_integration_steps)

    return Peer(tune, step, f"window adaptation, at most 2^{MAX_DOUBLINGS} leapfrog steps a draw")


# blackjax.mclmc with its own search for step size and L


def mclmc() -> Peer:
    kernel = blackjax.mcmc.mclmc.build_kernel()

    def tune(target: Target, steps: int, keys: jax.Array, starts: jax.Array) -> tuple[Any, jax.Array]:
        """Parameters from the first chain; the others take them over at their starts."""
        size = starts.shape[1]
        scale = jnp.sqrt(jnp.float32(size))
        guess = blackjax.adaptation.mclmc_adaptation.MCLMCAdaptationState(
            scale, 0.25 * scale * jax.lax.rsqrt(target.stiffest), jnp.ones(size)
        )
        first = blackjax.mcmc.mclmc.init(starts[0], target.flat, keys[0])
        fractions = {
            "frac_tune1": 0.4,
            "frac_tune2": 0.3,
            "frac_tune3": 0.2,
        }  # 0.3 counts 4/3 fold, so all of ``steps``
        _, parameters, count = blackjax.mclmc_find_L_and_step_size(
            kernel, steps, first, jax.random.fold_in(keys[0], 1), target.flat, params=guess, **fractions
        )
        states = over_chains(lambda key, start: blackjax.mcmc.mclmc.init(start, target.flat, key), keys, starts)
        repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (starts.shape[0], *jnp.shape(x))), tuple(parameters))
        return (states, *repeated), jnp.int32(2 * count + starts.shape[0] + 1)

    def step(target: Target, key: jax.Array, state: Any) -> tuple[Any, jax.Array, int]:
        inner, length, step_size, metric = state
        inner, _ = kernel(key, inner, target.flat, metric, length, step_size)
        return (inner, length, step_size, metric), inner.position, 2

    return Peer(tune, step, "mclmc_find_L_and_step_size, two gradients a step")


# numpyro's NUTS with its own warm-up


def numpyro_nuts(target: Target, tuning: int) -> Peer | None:
    """None where numpyro is not installed. Its kernel is made for one target."""
    try:
        from numpyro.infer import NUTS
    except ImportError:
        return None
    kernel = NUTS(
        potential_fn=lambda position: -target.flat(position), max_tree_depth=(TUNING_DOUBLINGS, MAX_DOUBLINGS)
    )

    def tune(_: Target, steps: int, keys: jax.Array, starts: jax.Array) -> tuple[Any, jax.Array]:
        def chain(key: jax.Array, start: jax.Array) -> Any:
            def step(carry: Any, _: None) -> tuple[Any, None]:
                state, count = carry
                state = kernel.sample(state, (), {})
                return (state, count + state.num_steps), None

            first = (kernel.init(key, tuning, start, (), {}), jnp.zeros((), jnp.int32))
            return jax.lax.scan(step, first, None, length=steps)[0]

        states, counts = over_chains(chain, keys, starts)
        return states, jnp.sum(counts)

    def step(_: Target, key: jax.Array, state: Any) -> tuple[Any, jax.Array, jax.Array]:
        del key  # numpyro keeps its own
        state = kernel.sample(state, (), {})
        return state, state.z, state.num_steps

    return Peer(tune, step, f"its own warm-up, at most 2^{MAX_DOUBLINGS} leapfrog steps a draw")
