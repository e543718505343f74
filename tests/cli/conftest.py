"""A small tomogram with an unusual header, and one restoration of it that many tests look at."""

import pathlib
from typing import Any, NamedTuple

import numpy as np
import pytest

import cryowgen_jax.cli.restore_command as restore_command
from cryowgen_jax.simulation import simulate_tomogram
from tests.cli.command import RANGE, SHORT, Outcome, cryowgen
from tests.io.raw import mrc_bytes

SHAPE = (24, 32, 28)
STARTS = {"nxstart": -7, "nystart": 3, "nzstart": 11}
ORIGIN = {"origin_x": 12.5, "origin_y": -40.0, "origin_z": 7.25}
VOXEL = 12.5


class Files(NamedTuple):
    tomogram: pathlib.Path
    half1: pathlib.Path
    half2: pathlib.Path
    truth: pathlib.Path
    tilts: pathlib.Path


class Restored(NamedTuple):
    folder: pathlib.Path
    arguments: tuple
    outcome: Outcome
    restoration: Any


def permuted(volume):
    """File of a (Z, Y, X) volume with columns along Z, rows along X and sections along Y."""
    nz, ny, nx = volume.shape
    cell = {"cella_x": nx * VOXEL, "cella_y": ny * VOXEL, "cella_z": nz * VOXEL}
    grid = {"mx": nx, "my": ny, "mz": nz, "mapc": 3, "mapr": 1, "maps": 2}
    return mrc_bytes(volume.transpose(1, 2, 0), labels=[b"from the microscope"], **cell, **grid, **STARTS, **ORIGIN)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Tomogram with permuted axes, its halves and truth in the plain order, and a list of tilts with a gap."""
    folder = tmp_path_factory.mktemp("files")
    simulated = simulate_tomogram(SHAPE, seed=3, snr=0.5, voxel_size_angstrom=VOXEL)
    made = Files(*(folder / f"{name}.mrc" for name in Files._fields[:4]), folder / "tilts.tlt")
    made.tomogram.write_bytes(permuted(0.5 * (simulated.half1 + simulated.half2)))
    for name in ("half1", "half2", "truth"):
        getattr(made, name).write_bytes(mrc_bytes(getattr(simulated, name), voxel=VOXEL))
    angles = [angle for angle in range(-60, 61, 3) if not 10 < angle < 40]
    made.tilts.write_text("".join(f"{angle:.2f}\n" for angle in angles))
    return made


@pytest.fixture(scope="session")
def restored(files, tmp_path_factory):
    """One complete run, with what the library returned to the command line."""
    folder = tmp_path_factory.mktemp("runs") / "restored"
    arguments = ("restore", files.tomogram, *RANGE, *SHORT)
    kept = []
    genuine = restore_command.restore
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore_command, "restore", lambda *a, **k: kept.append(genuine(*a, **k)) or kept[-1])
        outcome = cryowgen(*arguments, "--output", folder)
    assert outcome.status == 0, outcome
    return Restored(folder, arguments, outcome, kept[0])


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out report.html, whose pictures take a second."""
    monkeypatch.setattr(restore_command.results, "write_report", lambda *_: None)


@pytest.fixture
def no_work(monkeypatch):
    """Fail the test where a restoration is begun."""

    def begun(*_, **__):
        raise AssertionError("the restoration was begun")

    monkeypatch.setattr(restore_command, "restore", begun)


def hard_wedge(shape, low=-60.0, high=60.0):
    """Measured coefficients of the full spectrum, zero frequency in the middle; tilt axis y, beam axis z."""
    kz, kx = (np.fft.fftshift(np.fft.fftfreq(n)) for n in (shape[0], shape[2]))
    angle = np.rad2deg(np.arctan2(np.abs(kz)[:, None], np.abs(kx)[None, :]))  # of the coefficient above the xy plane
    limit = np.where(np.sign(kz)[:, None] * np.sign(kx)[None, :] >= 0, high, -low)
    return np.broadcast_to((angle <= limit + 1e-6)[:, None, :], shape)
