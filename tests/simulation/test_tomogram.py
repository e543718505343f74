"""Simulated tomograms: the noise as stated, the wedge empty, the specimen a function of the seed alone."""

import numpy as np
import pytest

from cryowgen_jax.simulation import simulate_tomogram
from cryowgen_jax.types import InputError

SHAPE = (32, 40, 36)


def missing(shape, low, high):
    """Which coefficients of the full spectrum lie in the wedge, from the angle of the plane that holds them."""
    kz, kx = np.fft.fftfreq(shape[0])[:, None, None], np.fft.fftfreq(shape[2])[None, None, :]
    angle = np.rad2deg(np.arctan2(kz * np.where(kx < 0, -1, 1), np.abs(kx)))
    outside = (angle > high + 1e-6) | (angle < low - 1e-6)
    inside_sign_free = (np.abs(kz) < 0.5) & (np.abs(kx) < 0.5)  # -0.5 stands for both signs
    return np.broadcast_to(outside & inside_sign_free & ~((kx == 0) & (np.abs(angle) != 90)), shape)


CUBE = (40, 40, 40)


def seen_of_the_cube():
    seen = ~missing(CUBE, -60, 60)
    seen[CUBE[0] // 2, :, :] = seen[:, :, CUBE[2] // 2] = False
    return seen


def power(volume):
    return np.abs(np.fft.fftn(volume.astype(np.float64))) ** 2 / volume.size


@pytest.mark.parametrize("tilt_range", [(-60, 60), (-50, 40)])
def test_halves_are_empty_in_the_wedge_and_nowhere_else(tilt_range):
    made = simulate_tomogram(SHAPE, tilt_range, seed=7)
    gone = missing(SHAPE, *tilt_range)
    assert 0.2 < gone.mean() < 0.6
    for half in (made.half1, made.half2):
        spectrum = power(half)
        assert spectrum[gone].sum() < 1e-8 * spectrum.sum()
        wrong = gone[::-1] if tilt_range[0] != -tilt_range[1] else np.swapaxes(missing(SHAPE[::-1], -60, 60), 0, 2)
        assert spectrum[wrong].sum() > 1e-3 * spectrum.sum()
    assert power(made.truth)[gone].sum() > 1e-2 * power(made.truth).sum()


@pytest.mark.parametrize("snr", [0.1, 2.0])
def test_noise_has_the_stated_variance(snr):
    made = simulate_tomogram(CUBE, snr=snr, seed=5)
    assert made.noise_sd**2 == pytest.approx(made.truth.var(dtype=np.float64) / snr, rel=1e-4)
    seen = seen_of_the_cube()
    for half in (made.half1, made.half2):
        noise = power(half - made.truth)[seen].mean()
        assert made.truth.var(dtype=np.float64) / noise == pytest.approx(snr, rel=4.5 * np.sqrt(2 / seen.sum()))


def test_noise_is_white_and_halves_are_independent():
    made, seen = simulate_tomogram(CUBE, seed=5), seen_of_the_cube()
    first, second = (np.fft.fftn(half - made.truth)[seen] for half in (made.half1, made.half2))
    scale = np.sqrt(np.mean(np.abs(first) ** 2) * np.mean(np.abs(second) ** 2))
    bound = 5 * np.sqrt(2 / seen.sum())
    assert abs(np.mean(first * second.conj()).real) / scale < bound
    assert np.mean(first * first.conj()).real / scale > 0.9  # the same check on dependent noise
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*[np.fft.fftfreq(CUBE[0])] * 3, indexing="ij")))[seen]
    low, high = (np.mean(np.abs(first[part]) ** 2) for part in (radius < 0.25, radius > 0.4))
    assert low / high == pytest.approx(1.0, abs=0.05)


def test_same_seed_same_tomogram_and_same_specimen_seen_otherwise():
    made, again, otherwise, other = (
        simulate_tomogram(SHAPE, seed=7),
        simulate_tomogram(SHAPE, seed=7),
        simulate_tomogram(SHAPE, (-40, 40), seed=7, snr=0.05),
        simulate_tomogram(SHAPE, seed=8),
    )
    for name in ("truth", "half1", "half2", "labels"):
        np.testing.assert_array_equal(getattr(made, name), getattr(again, name))
    np.testing.assert_array_equal(made.truth, otherwise.truth)
    assert not np.array_equal(made.half1, otherwise.half1)
    for name in ("half1", "half2"):
        noises = [(getattr(one, name) - one.truth).ravel() for one in (made, other)]
        assert abs(np.corrcoef(noises)[0, 1]) < 0.05
    assert np.corrcoef(made.truth.ravel(), other.truth.ravel())[0, 1] < 0.3


def test_texture_is_the_stated_share_of_the_variance():
    plain, textured = simulate_tomogram(SHAPE, texture=0.0, seed=7), simulate_tomogram(SHAPE, texture=0.3, seed=7)
    np.testing.assert_array_equal(plain.labels, textured.labels)
    field = textured.truth.astype(np.float64) - plain.truth
    assert field.var() / (field.var() + plain.truth.var(dtype=np.float64)) == pytest.approx(0.3, abs=1e-3)
    neighbours = np.corrcoef(field[:, :, 1:].ravel(), field[:, :, :-1].ravel())[0, 1]
    assert neighbours > 0.7
    assert plain.truth.min() >= 0


def test_fields_are_what_they_say():
    made = simulate_tomogram((24, 25, 31), (-55.0, 60.0), seed=1, voxel_size_angstrom=8.0)
    for volume in (made.truth, made.half1, made.half2):
        assert volume.shape == (24, 25, 31)
        assert volume.dtype == np.float32
    assert made.tilt_range == (-55.0, 60.0)
    assert made.voxel_size_angstrom == 8.0
    assert not np.array_equal(made.half1, made.half2)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"shape": (16, 64, 64)}, "24"),
        ({"shape": (64, 64)}, "three"),
        ({"snr": 0.0}, "ratio"),
        ({"snr": float("nan")}, "ratio"),
        ({"seed": -1}, "seed"),
        ({"texture": 1.0}, "texture"),
        ({"voxel_size_angstrom": 0.0}, "voxel"),
        ({"tilt_range": (60, -60)}, "tilt|range"),
    ],
)
def test_unusable_input_is_refused_in_one_line(change, word):
    settings = {"shape": (24, 24, 24)} | change
    with pytest.raises(InputError, match=word) as caught:
        simulate_tomogram(**settings)
    assert "\n" not in str(caught.value)
