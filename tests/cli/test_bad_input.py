"""Every input that cannot be used: exit status 2, one line that names fault and remedy, and nothing left behind."""

import errno
import os
import pathlib
import shutil

import numpy as np
import pytest

from cryowgen_jax.types import InputError
from tests.cli.command import RANGE, SHORT, cryowgen, refused
from tests.io.raw import mrc_bytes, ramp
from tests.io.test_output import Usage, deny_writes

import cryowgen_jax.cli.restore_command as restore_command  # isort: skip

pytestmark = pytest.mark.usefixtures("no_work")


def cube(*spoiled, edge=32):
    volume = np.random.default_rng(1).normal(size=(edge, edge, edge)).astype("f4")
    volume.flat[: len(spoiled)] = spoiled
    return volume


CONTENT = {
    "empty": (b"", ["is empty", "again"]),
    "truncated": (mrc_bytes(ramp())[:-40], ["truncated", "again"]),
    "not an MRC": (b"%PDF-1.4 " * 300, ["not an MRC file", ".mrc"]),
    "image": (mrc_bytes(ramp((1, 5, 6))), ["2-D image", "give a tomogram"]),
    "image stack": (mrc_bytes(ramp(), ispg=0, mz=1), ["stack of 4 images", "reconstructed"]),
    "complex": (mrc_bytes(ramp().astype("c8")), ["complex", "give the tomogram"]),
    "NaN": (mrc_bytes(cube(np.nan)), ["1 voxels of 32768", "replace"]),
    "infinite": (mrc_bytes(cube(np.inf, -np.inf)), ["2 voxels of 32768", "replace"]),
    "constant": (mrc_bytes(np.full((32, 32, 32), 3.5, "f4")), ["constant", "3.5", "give a tomogram"]),
    "no voxel size": (mrc_bytes(cube(), voxel=0.0), ["no voxel size", "--voxel-size"]),
}


@pytest.mark.parametrize("command", ["restore", "inspect"])
@pytest.mark.parametrize("name", CONTENT)
def test_content(tmp_path, name, command):
    content, words = CONTENT[name]
    path = tmp_path / "tomo.mrc"
    path.write_bytes(content)
    options = (*RANGE, "-o", tmp_path / "out") if command == "restore" else ()
    line = refused(command, path, *options)
    for word in (str(path), *words):
        assert word in line
    assert os.listdir(tmp_path) == ["tomo.mrc"]


@pytest.mark.parametrize("command", ["restore", "inspect"])
def test_missing_and_folder(tmp_path, command):
    options = (*RANGE, "-o", tmp_path / "out") if command == "restore" else ()
    assert f"cannot read '{tmp_path / 'gone.mrc'}' (No such file" in refused(command, tmp_path / "gone.mrc", *options)
    assert f"'{tmp_path}' is a folder: give an MRC file" in refused(command, tmp_path, *options)
    assert os.listdir(tmp_path) == []


def test_too_small_to_inspect(tmp_path):
    path = tmp_path / "tomo.mrc"
    path.write_bytes(mrc_bytes(ramp()))
    line = refused("inspect", path)
    for word in (str(path), "(4, 5, 6)", "larger"):
        assert word in line


TILTS = {
    "reversed": (["--tilt-range", "60", "-60"], ["60 to -60", "reversed", "-60 60"]),
    "beyond": (["--tilt-range", "-60", "95"], ["between -90 and 90", "95"]),
    "no width": (["--tilt-range", "12", "12"], ["12 to 12", "no width", "lowest and the highest"]),
    "not finite": (["--tilt-range", "-60", "nan"], ["'nan'", "--tilt-range -60 60"]),
    "one of two": (["--tilt-range", "-60"], ["'--output'", "--tilt-range -60 60"]),
    "words": (["--tilt-range", "low", "high"], ["'low'", "--tilt-range -60 60"]),
    "none": ([], ["no tilt range", "--tilt-range LO HI", "cryowgen inspect"]),
    "axes": ([*RANGE, "--beam-axis", "y"], ["both 'y'", "different"]),
}


@pytest.mark.parametrize("name", TILTS)
def test_tilts(files, tmp_path, name):
    options, words = TILTS[name]
    line = refused("restore", files.tomogram, *options, "--output", tmp_path / "out")
    for word in words:
        assert word in line
    assert os.listdir(tmp_path) == []


