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
from cryowgen_jax.chains.kernel import Kernel
from cryowgen_jax.chains.record import OK, Chain, ChunkOutcome, Progress, RunRecord
from cryowgen_jax.chains.resumption import Checkpoints
from cryowgen_jax.chains.schedule import SETTLING, TUNING, WARMUP, Chunk
from cryowgen_jax.types import Array, InputError, PRNGKey, PyTree

START_STEP = 2**31 - 1  # number of the key that starts a chain; those of its steps count from 0
RESTART_STEP = START_STEP - 1  # of the key that starts it again with a refitted kernel


class Phase(NamedTuple):
    """The phase of warm-up in arrays, so that one compiled program serves all phases.

    Attributes
    ----------
    ramp
        Number of steps over which the power rises from 0 to 1; 0 where it is 1.
    tuning
        1 where the kernel's observations are averaged, else 0.
    """

    ramp: Array
    tuning: Array


class Shared(NamedTuple):
    """What all chains of a chunk have in common."""

    kernel: Kernel
    summary: Callable[..., Array]
    phase: Phase


def run(
    key: PRNGKey,
    kernel: Kernel,
    positions: Array,
    summary: Callable[..., Array],
    chunks: Sequence[Chunk],
    *,
    devices: Sequence[jax.Device] | None = None,
    batch_size: int | None = None,
    checkpoint: str | pathlib.Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> RunRecord:
    """Run one chain per leading entry of ``positions`` through all chunks.

    Chain i uses ``fold_in(fold_in(key, i), step)`` at every step, so its path depends neither on the devices nor on how
    the run is cut or resumed. A chunk that ends in a state that is not finite is dropped: the run stops with the state
    before it.

    Parameters
    ----------
    key, kernel
        Key, and the kernel with its first step size.
    positions
        Starts, (num_chains, ...).
    summary
        (position, its score or None where the kernel has none) -> summaries to record.
    chunks
        As :func:`schedule.plan` makes them.
    devices, batch_size
        As in ``cg.sample``.
    checkpoint
        Folder: the run is saved there after chunks and when it is interrupted, and taken up from there.
    progress
        Called after every chunk.

    Returns
    -------
    RunRecord
        Its ``status`` says whether the run went through.
    """
    if parallel.is_traced((key, kernel, positions)):
        if checkpoint is not None:
            raise InputError(
                "a run that is traced (jit, vmap) cannot be saved: leave out checkpoint, or do not trace it"
            )
        devices = (jax.local_devices() if devices is None else devices)[:1]
    layout = parallel.layout(positions.shape[0], positions[0].size, devices, batch_size)

    def mapped(function: Callable[..., PyTree], *static: Any) -> parallel.Mapped:
        return parallel.map_chains(function, static, layout)

    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(positions.shape[0]))
    chains = mapped(_start)(kernel, (keys, positions))
    num_summaries = jax.eval_shape(_summaries, kernel, summary, jax.tree.map(lambda x: x[0], chains.state)).shape[0]
    checkpoints = Checkpoints(checkpoint, chunks, num_summaries, kernel.name)
    record = checkpoints.load(RunRecord(chains))
    if record.has_refitted:
        kernel = _refit(kernel, record.chains)
    started, num_steps = time.monotonic(), sum(chunk.steps for chunk in chunks)
    try:
        for chunk in chunks[len(record.done) :]:
            chains = record.chains
            if record.ends_tuning and chunk.phase != TUNING:
                kernel = _refit(kernel, chains)
                fresh = mapped(_start)(kernel, (jax.vmap(_restart_key)(keys), chains.state.position))
                chains = chains._replace(state=fresh.state, step_size=fresh.step_size, adaptation=fresh.adaptation)
            target = kernel.target if chunk.phase in WARMUP else None
            if kernel.target is not None and target is None and record.done and not record.is_warm:
                chains = _pool_step_size(chains, kernel.max_step_size)
            phase = Phase(ramp=jnp.float32(chunk.ramp), tuning=jnp.float32(chunk.phase == TUNING))
            alike = chunk._replace(phase=SETTLING, ramp=0) if chunk.phase in WARMUP else chunk
            record = record.after(chunk, mapped(_advance, alike, target)(Shared(kernel, summary, phase), chains))
            if record.status != OK:
                break
            checkpoints.save(record, force=False)
            if progress is not None:
                progress(record.progress(num_steps, time.monotonic() - started))
    finally:
        checkpoints.save(record, force=True)
    return record


def _start(kernel: Kernel, start: tuple[PRNGKey, Array]) -> Chain:
    key, position = start
    step_size = jnp.asarray(kernel.step_size, position.dtype)
    state = kernel.algorithm(step_size).init(position, jax.random.fold_in(key, START_STEP))
    adaptation = None
    if kernel.target is not None:
        fresh = _dual_averaging(kernel.target)[0](step_size)
        adaptation = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), fresh)  # no weak types: one program
    averages = None
    if kernel.observe is not None:
        averages = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(kernel.observe, state))
    zero = jnp.zeros((), position.dtype)
    return Chain(
        key=key,
        state=state,
        step_size=step_size,
        adaptation=adaptation,
        moments=streaming.empty(state.position),
        averages=averages,
        acceptance=zero,
        energy=zero,
        gradient_noise=zero,
        step=jnp.zeros((), jnp.int32),
        averaged=zero,
    )


