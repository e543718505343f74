"""Streamed moments, effective sample size, R-hat and the summaries they are computed from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.chains import streaming
from cryowgen_jax.chains.diagnostics import diagnose, effective_sample_size, split_r_hat, virial_residual, words
from cryowgen_jax.chains.summaries import coordinate_summary, shell_summary
from tests import oracles


def autoregressive(rng, chains, draws, correlation):
    """Stationary AR(1) paths of unit variance: the effective sample size is N (1 - phi) / (1 + phi)."""
    paths = np.empty((chains, draws, len(correlation)))
    paths[:, 0] = rng.normal(size=(chains, len(correlation)))
    for t in range(1, draws):
        noise = rng.normal(size=(chains, len(correlation)))
        paths[:, t] = correlation * paths[:, t - 1] + np.sqrt(1 - correlation**2) * noise
    return jnp.asarray(paths, jnp.float32)


# Moments -------------------------------------------------------------------------------------------------------------


def streamed(paths):
    """Moments of every chain, one draw at a time."""

    def one(path):
        start = streaming.empty(path[0])
        return jax.lax.scan(lambda moments, draw: (streaming.update(moments, draw), None), start, path)[0]

    return jax.jit(jax.vmap(one))(jnp.asarray(paths, jnp.float32))


pooled = jax.jit(streaming.pool)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_streamed_moments_are_those_of_the_stored_draws(rng, offset):
    """An offset of a thousand standard deviations must not eat the variance, as sums of squares would in float32."""
    paths = offset + rng.normal(size=(5, 200, 2, 3)) + rng.normal(size=(5, 1, 2, 3))
    moments = streamed(paths)
    mean, variance = pooled(moments)
    np.testing.assert_array_equal(moments.draws, np.full(5, 200))
    np.testing.assert_allclose(moments.mean, paths.mean(axis=1), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(mean, paths.mean(axis=(0, 1)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(variance, paths.reshape(-1, 2, 3).var(axis=0, ddof=1), rtol=2e-3)
    assert variance.dtype == jnp.float32


def test_the_pooled_variance_holds_the_spread_between_chains(rng):
    apart = 10.0 * np.arange(4)[:, None, None]
    paths = apart + rng.normal(size=(4, 100, 3))
    _, variance = pooled(streamed(paths))
    np.testing.assert_allclose(variance, paths.reshape(-1, 3).var(axis=0, ddof=1), rtol=1e-4)
    within = paths.var(axis=1).mean(axis=0)
    assert np.all(variance > 50 * within)


def test_pool_without_draws_is_nan():
    moments = streaming.Moments(jnp.zeros(3), jnp.zeros((3, 2)), jnp.zeros((3, 2)))
    assert all(np.all(np.isnan(part)) for part in pooled(moments))


# Effective sample size and R-hat -------------------------------------------------------------------------------------


@jax.jit
def statistics(records):
    return effective_sample_size(records), split_r_hat(records)


def test_effective_sample_size_of_autoregressive_chains(rng):
    correlation = np.array([0.0, 0.5, 0.9, -0.4])
    records = autoregressive(rng, 8, 2000, correlation)
    expected = 16000 * (1 - correlation) / (1 + correlation)
    np.testing.assert_allclose(statistics(records)[0], expected, rtol=0.2)


def test_chains_that_agree_have_r_hat_one_and_stuck_ones_do_not(rng):
    mixed = rng.normal(size=(8, 400, 2))
    np.testing.assert_allclose(statistics(mixed.astype(np.float32))[1], 1.0, atol=0.02)
    stuck = mixed + 2.0 * np.arange(8)[:, None, None]
    samples, r_hat = map(np.asarray, statistics(stuck.astype(np.float32)))
    assert np.all(r_hat > 1.2)
    assert np.all(samples < 40)


def test_a_drift_that_all_chains_share_is_seen(rng):
    """The statistic compares halves of chains: without the split this run would pass."""
    drifting = rng.normal(size=(8, 400, 2)) + 3.0 * np.linspace(-1, 1, 400)[:, None]
    assert np.all(np.asarray(statistics(drifting.astype(np.float32))[1]) > 1.2)
    between = drifting.mean(axis=1).var(axis=0, ddof=1)
    assert np.all(np.sqrt(1 + between / drifting.var(axis=1).mean(axis=0)) < 1.05)


def test_scale_and_offset_do_not_matter(rng):
    records = np.asarray(autoregressive(rng, 8, 400, np.array([0.5, 0.2])))
    (of_moved, r_hat_of_moved), (samples, r_hat) = map(statistics, (1e4 + 50 * records, records))
    np.testing.assert_allclose(of_moved, samples, rtol=0.02)
    np.testing.assert_allclose(r_hat_of_moved, r_hat, rtol=1e-3)


def test_summaries_that_never_move_and_short_runs_have_no_diagnosis(rng):
    records = np.concatenate([rng.normal(size=(8, 400, 1)), np.full((8, 400, 1), 3.0)], axis=-1).astype(np.float32)
    for (moving, still), of_few in zip(statistics(records), statistics(records[:, :5]), strict=True):
        assert np.isfinite(moving)
        assert np.isnan(still)
        assert np.all(np.isnan(of_few))


@jax.jit
def summarised(summary, *arguments):
    return summary(*arguments)


# Summaries ----------------------------------------------------------------------------------------------------------


def test_shell_energies_add_up_to_the_distance_from_the_reference(rng):
    shape = (6, 5, 8)
    reference, position = rng.normal(size=(2, *shape))
    mask = oracles.wedge(shape)
    spectrum = jnp.asarray(np.fft.rfftn(reference, norm="ortho"), jnp.complex64)
    summary = shell_summary(spectrum, jnp.asarray(mask), shape)
    summaries = np.asarray(summarised(summary, jnp.asarray(position, jnp.float32)))
    shells = min(shape) // 2
    assert summaries.shape == (4 * shells,)
    energies = summaries[2 * shells :]
    np.testing.assert_allclose(energies.sum(), np.sum((position - reference) ** 2), rtol=1e-5)
    difference = np.fft.rfftn(position - reference, norm="ortho")
    power = oracles.multiplicity(shape) * np.abs(difference) ** 2
    np.testing.assert_allclose(energies[:shells].sum(), power[mask == 0].sum(), rtol=1e-5)  # the wedge comes first
    at_reference = summarised(summary, jnp.asarray(reference, jnp.float32))
    np.testing.assert_allclose(at_reference, 0, atol=1e-4)


def test_shell_functionals_see_every_coefficient_of_their_shell_alone(rng):
    """A change in the wedge moves a wedge summary, one in the measured region a measured one, and no other."""
    shape = (6, 6, 6)
    mask = oracles.wedge(shape)
    summary = shell_summary(jnp.zeros(mask.shape, jnp.complex64), jnp.asarray(mask), shape)
    for region in (0, 3):
        index = np.argwhere((mask > 0) == (region > 0))
        for _ in range(3):
            spectrum = np.zeros(mask.shape, complex)
            spectrum[tuple(index[rng.integers(len(index))])] = 1.0 + 0.7j
            volume = np.fft.irfftn(spectrum, shape, axes=(0, 1, 2), norm="ortho")
            if np.abs(volume).max() < 1e-6:
                continue
            moved = np.abs(np.asarray(summarised(summary, jnp.asarray(volume, jnp.float32)))) > 1e-5
            linear, energy = moved[:6], moved[6:]
            assert energy.sum() == 1
            assert energy[region : region + 3].any()
            assert not np.any(linear & ~energy)


def gaussian_draws(rng, chains, draws, shape, precision):
    """Independent draws of a stationary Gaussian, and their scores as half spectra."""
    noise = rng.normal(size=(chains, draws, *shape))
    spectrum = np.fft.rfftn(noise, axes=(2, 3, 4), norm="ortho") / np.sqrt(precision)
    return np.fft.irfftn(spectrum, shape, axes=(2, 3, 4), norm="ortho"), -precision * spectrum


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_the_virial_knows_the_temperature_shell_by_shell(rng, temperature):
    shape = (6, 6, 6)
    precision = np.asarray(oracles.symmetric_half(rng, shape, 0.5, 3.0), float)
    mask = jnp.asarray(oracles.wedge(shape))
    summary = shell_summary(jnp.full(mask.shape, 0.3 + 0j, jnp.complex64), mask, shape)  # any constant will do
    positions, scores = gaussian_draws(rng, 4, 200, shape, precision)
    summarise = jax.jit(jax.vmap(jax.vmap(summary)))
    hot = np.sqrt(temperature)
    records = summarise(jnp.asarray(hot * positions, jnp.float32), jnp.asarray(hot * scores, jnp.complex64))
    assert records.shape[-1] == 3 * summary.size
    as_volumes = np.fft.irfftn(hot * scores, shape, axes=(2, 3, 4), norm="ortho")
    same = summarise(jnp.asarray(hot * positions, jnp.float32), jnp.asarray(as_volumes, jnp.float32))
    np.testing.assert_allclose(records, same, rtol=1e-3, atol=1e-3)
    diagnosis = diagnose(records, summary.size, summary.kinds)
    seen = np.isfinite(np.asarray(diagnosis.virial))
    assert seen.sum() >= 5
    residual = np.asarray(diagnosis.virial)[seen]
    standard = (residual - (1 - temperature)) / np.asarray(diagnosis.virial_error)[seen]
    assert np.max(np.abs(standard)) < 4.5
    assert np.all(np.asarray(diagnosis.r_hat)[seen] < 1.1)
    assert np.all(np.asarray(diagnosis.ess_bulk)[seen] > 400)
    assert np.all(np.asarray(diagnosis.ess_tail)[seen] > 300)


def test_coordinate_summary_records_the_virial_of_every_coordinate(rng):
    position, score = rng.normal(size=(2, 3, 4)).astype(np.float32)
    found = np.asarray(summarised(coordinate_summary((3, 4)), position, score))
    np.testing.assert_allclose(found[12:], (position * score).reshape(-1), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("ok", 500.0, 1.01, (0.01, 0.01), 0.8), "converged"),
        (("stopped: 1 of 4 chains", 500.0, 1.01, (0.0, 0.01), 0.8), "not usable: stopped"),
        (("ok", 500.0, 1.3, (0.0, 0.01), 0.8), "R-hat 1.30"),
        (("ok", 20.0, 1.01, (0.0, 0.01), 0.8), "run 5.0 times longer"),
        (("ok", 500.0, 1.01, (0.3, 0.01), 0.8), "the virial is off by +0.30"),
        (("ok", 500.0, 1.01, (0.3, 0.1), 0.8), "converged"),
        (("ok", 500.0, 1.01, (0.0, 0.01), 0.01), "only 1.0 % of the steps"),
        (("ok", float("nan"), float("nan"), (0.0, 0.01), 1.0), "too few draws"),
    ],
)
def test_a_run_says_in_words_whether_it_converged(arguments, expected):
    said = words(*arguments)
    assert expected in said
    assert said.startswith("not ") == (expected != "converged")


def test_coordinate_summary_takes_all_coordinates_or_256_of_them(rng):
    position, numbers = rng.normal(size=(3, 4)).astype(np.float32), np.arange(1000.0).reshape(10, 100)
    np.testing.assert_array_equal(coordinate_summary((3, 4))(jnp.asarray(position)), position.reshape(-1))
    chosen, again = (coordinate_summary((10, 100))(jnp.asarray(numbers, jnp.float32)) for _ in range(2))
    assert len(np.unique(chosen)) == 256
    np.testing.assert_array_equal(chosen, again)


def test_the_residual_of_the_virial_is_its_mean_plus_one(rng):
    virials = rng.normal(-1.2, 0.3, (4, 100, 3)).astype(np.float32)
    residual, error = virial_residual(jnp.asarray(virials))
    np.testing.assert_allclose(residual, virials.mean(axis=(0, 1)) + 1, atol=1e-5)
    np.testing.assert_allclose(error, 0.3 / np.sqrt(400), rtol=0.5)
