"""The programs that ``step_cost.py`` times: what one call of each does, and how many steps it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import timing
from convolution import plain_layer, plain_witness
from flax import nnx
from jax import lax

import cryowgen_jax as cg
from cryowgen_jax import platform
from cryowgen_jax.chains import run
from cryowgen_jax.chains.assembly import assemble
from cryowgen_jax.chains.schedule import Chunk
from cryowgen_jax.models import ConvWitness, convolve3, from_nnx
from cryowgen_jax.models.convolution import halve

STRIDE = 4  # steps between records: what ``cg.sample`` takes for its 2000 steps of a 32^3 volume
ETA = 1e-3


class Variant(NamedTuple):
    """``time()`` takes ``steps`` steps of all chains, waits for them and says how long they took."""

    time: Callable[[], timing.Seconds]
    steps: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeepWitness:
    """1 -> 8 -> 16 -> 16 channels, 3^3 filters, SiLU, halved between layers; the sum of the last features."""

    kernels: tuple[jax.Array, ...]

    def __call__(self, volume: jax.Array) -> jax.Array:
        """Energy of one volume."""
        level = volume[..., None]
        for i, kernel in enumerate(self.kernels):
            level = jax.nn.silu(convolve3(level if i == 0 else halve(level), kernel))
        return jnp.sum(level)

    def curvature_bounds(self) -> tuple[jax.Array, jax.Array]:
        """Nominal: the benchmark only needs a step size."""
        return jnp.zeros(()), jnp.full((), 100.0)


def plain_deep(volumes: jax.Array, witness: DeepWitness) -> jax.Array:
    """The same written with ``flax.linen.Conv``, batch first."""
    level = volumes[..., None]
    for i, kernel in enumerate(witness.kernels):
        level = jax.nn.silu(plain_layer(level if i == 0 else jax.vmap(halve)(level), kernel))
    return jnp.sum(level, (1, 2, 3, 4))


def witnesses(network: str) -> tuple[Any, Callable[[jax.Array, Any], jax.Array]]:
    """The library's witness and the plain one, (volumes, library's witness) -> energies."""
    if network == "ridge":
        module = from_nnx(ConvWitness(rngs=nnx.Rngs(0)))
        return module, lambda z, w: plain_witness(z, nnx.merge(w.structure, w.variables))
    shapes = ((1, 8), (8, 16), (16, 16))
    keys = jax.random.split(jax.random.key(0), 3)
    made = [jax.random.normal(k, (3, 3, 3, *s)) / (27 * s[0]) ** 0.5 for k, s in zip(keys, shapes, strict=True)]
    return DeepWitness(tuple(made)), plain_deep


def build(network: str, size: int, chains: int, steps: int, plain_steps: int) -> dict[str, Variant]:
    """All JAX programs for one network; ``steps`` is a multiple of ``STRIDE``."""
    witness, plain = witnesses(network)
    decoder = cg.Wedge(cg.wedge_mask((size,) * 3))
    key = jax.random.key(0)
    start = jax.random.normal(key, (chains, size, size, size))
    posterior = cg.Posterior(witness, decoder, decoder(start[0]), jnp.zeros((size,) * 3), 10.0, 1.0)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(chains))

    def program(function: Callable[..., Any], *arguments: Any) -> Variant:
        compiled = platform.jit(function)
        return Variant(lambda: timing.seconds(lambda: jax.block_until_ready(compiled(*arguments))), steps)

    def gradients(z: jax.Array, w: Any) -> jax.Array:
        return move(z, jax.vmap(jax.grad(w))(z))

    def plain_gradients(z: jax.Array, w: Any) -> jax.Array:
        return move(z, jax.grad(lambda x: jnp.sum(plain(x, w)))(z))

    def move(z: jax.Array, slope: jax.Array) -> jax.Array:
        return z + 1e-6 * slope

    def scan(step: Callable[..., jax.Array], length: int) -> Callable[..., jax.Array]:
        return lambda z, w: lax.scan(lambda state, _: (step(state, w), None), z, None, length=length)[0]

    plainly = jax.jit(scan(plain_gradients, plain_steps))
    return {
        "driver": driver(posterior, key, start, steps),
        "value_and_grad": program(vectorised(floor, steps), posterior, keys, start),
        "value_and_grad, one by one": program(one_by_one(floor, steps), posterior, keys, start),
        "grad, one by one": program(one_by_one(bare_floor, steps), posterior, keys, start),
        "sgld": program(vectorised(sgld, steps), posterior, keys, start),
        "witness": program(scan(gradients, steps), start, witness),
        "plain Flax": Variant(lambda: timing.seconds(lambda: plainly(start, witness).block_until_ready()), plain_steps),
    }


def driver(posterior: cg.Posterior, key: jax.Array, start: jax.Array, steps: int) -> Variant:
    """``cg.sample``'s loop with sampler "langevin": steps, streamed moments, records, kept draws, checks for nan.

    Timed from the callback after a first, short chunk to the one after the chunk of ``steps`` steps, so that what a run
    does once is left out, and all that the host does per chunk is in.
    """
    assembly = assemble(jax.random.key(0), posterior, "langevin", None)
    chunks = [Chunk("sampling", 1, 1, STRIDE), Chunk("sampling", steps // STRIDE, 1, STRIDE)]

    def measure() -> timing.Seconds:
        reports: list[timing.Seconds] = []
        run.run(
            key,
            assembly.kernel,
            start,
            assembly.summary,
            chunks,
            devices=jax.local_devices()[:1],
            progress=lambda _: reports.append(timing.now()),
        )
        return timing.since(*reports)

    return Variant(measure, steps)


Step = Callable[[cg.Posterior, jax.Array, jax.Array], tuple[jax.Array, Any]]


def floor(posterior: cg.Posterior, key: jax.Array, position: jax.Array) -> tuple[jax.Array, Any]:
    """Value and gradient of the exponent and one normal draw; the sum keeps the compiler from removing either."""
    value, slope = jax.value_and_grad(posterior.log_density)(position)
    return position + ETA * slope + (2 * ETA) ** 0.5 * jax.random.normal(key, position.shape), value


def bare_floor(posterior: cg.Posterior, key: jax.Array, position: jax.Array) -> tuple[jax.Array, Any]:
    """Without the value, which an unadjusted chain has no use for."""
    return floor(posterior, key, position)[0], None


def sgld(posterior: cg.Posterior, key: jax.Array, position: jax.Array) -> tuple[jax.Array, Any]:
    """BlackJAX's kernel: no statistics, last position only."""
    return blackjax.sgld(lambda z, _: posterior.drift(z)).step(key, position, None, ETA), None


def chain_of(step: Step, steps: int) -> Callable[..., Any]:
    def chain(posterior: cg.Posterior, key: jax.Array, start: jax.Array) -> Any:
        def body(position: jax.Array, i: jax.Array) -> tuple[jax.Array, Any]:
            return step(posterior, jax.random.fold_in(key, i), position)

        return lax.scan(body, start, jnp.arange(steps))

    return chain


def vectorised(step: Step, steps: int) -> Callable[..., Any]:
    return lambda posterior, keys, starts: jax.vmap(chain_of(step, steps), (None, 0, 0))(posterior, keys, starts)


def one_by_one(step: Step, steps: int) -> Callable[..., Any]:
    chain = chain_of(step, steps)
    return lambda posterior, keys, starts: lax.map(lambda x: chain(posterior, *x), (keys, starts))
