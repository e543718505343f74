import bz2
import gzip

import mrcfile
import numpy as np
import pytest

from cryowgen_jax.io.mrc import read_tomogram, write_volume
from cryowgen_jax.types import InputError
from tests.io.raw import mrc_bytes, ramp


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["i1", "i2", "u2", "f2", "f4"])
def test_every_mode_and_byte_order(tmp_path, dtype, order):
    data = ramp(dtype=dtype)
    path = tmp_path / "a.mrc"
    path.write_bytes(mrc_bytes(data, order=order))
    tomogram = read_tomogram(path)
    assert tomogram.data.dtype == np.float32
    assert tomogram.data.dtype.isnative
    np.testing.assert_array_equal(tomogram.data, data)
    assert tomogram.voxel_size_angstrom == (10.0, 10.0, 10.0)
    assert tomogram.path == path
    assert tomogram.notes == ()


@pytest.mark.parametrize("name", ["a.mrc", "a.map", "a.rec", "a"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress])
def test_content_not_name_decides(tmp_path, name, compress):
    path = tmp_path / name
    path.write_bytes(compress(mrc_bytes(ramp())))
    np.testing.assert_array_equal(read_tomogram(path).data, ramp())


@pytest.mark.parametrize("order", ["<", ">"])
def test_sign_of_bytes(tmp_path, order):
    stored = np.arange(120, dtype=np.uint8).reshape(4, 5, 6) + 100
    path = tmp_path / "a.mrc"

    def read(**imod):
        path.write_bytes(mrc_bytes(stored, order=order, **imod))
        return read_tomogram(path).data

    signed = stored.astype(np.int16) - 256 * (stored > 127)
    np.testing.assert_array_equal(read(), signed)
    np.testing.assert_array_equal(read(imod_flags=0, imod_stamp=7), signed)
    np.testing.assert_array_equal(read(imod_stamp=1146047817, imod_flags=1 + 4), signed)
    np.testing.assert_array_equal(read(imod_stamp=1146047817, imod_flags=4), stored)


@pytest.mark.parametrize("mapping", [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)])
def test_axes_come_out_as_z_y_x(tmp_path, mapping):
    # Voxel (x, y, z) holds 100 z + 10 y + x; written column by column as the mapping says.
    lengths = {1: 4, 2: 5, 3: 6}
    columns, rows, sections = (lengths[axis] for axis in mapping)
    stored = np.zeros((sections, rows, columns), np.float32)
    for section in range(sections):
        for row in range(rows):
            for column in range(columns):
                place = dict(zip(mapping, (column, row, section), strict=True))
                stored[section, row, column] = 100 * place[3] + 10 * place[2] + place[1]
    grid = {"mx": 4, "my": 5, "mz": 6, "cella_x": 4 * 2.0, "cella_y": 5 * 3.0, "cella_z": 6 * 4.0}
    path = tmp_path / "a.mrc"
    path.write_bytes(mrc_bytes(stored, mapc=mapping[0], mapr=mapping[1], maps=mapping[2], **grid))
    tomogram = read_tomogram(path)
    z, y, x = np.meshgrid(np.arange(6), np.arange(5), np.arange(4), indexing="ij")
    np.testing.assert_array_equal(tomogram.data, 100 * z + 10 * y + x)
    assert tomogram.voxel_size_angstrom == (4.0, 3.0, 2.0)


def test_voxel_size_override(tmp_path):
    path = tmp_path / "a.mrc"
    path.write_bytes(mrc_bytes(ramp(), cella_x=0))
    assert read_tomogram(path, voxel_size_override=7.5).voxel_size_angstrom == (7.5, 7.5, 7.5)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="positive"):
            read_tomogram(path, voxel_size_override=wrong)


@pytest.mark.parametrize(
    "fields",
    [
        {"ispg": 1, "mz": 4},
        {"ispg": 1, "mz": 1},
        {"ispg": 0, "mz": 4},
        {"ispg": 0, "mz": 4, "extended": bytes(128)},
        {"ispg": 1, "mz": 4, "extended": bytes(128), "exttyp": b"SERI"},
        {"mapc": 0, "mapr": 0, "maps": 0},
    ],
)
def test_accepted_as_volume(tmp_path, fields):
    path = tmp_path / "a.mrc"
    path.write_bytes(mrc_bytes(ramp(), **fields))
    assert read_tomogram(path).data.shape == (4, 5, 6)


