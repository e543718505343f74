"""Tomograms in and volumes out, as MRC files."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import math
import os
import pathlib
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import mrcfile
import numpy as np

from cryowgen_jax.io.header import (
    HEADER_BYTES,
    REAL_MODES,
    Triple,
    byte_order,
    bytes_are_unsigned,
    looks_like_mrc,
    new_header,
    output_header,
    plain_header,
    require_volume,
    stored_axes,
    voxel_size,
)
from cryowgen_jax.io.output import prepare_output_file, write_bytes_atomic
from cryowgen_jax.types import Array, InputError

PathLike = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Tomogram:
    """A volume and what its file said about it.

    Attributes
    ----------
    data
        float32, (Z, Y, X) whatever the order in the file; read-only.
    voxel_size_angstrom
        Along Z, Y, X.
    header
        The MRC header as read (structured scalar array, fields as in ``mrcfile``), for ``write_volume``.
    path
        Where it came from.
    notes
        What is wrong with the file and was let pass because of ``permissive``.
    """

    data: np.ndarray
    voxel_size_angstrom: Triple
    header: np.ndarray
    path: pathlib.Path
    notes: tuple[str, ...] = ()


def read_tomogram(path: PathLike, *, permissive: bool = False, voxel_size_override: float | None = None) -> Tomogram:
    """Read one volume of real numbers: modes 0, 1, 2, 6 and 12, plain or compressed with gzip or bzip2.

    The file is told by its content, not by its name, so ``.mrc``, ``.map``, ``.rec`` and ``.mrc.gz`` are all fine.
    Axes in another order than columns X, rows Y, sections Z are transposed. Bytes are signed unless IMOD's stamp
    says otherwise (``header.bytes_are_unsigned``). The extended header is not read. Which files count as volumes
    when the space group is 0 is explained in ``header.require_volume``.

    Parameters
    ----------
    permissive
        Read files that break the standard but can be understood; what was wrong is in ``notes``.
    voxel_size_override
        Edge of the (cubic) voxel in angstrom, instead of what the header says.

    Raises
    ------
    InputError
        No such file, not an MRC file, cut short, not one volume, complex, no voxel size, NaN or infinite voxels, all
        voxels equal; or breaks the standard in a way that ``permissive`` would let pass, which the message says.
    """
    path = pathlib.Path(path)
    header, notes, remarks = _read_header(path)
    require_volume(header, path, permissive=permissive)
    size = _chosen_voxel_size(header, path, voxel_size_override)
    stored, more_notes = _read_stored(path, header, directly=bool(remarks))
    notes = tuple(dict.fromkeys((*notes, *more_notes)))
    try:
        axes = stored_axes(header)
    except ValueError as error:
        notes, axes = (*notes, str(error)), (0, 1, 2)
        header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    if notes and not permissive:
        raise InputError(f"'{path}' breaks the MRC standard ({notes[0]}): pass --permissive to read it all the same")
    if stored.dtype == np.int8 and bytes_are_unsigned(header):
        stored = stored.view(np.uint8)
    check_volume(stored, path)
    data = np.ascontiguousarray(stored.transpose(axes), dtype=np.float32)
    data.flags.writeable = False
    return Tomogram(data, size, header, path, (*notes, *remarks))


def check_volume(data: np.ndarray, path: PathLike) -> None:
    """Raise ``InputError`` where voxels are NaN or infinite (with their number), or all equal."""
    if data.dtype.kind == "f":
        num_bad = data.size - int(np.count_nonzero(np.isfinite(data)))
        if num_bad:
            raise InputError(
                f"'{path}' has {num_bad} voxels of {data.size} that are NaN or infinite: "
                "replace them, for example by the mean of the others"
            )
    lowest = data.min()
    if lowest == data.max():
        raise InputError(f"'{path}' is constant, every voxel is {lowest:g}: give a tomogram with something in it")


def write_volume(path: PathLike, data: np.ndarray | Array, like: Tomogram) -> None:
    """Write a (Z, Y, X) volume as float32 (mode 2) in the frame of ``like``.

    Shape, voxel size, origin, start, axis mapping, byte order and labels are those of ``like``; a label that names
    this program is added; an extended header is left out. The file appears whole or not at all.

    Raises
    ------
    InputError
        The volume has NaN or infinite voxels, or the file cannot be written (``output.write_bytes_atomic``).
    ValueError
        The shape is not that of ``like``.
    """
    volume = np.asarray(data, dtype=np.float32)
    if volume.shape != like.data.shape:
        raise ValueError(f"volume of shape {volume.shape} for a tomogram of shape {like.data.shape}")
    _write(path, volume, like.header, like.voxel_size_angstrom)


def new_volume(path: PathLike, data: np.ndarray | Array, voxel_size_angstrom: float) -> None:
    """Write a (Z, Y, X) volume that comes from no file, with cubic voxels, as float32 (mode 2).

    Raises
    ------
    InputError
        As ``write_volume``, and where the voxel size is not a positive number.
    """
    volume = np.asarray(data, dtype=np.float32)
    size = _positive(voxel_size_angstrom)
    _write(path, volume, new_header(volume.shape, (size, size, size)), (size, size, size))


def _write(path: PathLike, volume: np.ndarray, frame: np.ndarray, size: Triple) -> None:
    target = prepare_output_file(path)
    if not np.isfinite(volume).all():
        raise InputError(f"the volume for '{path}' has NaN or infinite voxels and was not written: the run diverged")
    inverse = np.argsort(stored_axes(frame))
    stored = np.ascontiguousarray(volume.transpose(inverse), dtype=f"{byte_order(frame)}f4")
    write_bytes_atomic(target, output_header(frame, stored, size).tobytes(), stored)


def _read_header(path: pathlib.Path) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Header, complaints, and remarks on what is odd and does no harm; ``InputError`` where the file cannot be MRC."""
    if path.is_dir():
        raise InputError(f"'{path}' is a folder: give an MRC file")
    with _explained(path):
        start = _first_bytes(path)
        if not start:
            raise InputError(f"'{path}' is empty: copy or write it again")
        if not looks_like_mrc(start):
            raise InputError(f"'{path}' is not an MRC file: give a tomogram in MRC format (.mrc, .map, .rec, .mrc.gz)")
        header = _header_without_extension(path, start)
        if header is not None:
            remark = f"announces an extended header of {int(header['nsymbt'])} bytes that is not there"
            header["nsymbt"] = 0
            return header, (), (remark,)
        with _complaints() as notes, mrcfile.open(path, permissive=True, header_only=True) as mrc:
            header = np.array(mrc.header)
    return header, tuple(notes), ()


