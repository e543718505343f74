import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.operators import Wedge, wedge_mask, wedge_mask_from_tilts
from cryowgen_jax.types import InputError


def plane_frequencies(shape):
    kz = np.broadcast_to(np.fft.fftfreq(shape[0])[:, None, None], (*shape[:2], shape[2] // 2 + 1))
    kx = np.broadcast_to(np.fft.rfftfreq(shape[2])[None, None, :], kz.shape)
    return kz, kx, np.hypot(kz, kx)


def distance_from_plane(kz, kx, degrees):
    return np.abs(kz * math.cos(math.radians(degrees)) - kx * math.sin(math.radians(degrees)))


@pytest.mark.parametrize("shape", [(48, 6, 48), (31, 5, 45), (24, 6, 64)])
@pytest.mark.parametrize("tilt_range", [(-60, 60), (-40, 60)])
def test_dense_tilts_agree_with_the_range_at_low_frequency(shape, tilt_range):
    lo, hi = tilt_range
    dense = np.asarray(wedge_mask_from_tilts(shape, np.arange(lo, hi + 0.5)))
    hard = np.asarray(wedge_mask(shape, tilt_range))
    kz, kx, radius = plane_frequencies(shape)
    from_edges = np.minimum(distance_from_plane(kz, kx, lo), distance_from_plane(kz, kx, hi))
    low = (radius < 0.3) & (from_edges > 1 / shape[0])
    assert 0 < hard[low].mean() < 1
    np.testing.assert_allclose(dense[low], hard[low], atol=0.03)
    mirrored = np.asarray(wedge_mask(shape, (-hi, -lo)))
    assert lo == -hi or np.abs(mirrored[low] - dense[low]).max() > 0.9


def test_sparse_tilts_leave_gaps_only_beyond_the_crowther_frequency():
    shape, step = (64, 4, 64), 6.0
    mask = np.asarray(wedge_mask_from_tilts(shape, np.arange(-60, 61, step)))
    kz, kx, radius = plane_frequencies(shape)
    inside = np.abs(np.arctan2(kz, kx)) < math.radians(58)
    crowther = 1 / (64 * math.radians(step))
    np.testing.assert_allclose(mask[inside & (radius < 0.9 * crowther)], 1, atol=0.01)
    far = mask[inside & (radius > 2.5 * crowther) & (radius < 0.5)]
    assert far.min() < 0.05
    assert 0.25 < far.mean() < 0.75


def test_each_tilt_measures_its_own_plane():
    shape = (64, 4, 64)
    mask = np.asarray(wedge_mask_from_tilts(shape, [-45.0, 0.0, 20.0]))[:, 0]
    for k in (5, 12, 25):
        assert mask[-k, k] == pytest.approx(1)  # -45 degrees: kx kz < 0
        assert mask[0, k] == 1
        assert mask[k, 0] < (1e-6 if k > 2 else 1)
    assert mask[25, 25] < 1e-6  # +45 was not taken


def test_half_height_lies_half_a_reciprocal_thickness_from_the_plane():
    shape, thickness = (64, 4, 64), 16.0
    mask = np.asarray(wedge_mask_from_tilts(shape, [0.0, 1e-6], thickness=thickness))[:, 0, 20]
    # two coincident tilts: twice cos^2, cut off at 1; 1/(2T) is two steps of 1/64, 1/T four
    assert mask[2] == pytest.approx(1, abs=1e-4)
    assert mask[3] == pytest.approx(2 * math.cos(math.pi / 2 * 0.75) ** 2, abs=1e-4)
    assert mask[4] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("shape", [(8, 6, 10), (7, 9, 5), (6, 8, 7)])
def test_values_are_a_hermitian_mask_between_zero_and_one(rng, shape):
    tilts = rng.uniform(-70, 50, 12)
    mask = wedge_mask_from_tilts(shape, tilts)
    assert mask.dtype == jnp.float32
    assert mask.shape == (*shape[:2], shape[2] // 2 + 1)
    assert np.min(mask) >= 0
    assert np.max(mask) == 1
    assert np.asarray(mask)[0, 0, 0] == 1
    v, squared = rng.standard_normal(shape).astype(np.float32), np.asarray(mask) ** 2
    once, twice = jax.jit(lambda m, s, v: (Wedge(s)(v), Wedge(m)(Wedge(m)(v))))(mask, squared, v)
    np.testing.assert_allclose(twice, once, atol=1e-6)  # fails if not Hermitian
    np.testing.assert_array_equal(mask, wedge_mask_from_tilts(shape, np.sort(tilts)[::-1]))


def test_no_frequency_along_the_beam_counts_as_measured():
    assert np.min(np.asarray(wedge_mask_from_tilts((32, 7, 32), [20.0, 30.0, 40.0]))[0]) == 1.0


def test_other_axes_are_the_same_mask_transposed():
    tilts = [-50.0, -20.0, 5.0, 33.0]
    cube = (9, 9, 9)
    reference = np.asarray(wedge_mask_from_tilts(cube, tilts, thickness=9))
    swapped = np.asarray(wedge_mask_from_tilts(cube, tilts, tilt_axis="z", beam_axis="y", thickness=9))
    np.testing.assert_allclose(swapped, np.swapaxes(reference, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("tilts", "options", "message"),
    [
        ([10.0], {}, "at least two angles"),
        ([], {}, "at least two angles"),
        ([[1.0, 2.0]], {}, r"one row, got shape \(1, 2\)"),
        ([3.0, 3.0, 3.0], {}, "all 3 tilt angles are 3 degrees"),
        ([0.0, math.inf], {}, "finite.*got inf"),
        ([0.0, 91.0], {}, "got 91"),
        ([0.0, 30.0], {"thickness": 0.0}, "positive number of voxels, got 0"),
        ([0.0, 30.0], {"thickness": math.nan}, "got nan"),
        ([0.0, 30.0], {"tilt_axis": "z"}, "both 'z'"),
        (["a", "b"], {}, "numbers"),
    ],
)
def test_unusable_input_is_one_clear_line(tilts, options, message):
    with pytest.raises(InputError, match=message) as error:
        wedge_mask_from_tilts((8, 8, 8), tilts, **options)
    assert "\n" not in str(error.value)
