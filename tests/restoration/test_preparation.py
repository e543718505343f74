import numpy as np
import pytest

from cryowgen_jax.restoration.preparation import frame_of
from cryowgen_jax.types import InputError

SHAPE = (18, 21, 24)


def tomogram(rng, shape=SHAPE):
    return (40 + 7 * rng.standard_normal(shape) + 0.5 * np.arange(shape[-1])).astype(np.float32)


def laplacian(v):
    return sum(np.roll(v, 1, a) + np.roll(v, -1, a) - 2 * v for a in range(3))


@pytest.mark.parametrize("bright", [True, False])
@pytest.mark.parametrize("periodic", [True, False])
def test_restoring_undoes_preparing(rng, bright, periodic):
    volume = tomogram(rng)
    frame = frame_of(volume, bright=bright, periodic=periodic)
    back = frame.restore(frame.prepare(volume), np.zeros(SHAPE))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, volume, atol=2e-5 * np.abs(volume).max())


def test_prepared_volumes_are_standard_and_dark_density_is_turned_up(rng):
    volume = tomogram(rng)
    bright, dark = (np.asarray(frame_of(volume, bright=b, periodic=True).prepare(volume)) for b in (True, False))
    assert np.median(bright) == pytest.approx(0, abs=1e-5)
    assert bright.std() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(dark, -bright, atol=1e-6)


def test_spread_is_scaled_and_never_negative(rng):
    volume = tomogram(rng)
    frame = frame_of(volume, bright=False)
    spread = frame.restore_spread(np.full(SHAPE, 0.5, np.float32))
    np.testing.assert_allclose(spread, 0.5 * volume.std(dtype=np.float64), rtol=1e-5)


def test_another_volume_is_prepared_in_the_units_of_the_first(rng):
    first, second = tomogram(rng), tomogram(rng)
    frame = frame_of(first)
    both = np.asarray(frame.prepare((first + second) / 2))
    np.testing.assert_allclose(both, (np.asarray(frame.prepare(first)) + frame.prepare(second)) / 2, atol=2e-5)


def test_smooth_part_is_harmonic_away_from_the_faces(rng):
    frame = frame_of(tomogram(rng))
    curvature = laplacian(frame.smooth.astype(np.float64))
    inside = (slice(1, -1),) * 3
    assert np.abs(frame.smooth).max() > 0.3
    assert np.abs(curvature[inside]).max() < 2e-5
    assert np.abs(curvature).max() > 0.1  # the jump sits on the faces


def test_periodic_part_has_small_jumps_and_no_cross():
    ramp = np.broadcast_to(np.arange(32, dtype=np.float32)[:, None, None], (32, 20, 24))
    rng = np.random.default_rng(0)
    volume = 3 * ramp + rng.standard_normal(ramp.shape).astype(np.float32)

    def beam_column(v):
        """Mean power at kx = ky = 0 beyond the lowest frequencies."""
        return np.mean(np.abs(np.fft.fft(v.mean((1, 2)))[4:-4]) ** 2)

    jumping, mended = (np.asarray(frame_of(volume, periodic=p).prepare(volume)) for p in (True, False))
    assert beam_column(mended) < 1e-2 * beam_column(jumping)
    assert np.abs(mended[0] - mended[-1]).mean() < 0.2 * np.abs(jumping[0] - jumping[-1]).mean()


def test_periodic_volumes_are_left_as_they_are(rng):
    volume = tomogram(rng)
    frame = frame_of(volume, periodic=True)
    assert not frame.smooth.any()
    np.testing.assert_allclose(frame.prepare(volume), (volume - np.median(volume)) / volume.std(), atol=1e-5)


def test_smooth_parts_add_up(rng):
    first, second = tomogram(rng), tomogram(rng)
    whole = frame_of(first + second)
    parts = [frame_of(v) for v in (first, second)]
    together = sum(p.smooth * p.scale for p in parts)
    np.testing.assert_allclose(whole.smooth * whole.scale, together, atol=1e-3)


BORDERS = [((2, 0), (0, 0), (0, 0)), ((0, 3), (0, 0), (0, 0)), ((0, 0), (1, 4), (0, 0)), ((1, 1), (2, 0), (0, 5))]


@pytest.mark.parametrize("border", BORDERS)
def test_constant_borders_are_cut_off_and_come_back_unchanged(rng, border):
    inner = tomogram(rng)
    volume = np.pad(inner, border, constant_values=-123.0)
    frame = frame_of(volume)
    assert frame.region == tuple(slice(a, a + n) for (a, _), n in zip(border, SHAPE, strict=True))
    assert frame.prepare(volume).shape == SHAPE
    back = frame.restore(frame.prepare(volume) * 0, volume)
    outside = np.ones(volume.shape, bool)
    outside[frame.region] = False
    assert np.all(back[outside] == -123.0)
    assert not np.allclose(back[frame.region], inner, atol=1)
    spread = frame.restore_spread(np.ones(SHAPE, np.float32))
    assert np.all(spread[outside] == 0)
    assert np.all(spread[frame.region] > 0)


def test_borders_of_different_values_are_all_cut_off(rng):
    volume = tomogram(rng)
    for axis, value in enumerate((0.0, 7.0, -1.0)):
        volume = np.pad(volume, [(2, 1) if a == axis else (0, 0) for a in range(3)], constant_values=value)
    frame = frame_of(volume)
    assert frame.region == tuple(slice(2, 2 + n) for n in SHAPE)


def test_a_constant_plane_in_the_middle_is_not_a_border(rng):
    volume = tomogram(rng)
    volume[5] = 0
    assert frame_of(volume).region == tuple(slice(0, n) for n in SHAPE)


def test_sections_that_are_constant_each_are_kept(rng):
    volume = np.broadcast_to(rng.standard_normal(20).astype(np.float32)[:, None, None], (20, 16, 16))
    assert frame_of(volume).region == (slice(0, 20), slice(0, 16), slice(0, 16))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_any_scale(rng, scale):
    volume = tomogram(rng) * np.float32(scale)
    frame = frame_of(volume)
    prepared = np.asarray(frame.prepare(volume))
    np.testing.assert_allclose(
        prepared, frame_of(tomogram(np.random.default_rng(20261123))).prepare(volume / scale), atol=1e-3
    )
    np.testing.assert_allclose(frame.restore(prepared, volume), volume, rtol=1e-4)


def nan_inside(shape):
    volume = np.random.default_rng(0).standard_normal(shape)
    volume[1, 2, 3] = np.nan
    return volume


BAD = [
    (np.full((20, 20, 20), 3.0), "constant"),
    (nan_inside((20, 20, 20)), "1 voxels that are not finite"),
    (np.random.default_rng(0).standard_normal((20, 20)), "3-D"),
    (np.random.default_rng(0).standard_normal((1, 20, 20, 20)), "3-D"),
    (np.random.default_rng(0).standard_normal((15, 20, 20)), "at least 16"),
    (np.random.default_rng(0).standard_normal((20, 15, 20)), "at least 16"),
    (np.random.default_rng(0).standard_normal((20, 20, 15)), "at least 16"),
    (np.pad(np.random.default_rng(0).standard_normal((20, 20, 14)), ((0, 0), (0, 0), (4, 4))), "constant border"),
]


@pytest.mark.parametrize(("volume", "word"), BAD)
def test_what_cannot_be_prepared_is_refused_in_one_line(volume, word):
    with pytest.raises(InputError, match=word) as caught:
        frame_of(volume)
    assert "\n" not in str(caught.value)
