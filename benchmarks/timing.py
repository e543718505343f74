"""Wall and processor seconds of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Seconds(NamedTuple):
    """Wall time, and processor time of all threads of this process."""

    wall: float
    processor: float


def now() -> Seconds:
    """Both clocks."""
    return Seconds(time.perf_counter(), time.process_time())


def since(start: Seconds, end: Seconds | None = None) -> Seconds:
    """What has passed since ``start``, until ``end`` or now."""
    end = now() if end is None else end
    return Seconds(end.wall - start.wall, end.processor - start.processor)


def seconds(call: Callable[[], Any]) -> Seconds:
    """Seconds of one call."""
    start = now()
    call()
    return since(start)
