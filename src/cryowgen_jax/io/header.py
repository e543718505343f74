"""What an MRC2014 header says: kind of data, axes, voxel size, sign of bytes; and the header of an output.

Format: Cheng et al., "MRC2014: Extensions to the MRC format header for electron cryo-microscopy and tomography",
J. Struct. Biol. 192 (2015) 146-150. IMOD's additions: its ``mrc_format`` page.
"""

from __future__ import annotations

import importlib.metadata
import os

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from cryowgen_jax.types import InputError

HEADER_BYTES = 1024
REAL_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}

_COMPLEX_MODES = (3, 4)
_OTHER_MODES = (16, 101)
_IMOD_STAMP = 1146047817
_IMOD_SIGNED_BYTES = 1
_IMAGE_METADATA = (b"SERI", b"AGAR", b"FEI1", b"FEI2")
_FORMAT_VERSION = 20141
_NUM_LABELS = 10
_LARGEST_AXIS = 1 << 20
_BIG_ENDIAN = 17  # first byte of the machine stamp

Triple = tuple[float, float, float]
PathLike = str | os.PathLike[str]


def looks_like_mrc(start: bytes) -> bool:
    """Whether the first 1024 bytes can be an MRC header: it has the ``MAP`` mark, or its mode and size make sense.

    The second half recognises files written before the year 2000, which have no mark.
    """
    if len(start) < HEADER_BYTES:
        return False
    if start[208:211] == b"MAP":
        return True
    headers = _in_either_order(start)
    return any(
        int(header["mode"]) in (*REAL_MODES, *_COMPLEX_MODES, *_OTHER_MODES)
        and all(0 < int(header[axis]) < _LARGEST_AXIS for axis in ("nx", "ny", "nz"))
        for header in headers
    )


def plain_header(start: bytes) -> np.ndarray:
    """The first 1024 bytes as a header, in the byte order in which they make more sense."""
    little, big = _in_either_order(start)
    chosen = big if start[212] == _BIG_ENDIAN or _oddness(big) < _oddness(little) else little
    return np.array(chosen.copy())  # those of a buffer cannot be written to


def _in_either_order(start: bytes) -> list[np.ndarray]:
    """The first 1024 bytes as a little-endian header and as a big-endian one."""
    return [np.frombuffer(start[:HEADER_BYTES], HEADER_DTYPE.newbyteorder(order))[0] for order in "<>"]


def _oddness(header: np.ndarray) -> int:
    return max(abs(int(header[word])) for word in ("nx", "ny", "nz", "mode"))


def require_volume(header: np.ndarray, path: PathLike, *, permissive: bool) -> None:
    """Raise ``InputError`` unless the header describes one volume of real numbers.

    MRC2014 tells a volume (space group 1 to 230) from an image stack (space group 0 and ``mz`` 1). Many programs
    leave the space group of a volume at 0, so a file with space group 0 counts as a stack only when it says so a
    second time: ``mz`` is 1 while it has several sections, or it carries an extended header that describes single
    images (SERI, AGAR, FEI1, FEI2). A tilt series with space group 0, ``mz`` equal to ``nz`` and no such extended
    header cannot be told from a volume and is accepted. ``permissive`` accepts every space group 0 as a volume.
    """
    mode, shape = int(header["mode"]), tuple(int(header[axis]) for axis in ("nz", "ny", "nx"))
    if mode in _COMPLEX_MODES:
        raise InputError(f"'{path}' holds complex numbers (mode {mode}), a transform: give the tomogram itself")
    if mode not in REAL_MODES:
        raise InputError(
            f"'{path}' has data mode {mode}, which is not supported: convert it to mode 2 (newstack -mode 2)"
        )
    if min(shape) < 1:
        raise InputError(f"'{path}' has a damaged header: it claims a shape (Z, Y, X) of {shape}; write it anew")
    if min(shape) == 1:
        raise InputError(
            f"'{path}' is a 2-D image, shape (Z, Y, X) {shape}: give a tomogram, which has three dimensions"
        )
    group, mz = int(header["ispg"]), int(header["mz"])
    if 401 <= group <= 630:
        raise InputError(f"'{path}' is a stack of volumes (space group {group}): give one volume per file")
    if group == 0 and not permissive and (mz == 1 or _describes_images(header)):
        raise InputError(
            f"'{path}' is a stack of {shape[0]} images, such as a tilt series (space group 0, mz {mz}): give the "
            "reconstructed tomogram, or pass --permissive if it is one in spite of its header"
        )


def _describes_images(header: np.ndarray) -> bool:
    return int(header["nsymbt"]) > 0 and bytes(header["exttyp"]) in _IMAGE_METADATA


