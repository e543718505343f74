"""What an interrupted run was asked to do, so that it is resumed with the same data and the same settings."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from cryowgen_jax.io.output import write_text_atomic
from cryowgen_jax.types import InputError

CHECKPOINT = "checkpoint"
SETTINGS = "settings.json"  # of a run under way; run.json takes its place when the run is complete
RECORD = "run.json"
FILES = ("tomogram", "half2", "center", "mask", "witness", "start")  # may have moved: their content is compared instead
_DIGEST = "_sha256"
_OPTIONS = {"voxel_size_angstrom": "--voxel-size", "model": "--witness"}

Settings = Mapping[str, Any]


def described(files: Mapping[str, pathlib.Path | None]) -> dict[str, str | None]:
    """Path and SHA-256 of files that have been read; None for those that were not given."""
    description: dict[str, str | None] = {}
    for name, path in files.items():
        description[name] = description[name + _DIGEST] = None
        if path is not None:
            with path.open("rb") as file:
                description[name + _DIGEST] = hashlib.file_digest(file, "sha256").hexdigest()
            description[name] = str(path.absolute())
    return description


def is_complete(output: pathlib.Path, settings: Settings) -> bool:
    """Whether the folder holds a finished run.

    Raises
    ------
    InputError
        Where that run, or the one under way, had other settings, or the folder holds files and no run.
    """
    for name in (RECORD, SETTINGS):
        path = output / name
        if path.is_file():
            before = _read(path)
            before = before.get("settings", {}) if name == RECORD else before
            if not isinstance(before, dict):
                raise _damaged(path)
            require_same(output, before, settings)
            return name == RECORD
    if output.is_dir() and any(not entry.name.startswith(".") for entry in output.iterdir()):
        raise InputError(f"'{output}' holds files but no run to go on with: name another folder, or leave out --resume")
    return False


@contextlib.contextmanager
def under_way(
    output: pathlib.Path, settings: Settings, *, new: bool, temporary: bool = False
) -> Iterator[pathlib.Path]:
    """Keep the settings beside a run; yields the folder for its checkpoints, and removes both when it is complete.

    An interruption or a failure says how to go on. A failure before anything was computed leaves the folder as empty as
    it was, or, where it is ``new``, no folder. A ``temporary`` folder goes when the run is complete.
    """
    checkpoint = output / CHECKPOINT
    write_text_atomic(output / SETTINGS, json.dumps(settings, indent=2, allow_nan=False) + "\n")
    try:
        yield checkpoint
    except Exception as error:
        if [entry.name for entry in output.iterdir()] == [SETTINGS]:
            (output / SETTINGS).unlink()
            if new:
                output.rmdir()
        elif isinstance(error, InputError):
            raise InputError(f"{error}; repeat the command with --resume to keep what was computed") from error
        raise
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("repeat the command with --resume to go on from here") from stop
    (output / SETTINGS).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
    if temporary:
        output.rmdir()


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: pathlib.Path) -> InputError:
    return InputError(f"'{path}' is damaged: delete the folder and start again, or name another one")


def require_same(output: pathlib.Path, before: Settings, now: Settings) -> None:
    """Raise ``InputError`` that names the first setting which differs; files may have moved."""
    now = json.loads(json.dumps(now))
    different = [name for name in now if name not in FILES and before.get(name) != now[name]]
    if not different:
        return
    name = different[0].removesuffix(_DIGEST)
    if name in FILES and before.get(name) and now[name]:
        was, advice = f"another {name} ({_listed(before[name])}, not {_listed(now[name])})", "the same files"
    else:
        was, advice = f"{_said(name, before.get(name))}, not {_said(name, now[name])}", "the same settings"
    raise InputError(f"the run in '{output}' was started with {was}: resume it with {advice}, or name another folder")


def _listed(paths: str | list[str]) -> str:
    return paths if isinstance(paths, str) else " ".join(paths)


def _said(name: str, value: Any) -> str:
    """A setting in the words of the command line."""
    option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
    if value is None:
        return f"no {option}"
    values = value if isinstance(value, list) else [value]
    return " ".join([option, *(f"{item:g}" if isinstance(item, float) else str(item) for item in values)])
