import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from cryowgen_jax.restoration import wedge_inspection
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.wedge_inspection import WedgeReport, inspect_wedge
from cryowgen_jax.types import InputError

AXIS = {"z": 0, "y": 1, "x": 2}


def specimen(shape, tilt_range, tilt="y", beam="z", seed=0, crop=True):
    """Noise and blobs through a wedge written here, by angle, on a larger box; then cropped as real tomograms are."""
    rng = np.random.default_rng(seed)
    box = tuple(2 * n for n in shape) if crop else shape
    v = rng.standard_normal(box) + 8 * gaussian_filter(30 * (rng.random(box) < 5e-4), 1.5)
    k = np.meshgrid(*[np.fft.fftfreq(n) for n in box], indexing="ij", sparse=True)
    (plane,) = set("xyz") - {tilt, beam}
    angle = np.rad2deg(np.arctan2(k[AXIS[beam]], k[AXIS[plane]]))
    angle = (angle + 90) % 180 - 90
    measured = (angle >= tilt_range[0]) & (angle <= tilt_range[1])
    v = np.fft.ifftn(np.fft.fftn(v) * measured).real
    return v[tuple(slice(n // 2, n // 2 + n) for n in shape)] if crop else v


def read(path):
    """A map of mode 0 or 2 with no extended header, straight from its bytes."""
    raw = path.read_bytes()
    columns, rows, sections, mode = np.frombuffer(raw, "<i4", 4)
    return np.frombuffer(raw, {0: "i1", 2: "<f4"}[int(mode)], offset=1024).reshape(sections, rows, columns)


def assert_found(report, tilt_range, tilt, beam, within):
    assert (report.tilt_axis, report.beam_axis) == (tilt, beam)
    np.testing.assert_allclose(report.tilt_range, tilt_range, atol=within)
    assert report.contrast_ratio < 0.2


@pytest.mark.parametrize(
    ("shape", "tilt_range"),
    [
        pytest.param(shape, tilts, marks=pytest.mark.slow if (i + j) % 2 else ())
        for i, shape in enumerate([(48, 48, 48), (20, 80, 60)])
        for j, tilts in enumerate([(-60, 60), (-40, 60), (-60, 40), (-66, 50), (-70, 70), (-30, 30), (-20, 70)])
    ],
)
def test_known_ranges_are_recovered(shape, tilt_range):
    assert_found(inspect_wedge(specimen(shape, tilt_range)), tilt_range, "y", "z", within=3)


@pytest.mark.parametrize(("tilt", "beam"), list(itertools.permutations("xyz", 2)))
def test_all_axes_and_boxes_that_are_not_cubes(tilt, beam):
    report = inspect_wedge(specimen((40, 52, 45), (-42, 61), tilt, beam, seed=1))
    assert_found(report, (-42, 61), tilt, beam, within=3)


@pytest.mark.parametrize("shape", [(12, 96, 96), (16, 64, 128)])
def test_thin_tomograms(shape):
    assert_found(inspect_wedge(specimen(shape, (-45, 60), seed=2)), (-45, 60), "y", "z", within=5)


def test_the_edge_of_the_wedge_is_blurred_most_along_the_thinnest_axis(monkeypatch):
    """With the blur of the other axis the tilt range of a thin tomogram comes out some five degrees too narrow."""

    def mean_width():
        found = [inspect_wedge(specimen((8, 128, 128), (-60, 60), seed=seed)).tilt_range for seed in range(4)]
        return np.mean(np.diff(found))

    assert mean_width() == pytest.approx(120, abs=2.5)
    gain = wedge_inspection._edge_gain
    monkeypatch.setattr(wedge_inspection, "_edge_gain", lambda *a: gain(*a[:4], a[4][::-1], a[5]))
    assert mean_width() < 120 - 2.5


def test_long_tomograms_are_looked_at_in_tiles():
    volume = specimen((24, 40, 300), (-50, 62), crop=False)
    assert_found(inspect_wedge(volume), (-50, 62), "y", "z", within=3)
    volume[..., :260] = 0  # an empty part does not hide the rest
    assert_found(inspect_wedge(volume), (-50, 62), "y", "z", within=6)


def test_offset_scale_and_type_do_not_matter():
    volume = specimen((32, 40, 36), (-60, 48))
    report = inspect_wedge(jnp.asarray(volume, jnp.float32))
    shifted = inspect_wedge(volume * 1e-6 + 3e-4)
    assert shifted.tilt_range == pytest.approx(report.tilt_range, abs=0.5)
    stretched = np.clip(np.round(volume / np.abs(volume).max() * 127), -128, 127).astype(np.int8)
    assert_found(inspect_wedge(stretched), (-60, 48), "y", "z", within=3)


@pytest.mark.parametrize(
    "name", ["tomo_microtubule_13pf.mrc", pytest.param("tomo_microtubule_14pf.mrc", marks=pytest.mark.slow)]
)
def test_real_tomograms_and_their_permutations(shared_data, name):
    """Coverage about +-60 degrees (data sheet); plateau ends between -68 and -64 and between 55 and 60 by eye."""
    volume = read(shared_data / name)
    assert volume.dtype == np.int8
    report = inspect_wedge(volume)
    assert (report.beam_axis, report.tilt_axis) == ("z", "y")
    assert -68 < report.tilt_range[0] < -62
    assert 55 < report.tilt_range[1] < 60
    assert report.contrast_ratio < 0.01
    assert Geometry((-60.0, 60.0)).contradiction(report) is None
    for order in itertools.permutations(range(3)):
        permuted = inspect_wedge(np.transpose(volume, order))
        names = ["zyx"[order.index(AXIS[axis])] for axis in ("z", "y")]
        assert [permuted.beam_axis, permuted.tilt_axis] == names
        assert permuted.tilt_range == pytest.approx(report.tilt_range, abs=1)
    flipped = inspect_wedge(volume[::-1])
    assert flipped.tilt_range == pytest.approx((-report.tilt_range[1], -report.tilt_range[0]), abs=1)


@pytest.mark.parametrize("name", ["sim_70S-ribosome_4v4r_10A.mrc", "sim_rubisco_1bxn_4A.mrc", "emd_1832.map"])
def test_maps_without_a_wedge(shared_data, name):
    report = inspect_wedge(read(shared_data / name))
    assert report[:3] == (None, None, None)
    assert report.contrast_ratio > 0.4


def test_noise_and_a_membrane_have_no_wedge(rng):
    noise = rng.standard_normal((24, 40, 32))
    membrane = 0.05 * noise
    membrane[10:13] += 1
    for volume in (noise, membrane):
        assert inspect_wedge(volume).tilt_range is None


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.ones((16, 16, 16)), "every voxel of the volume is 1"),
        (np.where(np.arange(16**3).reshape(16, 16, 16) == 5, np.nan, 1.0), "has 1 values that are not finite"),
        (np.zeros((32, 32)), "3-D volume"),
        (np.zeros((4, 64, 64)), r"got shape \(4, 64, 64\)"),
        (np.zeros((8, 8, 8)), r"got shape \(8, 8, 8\)"),
    ],
)
def test_unusable_volumes(volume, message):
    with pytest.raises(InputError, match=message):
        inspect_wedge(volume)


def test_contradictions():
    report = WedgeReport("z", "y", (-41.0, 61.0), 0.001)
    assert Geometry((-40.0, 60.0)).contradiction(report) is None
    assert Geometry((-45.0, 54.0)).contradiction(report) is None
    assert "-41 to 61 degrees" in Geometry((-60.0, 60.0)).contradiction(report)
    assert "sign of the tilt angles looks reversed" in Geometry((-60.0, 40.0)).contradiction(report)
    other = Geometry((-40.0, 60.0), tilt_axis="x").contradiction(report)
    assert "tilt axis y and beam axis z" in other
    assert "check the axes" in other
    nothing = Geometry((-60.0, 60.0)).contradiction(WedgeReport(None, None, None, 0.85))
    assert "no missing wedge is visible (contrast ratio 0.85)" in nothing
    for line in (other, nothing):
        assert "\n" not in line
