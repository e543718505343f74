"""CryoGEN-I and II with nothing given but signals and observations: an energy and a network that answers to it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import signals
from flax import nnx

import cryowgen_jax as cg
from cryowgen_jax.training import Amortisation, AmortisedNegatives, Model, train

Method = Literal["cryogen_map", "cryogen_ot"]

SEED = 7
HIDDEN = 256  # units of each of two layers
ITERATIONS, STEPS = 1000, 8  # of the energy, and of the network in each
BATCH_SIZE = 64
SAMPLES = 4096  # observations, and as many signals of other draws
MODES = 8  # of the energy, more than there are components; each starts at a signal


class Answers(nnx.Module):
    """Observation -> signal: the observation plus what two layers make of it."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(signals.LENGTH, HIDDEN, rngs=rngs)
        self.second = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.last = nnx.Linear(HIDDEN, signals.LENGTH, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, observation: jax.Array) -> jax.Array:
        """The signal."""
        return observation + self.last(jax.nn.silu(self.second(jax.nn.silu(self.first(observation)))))


def mixture(means: jax.Array, logits: jax.Array, position: jax.Array) -> jax.Array:
    """The energy as a witness: known texture about modes, whose shapes and weights are learned."""
    variance = 1 / (1 / signals.TEXTURE_VARIANCE - signals.PRIOR_PRECISION)
    return jax.nn.logsumexp(logits - 0.5 * jnp.sum((position - means) ** 2, axis=-1) / variance)


def answers(method: Method, observations: np.ndarray, width: int, iterations: int = ITERATIONS) -> np.ndarray:
    """A trained network's answers, (N, LENGTH) -> (N, LENGTH); it has seen none of these observations."""
    answer = network(method, width, iterations)
    return np.asarray(jax.jit(jax.vmap(answer))(jnp.asarray(observations, jnp.float32)))


def network(method: Method, width: int, iterations: int) -> Callable[[jax.Array], jax.Array]:
    """Train energy and network on observations, and on signals that are not those behind them."""
    rng = np.random.default_rng([SEED, width])
    seen = signals.draw_batch(rng, width, SAMPLES).observations
    clean = jnp.asarray(signals.draw_batch(rng, width, SAMPLES).truths[1:], jnp.float32)
    start = jax.tree_util.Partial(mixture, clean[rng.integers(len(clean), size=MODES)], jnp.zeros(MODES))
    decoder = cg.Wedge(jnp.asarray(signals.band_mask(width), jnp.float32))
    weights = (jnp.log(signals.DATA_WEIGHT), jnp.log(signals.PRIOR_PRECISION))
    found = train(
        jax.random.key(SEED),
        Model(start, decoder, jnp.zeros_like, *weights),
        jnp.asarray(seen, jnp.float32),
        clean,
        negatives=_negatives(method, iterations),
        optimizer=_adam(1e-2, iterations),
        num_iterations=iterations,
        batch_size=BATCH_SIZE,
    )
    for words in found.warnings:
        print(f"{method}, {width} missing: {words}")
    return found.state.network


@functools.cache
def _negatives(method: Method, iterations: int) -> AmortisedNegatives:
    """One object for all widths, which so compile once."""
    start = cg.from_nnx(Answers(nnx.Rngs(0)))
    return AmortisedNegatives(start, Amortisation(method), _adam(1e-3, iterations * STEPS), STEPS)


@functools.cache
def _adam(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, steps)))