def _header_without_extension(path: pathlib.Path, start: bytes) -> np.ndarray | None:
    """The header of a file that announces an extended one which is not there: all its voxels follow 1024 bytes.

    None for all other files.

    Raises
    ------
    InputError
        The file is too short for the extended header, and is not of this kind.
    """
    if _opener(path) is not open:
        return None
    header, present = plain_header(start), path.stat().st_size - HEADER_BYTES
    announced = int(header["nsymbt"])
    if announced <= present:
        return None
    if int(header["mode"]) in REAL_MODES and present == _num_bytes(header):
        return header
    raise InputError(
        f"'{path}' is truncated: it announces an extended header of {announced} bytes and {present} follow its first "
        f"{HEADER_BYTES}: copy or write it again"
    )


def _num_bytes(header: np.ndarray) -> int:
    """Bytes of voxels."""
    return (
        math.prod(int(header[axis]) for axis in ("nz", "ny", "nx")) * np.dtype(REAL_MODES[int(header["mode"])]).itemsize
    )


def _read_stored(path: pathlib.Path, header: np.ndarray, *, directly: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    """Data as (sections, rows, columns) in the file's type, and complaints; ``InputError`` where some is missing.

    ``directly``: they follow the first 1024 bytes, whatever the file itself says.
    """
    shape = tuple(int(header[axis]) for axis in ("nz", "ny", "nx"))
    num_bytes, data = _num_bytes(header), None
    with _explained(path), _complaints() as notes:
        if directly:
            kind = np.dtype(f"{byte_order(header)}{REAL_MODES[int(header['mode'])]}")
            return np.fromfile(path, kind, offset=HEADER_BYTES).reshape(shape), ()
        # mrcfile reserves memory for all that a header claims where nothing at all follows it.
        if _opener(path) is not open or path.stat().st_size > HEADER_BYTES + int(header["nsymbt"]):
            with mrcfile.open(path, permissive=True) as mrc:
                data = mrc.data
    if data is None:
        raise InputError(
            f"'{path}' is truncated: {num_bytes} bytes of voxels, shape (Z, Y, X) {shape}, should follow its header "
            "and there are fewer: copy or write it again"
        )
    return data, tuple(notes)


def _first_bytes(path: pathlib.Path) -> bytes:
    with _opener(path)(path, "rb") as file:
        return file.read(HEADER_BYTES)


def _opener(path: pathlib.Path) -> Callable[..., Any]:
    """What opens the file: ``open``, or that of gzip or bzip2, told by its first bytes in the way of mrcfile."""
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    if start[208:212] == b"MAP ":
        return open
    return gzip.open if start[:2] == b"\x1f\x8b" else bz2.open if start[:2] == b"BZ" else open


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collect what mrcfile warns about, and keep every warning of the reading from the user."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages.extend(str(item.message) for item in caught if issubclass(item.category, RuntimeWarning))


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
    """Turn the errors of reading a file into one line each."""
    try:
        yield
    except InputError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"'{path}' is a damaged compressed file ({error}): copy it again") from error
    except OSError as error:
        if error.errno is None:
            raise InputError(f"'{path}' is a damaged compressed file ({error}): copy it again") from error
        raise InputError(f"cannot read '{path}' ({error.strerror}): check the path and its permissions") from error
    except MemoryError as error:
        raise InputError(f"'{path}' does not fit into memory: crop or bin it") from error
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"'{path}' has a damaged header ({error}): write it anew") from error


def _chosen_voxel_size(header: np.ndarray, path: pathlib.Path, override: float | None) -> Triple:
    if override is not None:
        size = _positive(override)
        return (size, size, size)
    found = voxel_size(header)
    if found is None:
        cell = tuple(float(header["cella"][axis]) for axis in "zyx")
        grid = tuple(int(header[f"m{axis}"]) for axis in "zyx")
        raise InputError(
            f"'{path}' gives no voxel size (cell {cell} A over grid {grid}): pass --voxel-size in angstrom"
        )
    return found


def _positive(voxel_size_angstrom: float) -> float:
    size = float(voxel_size_angstrom)
    if not (math.isfinite(size) and size > 0):
        raise InputError(f"voxel size {size:g} is not a length: give a positive number of angstrom")
    return size
