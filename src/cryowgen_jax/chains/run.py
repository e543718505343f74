"""The one loop over steps: chunks of ``lax.scan``, vectorised over chains, driven from the host."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cryowgen_jax.chains import parallel, streaming
from cryowgen_jax.chains.book import SETTLING, TUNING, WARMUP, Book, Chain, Chunk, Progress, Run
from cryowgen_jax.chains.kernel import Kernel
from cryowgen_jax.types import Array, PRNGKey, PyTree

START_STEP = 2**31 - 1  # the key of a chain's start; steps count from 0
RESTART_STEP = START_STEP - 1  # and of its start with a refitted kernel


class Phase(NamedTuple):
    """What tells the parts of warm-up apart: steps until the power is 1 (0: it is), and 1 where averages are taken."""

    ramp: Array
    tuning: Array


def run(
    key: PRNGKey,
    kernel: Kernel,
    positions: Array,
    probe: Callable[..., Array],
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
    from there where it holds something. ``probe`` is called with a position and its score (None: the kernel has none).
    """
    if parallel.is_traced((key, kernel, positions)):
        devices = (jax.local_devices() if devices is None else devices)[:1]
    layout = parallel.layout(positions.shape[0], positions[0].size, devices, batch_size)

    def mapped(function: Callable[..., PyTree], *static: Any) -> parallel.Mapped:
        return parallel.map_chains(function, static, layout)

    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(positions.shape[0]))
    chains = mapped(_start)(kernel, (keys, positions))
    num_summaries = jax.eval_shape(_summaries, kernel, probe, jax.tree.map(lambda x: x[0], chains.state)).shape[0]
    book = Book(chains, chunks, checkpoint, num_summaries)
    if book.tuned:
        kernel = _refit(kernel, book.chains)
    started = time.monotonic()
    try:
        for chunk in chunks[len(book.done) :]:
            chains = book.chains
            if book.done and book.done[-1].phase == TUNING != chunk.phase:
                kernel = _refit(kernel, chains)
                fresh = mapped(_start)(kernel, (jax.vmap(_restart_key)(keys), chains.state.position))
                chains = chains._replace(state=fresh.state, step_size=fresh.step_size, adaptation=fresh.adaptation)
            target = kernel.target if chunk.phase in WARMUP else None
            if kernel.target is not None and target is None and book.done and not book.sampling:
                chains = _pool_step_size(chains, kernel.max_step_size)
            phase = Phase(jnp.float32(chunk.ramp), jnp.float32(chunk.phase == TUNING))
            alike = chunk._replace(phase=SETTLING, ramp=0) if chunk.phase in WARMUP else chunk
            if not book.accept(chunk, *mapped(_advance, alike, target)((kernel, probe, phase), chains)):
                break
            if report is not None:
                report(book.progress(time.monotonic() - started))
    finally:
        book.save(force=True)
    return book.close()


def _start(kernel: Kernel, start: tuple[PRNGKey, Array]) -> Chain:
    key, position = start
    step_size = jnp.asarray(kernel.step_size, position.dtype)
    state = kernel.algorithm(step_size).init(position, jax.random.fold_in(key, START_STEP))
    adaptation = None
    if kernel.target is not None:
        fresh = _dual_averaging(kernel.target)[0](step_size)
        adaptation = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), fresh)  # no weak types: one program
    zero = jnp.zeros((), position.dtype)
    averages = None
    if kernel.observe is not None:
        averages = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(kernel.observe, state))
    moments = streaming.empty(state.position)
    return Chain(key, state, step_size, adaptation, moments, averages, zero, zero, zero, jnp.zeros((), jnp.int32), zero)


def _restart_key(key: PRNGKey) -> PRNGKey:
    return jax.random.fold_in(key, RESTART_STEP)


def _refit(kernel: Kernel, chains: Chain) -> Kernel:
    if kernel.refit is None:
        return kernel
    averages = jax.tree.map(lambda x: jnp.mean(x, axis=0), chains.averages)
    return dataclasses.replace(kernel, move=kernel.refit(averages))


