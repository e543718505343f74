"""The phases of a run, and how it is cut into chunks of steps: each one call of a compiled program."""

from __future__ import annotations

from typing import NamedTuple

from cryowgen_jax.chains import parallel

MAX_RECORDS = 512  # of a chain
WARMUP_CHUNKS, SAMPLING_CHUNKS = 10, 16  # at most; progress is told and checkpoints are written between them
RAMP, TUNING, SETTLING, UNRECORDED, SAMPLING = "annealing", "tuning", "warm-up", "unrecorded", "sampling"
WARMUP = (RAMP, TUNING, SETTLING)
LEARNING_CHUNKS = (8, 7, 5)  # of the three phases of a warm-up in which the kernel learns
SHORTEST_TO_LEARN = 40  # steps of warm-up


class Chunk(NamedTuple):
    """One call of a compiled program.

    Attributes
    ----------
    phase
        One of the five above.
    kept, records, stride
        A summary is recorded every ``stride`` steps, and a position kept after ``records`` summaries, ``kept`` times.
        With ``kept`` = 0 (and ``records`` = 1) neither is, in ``stride`` steps.
    group
        Of so many sampling chunks only the last one's positions are kept: they share one draw.
    ramp
        Steps from the start of the run over which the power rises from 0 to 1; 0 where it is 1.
    """

    phase: str
    kept: int
    records: int
    stride: int
    group: int = 1
    ramp: int = 0

    @property
    def steps(self) -> int:
        """Number of steps of every chain."""
        return max(1, self.kept) * self.records * self.stride


def plan(warmup: int, num_steps: int, num_kept: int, *, in_one: bool = False, learns: bool = False) -> list[Chunk]:
    """Cut a run into chunks.

    Warm-up comes first. Then come the steps that are too many for ``num_kept`` equal strides, if any, and the rest, of
    which positions are kept and summaries recorded: at most 512, or one for each position that is kept.

    Parameters
    ----------
    warmup, num_steps, num_kept
        As in ``cg.sample``.
    in_one
        One chunk per phase, for a run that is traced: it can neither tell its progress nor be saved.
    learns
        The kernel learns: warm-up has three phases, in which the power rises, the kernel observes, and the step size
        settles. A warm-up of less than 40 steps has the last alone.

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
    """Chunks of one length, so that one program serves all, and one for the remainder at the start of settling."""
    if warmup == 0:
        return []
    if not learns:
        pieces = parallel.largest_divisor(warmup, 1 if in_one else WARMUP_CHUNKS)
        return [Chunk(SETTLING, 0, 1, warmup // pieces)] * pieces
    length = warmup // sum(LEARNING_CHUNKS)
    ramp, tuning, settling = (Chunk(phase, 0, 1, length) for phase in WARMUP)
    counts = LEARNING_CHUNKS
    ramp = ramp._replace(ramp=counts[0] * length)
    left = warmup - sum(counts) * length
    rest = [settling._replace(stride=left)] if left else []
    chunks = [*[ramp] * counts[0], *[tuning] * counts[1], *rest, *[settling] * counts[2]]
    return _merged(chunks) if in_one else chunks


def _merged(chunks: list[Chunk]) -> list[Chunk]:
    """One chunk for each phase."""
    lengths = {phase: sum(chunk.stride for chunk in chunks if chunk.phase == phase) for phase in WARMUP}
    ramp = chunks[0].ramp
    return [Chunk(phase, 0, 1, n, ramp=ramp if phase == RAMP else 0) for phase, n in lengths.items()]
