"""How a run is cut into chunks of steps, each of them one compiled call, and the phases that they belong to."""

from __future__ import annotations

from typing import NamedTuple

from cryowgen_jax.chains import parallel

MAX_RECORDS = 512
WARMUP_CHUNKS = 10
SAMPLING_CHUNKS = 16
RAMP, TUNING, SETTLING, UNRECORDED, SAMPLING = "annealing", "tuning", "warm-up", "unrecorded", "sampling"
WARMUP = (RAMP, TUNING, SETTLING)
LEARNING_PIECES = (8, 7, 5)  # of a warm-up in three phases: ramp, tuning, and adapting the step size alone
SHORTEST_TO_LEARN = 40


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
    chunks += [Chunk(UNRECORDED, 0, 1, lead)] if lead else []
    pieces = parallel.largest_divisor(num_kept, 1 if in_one else SAMPLING_CHUNKS)
    group = 1 if in_one or pieces < num_kept else parallel.largest_divisor(records, max(1, SAMPLING_CHUNKS // pieces))
    return chunks + [Chunk(SAMPLING, num_kept // pieces, records // group, thin // records, group)] * pieces * group


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
