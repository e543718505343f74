"""What a person sees while a command runs: progress, warnings, tables."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from cryowgen_jax.chains import Progress

SECONDS_BETWEEN_LINES = 10.0


def terminal() -> Console:
    """Where progress, notes and warnings go: stderr, lines whole."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout, first column left, the others right; 110 columns wide where there is no terminal."""
    console = Console(highlight=False)
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        made.add_column(name, justify="left" if number == 0 else "right", no_wrap=number == 0)
    for row in rows:
        made.add_row(*row)
    console.print(made, width=None if console.is_terminal else 110)


class ProgressDisplay:
    """Bar on a terminal, a line now and then elsewhere (a batch log); call it with every ``Progress``."""

    def __init__(self, console: Console, label: str) -> None:
        self._console, self._label, self._last_line = console, label, 0.0
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps, acceptance {task.fields[acceptance]:.2f},"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
        )
        self._tasks: dict[bool, int] = {}

    def __enter__(self) -> Callable[[Progress], None]:
        if self._console.is_terminal:
            self._bar.start()
        return self._update

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def _update(self, progress: Progress) -> None:
        fitting = progress.phase == "estimating the model"
        if self._console.is_terminal:
            if fitting not in self._tasks:
                self._tasks[fitting] = self._bar.add_task("", total=progress.num_steps, acceptance=1.0)
            self._bar.update(
                self._bar.task_ids[self._tasks[fitting]],
                description=f"{self._label}: {progress.phase}",
                completed=progress.step,
                acceptance=progress.acceptance,
            )
            return
        done = progress.step == progress.num_steps
        if done or time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            left = progress.seconds * (progress.num_steps / progress.step - 1)
            self._console.print(
                f"{self._label}: {progress.phase}, step {progress.step} of {progress.num_steps}, "
                f"acceptance {progress.acceptance:.2f}, about {duration(left)} left",
                markup=False,
            )


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
