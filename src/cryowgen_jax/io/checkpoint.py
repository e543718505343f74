"""Checkpoints of a run: the newest complete state on disk, on orbax-checkpoint.

orbax takes most of a second to import, so it is imported where it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pathlib
import re
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from cryowgen_jax.io.output import disk_error, write_text_atomic
from cryowgen_jax.types import InputError, PyTree

PathLike = str | os.PathLike[str]

_NUM_KEPT = 2
_SEAL = "sha256"  # file in a checkpoint: of all others
_Leaf = dict[str, Any]


def save_checkpoint(folder: PathLike, step: int, tree: PyTree) -> None:
    """Write the state after ``step`` steps; the newest two checkpoints stay.

    A checkpoint gets its name only when it is complete: a save that is killed leaves the ones before it as they were.

    Parameters
    ----------
    folder
        The folder of checkpoints; made where missing.
    step
        Number of steps done, larger than that of every checkpoint in the folder.
    tree
        Leaves are JAX arrays (typed PRNG keys too), NumPy arrays, or Python numbers, flags and strings.

    Raises
    ------
    InputError
        The folder holds a checkpoint of this or a later step, or the disk is full or may not be written.
    TypeError
        A leaf is of another kind.
    """
    folder = pathlib.Path(folder).absolute()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    description = [_describe(path, leaf, with_value=True) for path, leaf in leaves]
    arrays = {_name(i): _plain(leaf) for i, (_, leaf) in enumerate(leaves) if _is_stored(description[i])}
    try:
        with _interruption_kept(), _manager(folder, create=True) as (manager, args):
            newest = manager.latest_step()
            if newest is not None and newest >= step:
                raise InputError(
                    f"'{folder}' already holds a checkpoint of step {newest}, this one is of step {step}: "
                    "pass --resume to go on from it, or name another folder"
                )
            items = {"description": args.JsonSave({"leaves": description, "jax": jax.__version__})}
            if arrays:
                items["arrays"] = args.StandardSave(arrays)
            manager.save(step, args=args.Composite(**items), force=True)
            if jax.process_index() == 0:
                write_text_atomic(folder / str(step) / _SEAL, _digest(folder / str(step)))
    except (OSError, ValueError) as error:
        failure = _system_failure(error)
        if failure is None:
            raise
        for unfinished in folder.glob(f"{step}.*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        raise disk_error(folder, failure, sum(array.nbytes for array in arrays.values())) from error


def load_checkpoint(folder: PathLike, like: PyTree) -> tuple[int, PyTree] | None:
    """Read the newest checkpoint that is sound; those that are damaged are said and removed.

    Parameters
    ----------
    folder
        The folder of checkpoints.
    like
        A tree of the structure, shapes and types that were saved. JAX arrays come back with the sharding they have
        here, whatever it was when they were saved; other leaves of ``like`` are not looked at beyond their type.

    Returns
    -------
    tuple[int, PyTree] or None
        Number of steps done, and the state bit for bit. None where there is no complete checkpoint.

    Raises
    ------
    InputError
        The checkpoint does not have the structure, shapes or types of ``like`` (the first difference is named), or
        all are damaged.

    Warns
    -----
    UserWarning
        Where one was damaged, or was written by another version of JAX.
    """
    folder = pathlib.Path(folder).absolute()
    if not folder.is_dir():
        return None
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = [_describe(path, leaf, with_value=False) for path, leaf in leaves]
    damaged, reason = list[int](), ""
    with _manager(folder, create=False) as (manager, args):
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                seal = folder / str(step) / _SEAL
                if seal.is_file() and seal.read_text(errors="replace") != _digest(seal.parent):
                    raise ValueError("checksum")
                content = manager.restore(step, args=args.Composite(description=args.JsonRestore())).description
                found = content["leaves"]
                _require_match(found, wanted, f"'{folder}' step {step}")
                targets = {_name(i): _target(leaf) for i, (_, leaf) in enumerate(leaves) if _is_stored(wanted[i])}
                arrays = {}
                if targets:
                    arrays = manager.restore(step, args=args.Composite(arrays=args.StandardRestore(targets))).arrays
            except InputError:
                raise
            except Exception as error:
                damaged.append(step)
                reason = str(error) if isinstance(error, ValueError) else type(error).__name__
                continue
            _say_damaged(folder, damaged, step)
            _say_version(folder / str(step), content.get("jax"))
            restored = [_restored(i, leaf, found[i], arrays) for i, (_, leaf) in enumerate(leaves)]
            return step, jax.tree_util.tree_unflatten(structure, restored)
    if not damaged:
        return None
    raise InputError(
        f"checkpoint '{folder / str(damaged[0])}' is damaged ({reason}) and no sound one is there: start again"
    )


def _say_damaged(folder: pathlib.Path, damaged: list[int], sound: int) -> None:
    """Remove what cannot be gone on from, so that its steps can be saved again."""
    for step in damaged:
        warnings.warn(
            f"checkpoint '{folder / str(step)}' is damaged and was removed: going on from step {sound}", stacklevel=3
        )
        shutil.rmtree(folder / str(step), ignore_errors=True)


def _say_version(path: pathlib.Path, version: str | None) -> None:
    if version not in (None, jax.__version__):
        warnings.warn(
            f"checkpoint '{path}' was written with JAX {version} and this is {jax.__version__}: the result will not be "
            "the same to the last bit",
            stacklevel=3,
        )


def _digest(folder: pathlib.Path) -> str:
    """SHA-256 of the files of a checkpoint, names and content."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _SEAL):
        found.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