def _advance(
    chunk: Chunk, target: float | None, shared: tuple[Kernel, Callable[..., Array], Phase], chain: Chain
) -> tuple[Chain, Array | None, Array | None, Array]:
    """Run one chain through a chunk: the chain after it, what it kept and recorded, and whether it is finite."""
    kernel, probe, phase = shared

    def one(chain: Chain, _: None) -> tuple[Chain, None]:
        key = jax.random.fold_in(chain.key, chain.step)
        power = jnp.minimum(1.0, (chain.step + 1) / jnp.maximum(phase.ramp, 1.0))
        state, info = kernel.algorithm(chain.step_size, power).step(key, chain.state)
        rate = jnp.asarray(getattr(info, "acceptance_rate", 1.0), chain.acceptance.dtype)
        step_size, adaptation, averages = chain.step_size, chain.adaptation, chain.averages
        if target is not None:
            quality = rate if kernel.quality is None else kernel.quality(info)
            adaptation = _dual_averaging(target)[1](adaptation, jnp.nan_to_num(quality))
            step_size = jnp.minimum(jnp.exp(adaptation.log_step_size), kernel.max_step_size).astype(step_size.dtype)
        count = chain.averaged
        if chunk.phase in WARMUP and kernel.observe is not None:
            count = count + phase.tuning
            rate_of_change = phase.tuning / jnp.maximum(count, 1.0)
            averages = jax.tree.map(lambda x, new: x + rate_of_change * (new - x), averages, kernel.observe(state))
        moments, acceptance = chain.moments, rate
        energy = jnp.square(jnp.asarray(getattr(info, "energy_error", jnp.nan), rate.dtype))
        energy = jnp.where(jnp.isfinite(energy) | (not hasattr(info, "energy_error")), energy, chain.energy)  # refused
        noise = jnp.asarray(getattr(info, "inflation", jnp.nan), rate.dtype)
        if chunk.phase not in WARMUP:
            moments = streaming.update(moments, state.position)
            acceptance = chain.acceptance + (rate - chain.acceptance) / moments.draws
            energy = chain.energy + (energy - chain.energy) / moments.draws
            noise = chain.gradient_noise + (noise - chain.gradient_noise) / moments.draws
        new = (moments, averages, acceptance, energy, noise, chain.step + 1, count)
        return Chain(chain.key, state, step_size, adaptation, *new), None

    def record(chain: Chain, _: None) -> tuple[Chain, Array]:
        chain, _ = jax.lax.scan(one, chain, None, length=chunk.stride)
        return chain, _summaries(kernel, probe, chain.state)

    def keep(chain: Chain, _: None) -> tuple[Chain, tuple[Array, Array]]:
        chain, records = jax.lax.scan(record, chain, None, length=chunk.records)
        return chain, (chain.state.position, records)

    if not chunk.kept:
        chain, _ = jax.lax.scan(one, chain, None, length=chunk.stride)
        return chain, None, None, jnp.all(jnp.isfinite(chain.state.position))
    chain, (kept, records) = jax.lax.scan(keep, chain, None, length=chunk.kept)
    return chain, kept, records.reshape(-1, records.shape[-1]), jnp.all(jnp.isfinite(chain.state.position))


def _summaries(kernel: Kernel, probe: Callable[..., Array], state: PyTree) -> Array:
    return probe(state.position, None if kernel.move.score is None else kernel.move.score(state))


def _pool_step_size(chains: Chain, max_step_size: float) -> Chain:
    """After warm-up every chain takes the geometric mean of the chains' averaged step sizes."""
    averaged = jnp.exp(jnp.mean(chains.adaptation.log_step_size_avg))
    step_size = jnp.minimum(averaged, max_step_size).astype(chains.step_size.dtype)
    return chains._replace(step_size=jnp.full_like(chains.step_size, 1.0) * step_size)


def _dual_averaging(target: float) -> tuple[Callable[..., Any], ...]:
    """Nesterov's dual averaging as BlackJAX has it; imported late since BlackJAX takes seconds."""
    from blackjax.adaptation.step_size import dual_averaging_adaptation

    return dual_averaging_adaptation(target)
