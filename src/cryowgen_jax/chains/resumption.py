"""The record of a run on disk: saving it, and going on from it.

A checkpoint holds the chains (states, keys, moments, what warm-up has learned), the draws and summaries so far, and the
sampler's name.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.chains.record import Chain, RunRecord
from cryowgen_jax.chains.schedule import SAMPLING, Chunk
from cryowgen_jax.types import InputError, PyTree

SECONDS_BETWEEN_SAVES = 30.0


class Checkpoints:
    """The checkpoints of one run.

    Parameters
    ----------
    folder
        Where they are; with None nothing is saved and nothing found.
    chunks
        Of the whole run.
    num_summaries
        Number of summaries that are recorded at a time.
    sampler
        Name of the kernel.
    """

    def __init__(
        self, folder: str | pathlib.Path | None, chunks: Sequence[Chunk], num_summaries: int, sampler: str
    ) -> None:
        self.folder, self.chunks, self.num_summaries, self.sampler = folder, tuple(chunks), num_summaries, sampler
        self._saved_chunks = 0
        self._saved_at = time.monotonic()

    def load(self, fresh: RunRecord) -> RunRecord:
        """The record of the newest checkpoint, or ``fresh``, with nothing done, where there is none.

        Raises
        ------
        InputError
            Where the checkpoint is of a run with another key, other numbers or another sampler. Its density may be
            another one: the checkpoint does not hold it.
        """
        if self.folder is None:
            return fresh
        from cryowgen_jax.io.checkpoint import load_checkpoint

        found = load_checkpoint(self.folder, self._tree(fresh))
        if found is None:
            return fresh
        self._saved_chunks, tree = found
        done = self.chunks[: self._saved_chunks]
        if tree["sampler"] != self.sampler:
            raise InputError(
                f"the checkpoint in '{self.folder}' is of sampler {tree['sampler']!r}, not of {self.sampler!r}: repeat "
                "the sampler of that run, or name another folder"
            )
        self._require_same_run(fresh.chains, tree["chains"], done)
        blocks = sum(chunk.phase == SAMPLING for chunk in done)
        return RunRecord(
            chains=tree["chains"],
            done=done,
            kept_blocks=tuple(jnp.asarray(x) for x in tree["kept"][: blocks // self._group]),
            record_blocks=tuple(jnp.asarray(x) for x in tree["records"][:blocks]),
        )

    def save(self, record: RunRecord, *, force: bool) -> None:
        """Write a checkpoint where something is new and, unless forced, the last one is old enough."""
        if self.folder is None or self._saved_chunks == len(record.done):
            return
        if force or time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES:
            from cryowgen_jax.io.checkpoint import save_checkpoint

            save_checkpoint(self.folder, len(record.done), self._tree(record))
            self._saved_at, self._saved_chunks = time.monotonic(), len(record.done)

    @property
    def _blocks(self) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.phase == SAMPLING]

    @property
    def _group(self) -> int:
        return self._blocks[0].group

    def _tree(self, record: RunRecord) -> PyTree:
        """Chains, draws and summaries; zeros stand for blocks to come, so that all checkpoints have one structure."""
        blocks, position = self._blocks, record.chains.state.position
        num_chains, per_block = position.shape[0], blocks[0].kept
        kept = np.zeros((num_chains, per_block, *position.shape[1:]), position.dtype)
        records = np.zeros((num_chains, per_block * blocks[0].records, self.num_summaries), position.dtype)
        kept_missing = len(blocks) // self._group - len(record.kept_blocks)
        records_missing = len(blocks) - len(record.record_blocks)
        return {
            "sampler": self.sampler,
            "chains": record.chains,
            "kept": np.stack([np.asarray(x) for x in record.kept_blocks] + [kept] * kept_missing),
            "records": np.stack([np.asarray(x) for x in record.record_blocks] + [records] * records_missing),
        }

    def _require_same_run(self, ours: Chain, saved: Chain, done: Sequence[Chunk]) -> None:
        keys_agree = np.array_equal(jax.random.key_data(saved.key), jax.random.key_data(ours.key))
        steps = sum(chunk.steps for chunk in done)
        if not keys_agree or int(saved.step[0]) != steps:
            raise InputError(
                f"the checkpoint in '{self.folder}' is of another run, {int(saved.step[0])} steps with "
                f"{'this' if keys_agree else 'another'} key: repeat the key and numbers of that run, or name another "
                "folder"
            )
