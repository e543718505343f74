"""What a person sees while a command runs: progress, warnings, tables."""

from __future__ import annotations

import contextlib
import math
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from cryowgen_jax.chains import Progress
from cryowgen_jax.chains.schedule import SAMPLING, UNRECORDED, WARMUP
from cryowgen_jax.restoration import AdaptationProgress

SECONDS_BETWEEN_LINES = 10.0
OF_CHAINS = (*WARMUP, UNRECORDED, SAMPLING)  # phases that are shown as one stage


def terminal() -> Console:
    """Where progress, notes and warnings go: stderr, lines whole."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> None:
    """Print a table on stdout as narrow as its words allow: first column left, the others right."""
    cells = list(zip(*rows, strict=True))
    widths = [max(map(len, (*name.split(), *column, ""))) for name, column in zip(columns, cells, strict=True)]
    headings = [textwrap.wrap(name, width) for name, width in zip(columns, widths, strict=True)]
    height = max(map(len, headings))
    lines = list(zip(*([""] * (height - len(heading)) + heading for heading in headings), strict=True))
    lines += [tuple("-" * width for width in widths), *(tuple(row) for row in rows)]
    text = [
        "  ".join(f"{cell:{'>' if column else '<'}{widths[column]}}" for column, cell in enumerate(line)).rstrip()
        for line in lines
    ]
    print("", title, "", *text, "", caption, sep="\n")


class ProgressDisplay:
    """Bar on a terminal, a line now and then elsewhere (a batch log); call it with every ``Progress``.

    Time left is that of the stage on show: the estimate of the model, the chains, or learning; of one tile, tomogram or
    round, where there are several.
    """

    def __init__(self, console: Console, label: str) -> None:
        self._console, self._label = console, label
        self._stage, self._first, self._last_line = "", (0, 0.0), 0.0
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("steps{task.fields[note]}"),
            console=console,
        )
        self._task = self._bar.add_task("", note="")

    def __enter__(self) -> Callable[[Progress | AdaptationProgress], None]:
        if self._console.is_terminal:
            self._bar.start()
        return self._update

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def _update(self, progress: Progress | AdaptationProgress) -> None:
        before, comma, phase = progress.phase.rpartition(", ")  # "tile 2 of 5, warm-up"
        stage = f"{before}{comma}{'sampling' if phase in OF_CHAINS else phase}"
        if stage != self._stage:  # the first report of a stage holds compilation, or steps of the run being resumed
            self._stage, self._first, self._last_line = stage, (progress.step, progress.seconds), 0.0
            self._bar.reset(self._task, total=progress.num_steps, description=stage)
        note = _measure(progress, phase) + self._time_left(progress)
        self._bar.update(self._task, completed=progress.step, note=note)
        done = progress.step == progress.num_steps
        if self._console.is_terminal or not (done or time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES):
            return
        self._last_line = time.monotonic()
        where = f"{self._label}: {progress.phase.replace('unrecorded', 'sampling')}"
        self._console.print(f"{where}, step {progress.step} of {progress.num_steps}{note}", markup=False)

    def _time_left(self, progress: Progress | AdaptationProgress) -> str:
        """Time left in this stage at the pace since its first report; nothing where there is no pace or no time."""
        steps, seconds = progress.step - self._first[0], progress.seconds - self._first[1]
        left = progress.num_steps - progress.step
        return f", {duration(left * seconds / steps)} left" if steps > 0 and left > 0 else ""


def _measure(progress: Progress | AdaptationProgress, phase: str) -> str:
    """The number that says how it goes, where there is one."""
    if isinstance(progress, AdaptationProgress):
        return f", loss {progress.loss:.3f}" if math.isfinite(progress.loss) else ""
    return f", acceptance {progress.acceptance:.2f}" if phase in OF_CHAINS else ""


@contextlib.contextmanager
def warnings_shown(console: Console) -> Iterator[list[str]]:
    """Print every warning to a person as it comes, one line each; yields their texts."""
    shown: list[str] = []

    def show(message: Warning | str, category: type[Warning], *rest: object) -> None:
        if issubclass(category, UserWarning):
            shown.append(str(message))
            console.print(f"[bold]warning:[/bold] {escape(str(message))}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield shown


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(num_bytes: float) -> str:
    """Bytes as a person says them."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes > 2**29 else f"{max(1, round(num_bytes / 2**20))} MiB"


def number(value: float, form: str) -> str:
    """A number in this format; a dash for one that is not defined."""
    return format(value, form) if math.isfinite(value) else "-"
