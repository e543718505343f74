"""Every input that cannot be used: one line that names the file, the fault and the way out."""

import gzip
import pathlib

import numpy as np
import pytest

from cryowgen_jax.io.mrc import read_tomogram
from cryowgen_jax.types import InputError
from tests.io.raw import mrc_bytes, ramp


def spoiled(*values):
    data = ramp()
    data.flat[: len(values)] = values
    return data


def damaged(content, position):
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


RAMP = mrc_bytes(ramp())
RANDOM = np.random.default_rng(5).integers(0, 256, 40_000, dtype=np.uint8)
NOISE = np.random.default_rng(6).normal(size=(10, 10, 10)).astype("f4")

CASES = {
    "empty": (b"", ["empty", "again"]),
    "short": (b"MAP", ["not an MRC file", ".rec"]),
    "text": (b"x, y, z\n" * 500, ["not an MRC file"]),
    "zeros": (bytes(4000), ["not an MRC file"]),
    "random": (RANDOM.tobytes(), ["not an MRC file"]),
    "tiff": (b"II*\0" + RANDOM.tobytes(), ["not an MRC file"]),
    "header only": (RAMP[:1024], ["truncated", "480 bytes", "(4, 5, 6)"]),
    "cut by one byte": (RAMP[:-1], ["truncated", "480 bytes"]),
    "cut in the extended header": (mrc_bytes(ramp(), extended=bytes(2000))[:1500], ["truncated"]),
    "huge claim": (mrc_bytes(ramp(), nx=100_000, ny=100_000, nz=100_000), ["truncated"]),
    "huge claim and no data": (mrc_bytes(ramp(), nx=100_000, ny=100_000, nz=100_000)[:1024], ["truncated"]),
    "negative size": (mrc_bytes(ramp(), nx=-6), ["damaged header", "-6"]),
    "negative extended header": (mrc_bytes(ramp(), nsymbt=-4), ["damaged header"]),
    "unknown mode": (mrc_bytes(ramp(), mode=77), ["mode 77", "convert"]),
    "four-bit mode": (mrc_bytes(ramp(), mode=101), ["mode 101", "convert"]),
    "complex": (mrc_bytes(ramp().astype("c8")), ["complex", "mode 4"]),
    "complex integers": (mrc_bytes(ramp(), mode=3), ["complex", "mode 3"]),
    "image": (mrc_bytes(ramp((1, 5, 6)), ispg=0), ["2-D", "(1, 5, 6)"]),
    "image called volume": (mrc_bytes(ramp((1, 5, 6))), ["2-D"]),
    "image stack": (mrc_bytes(ramp(), ispg=0, mz=1), ["stack of 4 images", "tilt series", "--permissive"]),
    "SerialEM stack": (
        mrc_bytes(ramp(), ispg=0, extended=bytes(64), exttyp=b"SERI"),
        ["stack of 4 images", "reconstructed"],
    ),
    "volume stack": (mrc_bytes(ramp(), ispg=401, mz=2), ["stack of volumes", "401", "one volume per file"]),
    "broken volume stack": (mrc_bytes(ramp(), ispg=401, mz=0), ["401"]),
    "nan": (mrc_bytes(spoiled(np.nan, np.nan)), ["2 voxels of 120", "NaN", "replace"]),
    "infinite": (mrc_bytes(spoiled(np.inf, -np.inf, np.nan)), ["3 voxels of 120", "infinite"]),
    "constant": (mrc_bytes(np.full((4, 5, 6), 2.5, "f4")), ["constant", "2.5"]),
    "constant bytes": (mrc_bytes(np.zeros((4, 5, 6), "i1")), ["constant"]),
    "no cell": (mrc_bytes(ramp(), cella_x=0, cella_y=0, cella_z=0), ["voxel size", "--voxel-size"]),
    "no grid": (mrc_bytes(ramp(), mx=0), ["voxel size", "--voxel-size"]),
    "negative cell": (mrc_bytes(ramp(), cella_y=-50), ["voxel size", "-50", "--voxel-size"]),
    "nan cell": (mrc_bytes(ramp(), cella_y=np.nan), ["voxel size", "--voxel-size"]),
    "gzip cut": (gzip.compress(mrc_bytes(NOISE))[:-200], ["damaged compressed"]),
    "gzip cut in the header": (gzip.compress(mrc_bytes(NOISE))[:60], ["damaged compressed"]),
    "gzip of a cut file": (gzip.compress(RAMP[:-1]), ["truncated"]),
    "gzip flipped byte": (damaged(gzip.compress(mrc_bytes(NOISE)), 2000), ["damaged compressed"]),
    "gzip of text": (gzip.compress(b"hello" * 1000), ["not an MRC file"]),
    "gzip magic only": (b"\x1f\x8b" + bytes(20), ["damaged compressed"]),
    "bzip2 damaged": (b"BZh9" + RANDOM.tobytes(), ["damaged compressed"]),
}


@pytest.mark.parametrize("name", CASES)
def test_message(tmp_path, name):
    content, words = CASES[name]
    path = tmp_path / "tomo.mrc"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_tomogram(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in [str(path), *words]:
        assert word in message


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("image stack", "SerialEM stack")])
def test_permissive_does_not_help(tmp_path, name):
    path = tmp_path / "tomo.mrc"
    path.write_bytes(CASES[name][0])
    with pytest.raises(InputError):
        read_tomogram(path, permissive=True)


def test_missing_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*gone.mrc.*No such file"):
        read_tomogram(tmp_path / "gone.mrc")
    with pytest.raises(InputError, match="is a folder"):
        read_tomogram(tmp_path)


def test_unreadable(tmp_path, monkeypatch):
    path = tmp_path / "tomo.mrc"
    path.write_bytes(RAMP)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        read_tomogram(path)


def test_the_good_file_behind_the_cases_reads(tmp_path):
    path = tmp_path / "tomo.mrc"
    for content in (RAMP, gzip.compress(mrc_bytes(NOISE))):
        path.write_bytes(content)
        read_tomogram(path)
