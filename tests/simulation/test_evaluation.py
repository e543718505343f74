"""Evaluations against cases whose answer is known on paper, and against the independent script where it is."""

import json
import subprocess
import sys

import mrcfile
import numpy as np
import pytest

from cryowgen_jax.simulation import coverage_curve, evaluate_family, simulate_tomogram, wedge_errors
from cryowgen_jax.types import InputError

SHAPE = (32, 40, 36)
MEMBERS = 12


def hard_mask(shape=SHAPE, limit=60.0):
    kz, kx = np.fft.fftfreq(shape[0])[:, None, None], np.fft.rfftfreq(shape[2])[None, None, :]
    seen = (np.abs(kz) <= np.abs(kx) * np.tan(np.deg2rad(limit)) + 1e-12) | (kz == 0)
    return np.broadcast_to(seen, (shape[0], shape[1], shape[2] // 2 + 1)).astype(np.float32)


def noise(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def equal(count):
    return np.full(count, 1 / count)


def smooth(volume):
    kernel = np.exp(-0.5 * (sum(np.meshgrid(*[np.fft.fftfreq(n) ** 2 for n in SHAPE], indexing="ij")) / 0.08**2))
    return np.fft.ifftn(kernel * np.fft.fftn(volume, axes=(-3, -2, -1)), axes=(-3, -2, -1)).real.astype(np.float32)


@pytest.fixture
def scene(rng):
    """A mean, and a truth and members that are the mean plus independent noise of the same law."""
    mean = 3 * smooth(noise(rng, *SHAPE))
    return mean, mean + noise(rng, *SHAPE), mean + noise(rng, MEMBERS, *SHAPE)


@pytest.mark.parametrize("gain", [1.0, 0.2, 7.0])
def test_perfect_estimate(scene, gain):
    _, truth, _ = scene
    found = evaluate_family(truth, gain * truth + 5.0, (gain * truth + 5.0)[None], np.ones(1), hard_mask())
    assert found.in_wedge_correlation == pytest.approx(1, abs=1e-5)
    assert found.measured_correlation == pytest.approx(1, abs=1e-5)
    assert found.wedge_energy_ratio == pytest.approx(1, abs=1e-4)
    assert found.gain == pytest.approx(1 / gain, rel=1e-4)
    assert np.isnan([found.spread_over_error, found.coverage_95, found.error_spread_correlation]).all()
    assert found.effective_samples == 1


def test_one_member_with_all_the_weight_has_no_spread(scene):
    mean, truth, members = scene
    alone = np.eye(MEMBERS)[0]
    errors = wedge_errors(truth, mean, members, alone, hard_mask())
    assert np.isnan(errors.spread).all()
    assert np.isfinite(errors.error).all()
    assert np.isnan(coverage_curve(errors, np.array([0.5, 0.95]))).all()
    assert np.isnan(evaluate_family(truth, mean, members, alone, hard_mask()).coverage_95)


def test_estimate_with_nothing_in_the_wedge(scene):
    _, truth, _ = scene
    mask = hard_mask()
    estimate = np.fft.irfftn(np.fft.rfftn(truth) * mask, s=SHAPE, axes=(0, 1, 2)).astype(np.float32)
    found = evaluate_family(truth, estimate, estimate[None], np.ones(1), mask)
    assert found.in_wedge_correlation == 0
    assert found.wedge_energy_ratio < 1e-6
    assert found.measured_correlation == pytest.approx(1, abs=1e-5)


def test_correlation_of_signal_plus_noise_in_the_wedge(rng):
    truth, other, mask = noise(rng, *SHAPE), noise(rng, *SHAPE), hard_mask()
    spoiled = np.fft.rfftn(truth) + (1 - mask) * np.fft.rfftn(other)
    estimate = np.fft.irfftn(spoiled, s=SHAPE, axes=(0, 1, 2)).astype(np.float32)
    found = evaluate_family(truth, estimate, estimate[None], np.ones(1), mask)
    freedom = np.sum(mask == 0) * 0.05
    assert found.in_wedge_correlation == pytest.approx(np.sqrt(0.5), abs=5 / np.sqrt(freedom))
    assert found.measured_correlation == pytest.approx(1, abs=1e-5)
    assert found.wedge_energy_ratio == pytest.approx(2, abs=10 / np.sqrt(freedom))


def test_correlations_are_those_of_the_full_spectrum(rng):
    x = np.arange(SHAPE[2])
    truth = noise(rng, *SHAPE) + 2 * np.sin(0.4 * x).astype(np.float32)
    estimate = 0.5 * truth + noise(rng, *SHAPE) + np.float32(3) * noise(rng, *SHAPE).mean(axis=2, keepdims=True)
    v, e = np.fft.fftn(truth), np.fft.fftn(estimate)
    axes = np.meshgrid(*[np.fft.fftfreq(n) for n in SHAPE], indexing="ij")
    k = np.sqrt(sum(f**2 for f in axes))
    missing = np.abs(axes[0]) > np.abs(axes[2]) * np.tan(np.deg2rad(60)) + 1e-12
    found = evaluate_family(truth, estimate, estimate[None], np.ones(1), hard_mask())
    for part, value in ((missing, found.in_wedge_correlation), (~missing, found.measured_correlation)):
        part = part & (k > 0) & (k < 0.25)
        a, b = v[part], e[part]
        expected = np.sum(a * b.conj()).real / np.sqrt(np.sum(np.abs(a) ** 2) * np.sum(np.abs(b) ** 2))
        assert value == pytest.approx(expected, abs=1e-4)


def measured_exactly(truth, volumes, mask):
    """The same volumes with the truth's measured coefficients, so that the fitted gain is one."""
    spectra = mask * np.fft.rfftn(truth) + (1 - mask) * np.fft.rfftn(volumes, axes=(-3, -2, -1))
    return np.fft.irfftn(spectra, s=SHAPE, axes=(-3, -2, -1)).astype(np.float32)


def calibration(scene, scale):
    mean, truth, samples = scene
    mask = hard_mask()
    samples = measured_exactly(truth, mean + scale * (samples - mean), mask)
    return evaluate_family(truth, samples.mean(axis=0), samples, equal(MEMBERS), mask)


def test_calibrated_family(scene):
    found = calibration(scene, 1.0)
    assert found.gain == pytest.approx(1, abs=1e-4)
    assert found.spread_over_error == pytest.approx(1, abs=0.12)
    # with twelve members |error| / spread follows Student's t with 11 degrees of freedom: 0.924 within 1.96
    assert found.coverage_95 == pytest.approx(0.924, abs=0.02)
    assert found.effective_samples == pytest.approx(MEMBERS)


def test_wrong_spreads_are_told_apart(scene):
    over_confident, too_wide = calibration(scene, 0.5), calibration(scene, 2.0)
    assert over_confident.spread_over_error < 0.4
    assert over_confident.coverage_95 < 0.8
    assert too_wide.spread_over_error > 2.5
    assert too_wide.coverage_95 > 0.98


def test_coverage_reaches_the_nominal_with_many_members(rng):
    mean = 3 * smooth(noise(rng, *SHAPE))
    truth, samples, mask = mean + noise(rng, *SHAPE), mean + noise(rng, 60, *SHAPE), hard_mask()
    samples = measured_exactly(truth, samples, mask)
    arguments = (truth, samples.mean(axis=0), samples, equal(60), mask)
    assert evaluate_family(*arguments).coverage_95 == pytest.approx(0.95, abs=0.015)
    nominal = np.array([0.1, 0.5, 0.8, 0.95])
    errors = wedge_errors(*arguments)
    np.testing.assert_allclose(coverage_curve(errors, nominal), nominal, atol=0.03)
    halved = errors._replace(spread=0.5 * errors.spread)
    assert np.all(coverage_curve(halved, nominal)[1:] < nominal[1:] - 0.1)


def test_spread_that_follows_the_error_correlates_with_it(rng):
    envelope = 0.2 + 2.0 * (np.arange(SHAPE[1]) > SHAPE[1] // 2)[None, :, None].astype(np.float32)
    truth, samples, mask = envelope * noise(rng, *SHAPE), envelope * noise(rng, 40, *SHAPE), hard_mask()
    samples = measured_exactly(truth, samples, mask)
    follows = evaluate_family(truth, samples.mean(axis=0), samples, equal(40), mask)
    assert follows.error_spread_correlation > 0.4
    turned = measured_exactly(truth, samples[:, :, ::-1], mask)
    assert evaluate_family(truth, turned.mean(axis=0), turned, equal(40), mask).error_spread_correlation < 0.1


def test_weights_act_like_repeats(scene):
    mean, truth, samples = scene
    mask, few = hard_mask(), samples[:3]
    weights = np.array([0.5, 0.25, 0.25])
    errors = wedge_errors(truth, mean, few, weights, mask)
    centre = 0.5 * few[0] + 0.25 * few[1] + 0.25 * few[2]
    v, m, f = (np.fft.rfftn(a, axes=(-3, -2, -1)) for a in (truth, mean, few - centre))
    k = np.sqrt(sum(x**2 for x in np.meshgrid(*[np.fft.fftfreq(n) for n in SHAPE], indexing="ij")))[..., : 36 // 2 + 1]
    band = (k > 0) & (k < 0.25)
    c = np.where(np.isin(np.arange(19), [0, 18]), 1, 2) * band * mask
    gain = np.sum(c * (v * m.conj()).real) / np.sum(c * np.abs(m) ** 2)
    wedge = band & (mask == 0)
    parts = gain * np.fft.irfftn(f * wedge, s=SHAPE, axes=(1, 2, 3))
    square = 0.25 + 2 * 0.0625
    expected = np.einsum("k,kzyx->zyx", weights, parts**2) * (1 + square) / (1 - square)
    np.testing.assert_allclose(errors.spread, np.sqrt(expected), rtol=2e-3, atol=1e-4)
    found = evaluate_family(truth, mean, few, weights, mask)
    assert found.effective_samples == pytest.approx(1 / square)
    flat = evaluate_family(truth, mean, few, equal(3), mask)
    assert abs(flat.spread_over_error - found.spread_over_error) > 1e-3


def test_one_sample_with_all_the_weight_has_no_calibration(scene):
    mean, truth, samples = scene
    found = evaluate_family(truth, mean, samples, np.eye(MEMBERS)[0], hard_mask())
    assert np.isnan(found.coverage_95)
    assert np.isfinite(found.in_wedge_correlation)


def test_no_wedge_gives_nan_there(scene):
    mean, truth, samples = scene
    found = evaluate_family(truth, mean, samples, equal(MEMBERS), np.ones_like(hard_mask()))
    assert np.isnan([found.in_wedge_correlation, found.wedge_energy_ratio, found.coverage_95]).all()
    assert 0 < found.measured_correlation <= 1


def test_unusable_input_is_refused(scene):
    mean, truth, samples = scene
    mask = hard_mask()
    with pytest.raises(InputError, match="sum"):
        evaluate_family(truth, mean, samples, np.ones(MEMBERS), mask)
    with pytest.raises(InputError, match="weights"):
        evaluate_family(truth, mean, samples, equal(3), mask)
    with pytest.raises(InputError, match="non-negative"):
        evaluate_family(truth, mean, samples[:2], np.array([1.5, -0.5]), mask)
    with pytest.raises(InputError, match="shapes"):
        evaluate_family(truth, mean[1:], samples, equal(MEMBERS), mask)


def test_agrees_with_the_independent_script(shared_data, tmp_path, rng):
    script = shared_data.parent / "bench" / "score.py"
    if not script.exists():
        pytest.skip("the independent script is not here")
    made = simulate_tomogram((32, 48, 40), seed=3, snr=0.5)
    samples = np.stack([0.6 * made.truth + 0.3 * smooth_like(noise(rng, 32, 48, 40)) for _ in range(5)])
    mean = samples.mean(axis=0) + 0.05 * noise(rng, 32, 48, 40)
    for name, volume in [("truth", made.truth), ("mean", mean)] + [(f"s{i}", s) for i, s in enumerate(samples)]:
        mrcfile.write(tmp_path / f"{name}.mrc", volume.astype(np.float32))
    volumes = [tmp_path / "truth.mrc", "-60", "60", tmp_path / "mean.mrc", "--samples", f"{tmp_path}/s*.mrc"]
    told = subprocess.run(
        [sys.executable, script, *volumes],
        check=True,
        capture_output=True,
        text=True,
        cwd=script.parent,
    )
    theirs = json.loads(told.stdout)
    ours = evaluate_family(made.truth, mean, samples, equal(5), hard_mask((32, 48, 40)))
    for name, value in {
        "wedge_cc": ours.in_wedge_correlation,
        "measured_cc": ours.measured_correlation,
        "wedge_energy": ours.wedge_energy_ratio,
        "gain": ours.gain,
        "spread_over_error_wedge": ours.spread_over_error,
        "cov95_wedge_voxel": ours.coverage_95,
        "corr_abs_err_spread": ours.error_spread_correlation,
    }.items():
        assert value == pytest.approx(theirs[name], abs=1e-3), name


def smooth_like(volume):
    return volume + np.roll(volume, 1, 0) + np.roll(volume, 1, 1) + np.roll(volume, 1, 2)