TILT_FILES = {
    "words": ("-60\nzero\n60\n", ["line 2", "'zero'", "between -90 and 90"]),
    "beyond": ("-60\n100\n", ["line 2", "'100'"]),
    "empty": ("\n", ["holds no tilt angle", "one in degrees per line"]),
    "one angle": ("30\n30\n", ["30 to 30", "no width"]),
    "other range": ("-50\n0\n50\n", ["-50 to 50", "-60 to 60", "leave one of them out"]),
}


@pytest.mark.parametrize("name", TILT_FILES)
def test_tilt_files(files, tmp_path, name):
    content, words = TILT_FILES[name]
    path = tmp_path / "tomo.tlt"
    path.write_text(content)
    stated = RANGE if name == "other range" else ()
    line = refused("restore", files.tomogram, *stated, "--tilt-angles", path, "-o", tmp_path / "out")
    for word in words:
        assert word in line
    assert os.listdir(tmp_path) == ["tomo.tlt"]


def test_missing_tilt_file(files, tmp_path):
    line = refused("restore", files.tomogram, "--tilt-angles", tmp_path / "gone.tlt", "-o", tmp_path / "out")
    assert str(tmp_path / "gone.tlt") in line
    assert "check the path" in line


def test_unusable_weights(files, tmp_path):
    path = tmp_path / "weights"
    command = ("restore", files.half1, *RANGE, "--witness", path, "-o", tmp_path / "out")
    assert f"there is no file '{path}': give weights" in refused(*command)
    path.write_bytes(files.half1.read_bytes())
    assert f"'{path}' holds no weights" in refused(*command)
    assert os.listdir(tmp_path) == ["weights"]


@pytest.mark.parametrize("option", ["--half2", "--center"])
def test_volumes_of_other_shape(files, tmp_path, option):
    path = tmp_path / "other.mrc"
    path.write_bytes(mrc_bytes(cube()))
    line = refused("restore", files.half1, *RANGE, option, path, "-o", tmp_path / "out")
    for word in (str(path), "(32, 32, 32)", str(files.half1), "(24, 32, 28)", "one shape"):
        assert word in line
    path.write_bytes(b"")
    assert f"'{path}' is empty" in refused("restore", files.half1, *RANGE, option, path, "-o", tmp_path / "out")
    assert os.listdir(tmp_path) == ["other.mrc"]


