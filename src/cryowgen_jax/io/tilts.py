"""Tilt angles from the text files that go with tilt series (IMOD ``.tlt`` and ``.rawtlt``)."""

from __future__ import annotations

import math
import os
import pathlib

import numpy as np

from cryowgen_jax.types import InputError


def read_tilt_angles(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the tilt angles of a series, in degrees and in the order of the file.

    One number per line; blank lines, surrounding white space and everything after ``#`` are ignored.

    Returns
    -------
    numpy.ndarray
        float32, shape (number of tilts,), each between -90 and 90.

    Raises
    ------
    InputError
        The file is missing or is not text, a line (named by its number) is not one angle between -90 and 90, or there
        is no angle at all.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read tilt angles from '{path}' ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not a text file: give one tilt angle in degrees per line") from error
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    angles = [_angle(line, number, path) for number, line in enumerate(lines, start=1) if line]
    if not angles:
        raise InputError(f"'{path}' holds no tilt angle: give one in degrees per line")
    return np.array(angles, dtype=np.float32)


def _angle(line: str, number: int, path: str | os.PathLike[str]) -> float:
    try:
        angle = float(line)
    except ValueError:
        angle = math.nan
    if not -90.0 <= angle <= 90.0:
        raise InputError(
            f"'{path}' line {number}: {line[:40]!r} is not a tilt angle: give one number between -90 and 90 per line"
        )
    return angle
