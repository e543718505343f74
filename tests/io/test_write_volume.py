import errno
import gzip
import importlib.metadata
import os
import pathlib

import jax.numpy as jnp
import mrcfile
import numpy as np
import pytest

from cryowgen_jax.io.mrc import new_volume, read_tomogram, write_volume
from cryowgen_jax.types import InputError
from tests.io.raw import field, is_strictly_valid, labels, mrc_bytes, ramp

LABEL = f"Written by cryowgen-jax {importlib.metadata.version('cryowgen-jax')}".encode()
FRAME = (
    [f"n{axis}start" for axis in "xyz"]
    + [f"m{axis}" for axis in "xyz"]
    + [f"cella_{axis}" for axis in "xyz"]
    + [f"origin_{axis}" for axis in "xyz"]
    + ["alpha", "beta", "gamma", "mapc", "mapr", "maps", "nx", "ny", "nz"]
)
ODD_FRAME = {
    "nxstart": -3,
    "nystart": 7,
    "nzstart": 11,
    "origin_x": 1.5,
    "origin_y": -2.25,
    "origin_z": 1e4,
    "cella_x": 12.3,
    "cella_y": 45.6,
    "cella_z": 78.9,
}


def tomogram_from(tmp_path, data, **options):
    path = tmp_path / "in.mrc"
    path.write_bytes(mrc_bytes(data, **options))
    return path, read_tomogram(path)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("mapping", [(1, 2, 3), (1, 3, 2), (2, 3, 1), (3, 1, 2), (3, 2, 1)])
def test_frame_and_values_survive(tmp_path, mapping, order):
    fields = dict(zip(("mapc", "mapr", "maps"), mapping, strict=True)) | ODD_FRAME
    path, tomogram = tomogram_from(tmp_path, ramp(), order=order, **fields)
    output = tmp_path / "out.mrc"
    write_volume(output, tomogram.data, tomogram)
    assert [field(output, name, order) for name in FRAME] == [field(path, name, order) for name in FRAME]
    assert output.read_bytes()[1024:] == path.read_bytes()[1024:]
    assert is_strictly_valid(output)
    again = read_tomogram(output)
    np.testing.assert_array_equal(again.data, tomogram.data)
    assert again.voxel_size_angstrom == tomogram.voxel_size_angstrom


def test_transposing_is_needed(tmp_path):
    _, tomogram = tomogram_from(tmp_path, ramp(), mapc=3, mapr=2, maps=1)
    assert not np.array_equal(tomogram.data.ravel(), ramp().ravel())


@pytest.mark.parametrize(
    "fields",
    [
        {"ispg": 0, "mz": 4},
        {"nversion": 0},
        {"mapc": 0, "mapr": 0, "maps": 0},
        {"alpha": 0, "beta": 0, "gamma": 0},
        {"extended": bytes(range(256)), "exttyp": b"FEI1"},
        {"extended": bytes(64), "exttyp": b"????"},
        {"dmin": 5, "dmax": 6, "dmean": 5.5, "rms": 3},
        {"machst": b"\x44\x41\0\0"},
        {"imod_stamp": 1146047817, "imod_flags": 12},
    ],
)
def test_output_is_strictly_valid_whatever_the_input(tmp_path, fields):
    _, tomogram = tomogram_from(tmp_path, ramp(), **fields)
    output = tmp_path / "out.mrc"
    write_volume(output, tomogram.data**2, tomogram)
    assert is_strictly_valid(output)
    assert output.stat().st_size == 1024 + 4 * 120
    assert field(output, "ispg") == 1
    assert field(output, "mode") == 2
    assert [field(output, angle) for angle in ("alpha", "beta", "gamma")] == [90.0, 90.0, 90.0]


def test_what_only_permissive_reads_comes_out_valid(tmp_path):
    path = tmp_path / "in.mrc"
    for options in ({"mark": b"\0\0\0\0"}, {"machst": b"\0\0\0\0"}, {"ispg": 0, "mz": 1, "cella_z": 10.0}, {"maps": 1}):
        path.write_bytes(mrc_bytes(ramp(), **options))
        tomogram = read_tomogram(path, permissive=True)
        write_volume(tmp_path / "out.mrc", tomogram.data, tomogram)
        assert is_strictly_valid(tmp_path / "out.mrc")
        assert read_tomogram(tmp_path / "out.mrc").voxel_size_angstrom == tomogram.voxel_size_angstrom


