"""``cryowgen simulate``: the files it leaves."""

import mrcfile
import numpy as np
import pytest

from tests.cli.command import cryowgen
from tests.io.raw import field, is_strictly_valid

SMALL = ("--shape", "24", "28", "32")


def volume(path):
    with mrcfile.open(path) as mrc:
        return np.array(mrc.data)


def test_files(tmp_path):
    path = tmp_path / "new" / "tomo.mrc"
    outcome = cryowgen("simulate", "--output", path, *SMALL, "--voxel-size", "8", "--tilt-range", "-50", "40")
    assert (outcome.status, outcome.err) == (0, "")
    paths = [path, *(path.with_name(f"tomo_{name}.mrc") for name in ("half1", "half2", "truth"))]
    assert outcome.out.splitlines() == [f"wrote {name}" for name in paths]
    assert sorted(path.parent.iterdir()) == sorted(paths)
    for name in paths:
        assert is_strictly_valid(name)
        assert volume(name).shape == (24, 28, 32)
        assert volume(name).dtype == np.float32
        assert [field(name, f"cella_{axis}") for axis in "xyz"] == [256, 224, 192]
    half1, half2, truth = map(volume, paths[1:])
    np.testing.assert_allclose(volume(path), 0.5 * (half1 + half2), atol=1e-5)
    assert np.corrcoef(half1.ravel(), truth.ravel())[0, 1] > 0.1
    assert not np.array_equal(half1, half2)
    measured, beyond = (np.abs(np.fft.fftn(half1))[kz, :, kx].mean() for kz, kx in ((1, 2), (4, -3)))
    assert beyond < 1e-3 * measured  # 53 degrees, on the side that was tilted to -50 only
    assert np.abs(np.fft.fftn(half1))[4, :, 3].mean() < 1e-3 * measured  # and to 40 only


def test_seed_and_signal_to_noise(tmp_path):
    """The same bytes for the same seed; at another ratio the same truth under more noise."""
    options = {
        "first": ("--seed", "5", "--snr", "0.5"),
        "again": ("--seed", "5", "--snr", "0.5"),
        "noisy": ("--seed", "5", "--snr", "0.05"),
        "other": ("--seed", "6", "--snr", "0.5"),
    }
    for name, given in options.items():
        assert cryowgen("simulate", "-o", tmp_path / f"{name}.mrc", *SMALL, *given).status == 0
    content = {name: (tmp_path / f"{name}.mrc").read_bytes() for name in options}
    assert content["again"] == content["first"]
    assert content["other"] != content["first"]
    first, noisy, other = (volume(tmp_path / f"{name}_truth.mrc") for name in ("first", "noisy", "other"))
    np.testing.assert_array_equal(first, noisy)
    assert not np.array_equal(first, other)
    high, low = (
        volume(tmp_path / f"{name}_half1.mrc") - volume(tmp_path / f"{name}_half2.mrc") for name in ("first", "noisy")
    )
    assert low.var() / high.var() == pytest.approx(10, rel=1e-3)
