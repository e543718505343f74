"""MRC files byte by byte from the MRC2014 table of fields, independent of mrcfile and of the code under test."""

import struct
import warnings

import mrcfile
import numpy as np

_FIRST_WORDS = ("nx", "ny", "nz", "mode", "nxstart", "nystart", "nzstart", "mx", "my", "mz")
_INTS = {name: 4 * word for word, name in enumerate(_FIRST_WORDS)} | {
    "mapc": 64,
    "mapr": 68,
    "maps": 72,
    "ispg": 88,
    "nsymbt": 92,
    "nversion": 108,
    "nlabl": 220,
}
_FLOATS = {
    "cella_x": 40,
    "cella_y": 44,
    "cella_z": 48,
    "alpha": 52,
    "beta": 56,
    "gamma": 60,
    "dmin": 76,
    "dmax": 80,
    "dmean": 84,
    "origin_x": 196,
    "origin_y": 200,
    "origin_z": 204,
    "rms": 216,
}
_IMOD = {"imod_stamp": 152, "imod_flags": 156}
_MODES = {"i1": 0, "u1": 0, "i2": 1, "f4": 2, "c8": 4, "u2": 6, "f2": 12}


def ramp(shape=(4, 5, 6), dtype="f4"):
    """Whole numbers, all different, that each type can hold."""
    return (np.arange(np.prod(shape)).reshape(shape) % 120 - (0 if dtype[0] == "u" else 60)).astype(dtype)


def mrc_bytes(data, *, order="<", voxel=10.0, labels=(), extended=b"", mark=b"MAP ", machst=None, exttyp=b"", **fields):
    """File with ``data`` as (sections, rows, columns); ``fields`` overrides any number of the header."""
    nz, ny, nx = data.shape
    values = {"nx": nx, "ny": ny, "nz": nz, "mode": _MODES[data.dtype.str[1:]], "mx": nx, "my": ny, "mz": nz}
    values |= {
        "cella_x": nx * voxel,
        "cella_y": ny * voxel,
        "cella_z": nz * voxel,
        "alpha": 90,
        "beta": 90,
        "gamma": 90,
    }
    values |= {"mapc": 1, "mapr": 2, "maps": 3, "ispg": 1, "nversion": 20141, "nlabl": len(labels), "rms": -1}
    values |= {"dmin": 0, "dmax": -1, "dmean": -2, "nsymbt": len(extended)} | fields
    header = bytearray(1024)
    for name, value in values.items():
        kind = "f" if name in _FLOATS else "i"
        struct.pack_into(order + kind, header, (_INTS | _FLOATS | _IMOD)[name], value)
    header[104:108] = exttyp.ljust(4, b"\0")
    header[208:212] = mark
    header[212:216] = machst or {"<": b"\x44\x44\0\0", ">": b"\x11\x11\0\0"}[order]
    for number, label in enumerate(labels):
        header[224 + 80 * number : 224 + 80 * (number + 1)] = label.ljust(80)
    return bytes(header) + extended + data.astype(data.dtype.newbyteorder(order)).tobytes()


def field(path, name, order="<"):
    """One number of the header of a file on disk."""
    kind = "f" if name in _FLOATS else "i"
    return struct.unpack_from(order + kind, path.read_bytes(), (_INTS | _FLOATS | _IMOD)[name])[0]


def labels(path):
    header = path.read_bytes()[:1024]
    return [header[offset : offset + 80].rstrip(b"\0 ") for offset in range(224, 1024, 80)]


def is_strictly_valid(path):
    """Whether mrcfile finds nothing wrong; it prints its complaints. Deprecations in NumPy are not about the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return mrcfile.validate(path)