def test_declared_stack_comes_out_as_volume(tmp_path):
    path = tmp_path / "in.mrc"
    path.write_bytes(mrc_bytes(ramp(), ispg=0, mz=1, cella_z=10.0))
    tomogram = read_tomogram(path, permissive=True)
    output = tmp_path / "out.mrc"
    write_volume(output, tomogram.data, tomogram)
    assert (field(output, "ispg"), field(output, "mz"), field(output, "cella_z")) == (1, 4, 40.0)


def test_statistics(tmp_path, rng):
    _, tomogram = tomogram_from(tmp_path, ramp())
    volume = rng.normal(3.0, 2.0, (4, 5, 6)).astype(np.float32)
    output = tmp_path / "out.mrc"
    write_volume(output, volume, tomogram)
    assert field(output, "dmin") == sorted(volume.flat)[0]
    assert field(output, "dmax") == sorted(volume.flat)[-1]
    mean = sum(map(float, volume.flat)) / 120
    assert field(output, "dmean") == pytest.approx(mean, rel=1e-6)
    assert field(output, "rms") == pytest.approx((sum((v - mean) ** 2 for v in map(float, volume.flat)) / 120) ** 0.5)


def test_constant_output_is_valid(tmp_path):
    _, tomogram = tomogram_from(tmp_path, ramp())
    write_volume(tmp_path / "std.mrc", np.zeros((4, 5, 6)), tomogram)
    assert is_strictly_valid(tmp_path / "std.mrc")


@pytest.mark.parametrize("count", [0, 1, 9, 10])
def test_labels(tmp_path, count):
    texts = [f"label {number}".encode() for number in range(count)]
    _, tomogram = tomogram_from(tmp_path, ramp(), labels=texts)
    output = tmp_path / "out.mrc"
    write_volume(output, tomogram.data, tomogram)
    expected = [*texts[:9], LABEL]
    assert labels(output)[: len(expected)] == expected
    assert field(output, "nlabl") == len(expected)
    write_volume(tmp_path / "twice.mrc", tomogram.data, read_tomogram(output))
    assert labels(tmp_path / "twice.mrc") == labels(output)


def test_labels_with_gaps_and_a_wrong_count(tmp_path):
    _, tomogram = tomogram_from(tmp_path, ramp(), labels=[b"one", b"", b"three"], nlabl=7)
    write_volume(tmp_path / "out.mrc", tomogram.data, tomogram)
    assert labels(tmp_path / "out.mrc")[:4] == [b"one", b"three", LABEL, b""]
    assert is_strictly_valid(tmp_path / "out.mrc")


def test_override_reaches_the_output(tmp_path):
    path = tmp_path / "in.mrc"
    path.write_bytes(mrc_bytes(ramp(), mapc=3, mapr=2, maps=1, mx=0, cella_x=0))
    tomogram = read_tomogram(path, voxel_size_override=7.5)
    output = tmp_path / "out.mrc"
    write_volume(output, tomogram.data, tomogram)
    assert [field(output, f"m{axis}") for axis in "xyz"] == [4, 5, 6]
    assert [field(output, f"cella_{axis}") for axis in "xyz"] == [30.0, 37.5, 45.0]


def test_device_arrays_and_jax_types(tmp_path):
    _, tomogram = tomogram_from(tmp_path, ramp())
    write_volume(tmp_path / "out.mrc", jnp.asarray(tomogram.data).astype(jnp.bfloat16), tomogram)
    np.testing.assert_array_equal(read_tomogram(tmp_path / "out.mrc").data, ramp())


def test_same_volume_same_bytes(tmp_path):
    _, tomogram = tomogram_from(tmp_path, ramp())
    for name in ("a.mrc", "b.mrc"):
        write_volume(tmp_path / name, tomogram.data, tomogram)
    assert (tmp_path / "a.mrc").read_bytes() == (tmp_path / "b.mrc").read_bytes()


