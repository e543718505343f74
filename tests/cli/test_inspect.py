"""``cryowgen inspect``: what it says about a tomogram whose wedge is known."""

import json

import numpy as np
import pytest

from tests.cli.command import cryowgen
from tests.io.raw import mrc_bytes, ramp


def test_text(files):
    outcome = cryowgen("inspect", files.tomogram)
    assert (outcome.status, outcome.err) == (0, "")
    first, second = outcome.out.splitlines()
    assert first == f"{files.tomogram}: 24 x 32 x 28 voxels (Z, Y, X) of 12.5 A"
    assert second.startswith("beam axis z, tilt axis y, tilt range about ")


def test_json(files):
    outcome = cryowgen("inspect", files.tomogram, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert found["tomogram"] == str(files.tomogram)
    assert found["shape"] == [24, 32, 28]
    assert found["voxel_size"] == [12.5, 12.5, 12.5]
    assert (found["beam_axis"], found["tilt_axis"]) == ("z", "y")
    assert found["tilt_range"] == pytest.approx([-60, 60], abs=4)
    assert found["contrast_ratio"] < 0.1


def test_no_wedge(files):
    assert "no missing wedge is visible" in cryowgen("inspect", files.truth).out
    assert json.loads(cryowgen("inspect", files.truth, "--json").out)["tilt_range"] is None


def test_permissive_and_voxel_size(tmp_path):
    path = tmp_path / "odd.mrc"
    volume = np.random.default_rng(0).normal(size=(24, 24, 24)).astype("f4")
    path.write_bytes(mrc_bytes(volume, voxel=0.0, mapc=7))
    assert cryowgen("inspect", path).status == 2
    assert cryowgen("inspect", path, "--voxel-size", "9").status == 2
    outcome = cryowgen("inspect", path, "--voxel-size", "9", "--permissive")
    assert outcome.status == 0
    assert "24 x 24 x 24 voxels (Z, Y, X) of 9 A" in outcome.out
    assert "note: mapc, mapr, maps are (7, 2, 3)" in outcome.out


def test_unequal_voxels(tmp_path):
    path = tmp_path / "flat.mrc"
    path.write_bytes(mrc_bytes(np.random.default_rng(0).normal(size=(24, 24, 24)).astype("f4"), cella_z=480.0))
    assert "of 20 x 10 x 10 A" in cryowgen("inspect", path).out


def test_the_file_is_left_alone(tmp_path):
    path = tmp_path / "tomo.mrc"
    path.write_bytes(mrc_bytes(ramp((24, 24, 24))))
    before = path.read_bytes()
    cryowgen("inspect", path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["tomo.mrc"]
