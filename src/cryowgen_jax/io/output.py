"""Writing to disk: whole files or none, into a folder known to be writable before the work starts."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import secrets
import shutil

import numpy as np

from cryowgen_jax.types import InputError

PathLike = str | os.PathLike[str]

_TEMPORARY_SUFFIX = ".cryowgen-tmp"
_COMPRESSED_SUFFIXES = (".gz", ".bz2")


def prepare_output_folder(path: PathLike, *, resume: bool = False) -> pathlib.Path:
    """Create the folder of a run, or accept the one of the run being resumed.

    Parameters
    ----------
    path
        The folder; missing parents are created too.
    resume
        Accept a folder that holds files. Temporary files left there by a run that was killed are removed.

    Returns
    -------
    pathlib.Path
        The folder, which exists and into which a file has just been written and removed again.

    Raises
    ------
    InputError
        The path is a file, the folder holds files and ``resume`` is False, or nothing can be written there.
    """
    folder = pathlib.Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"'{folder}' is a file, not a folder: name another output folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise disk_error(folder, error, 0) from error
    if present and not resume:
        raise InputError(
            f"output folder '{folder}' is not empty (it holds {present[0]!r}{', ...' if len(present) > 1 else ''}): "
            "name another folder, or pass --resume to go on with the run that wrote it"
        )
    _probe(folder)
    for leftover in folder.rglob(f".*{_TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)
    return folder


def prepare_output_file(path: PathLike) -> pathlib.Path:
    """Check, before a long computation, that a file can be written: creates its folder and probes it.

    Raises
    ------
    InputError
        The path is a folder, ends in ``.gz`` or ``.bz2`` (outputs are not compressed), or cannot be written.
    """
    target = pathlib.Path(path)
    if target.is_dir():
        raise InputError(f"'{target}' is a folder: name the file to write")
    if target.suffix in _COMPRESSED_SUFFIXES:
        raise InputError(f"'{target}' asks for a compressed file: name one without {target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(target, error, 0) from error
    _probe(target.parent)
    return target


def require_free_space(path: PathLike, num_bytes: int) -> None:
    """Raise ``InputError`` unless the disk that holds ``path`` (which need not exist yet) has that much room."""
    free = _free_bytes(pathlib.Path(path))
    if free < num_bytes:
        raise InputError(
            f"not enough room on the disk of '{path}': {_size(num_bytes)} needed, {_size(free)} free: "
            "free some space or name a folder on another disk"
        )


def write_bytes_atomic(path: PathLike, *parts: bytes | np.ndarray) -> None:
    """Write the parts, one after the other, as one file that appears whole or not at all.

    The bytes go to a hidden file in the same folder, are forced to the disk and only then take the name ``path``;
    whatever had that name before stays as it was until then, and stays for good if anything fails. Arrays are
    written as they lie in memory and must be C-contiguous. The folder is created where it is missing.

    Raises
    ------
    InputError
        The disk is full (with the room needed and the room left), or the file cannot be written.
    """
    num_bytes = sum(part.nbytes if isinstance(part, np.ndarray) else len(part) for part in parts)
    target = pathlib.Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _flush_folder(target.parent)
    except OSError as error:
        _discard(temporary)
        raise disk_error(path, error, num_bytes) from error
    except BaseException:
        _discard(temporary)
        raise


def write_text_atomic(path: PathLike, text: str) -> None:
    """Write UTF-8 text as one file that appears whole or not at all (see ``write_bytes_atomic``)."""
    write_bytes_atomic(path, text.encode())


def disk_error(path: PathLike, error: OSError, num_bytes: int) -> InputError:
    """One line for a failed write of ``num_bytes`` bytes to ``path``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(
            f"cannot write '{path}', the disk is full: {_size(num_bytes)} needed, "
            f"{_size(_free_bytes(pathlib.Path(path)))} free: free some space or name a folder on another disk"
        )
    reason = error.strerror or type(error).__name__
    return InputError(f"cannot write '{path}' ({reason}): name a place where you may write")


def _probe(folder: pathlib.Path) -> None:
    """Write and remove a small file: asking for permissions alone misleads (root, read-only mounts, quotas)."""
    temporary = folder / f".probe.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}"
    try:
        temporary.write_bytes(b"cryowgen")
        temporary.unlink()
    except OSError as error:
        _discard(temporary)
        raise disk_error(folder, error, 0) from error


def _discard(temporary: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: pathlib.Path) -> None:
    """Force the new name itself to the disk where the system can do that for a folder (some network disks cannot)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)


def _free_bytes(path: pathlib.Path) -> int:
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.1f} GB"