@pytest.mark.parametrize(
    ("fields", "tail", "word"),
    [
        ({"mark": b"\0\0\0\0"}, b"", "Map ID"),
        ({"machst": b"\0\0\0\0"}, b"", "machine stamp"),
        ({"machst": b"\x11\x11\0\0"}, b"", "achine stamp"),
        ({}, b"surplus", "7 bytes larger"),
        ({"mapc": 1, "mapr": 1, "maps": 3}, b"", "mapc"),
    ],
)
def test_permissive_reads_what_strict_refuses(tmp_path, fields, tail, word):
    path = tmp_path / "a.mrc"
    path.write_bytes(mrc_bytes(ramp(), **fields) + tail)
    with pytest.raises(InputError, match=rf"{word}.*--permissive"):
        read_tomogram(path)
    tomogram = read_tomogram(path, permissive=True)
    np.testing.assert_array_equal(tomogram.data, ramp())
    assert any(word in note for note in tomogram.notes)


def test_permissive_takes_a_declared_stack(tmp_path):
    path = tmp_path / "a.mrc"
    path.write_bytes(mrc_bytes(ramp(), ispg=0, mz=1, cella_z=10.0))
    assert read_tomogram(path, permissive=True).voxel_size_angstrom == (10.0, 10.0, 10.0)


@pytest.mark.parametrize("dtype", ["i1", "f4"])
def test_data_is_read_only(tmp_path, dtype):
    path = tmp_path / "a.mrc"
    path.write_bytes(mrc_bytes(ramp(dtype=dtype)))
    with pytest.raises(ValueError, match="read-only"):
        read_tomogram(path).data[0, 0, 0] = 1


@pytest.mark.parametrize(
    ("name", "shape", "voxel"),
    [
        ("tomo_microtubule_13pf.mrc", (36, 206, 94), 10.52),
        ("tomo_microtubule_14pf.mrc", (44, 136, 84), 10.52),
        ("emd_3197.map", (20, 20, 20), 11.4),
        ("emd_1832.map", (64, 64, 64), 5.7),
        ("library/3j9i.mrc", (58, 58, 58), 10.0),  # space group 0, mz 58: a volume written by EMAN
    ],
)
def test_real_files(shared_data, name, shape, voxel):
    tomogram = read_tomogram(shared_data / name)
    assert tomogram.data.shape == shape
    assert tomogram.voxel_size_angstrom == pytest.approx((voxel,) * 3, rel=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy 2.5 about mrcfile 1.5.4
def test_real_bytes_as_mrcfile_reads_them(shared_data):
    path = shared_data / "tomo_microtubule_14pf.mrc"
    with mrcfile.open(path) as mrc:
        np.testing.assert_array_equal(read_tomogram(path).data, mrc.data)


def test_real_tilt_series_is_refused(shared_data):
    with pytest.raises(InputError, match=r"stack of 77 images.*reconstructed tomogram"):
        read_tomogram(shared_data / "tilts_haadf_needle_pm76.mrc")


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_extended_header_that_is_not_there(tmp_path, order):
    """Old files announce one and begin with the voxels all the same."""
    volume = np.arange(24 * 20 * 18, dtype=np.float32).reshape(24, 20, 18)
    path = tmp_path / "old.mrc"
    path.write_bytes(mrc_bytes(volume, order=order, nsymbt=40_000))
    read = read_tomogram(path)
    np.testing.assert_array_equal(read.data, volume)
    assert read.notes == ("announces an extended header of 40000 bytes that is not there",)
    write_volume(tmp_path / "new.mrc", volume, read)
    assert read_tomogram(tmp_path / "new.mrc").notes == ()


@pytest.mark.parametrize("announced", [2**31 - 1, 100_000])
def test_an_extended_header_longer_than_the_file_takes_no_memory(tmp_path, announced):
    path = tmp_path / "short.mrc"
    path.write_bytes(mrc_bytes(np.arange(4096, dtype=np.float32).reshape(16, 16, 16), nsymbt=announced)[:-4])
    with pytest.raises(InputError, match=f"announces an extended header of {announced} bytes"):
        read_tomogram(path)
