"""Weights of networks in files that hold arrays and words and nothing that could run (safetensors)."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cryowgen_jax.io.output import write_bytes_atomic
from cryowgen_jax.types import InputError

PathLike = str | os.PathLike[str]
_FORMAT = "cryowgen"
_ADVICE = "give a file that save_witness wrote"


def save_weights(path: PathLike, arrays: Mapping[str, np.ndarray], settings: Mapping[str, object]) -> None:
    """Write named arrays and settings (anything JSON knows) to one file, whole or not at all."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    write_bytes_atomic(path, save(contiguous, metadata={_FORMAT: json.dumps(settings, sort_keys=True)}))


def load_weights(path: PathLike) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Read what :func:`save_weights` wrote.

    Raises
    ------
    InputError
        Where there is no such file, or another program wrote it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"there is no file '{path}': give weights that save_witness wrote")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"'{path}' holds no weights ({error}): {_ADVICE}") from error
    if _FORMAT not in metadata:
        raise InputError(f"'{path}' holds weights of another program: {_ADVICE}")
    try:
        settings = json.loads(metadata[_FORMAT])
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{path}' has settings that are not JSON ({error}): {_ADVICE}") from error
    if not isinstance(settings, dict):
        raise InputError(f"'{path}' has settings that are a {type(settings).__name__}: {_ADVICE}")
    return arrays, settings