@contextlib.contextmanager
def _manager(folder: pathlib.Path, *, create: bool) -> Iterator[tuple[Any, Any]]:
    """An orbax manager of the folder that keeps its log to itself, and orbax's module of arguments."""
    import orbax.checkpoint as ocp

    # orbax's; even what it then raises it logs first, with its traceback
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=_NUM_KEPT, enable_async_checkpointing=False, create=create, cleanup_tmp_directories=create
    )
    try:
        with ocp.CheckpointManager(folder, options=options) as manager:
            yield manager, ocp.args
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _interruption_kept() -> Iterator[None]:
    """Raise an interruption (SIGINT, SIGTERM) when the block is done: the event loop that orbax runs in can lose it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    kept = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in kept}
    try:
        yield
    finally:
        for number, handler in before.items():
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual if handler is None else handler)
    for late in came:
        signal.raise_signal(late)


def _system_failure(error: Exception) -> OSError | None:
    """The error of the system behind an error of orbax, whose storage layer reports it in words only."""
    if isinstance(error, OSError):
        return error
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None


def _describe(path: Any, leaf: Any, *, with_value: bool) -> _Leaf:
    """What a leaf has to agree in, and the value of what is no array."""
    description: _Leaf = {"path": jax.tree_util.keystr(path)}
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic):
        return description | {"type": str(leaf.dtype), "shape": list(leaf.shape)}
    if isinstance(leaf, bool | int | float | str):
        return description | {"type": type(leaf).__name__} | ({"value": leaf} if with_value else {})
    raise TypeError(f"leaf {description['path']} of a checkpoint is a {type(leaf).__name__}, not an array or a number")


def _require_match(found: list[_Leaf], wanted: list[_Leaf], where: str) -> None:
    for there, here in zip(found, wanted, strict=False):
        if any(there.get(aspect) != here.get(aspect) for aspect in ("path", "type", "shape")):
            raise InputError(
                f"the checkpoint in {where} is of another run, it holds {_words(there)} where this run has "
                f"{_words(here)}: repeat the settings of that run, or name another folder"
            )
    if len(found) != len(wanted):
        raise InputError(
            f"the checkpoint in {where} is of another run, it holds {len(found)} arrays and numbers where this run "
            f"has {len(wanted)}: repeat the settings of that run, or name another folder"
        )


def _words(leaf: _Leaf) -> str:
    return f"{leaf['path'] or 'one leaf'} {leaf['type']}{leaf.get('shape', '')}"


def _is_stored(description: _Leaf) -> bool:
    """Whether orbax stores the leaf: numbers are in the description, and orbax refuses arrays without elements."""
    return "shape" in description and 0 not in description["shape"]


def _name(position: int) -> str:
    return f"leaf_{position:04d}"


def _plain(leaf: Any) -> Any:
    return np.asarray(leaf) if isinstance(leaf, np.generic) else leaf


def _target(leaf: Any) -> Any:
    """What tells orbax the kind, shape and sharding to restore."""
    if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return _plain(leaf)


def _restored(position: int, leaf: Any, found: _Leaf, arrays: dict[str, Any]) -> Any:
    if "value" in found:
        return found["value"]
    value = arrays.get(_name(position), leaf)
    return value[()] if isinstance(leaf, np.generic) else value