def bytes_are_unsigned(header: np.ndarray) -> bool:
    """Whether mode 0 holds 0..255: only where IMOD's stamp is present and its flag for signed bytes is not.

    Bytes 152 to 159 are IMOD's ``imodStamp`` and ``imodFlags``. Without the stamp MRC2014 applies: -128..127.
    """
    stamp, flags = np.frombuffer(header["extra2"].tobytes()[40:48], header.dtype["mode"])
    return int(stamp) == _IMOD_STAMP and not int(flags) & _IMOD_SIGNED_BYTES


def stored_axes(header: np.ndarray) -> tuple[int, int, int]:
    """Positions of Z, Y and X among the stored (sections, rows, columns): ``stored.transpose(...)`` is (Z, Y, X).

    Raises
    ------
    ValueError
        ``mapc``, ``mapr``, ``maps`` are not 1, 2, 3 in some order. (0, 0, 0), as in old files, counts as 1, 2, 3.
    """
    mapping = tuple(int(header[field]) for field in ("maps", "mapr", "mapc"))
    if mapping == (0, 0, 0):
        return (0, 1, 2)
    if sorted(mapping) != [1, 2, 3]:
        raise ValueError(f"mapc, mapr, maps are {mapping[::-1]}, which is no order of the axes 1, 2, 3")
    return (mapping.index(3), mapping.index(2), mapping.index(1))


def voxel_size(header: np.ndarray) -> Triple | None:
    """Cell length over the number of grid intervals along Z, Y, X, in angstrom; None where one is not positive."""
    sizes = []
    for axis in "zyx":
        length, intervals = float(header["cella"][axis]), int(header[f"m{axis}"])
        sizes.append(length / intervals if intervals > 0 else 0.0)
    return tuple(sizes) if all(np.isfinite(size) and size > 0 for size in sizes) else None  # type: ignore[return-value]


def new_header(shape: tuple[int, int, int], voxel_size_angstrom: Triple) -> np.ndarray:
    """Little-endian header of a volume of that (Z, Y, X) shape, with its corner at the origin."""
    header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    header["nz"], header["ny"], header["nx"] = shape
    _set_grid(header, shape, voxel_size_angstrom)
    return header


def output_header(like: np.ndarray, stored: np.ndarray, voxel_size_angstrom: Triple) -> np.ndarray:
    """Header of a float32 volume that lies in the frame of an input.

    Parameters
    ----------
    like
        The input's header. Byte order, start, mapping, origin, labels and unassigned bytes are kept, and so is the
        cell unless it gives another voxel size; the extended header is not.
    stored
        The data as (sections, rows, columns), for the statistics.
    voxel_size_angstrom
        Along Z, Y, X.
    """
    header = like.copy()
    if (int(like["ispg"]) == 0 and int(like["mz"]) == 1) or voxel_size(like) != tuple(voxel_size_angstrom):
        shape = tuple(stored.shape[position] for position in stored_axes(like))
        _set_grid(header, shape, voxel_size_angstrom)
    header["mode"], header["nsymbt"], header["exttyp"], header["nversion"] = 2, 0, b"", _FORMAT_VERSION
    header["map"], header["machst"] = b"MAP ", (68, 68, 0, 0) if _little_endian(header) else (17, 17, 0, 0)
    if not 1 <= int(like["ispg"]) <= 230:
        header["ispg"] = 1
    if int(like["mapc"]) == 0:
        header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    for angle in ("alpha", "beta", "gamma"):
        if float(like["cellb"][angle]) == 0:
            header["cellb"][angle] = 90.0
    header["dmin"], header["dmax"] = stored.min(), stored.max()
    mean = stored.mean(dtype=np.float64)
    # By section, to spare a copy of the volume in float64.
    header["dmean"], header["rms"] = mean, np.sqrt(np.mean([np.mean((section - mean) ** 2) for section in stored]))
    _set_labels(header)
    return header


def byte_order(header: np.ndarray) -> str:
    """``<`` or ``>``, the order of the numbers in the file of that header."""
    return "<" if _little_endian(header) else ">"


def _little_endian(header: np.ndarray) -> bool:
    return header.dtype["nx"] == np.dtype("<i4")


def _set_grid(header: np.ndarray, shape: tuple[int, int, int], voxel_size_angstrom: Triple) -> None:
    for axis, count, size in zip("zyx", shape, voxel_size_angstrom, strict=True):
        header[f"m{axis}"] = count
        header["cella"][axis] = count * size


def _set_labels(header: np.ndarray) -> None:
    """Keep the texts, without gaps, and add who wrote this file; of ten texts the last makes room."""
    ours = f"Written by cryowgen-jax {importlib.metadata.version('cryowgen-jax')}".encode()
    texts = [text for text in map(bytes, header["label"]) if text.strip()]
    kept = [text for text in texts if text.strip() != ours][: _NUM_LABELS - 1]
    header["label"] = b""
    header["label"][: len(kept) + 1] = [*kept, ours]
    header["nlabl"] = len(kept) + 1
