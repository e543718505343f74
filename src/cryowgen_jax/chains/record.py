"""What a run has done so far: its chains, the draws that they kept, the summaries that they recorded."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from cryowgen_jax.chains import parallel, streaming
from cryowgen_jax.chains.schedule import TUNING, WARMUP, Chunk
from cryowgen_jax.types import Array, PRNGKey, PyTree

OK = "ok"


class Progress(NamedTuple):
    """What a progress callback is told after every chunk of steps.

    Attributes
    ----------
    phase
        "annealing", "tuning" or "warm-up", then "unrecorded" or "sampling"; restoration has more.
    step, num_steps
        Steps of every chain done so far, and in all.
    acceptance
        Mean acceptance rate of the chains: of the last step during warm-up, of all steps since then after it.
    seconds
        Since the run was started or resumed.
    """

    phase: str
    step: int
    num_steps: int
    acceptance: float
    seconds: float


class Chain(NamedTuple):
    """One chain between two steps.

    Attributes
    ----------
    key
        Of the chain; step i uses ``fold_in(key, i)``.
    state
        Of the kernel.
    step_size, adaptation
        The step size, and the state of the dual averaging that adapts it, None where nothing does.
    moments
        Of the positions after warm-up.
    averages, averaged
        Means of what the kernel observes, and over how many steps they were taken.
    acceptance, energy, gradient_noise
        Acceptance rate, squared energy error, share of gradient noise: of the last step during warm-up, means over all
        steps since then after it. nan where the kernel does not know them.
    step
        Steps done.
    """

    key: PRNGKey
    state: PyTree
    step_size: Array
    adaptation: PyTree
    moments: streaming.Moments
    averages: PyTree
    acceptance: Array
    energy: Array
    gradient_noise: Array
    step: Array
    averaged: Array


class ChunkOutcome(NamedTuple):
    """A chain after a chunk, the draws that it kept and the summaries that it recorded, and whether it is finite."""

    chain: Chain
    kept: Array | None
    records: Array | None
    finite: Array


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run has done so far, on the host; chains lead every array.

    Attributes
    ----------
    chains
        After the last chunk.
    done
        Chunks that are done.
    kept_blocks, record_blocks
        Draws and summaries, block by block.
    status
        "ok", or at which step the run stopped and why.
    """

    chains: Chain
    done: tuple[Chunk, ...] = ()
    kept_blocks: tuple[Array, ...] = ()
    record_blocks: tuple[Array, ...] = ()
    status: str = OK

    @property
    def steps(self) -> int:
        """Steps done by every chain."""
        return sum(chunk.steps for chunk in self.done)

    @property
    def is_warm(self) -> bool:
        """Whether warm-up is over."""
        return any(chunk.phase not in WARMUP for chunk in self.done)

    @property
    def ends_tuning(self) -> bool:
        """Whether the last chunk was of the phase in which the kernel observes."""
        return bool(self.done) and self.done[-1].phase == TUNING

    @property
    def has_refitted(self) -> bool:
        """Whether chains have gone on with the kernel that these observations gave."""
        return any(chunk.phase == TUNING for chunk in self.done) and not self.ends_tuning

    @property
    def kept(self) -> Array:
        """Draws, (num_chains, num_kept, ...)."""
        nothing = self.chains.state.position[:, None][:, :0]
        return jnp.concatenate(self.kept_blocks, axis=1) if self.kept_blocks else nothing

    @property
    def records(self) -> Array:
        """Summaries, (num_chains, draws, summaries)."""
        num_chains = self.chains.state.position.shape[0]
        return jnp.concatenate(self.record_blocks, axis=1) if self.record_blocks else jnp.zeros((num_chains, 0, 1))

    def after(self, chunk: Chunk, outcome: ChunkOutcome) -> RunRecord:
        """The record with one more chunk, or, where its outcome is not finite, with a status that says so."""
        chains, kept, records, finite = outcome
        if not parallel.is_traced(finite) and not bool(jnp.all(finite)):
            between = f"between steps {self.steps} and {self.steps + chunk.steps}"
            bad = int(np.sum(~np.asarray(finite)))
            return dataclasses.replace(self, status=f"stopped: {bad} of {finite.size} chains not finite {between}")
        kept_blocks, record_blocks = self.kept_blocks, self.record_blocks
        if kept is not None and records is not None:
            record_blocks = (*record_blocks, records)
            if len(record_blocks) % chunk.group == 0:
                kept_blocks = (*kept_blocks, kept)
        return RunRecord(chains, (*self.done, chunk), kept_blocks, record_blocks)

    def progress(self, num_steps: int, seconds: float) -> Progress:
        """Where the run stands, of ``num_steps`` in all."""
        return Progress(self.done[-1].phase, self.steps, num_steps, float(jnp.mean(self.chains.acceptance)), seconds)