OPTIONS = {
    "method": (["--method", "cryowgen"], ["cryowgen_langevin", "cryowgen_mc"]),
    "samples": (["--samples", "1"], ["--samples", "1", "x>=2"]),
    "steps": (["--steps", "0"], ["--steps", "1<=x<="]),
    "warm-up": (["--warmup", "-1"], ["--warmup", "0<=x<="]),
    "seed": (["--seed", "many"], ["--seed", "'many'"]),
    "voxel size": (["--voxel-size", "0"], ["'0' is not a voxel size", "0.01 to 10000 angstrom"]),
    "contrast": (["--contrast", "black"], ["auto", "bright", "dark"]),
    "axis": (["--tilt-axis", "w"], ["'x', 'y', 'z'"]),
    "tile": (["--tile", "64", "64", "32"], ["--tile", "32", "x>=64"]),
    "tile and method": (["--tile", "64", "64", "64", "--method", "cryowgen_mc"], ["as one box", "tile"]),
    "unknown": (["--tilt-rnge", "3"], ["--tilt-rnge", "--tilt-range", "cryowgen restore --help"]),
    "two tomograms": (["other.mrc"], ["other.mrc", "cryowgen restore --help"]),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(files, tmp_path, name):
    options, words = OPTIONS[name]
    line = refused("restore", files.tomogram, *RANGE, "-o", tmp_path / "out", *options)
    for word in words:
        assert word in line
    assert os.listdir(tmp_path) == []


def test_no_output_and_no_tomogram(files):
    assert "Missing option '--output'" in refused("restore", files.tomogram, *RANGE)
    assert "Missing argument 'TOMOGRAM'" in refused("restore", *RANGE, "--output", "out")
    assert "Missing argument 'TOMOGRAM'" in refused("inspect")


def test_output_folder_not_empty(files, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    line = refused("restore", files.tomogram, *RANGE, "-o", tmp_path)
    for word in (str(tmp_path), "not empty", "mine.txt", "--resume"):
        assert word in line
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_output_is_a_file(files, tmp_path):
    (tmp_path / "out").write_text("precious")
    assert "is a file, not a folder" in refused("restore", files.tomogram, *RANGE, "-o", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


def test_output_not_writable(files, tmp_path, monkeypatch):
    deny_writes(monkeypatch)
    line = refused("restore", files.tomogram, *RANGE, "-o", tmp_path / "out")
    for word in (str(tmp_path / "out"), "Permission denied", "may write"):
        assert word in line
    assert not list((tmp_path / "out").rglob("*"))


def test_disk_too_small_from_the_start(files, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**10, 0, 1_000_000))
    line = refused("restore", files.tomogram, *RANGE, "-o", tmp_path / "out")
    for word in (str(tmp_path / "out"), "1.0 MB free", "another disk"):
        assert word in line
    assert os.listdir(tmp_path) == []


def test_memory_too_small_from_the_start(files, tmp_path, monkeypatch):
    monkeypatch.setattr("cryowgen_jax.restoration.cost._available_memory", lambda: 1_000_000)
    line = refused("restore", files.tomogram, *RANGE, "-o", tmp_path / "out")
    for word in ("GiB of memory", "fewer samples"):
        assert word in line
    assert os.listdir(tmp_path) == []


def test_refusals_of_the_library_leave_no_folder(files, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise InputError("the volume is too odd: give another")

    monkeypatch.setattr(restore_command, "restore", refuse)
    command = ("restore", files.tomogram, *RANGE, *SHORT, "-o", tmp_path / "out")
    outcome_line = _last_line(*command)
    assert outcome_line == "cryowgen: error: the volume is too odd: give another"
    assert os.listdir(tmp_path) == []
    (tmp_path / "out").mkdir()
    _last_line(*command)
    assert os.listdir(tmp_path / "out") == []


def test_equal_halves(files, tmp_path, monkeypatch):
    monkeypatch.undo()
    command = ("restore", files.half1, *RANGE, "--half2", files.half1, *SHORT, "-o", tmp_path / "out")
    assert "two halves are the same" in _last_line(*command)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EIO, os.strerror(errno.EIO), "/data/tomo.mrc"), ["'/data/tomo.mrc'", "Input/output error"]),
        (MemoryError(), ["out of memory", "--samples"]),
    ],
)
def test_what_nobody_foresaw(files, tmp_path, monkeypatch, error, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(restore_command, "read_tomogram", fail)
    line = refused("restore", files.tomogram, *RANGE, "-o", tmp_path / "out")
    for word in words:
        assert word in line


def test_unknown_command():
    line = refused("restor", "tomo.mrc")
    assert "'restor'" in line
    assert "cryowgen --help" in line


def _last_line(*command):
    """The refusal of a run that had already said what it is going to do."""
    outcome = cryowgen(*command)
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    return outcome.err.splitlines()[-1]


def test_simulate_and_demo(tmp_path, monkeypatch):
    assert "4 is not in the range x>=24" in refused("simulate", "-o", tmp_path / "new" / "a.mrc", "--shape", 4, 40, 40)
    assert "positive number" in refused("simulate", "-o", tmp_path / "new" / "a.mrc", "--snr", 0)
    assert "positive number" in refused("simulate", "-o", tmp_path / "new" / "a.mrc", "--snr", "nan")
    assert "reversed" in refused("simulate", "-o", tmp_path / "new" / "a.mrc", "--tilt-range", 60, -60)
    assert "compressed" in refused("simulate", "-o", tmp_path / "a.mrc.gz", "--shape", 24, 24, 24)
    assert "is a folder" in refused("simulate", "-o", tmp_path)
    assert "x>=24" in refused("demo", "-o", tmp_path / "new", "--shape", 8, 8, 8)
    assert os.listdir(tmp_path) == []
    (tmp_path / "mine.txt").write_text("precious")
    line = refused("demo", "--output", tmp_path)
    assert f"'{tmp_path}' is not empty" in line
    assert "--resume" not in line
    deny_writes(monkeypatch)
    assert "Permission denied" in refused("simulate", "-o", pathlib.Path(tmp_path) / "a.mrc")