def test_new_volume(tmp_path):
    path = tmp_path / "deep" / "folder" / "new.mrc"
    new_volume(path, ramp(), 12.5)
    assert is_strictly_valid(path)
    tomogram = read_tomogram(path)
    np.testing.assert_array_equal(tomogram.data, ramp())
    assert tomogram.voxel_size_angstrom == (12.5, 12.5, 12.5)
    assert [field(path, f"m{axis}") for axis in "xyz"] == [6, 5, 4]
    assert labels(path)[:2] == [LABEL, b""]
    with pytest.raises(InputError, match="positive"):
        new_volume(path, ramp(), 0.0)


def test_refusals(tmp_path):
    _, tomogram = tomogram_from(tmp_path, ramp())
    with pytest.raises(ValueError, match="shape"):
        write_volume(tmp_path / "out.mrc", np.zeros((4, 5, 7)), tomogram)
    with pytest.raises(InputError, match="NaN"):
        write_volume(tmp_path / "out.mrc", np.full((4, 5, 6), np.nan), tomogram)
    with pytest.raises(InputError, match="compressed"):
        write_volume(tmp_path / "out.mrc.gz", tomogram.data, tomogram)
    with pytest.raises(InputError, match="folder"):
        write_volume(tmp_path, tomogram.data, tomogram)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.mrc"]


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("fails", ["write", "fsync", "replace"])
def test_full_disk_leaves_everything_as_it_was(tmp_path, monkeypatch, existing, fails):
    _, tomogram = tomogram_from(tmp_path, ramp((64, 64, 64)))
    output = tmp_path / "out.mrc"
    if existing:
        output.write_bytes(b"precious")
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    _break(monkeypatch, fails, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(InputError, match=r"disk is full: 1\.0 MB needed, [\d.]+ [MG]B free"):
        write_volume(output, tomogram.data, tomogram)
    monkeypatch.undo()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_interrupt_leaves_no_file(tmp_path, monkeypatch):
    _, tomogram = tomogram_from(tmp_path, ramp())
    _break(monkeypatch, "fsync", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write_volume(tmp_path / "out.mrc", tomogram.data, tomogram)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.mrc"]


def _break(monkeypatch, step, failure):
    def fail(*_, **__):
        raise failure

    if step in ("fsync", "replace"):
        monkeypatch.setattr(os, step, fail)
        return
    real_open = pathlib.Path.open

    class FullFile:
        """Takes the header and has no room for the rest."""

        def __init__(self, file):
            self.file, self.calls = file, 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, part):
            self.calls += 1
            return self.file.write(part) if self.calls == 1 else fail()

    def opened(self, mode="r", *rest, **options):
        file = real_open(self, mode, *rest, **options)
        return FullFile(file) if mode == "xb" and "out.mrc" in self.name else file

    monkeypatch.setattr(pathlib.Path, "open", opened)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy 2.5 about mrcfile 1.5.4
@pytest.mark.parametrize("name", ["tomo_microtubule_14pf.mrc", "emd_3197.map", "emd_1832.map", "library/3j9i.mrc"])
def test_real_files_as_mrcfile_sees_them(tmp_path, shared_data, name):
    tomogram = read_tomogram(shared_data / name)
    output = tmp_path / "out.mrc"
    write_volume(output, tomogram.data, tomogram)
    assert is_strictly_valid(output)
    with mrcfile.open(shared_data / name) as before, mrcfile.open(output) as after:
        np.testing.assert_array_equal(before.data, after.data)
        assert after.data.dtype == np.float32
        assert after.is_volume()
        assert before.voxel_size == after.voxel_size
        assert before.nstart == after.nstart
        assert before.header.origin == after.header.origin


def test_real_map_compressed(tmp_path, shared_data):
    path = tmp_path / "emd_3197.map.gz"
    path.write_bytes(gzip.compress((shared_data / "emd_3197.map").read_bytes()))
    np.testing.assert_array_equal(read_tomogram(path).data, read_tomogram(shared_data / "emd_3197.map").data)
