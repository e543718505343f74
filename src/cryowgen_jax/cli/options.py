"""Kinds of options that several commands share, with messages that say what to type."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class _Path(click.Path):
    """A path whose name can be written into a page."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        try:
            str(path).encode()
        except UnicodeEncodeError:
            self.fail(f"the name {os.fsencode(path)!r} is not UTF-8: rename the file or make a link to it", param, ctx)
        return path


PATH = _Path(path_type=pathlib.Path)
AXIS = click.Choice(["x", "y", "z"])
MOST_STEPS = 2**31 - 1  # a chain counts its steps in 32 bits
LARGEST_SEED = 2**63 - 1  # of a JAX key


class _Number(click.ParamType):
    """A finite number, above a limit and not beyond another if there are any."""

    name = "number"

    def __init__(self, what: str, advice: str, above: float = -math.inf, most: float = math.inf) -> None:
        self._what, self._advice, self._above, self._most = what, advice, above, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and self._above < number <= self._most):
            self.fail(f"{value!r} is not {self._what}: {self._advice}", param, ctx)
        return number


DEGREES = _Number("an angle in degrees", "give the lowest and the highest tilt, as in --tilt-range -60 60")
ANGSTROM = _Number("a voxel size", "give 0.01 to 10000 angstrom, as in --voxel-size 10", above=0.00999, most=1e4)
RATIO = _Number("a signal-to-noise ratio", "give a positive number, as in --snr 0.1", above=0.0)


TILT_AXIS = click.option(
    "--tilt-axis", type=AXIS, default="y", show_default=True, help="Axis that the specimen was tilted about."
)
BEAM_AXIS = click.option("--beam-axis", type=AXIS, default="z", show_default=True, help="Axis along the electron beam.")
CONTRAST = click.option(
    "--contrast",
    type=click.Choice(["auto", "bright", "dark"]),
    default="auto",
    show_default=True,
    help="How protein looks in TOMOGRAM.",
)
PERMISSIVE = click.option(
    "--permissive", is_flag=True, help="Read files that break the MRC standard but can be understood."
)
RESUME = click.option("--resume", is_flag=True, help="Go on with an interrupted run: repeat its command and add this.")


def seed_option(help: str) -> Callable[[Command], Command]:
    """``--seed N``, 0 by default."""
    return click.option(
        "--seed", type=click.IntRange(0, LARGEST_SEED), default=0, show_default=True, metavar="N", help=help
    )