def _restart_key(key: PRNGKey) -> PRNGKey:
    return jax.random.fold_in(key, RESTART_STEP)


def _refit(kernel: Kernel, chains: Chain) -> Kernel:
    if kernel.refit is None:
        return kernel
    averages = jax.tree.map(lambda x: jnp.mean(x, axis=0), chains.averages)
    return dataclasses.replace(kernel, move=kernel.refit(averages))


def _advance(chunk: Chunk, target: float | None, shared: Shared, chain: Chain) -> ChunkOutcome:
    """Run one chain through a chunk; ``target`` None leaves the step size as it is."""

    def one(chain: Chain, _: None) -> tuple[Chain, None]:
        return _step(chunk.phase in WARMUP, target, shared.kernel, shared.phase, chain), None

    def record(chain: Chain, _: None) -> tuple[Chain, Array]:
        chain, _ = jax.lax.scan(one, chain, None, length=chunk.stride)
        return chain, _summaries(shared.kernel, shared.summary, chain.state)

    def keep(chain: Chain, _: None) -> tuple[Chain, tuple[Array, Array]]:
        chain, records = jax.lax.scan(record, chain, None, length=chunk.records)
        return chain, (chain.state.position, records)

    if not chunk.kept:
        chain, _ = jax.lax.scan(one, chain, None, length=chunk.stride)
        return ChunkOutcome(chain, None, None, _is_finite(chain))
    chain, (kept, records) = jax.lax.scan(keep, chain, None, length=chunk.kept)
    return ChunkOutcome(chain, kept, records.reshape(-1, records.shape[-1]), _is_finite(chain))


def _is_finite(chain: Chain) -> Array:
    return jnp.all(jnp.isfinite(chain.state.position))


def _step(in_warmup: bool, target: float | None, kernel: Kernel, phase: Phase, chain: Chain) -> Chain:
    """One step of one chain: its state, step size, averages and statistics."""
    key = jax.random.fold_in(chain.key, chain.step)
    power = jnp.minimum(1.0, (chain.step + 1) / jnp.maximum(phase.ramp, 1.0))
    state, info = kernel.algorithm(chain.step_size, power).step(key, chain.state)
    rate = jnp.asarray(getattr(info, "acceptance_rate", 1.0), chain.acceptance.dtype)
    new = chain._replace(state=state, step=chain.step + 1)
    if target is not None:
        new = _adapted(target, kernel, new, rate if kernel.quality is None else kernel.quality(info))
    if in_warmup and kernel.observe is not None:
        new = _averaged(phase.tuning, kernel.observe(state), new)
    energy = jnp.square(jnp.asarray(getattr(info, "energy_error", jnp.nan), rate.dtype))
    # a proposal that is not finite has no energy error to count
    energy = jnp.where(jnp.isfinite(energy) | (not hasattr(info, "energy_error")), energy, chain.energy)
    noise = jnp.asarray(getattr(info, "inflation", jnp.nan), rate.dtype)
    if in_warmup:
        return new._replace(acceptance=rate, energy=energy, gradient_noise=noise)
    moments = streaming.update(chain.moments, state.position)
    return new._replace(
        moments=moments,
        acceptance=chain.acceptance + (rate - chain.acceptance) / moments.draws,
        energy=chain.energy + (energy - chain.energy) / moments.draws,
        gradient_noise=chain.gradient_noise + (noise - chain.gradient_noise) / moments.draws,
    )


def _adapted(target: float, kernel: Kernel, chain: Chain, quality: Array) -> Chain:
    """The chain with the step size that dual averaging takes next."""
    adaptation = _dual_averaging(target)[1](chain.adaptation, jnp.nan_to_num(quality))
    step_size = jnp.minimum(jnp.exp(adaptation.log_step_size), kernel.max_step_size)
    return chain._replace(adaptation=adaptation, step_size=step_size.astype(chain.step_size.dtype))


def _averaged(tuning: Array, observed: PyTree, chain: Chain) -> Chain:
    """The chain with one more observation in its averages where ``tuning`` is 1."""
    count = chain.averaged + tuning
    share = tuning / jnp.maximum(count, 1.0)
    averages = jax.tree.map(lambda x, new: x + share * (new - x), chain.averages, observed)
    return chain._replace(averages=averages, averaged=count)


def _summaries(kernel: Kernel, summary: Callable[..., Array], state: PyTree) -> Array:
    return summary(state.position, None if kernel.move.score is None else kernel.move.score(state))


def _pool_step_size(chains: Chain, max_step_size: float) -> Chain:
    """After warm-up every chain takes the geometric mean of the chains' averaged step sizes."""
    averaged = jnp.exp(jnp.mean(chains.adaptation.log_step_size_avg))
    step_size = jnp.minimum(averaged, max_step_size).astype(chains.step_size.dtype)
    return chains._replace(step_size=jnp.full_like(chains.step_size, 1.0) * step_size)


def _dual_averaging(target: float) -> tuple[Callable[..., Any], ...]:
    """Nesterov's dual averaging as BlackJAX has it; imported late since BlackJAX takes seconds."""
    from blackjax.adaptation.step_size import dual_averaging_adaptation

    return dual_averaging_adaptation(target)
