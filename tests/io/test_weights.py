import errno
import os
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from cryowgen_jax.io import load_weights, save_weights
from cryowgen_jax.types import InputError


def test_arrays_and_settings_come_back(tmp_path, rng):
    arrays = {"b.kernel": rng.normal(size=(3, 2)).astype(np.float16), "a": np.arange(4, dtype=np.float32)[::2]}
    save_weights(tmp_path / "w", arrays, {"channels": 8, "names": ["x"]})
    found, settings = load_weights(tmp_path / "w")
    assert settings == {"channels": 8, "names": ["x"]}
    assert sorted(found) == ["a", "b.kernel"]
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x08\x00\x00\x00\x00\x00\x00\x00{}"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(InputError, match="save_witness"):
        load_weights(tmp_path / "w")


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no file"):
        load_weights(tmp_path / "w")
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "w")
    with pytest.raises(InputError, match="another program"):
        load_weights(tmp_path / "w")


@pytest.mark.parametrize("settings", ["{nope", "[]", "3", "null", "[" * 100_000])
def test_settings_that_are_none_are_refused_in_one_line(tmp_path, settings):
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "w", metadata={"cryowgen": settings})
    with pytest.raises(InputError, match=r"settings that are .*: give a file that save_witness wrote$"):
        load_weights(tmp_path / "w")


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    save_weights(tmp_path / "w", {"a": np.zeros(3, np.float32)}, {})

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="full"):
        save_weights(tmp_path / "w", {"a": np.ones(3, np.float32)}, {})
    assert [p.name for p in pathlib.Path(tmp_path).iterdir()] == ["w"]
    np.testing.assert_array_equal(load_weights(tmp_path / "w")[0]["a"], np.zeros(3))
