"""What a run has done so far, on the host: chunks, kept samples, records, checkpoints."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.chains import parallel, streaming
from cryowgen_jax.types import Array, InputError, PRNGKey, PyTree

MAX_RECORDS = 512
WARMUP_CHUNKS = 10
SAMPLING_CHUNKS = 16
SECONDS_BETWEEN_SAVES = 30.0
RAMP, TUNING, SETTLING = "annealing", "tuning", "warm-up"
WARMUP = (RAMP, TUNING, SETTLING)
LEARNING_PIECES = (8, 7, 5)  # of a warm-up in three phases: ramp, tuning, and adapting the step size alone
SHORTEST_TO_LEARN = 40


class Progress(NamedTuple):
    """What a progress callback is told after every chunk of steps."""

    phase: str
    step: int
    num_steps: int
    acceptance: float
    seconds: float


class Chunk(NamedTuple):
    """One compiled call: ``kept`` x ``records`` x ``stride`` steps, or ``stride`` steps of which nothing is kept.

    Of a ``group`` of sampling chunks only the last one's positions are kept. Over the first ``ramp`` steps of the run
    the power rises from 0 to 1.
    """

    phase: str
    kept: int
    records: int
    stride: int
    group: int = 1
    ramp: int = 0

    @property
    def steps(self) -> int:
        """Steps of every chain."""
        return max(1, self.kept) * self.records * self.stride


class Chain(NamedTuple):
    """One chain between chunks."""

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


class Run(NamedTuple):
    """Outcome of a run, chains leading every array; ``status`` is "ok" or says at which step it stopped."""

    chains: Chain
    kept: Array
    records: Array
    status: str
    steps_done: int


def plan(warmup: int, num_steps: int, num_kept: int, *, in_one: bool = False, learns: bool = False) -> list[Chunk]:
    """Cut a run into chunks: warm-up, steps that are not recorded, then one block per kept sample, 512 records at most.

    The warm-up of a kernel that ``learns`` has three phases: a ramp, the steps it learns from, and the settling of its
    step size. ``in_one`` makes one chunk of each, for a run that is traced and can neither report nor be saved.

    Raises
    ------
    ValueError
        Where the numbers do not fit each other.
    """
    if num_steps < 1 or num_kept < 1 or num_kept > num_steps or warmup < 0:
        raise ValueError(
            f"num_steps={num_steps}, num_kept={num_kept}, warmup={warmup}: give 1 <= num_kept <= num_steps, warmup >= 0"
        )
    thin = num_steps // num_kept
    records = parallel.largest_divisor(thin, max(1, MAX_RECORDS // num_kept))
    chunks = _warm_up(warmup, in_one, learns and warmup >= SHORTEST_TO_LEARN)
    lead = num_steps - thin * num_kept
    chunks += [Chunk("unrecorded", 0, 1, lead)] if lead else []
    pieces = parallel.largest_divisor(num_kept, 1 if in_one else SAMPLING_CHUNKS)
    group = 1 if in_one or pieces < num_kept else parallel.largest_divisor(records, max(1, SAMPLING_CHUNKS // pieces))
    return chunks + [Chunk("sampling", num_kept // pieces, records // group, thin // records, group)] * pieces * group


def _warm_up(warmup: int, in_one: bool, learns: bool) -> list[Chunk]:
    """Pieces of one length, so that one program serves them all; what is left over comes last but one."""
    if warmup == 0:
        return []
    if not learns:
        pieces = parallel.largest_divisor(warmup, 1 if in_one else WARMUP_CHUNKS)
        return [Chunk(SETTLING, 0, 1, warmup // pieces)] * pieces
    length = warmup // sum(LEARNING_PIECES)
    ramp, tuning, settling = (Chunk(phase, 0, 1, length) for phase in WARMUP)
    counts = LEARNING_PIECES
    ramp = ramp._replace(ramp=counts[0] * length)
    left = warmup - sum(counts) * length
    rest = [settling._replace(stride=left)] if left else []
    chunks = [*[ramp] * counts[0], *[tuning] * counts[1], *rest, *[settling] * counts[2]]
    return _merged(chunks) if in_one else chunks


def _merged(chunks: list[Chunk]) -> list[Chunk]:
    """One chunk of each phase."""
    lengths = {phase: sum(chunk.stride for chunk in chunks if chunk.phase == phase) for phase in WARMUP}
    ramp = chunks[0].ramp
    return [Chunk(phase, 0, 1, n, ramp=ramp if phase == RAMP else 0) for phase, n in lengths.items()]


class Book:
    """What a run has done so far, on the host; chains leading every array."""

    def __init__(
        self, chains: Chain, chunks: Sequence[Chunk], checkpoint: str | pathlib.Path | None, num_summaries: int
    ) -> None:
        self.chains, self.chunks, self.checkpoint = chains, chunks, checkpoint
        self.num_summaries = num_summaries
        self.done: list[Chunk] = []
        self.kept: list[Array] = []
        self.records: list[Array] = []
        self.status = "ok"
        self.saved_at = time.monotonic()
        self.saved_chunks = 0
        if checkpoint is not None:
            self._restore(checkpoint)

    @property
    def sampling(self) -> bool:
        """Whether warm-up lies behind."""
        return any(chunk.phase not in WARMUP for chunk in self.done)

    @property
    def tuned(self) -> bool:
        """Whether chains have gone on with what tuning taught."""
        return any(chunk.phase == TUNING for chunk in self.done) and self.done[-1].phase != TUNING

    @property
    def steps(self) -> int:
        """Steps done by every chain."""
        return sum(chunk.steps for chunk in self.done)

    def accept(self, chunk: Chunk, chains: Chain, kept: Array | None, records: Array | None, finite: Array) -> bool:
        """Take over a chunk's outcome; False where it is not finite and the run has to stop."""
        if not parallel.is_traced(finite) and not bool(jnp.all(finite)):
            end = self.steps + chunk.steps
            bad = int(np.sum(~np.asarray(finite)))
            self.status = f"stopped: {bad} of {finite.size} chains not finite between steps {self.steps} and {end}"
            return False
        self.chains = chains
        self.done.append(chunk)
        if kept is not None and records is not None:
            self.records.append(records)
            if len(self.records) % chunk.group == 0:
                self.kept.append(kept)
        self.save(force=False)
        return True

    def progress(self, seconds: float) -> Progress:
        """Where the run stands."""
        total = sum(chunk.steps for chunk in self.chunks)
        return Progress(self.done[-1].phase, self.steps, total, float(jnp.mean(self.chains.acceptance)), seconds)

    def close(self) -> Run:
        """The outcome."""
        empty = self.chains.state.position[:, None][:, :0]
        kept = jnp.concatenate(self.kept, axis=1) if self.kept else empty
        records = jnp.concatenate(self.records, axis=1) if self.records else jnp.zeros((empty.shape[0], 0, 1))
        return Run(self.chains, kept, records, self.status, self.steps)

    def save(self, *, force: bool) -> None:
        """Write a checkpoint when the last one is old enough, or now where something is new."""
        if self.checkpoint is None or self.saved_chunks == len(self.done):
            return
        if force or time.monotonic() - self.saved_at > SECONDS_BETWEEN_SAVES:
            from cryowgen_jax.io.checkpoint import save_checkpoint

            save_checkpoint(self.checkpoint, len(self.done), self._tree())
            self.saved_at, self.saved_chunks = time.monotonic(), len(self.done)

    def _tree(self) -> PyTree:
        """Chains, and kept samples and records filled up with zeros so that every checkpoint has one structure."""
        blocks = [chunk for chunk in self.chunks if chunk.phase == "sampling"]
        group = blocks[0].group
        position = self.chains.state.position
        num_chains, per_block = position.shape[0], blocks[0].kept
        kept = np.zeros((num_chains, per_block, *position.shape[1:]), position.dtype)
        records = np.zeros((num_chains, per_block * blocks[0].records, self.num_summaries), position.dtype)
        return {
            "chains": self.chains,
            "kept": np.stack([np.asarray(x) for x in self.kept] + [kept] * (len(blocks) // group - len(self.kept))),
            "records": np.stack([np.asarray(x) for x in self.records] + [records] * (len(blocks) - len(self.records))),
        }

    def _restore(self, checkpoint: str | pathlib.Path) -> None:
        from cryowgen_jax.io.checkpoint import load_checkpoint

        found = load_checkpoint(checkpoint, self._tree())
        if found is None:
            return
        done, tree = found
        self._require_same_run(checkpoint, tree["chains"], self.chunks[:done])
        self.chains, self.done, self.saved_chunks = tree["chains"], list(self.chunks[:done]), done
        blocks = sum(chunk.phase == "sampling" for chunk in self.done)
        kept = blocks // next(chunk.group for chunk in self.chunks if chunk.phase == "sampling")
        self.kept = [jnp.asarray(x) for x in tree["kept"][:kept]]
        self.records = [jnp.asarray(x) for x in tree["records"][:blocks]]

    def _require_same_run(self, checkpoint: str | pathlib.Path, chains: Chain, done: Sequence[Chunk]) -> None:
        keys_agree = np.array_equal(jax.random.key_data(chains.key), jax.random.key_data(self.chains.key))
        steps = sum(chunk.steps for chunk in done)
        if not keys_agree or int(chains.step[0]) != steps:
            raise InputError(
                f"the checkpoint in '{checkpoint}' is of another run, {int(chains.step[0])} steps with "
                f"{'this' if keys_agree else 'another'} key: repeat the key and numbers of that run, or name another "
                "folder"
            )
