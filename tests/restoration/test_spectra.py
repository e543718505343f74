import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.operators import wedge_mask
from cryowgen_jax.restoration import spectra
from cryowgen_jax.spatial import fourier

SHAPE = (20, 26, 33)


def full_frequencies(shape):
    return np.sqrt(sum(f**2 for f in np.meshgrid(*[np.fft.fftfreq(n) for n in shape], indexing="ij")))


def half(full):
    return full[..., : full.shape[-1] // 2 + 1]


def through(mask, volume):
    return np.fft.irfftn(np.fft.rfftn(volume) * mask, volume.shape, axes=(0, 1, 2)).astype(np.float32)


@pytest.mark.parametrize("shape", [SHAPE, (16, 16, 16), (16, 61, 44)])
def test_shell_means_are_those_over_the_full_spectrum(rng, shape):
    volume = rng.standard_normal(shape)
    full = np.abs(np.fft.fftn(volume, norm="ortho")) ** 2
    shells = spectra.shells_of(shape, np.ones((*shape[:-1], shape[-1] // 2 + 1)))
    frequency, width = full_frequencies(shape), 0.5 / (min(shape) // 2)
    means = shells.mean(half(full))
    for number in (0, 1, 3, 6):
        inside = (frequency >= number * width - 1e-9) & (frequency < (number + 1) * width - 1e-9)
        assert shells.count[number] == inside.sum()
        assert means[number] == pytest.approx(full[inside].mean(), rel=1e-5)
        assert shells.frequency[number] == pytest.approx((number + 0.5) * width)
    assert shells.count.sum() == np.prod(shape)


def test_only_the_measured_region_counts(rng):
    mask = np.asarray(wedge_mask(SHAPE))
    shells = spectra.shells_of(SHAPE, mask)
    energy = np.where(mask > 0, 2.0, 1e6)
    filled = shells.count > 0
    np.testing.assert_allclose(shells.mean(energy)[filled], 2.0, rtol=1e-5)
    assert np.all(shells.mean(energy)[~filled] == 0)
    assert shells.count.sum() < np.prod(SHAPE)


def test_spread_is_constant_on_shells_and_undone_by_the_mean():
    shells = spectra.shells_of(SHAPE, np.ones((20, 26, 17)))
    profile = np.arange(shells.frequency.size, dtype=float) + 1
    spread = shells.spread(profile)
    assert spread.dtype == np.float32
    filled = shells.count > 0
    np.testing.assert_allclose(shells.mean(spread)[filled], profile[filled], rtol=1e-5)


def test_plateau_lowers_low_frequencies_alone():
    shells = spectra.shells_of((64, 64, 64), np.ones((64, 64, 33)))
    profile = 1 / shells.frequency**2
    flat = shells.plateau(profile)
    beyond = shells.frequency > spectra.LARGEST_SOLVENT_FREQUENCY + 2 * (shells.frequency[1] - shells.frequency[0])
    np.testing.assert_array_equal(flat[beyond], profile[beyond])
    assert np.all(flat <= profile)
    assert np.ptp(flat[:4]) == 0
    rising = shells.frequency**2
    assert np.all(shells.plateau(rising) <= rising)


def test_power_is_the_square_of_the_modulus(rng):
    values = (rng.standard_normal(50) + 1j * rng.standard_normal(50)).astype(np.complex64)
    np.testing.assert_allclose(fourier.power(values), np.abs(values) ** 2, rtol=1e-5)


def test_blur_is_periodic_and_keeps_the_mean(rng):
    volume = rng.standard_normal(SHAPE).astype(np.float32)
    blurred = spectra.blur(volume, 1.5)
    assert blurred.mean() == pytest.approx(volume.mean(), abs=1e-5)
    rolled = np.roll(volume, (5, 7, 11), (0, 1, 2))
    np.testing.assert_allclose(spectra.blur(rolled, 1.5), np.roll(blurred, (5, 7, 11), (0, 1, 2)), atol=1e-6)


@pytest.mark.parametrize("level", [0.0, -3.0, 40.0])
def test_solvent_level_is_the_mode_whatever_the_particles(rng, level):
    solvent = level + 0.5 * rng.standard_normal(60_000)
    particles = level + rng.uniform(2, 30, 20_000)
    found, spread = spectra.solvent_level(np.concatenate([solvent, particles]).reshape(40, 40, 50))
    assert found == pytest.approx(level, abs=0.15)
    assert spread == pytest.approx(0.5, abs=0.1)
    assert abs(np.mean(np.concatenate([solvent, particles])) - level) > 1  # the mean would have been fooled


def test_solvent_level_of_constant_and_of_mirrored_volumes(rng):
    assert spectra.solvent_level(np.full((16, 16, 16), 2.0)) == (2.0, 0.0)
    volume = rng.standard_normal((20, 20, 20))
    up, _ = spectra.solvent_level(volume + 7)
    assert up - spectra.solvent_level(volume)[0] == pytest.approx(7, abs=1e-4)


def test_leak_tells_volumes_whose_faces_fit(rng):
    mask = np.asarray(wedge_mask((32, 40, 36)))
    fitting = through(mask, rng.standard_normal((32, 40, 36)))
    assert spectra.wedge_leak(jnp.asarray(fitting), mask) < 1e-6
    assert spectra.wedge_leak(jnp.asarray(fitting[:, 3:-3, 2:-3]), np.asarray(wedge_mask((32, 34, 31)))) > 0.003
    assert spectra.wedge_leak(jnp.asarray(rng.standard_normal((32, 40, 36))), mask) == pytest.approx(1, abs=0.1)


def test_leak_where_nothing_is_missing_or_there_is_nothing(rng):
    volume = jnp.asarray(rng.standard_normal((16, 16, 16)), jnp.float32)
    assert spectra.wedge_leak(volume, np.ones((16, 16, 9))) == 0
    assert spectra.wedge_leak(jnp.zeros((16, 16, 16)), np.asarray(wedge_mask((16, 16, 16)))) == 0
