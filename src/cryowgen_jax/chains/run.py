"""The one loop over steps: chunks of ``lax.scan``, vectorised over chains, driven from the host."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cryowgen_jax.chains import parallel, streaming
from cryowgen_jax.chains.book import Book, Chain, Chunk, Progress, Run
from cryowgen_jax.types import Array, PRNGKey, PyTree

START_STEP = 2**31 - 1  # the key of a chain's start; steps count from 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Markov kernel with a step size that warm-up may adapt; a pytree.

    Parameters
    ----------
    build
        step size -> BlackJAX SamplingAlgorithm, a pytree callable.
    step_size
        Where adaptation starts, or the value to keep.
    name
        What the result calls it.
    target_acceptance
        Mean acceptance that warm-up steers to by dual averaging; None keeps ``step_size``.
    max_step_size
        Largest step size that makes sense.
    gradients_per_step
        Gradients of the witness or log-density that one step takes.
    """

    build: Callable[[Array], Any]
    step_size: Array
    name: str = dataclasses.field(metadata={"static": True})
    target_acceptance: float | None = dataclasses.field(default=None, metadata={"static": True})
    max_step_size: float = dataclasses.field(default=float("inf"), metadata={"static": True})
    gradients_per_step: int = dataclasses.field(default=1, metadata={"static": True})


def run(
    key: PRNGKey,
    kernel: Kernel,
    positions: Array,
    probe: Callable[[Array], Array],
    chunks: Sequence[Chunk],
    *,
    devices: Sequence[jax.Device] | None = None,
    batch_size: int | None = None,
    checkpoint: str | pathlib.Path | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Run:
    """Run one chain per leading entry of ``positions`` through all chunks.

    Chain i uses ``fold_in(fold_in(key, i), step)`` at every step, so its path depends neither on the devices nor on how
    the run is cut or resumed. A chunk that ends in a state that is not finite is dropped: the run stops with the state
    before it. ``checkpoint`` is a folder: the run is saved there after chunks and when it is interrupted, and taken up
    from there where it holds something.
    """
    if parallel.is_traced((key, kernel, positions)):
        devices = (jax.local_devices() if devices is None else devices)[:1]
    layout = parallel.layout(positions.shape[0], positions[0].size, devices, batch_size)

    def mapped(function: Callable[..., PyTree], *static: Any) -> parallel.Mapped:
        return parallel.map_chains(function, static, layout)

    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(positions.shape[0]))
    chains = mapped(_start)(kernel, (keys, positions))
    book = Book(chains, chunks, checkpoint, jax.eval_shape(probe, positions[0]).shape[0])
    started = time.monotonic()
    try:
        for chunk in chunks[len(book.done) :]:
            chains = book.chains
            adapt = kernel.target_acceptance if chunk.phase == "warm-up" else None
            if kernel.target_acceptance is not None and adapt is None and book.done and not book.sampling:
                chains = _pool_step_size(chains, kernel.max_step_size)
            if not book.accept(chunk, *mapped(_advance, chunk, adapt)((kernel, probe), chains)):
                break
            if report is not None:
                report(book.progress(time.monotonic() - started))
    finally:
        book.save(force=True)
    return book.close()


def _start(kernel: Kernel, start: tuple[PRNGKey, Array]) -> Chain:
    key, position = start
    step_size = jnp.asarray(kernel.step_size, position.dtype)
    state = kernel.build(step_size).init(position, jax.random.fold_in(key, START_STEP))
    adaptation = None if kernel.target_acceptance is None else _dual_averaging(kernel.target_acceptance)[0](step_size)
    zero = jnp.zeros((), position.dtype)
    return Chain(key, state, step_size, adaptation, streaming.empty(state.position), zero, jnp.zeros((), jnp.int32))


def _advance(
    chunk: Chunk, target_acceptance: float | None, shared: tuple[Kernel, Callable[[Array], Array]], chain: Chain
) -> tuple[Chain, Array | None, Array | None, Array]:
    """Run one chain through a chunk: the chain after it, what it kept and recorded, and whether it is finite."""
    kernel, probe = shared

    def one(chain: Chain, _: None) -> tuple[Chain, None]:
        key = jax.random.fold_in(chain.key, chain.step)
        state, info = kernel.build(chain.step_size).step(key, chain.state)
        rate = jnp.asarray(getattr(info, "acceptance_rate", 1.0), chain.acceptance.dtype)
        step_size, adaptation = chain.step_size, chain.adaptation
        if target_acceptance is not None:
            adaptation = _dual_averaging(target_acceptance)[1](adaptation, rate)
            step_size = jnp.minimum(jnp.exp(adaptation.log_step_size), kernel.max_step_size).astype(step_size.dtype)
        moments, acceptance = chain.moments, rate
        if chunk.phase != "warm-up":
            moments = streaming.update(moments, state.position)
            acceptance = chain.acceptance + (rate - chain.acceptance) / moments.draws
        return Chain(chain.key, state, step_size, adaptation, moments, acceptance, chain.step + 1), None

    def record(chain: Chain, _: None) -> tuple[Chain, Array]:
        chain, _ = jax.lax.scan(one, chain, None, length=chunk.stride)
        return chain, probe(chain.state.position)

    def keep(chain: Chain, _: None) -> tuple[Chain, tuple[Array, Array]]:
        chain, records = jax.lax.scan(record, chain, None, length=chunk.records)
        return chain, (chain.state.position, records)

    if not chunk.kept:
        chain, _ = jax.lax.scan(one, chain, None, length=chunk.stride)
        return chain, None, None, jnp.all(jnp.isfinite(chain.state.position))
    chain, (kept, records) = jax.lax.scan(keep, chain, None, length=chunk.kept)
    return chain, kept, records.reshape(-1, records.shape[-1]), jnp.all(jnp.isfinite(chain.state.position))


def _pool_step_size(chains: Chain, max_step_size: float) -> Chain:
    """After warm-up every chain takes the geometric mean of the chains' averaged step sizes."""
    averaged = jnp.exp(jnp.mean(chains.adaptation.log_step_size_avg))
    step_size = jnp.minimum(averaged, max_step_size).astype(chains.step_size.dtype)
    return chains._replace(step_size=jnp.full_like(chains.step_size, 1.0) * step_size)


def _dual_averaging(target: float) -> tuple[Callable[..., Any], ...]:
    """Nesterov's dual averaging as BlackJAX has it; imported late since BlackJAX takes seconds."""
    from blackjax.adaptation.step_size import dual_averaging_adaptation

    return dual_averaging_adaptation(target)
