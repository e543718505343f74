"""The experiments run, their closed forms hold, and so do the conclusions of their READMEs."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import struct
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax.io import load_weights
from cryowgen_jax.simulation import simulate_tomogram
from cryowgen_jax.spatial import fourier
from cryowgen_jax.training import Scenes
from tests import QUICK_TO_COMPILE, oracles
from tests.training.test_scenes import scenes as scenes_of_noise

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1] / "experiments"


def load(experiment: str, name: str) -> types.ModuleType:
    """A module of an experiment, under a name of its own."""
    unique = f"experiment_{experiment}_{name}"
    if unique not in sys.modules:
        spec = importlib.util.spec_from_file_location(unique, EXPERIMENTS / experiment / f"{name}.py")
        sys.modules[unique] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[unique])
    return sys.modules[unique]


def run_experiment(name: str, folder: pathlib.Path, *options: str, computes: bool) -> list[dict[str, str]]:
    """Lines of all tables that ``run.py --quick`` prints, by column.

    What ``computes`` longer than it compiles is compiled with all optimisations.
    """
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {} if computes else {"XLA_FLAGS": QUICK_TO_COMPILE}
    command = [sys.executable, str(EXPERIMENTS / name / "run.py"), "--quick", "--output", str(folder), *options]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert finished.returncode == 0, finished.stderr
    rows, columns = [], None
    for line in finished.stdout.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else None
        if cells is None:
            columns = None
        elif columns is None:
            columns = cells
        elif set(cells) != {"---"}:
            rows.append(dict(zip(columns, cells, strict=True)))
    return rows


def picture_size(path: pathlib.Path) -> tuple[int, int]:
    """Width and height of a PNG file in pixels."""
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


# Two peaks


@pytest.fixture(scope="module")
def signals() -> types.ModuleType:
    return load("two_peaks", "signals")


def dense_law(signals: types.ModuleType, width: int, weights: np.ndarray) -> tuple[np.ndarray, oracles.Law]:
    """An observation, and its posterior under a mixture witness of these weights, by dense matrices."""
    observation = signals.draw_batch(np.random.default_rng(3), width, 20).observations[-1]
    witness = signals.witness()
    law = oracles.mixture_posterior(
        oracles.dense_filter(signals.band_mask(width), (signals.LENGTH,)),
        observation,
        signals.DATA_WEIGHT,
        np.zeros(signals.LENGTH),
        signals.PRIOR_PRECISION,
        weights,
        np.asarray(witness.means, float),
        float(witness.variance),
    )
    return observation, law


@pytest.mark.parametrize("width", [0, 7, 11])
def test_exact_posterior_is_that_of_the_witness(signals, width):
    weights = np.asarray(signals.witness().weights, float)
    observation, law = dense_law(signals, width, weights)
    exact = signals.exact(observation, width)
    assert np.allclose(exact.weights, law.weights, atol=1e-5)
    assert np.allclose(exact.means, law.means, atol=1e-5)
    assert np.allclose(exact.std, np.sqrt(np.diag(law.covariance)), rtol=1e-5)


def test_the_witness_has_to_make_up_for_the_conditional_prior(signals):
    observation, law = dense_law(signals, 11, signals.PRIOR)  # as if beta were no second prior
    assert np.abs(signals.exact(observation, 11).weights - law.weights).max() > 0.05


def test_widest_band_leaves_the_prior(signals):
    observations = signals.draw_batch(np.random.default_rng(0), signals.WIDEST, 20).observations
    assert np.allclose(signals.exact(observations, signals.WIDEST).weights, signals.PRIOR, atol=1e-10)
    narrower = signals.exact(observations, signals.WIDEST - 4).weights
    assert np.abs(narrower - signals.PRIOR).max() > 0.5


def test_exact_draws_have_the_moments_of_the_posterior(signals):
    width, count = 7, 20000
    observation = signals.draw_batch(np.random.default_rng(3), width, 20).observations[0]
    law = signals.exact(observation, width)
    draws = law.draw(np.random.default_rng(4), count)
    assert np.abs(oracles.mean_scores(draws, law.mean)).max() < 4.5
    assert np.abs(oracles.mean_scores((draws - law.mean) ** 2, law.std**2)).max() < 4.5
    assert np.abs(oracles.mean_scores(signals.responsibilities(draws), law.weights)).max() < 4.5
    assert np.abs(oracles.mean_scores(draws, law.means[0])).max() > 20  # one component is not the whole


@jax.jit
def at(posterior, positions):
    return jax.vmap(posterior.log_density)(positions)


def test_posterior_on_one_dimension_differs_from_the_exact_density_by_a_constant(signals):
    width, rng = 11, np.random.default_rng(5)
    observation, law = dense_law(signals, width, np.asarray(signals.witness().weights, float))
    positions = law.draw(rng, 6) + 0.1 * rng.normal(size=(6, signals.LENGTH))
    logs = np.log(law.weights) + np.stack(
        [oracles.log_normal(positions, m, c) for m, c in zip(law.means, law.covariances, strict=True)], axis=-1
    )
    expected = np.log(np.sum(np.exp(logs - logs.max()), axis=-1)) + logs.max()
    found = at(signals.posterior(observation, width), jnp.asarray(positions, jnp.float32))
    assert np.ptp(np.asarray(found) - expected) < 2e-3  # float32, of values that spread by hundreds
    other = at(signals.posterior(observation, 7), jnp.asarray(positions, jnp.float32))
    assert np.ptp(np.asarray(other) - expected) > 1


@pytest.mark.slow
@pytest.mark.computes
def test_cold_families_collapse_onto_the_transport_and_hot_ones_spread_to_the_prior(signals, key):
    """gamma -> 0 and large, on the widest band; within the mode that transport picks the cold law is Gaussian."""
    observation = signals.draw_batch(np.random.default_rng(3), signals.WIDEST, 20).observations[0]
    posterior = signals.posterior(observation, signals.WIDEST)
    answer = cg.cryogen_ot(key, posterior, num_starts=8).mean

    temperature = 1e-2  # at which the best mode's share is next to 1

    def at(temperature: float, sampler: str, length: int = 400) -> cg.Family:
        tempered = cg.temper(posterior, temperature)
        return cg.cryowgen_langevin(key, tempered, num_samples=8, num_steps=length, warmup=length, sampler=sampler)

    def squared_distance(family: cg.Family) -> float:
        return float(jnp.mean((family.samples - answer[None]) ** 2))

    stiffness = 1 / signals.TEXTURE_VARIANCE - signals.PRIOR_PRECISION
    stiffness = stiffness + signals.DATA_WEIGHT * signals.band_mask(signals.WIDEST)
    weight = np.broadcast_to(fourier.multiplicity((signals.LENGTH,)), stiffness.shape) / signals.LENGTH
    expected = np.sum(weight / (stiffness / temperature + signals.PRIOR_PRECISION))
    assert abs(squared_distance(at(temperature, "tempered")) / expected - 1) < 4 * np.sqrt(2 / (8 * signals.LENGTH))
    # negative control: chains that cannot cross stay in the modes they started in, however cold
    assert squared_distance(at(temperature, "auto")) > 10 * expected

    hot = at(1e6, "auto")
    np.testing.assert_allclose(jnp.mean(hot.std**2), 1 / signals.PRIOR_PRECISION, rtol=0.1)
    np.testing.assert_allclose(hot.mean, posterior.center, atol=0.2)


@pytest.mark.slow
def test_two_peaks(tmp_path):
    rows = run_experiment("two_peaks", tmp_path, computes=False)
    for name in ("two_peaks.png", "calibration.png"):
        assert min(picture_size(tmp_path / name)) >= 600
        assert picture_size(tmp_path / name)[0] >= 1200
    assert (tmp_path / "tables.md").stat().st_size > 1000
    families = {(row["missing"], row["family"]): row for row in rows if "family" in row}
    answers = {(row["missing"], row["one answer each"]): row for row in rows if "one answer each" in row}

    def number(width: int, family: str, column: str) -> float:
        return float(families[str(width), family][column])

    for width in (0, 11):
        assert abs(number(width, "exact draws", "coverage") - 0.9) < 0.01
        assert abs(number(width, "II, pcnl", "coverage") - 0.9) < 0.02
        assert abs(number(width, "II, pcnl", "width / exact") - 1) < 0.05
        assert number(width, "I, conditional prior (published)", "ESS") < 3  # one candidate carries all
        assert number(width, "I, conditional prior (published)", "mean error / sd") > 2
    # the Gaussian part is a perfect reference without a gap and a poor one for a wide gap
    assert abs(number(0, "I, Gaussian part", "coverage") - 0.9) < 0.01
    assert number(11, "I, Gaussian part", "ESS") < 50
    assert number(11, "I, Gaussian part", "coverage") < number(11, "II, pcnl", "coverage") - 0.02
    assert number(11, "I, Gaussian part", "mean error / sd") > 2 * number(11, "II, pcnl", "mean error / sd")
    # the tightest bands are not the truest ones
    short = "II, Langevin, 64 steps from z-bar"
    assert number(11, short, "width / exact") < 0.7
    assert number(11, short, "coverage") < 0.7
    # long unadjusted steps inflate the variance to 1 / (1 - 1.5 / 2), and averaged noise undoes it
    assert abs(number(0, "II, Langevin, long steps", "width / exact") - 2) < 0.08
    assert number(0, "II, Langevin, long steps", "coverage") > 0.99
    assert abs(number(0, "II, Leimkuhler-Matthews, long steps", "width / exact") - 1) < 0.03

    # transport keeps the proportions that single best answers lose; that does not make each answer better
    point, transport = answers["11", "CryoGEN-I (MAP)"], answers["11", "CryoGEN-II (OT)"]
    assert float(transport["TV to prior"]) == 0
    assert float(point["TV to prior"]) > 0.5
    # trained networks find the component where the data say which, and agree on one where nothing does
    for name in ("CryoGEN-I, trained", "CryoGEN-II, trained"):
        assert float(answers["0", name]["wrong"]) == 0
        assert float(answers["11", name]["TV to prior"]) > 0.5
    mean, draw = answers["11", "exact posterior, mean"], answers["11", "CryoWGEN-II, a draw by pcnl"]
    assert float(mean["rms error"]) < min(float(point["rms error"]), float(transport["rms error"]))
    assert float(draw["TV to prior"]) < 0.15


# Walkers


@pytest.fixture(scope="module")
def walkers() -> types.ModuleType:
    return load("walkers", "run")


def test_drift_of_the_double_well_is_that_of_the_posterior(walkers):
    positions = np.linspace(-4, 4, 33)[:, None]
    found = jax.jit(jax.vmap(walkers.double_well().drift))(jnp.asarray(positions, jnp.float32))
    assert np.allclose(found, walkers.drift(positions), atol=1e-5)
    low, high = (float(bound) for bound in walkers.double_well().witness.curvature_bounds())
    grid = np.linspace(-6, 6, 4001)
    curvature = -np.gradient(walkers.drift(grid), grid) - walkers.PRIOR_PRECISION
    assert np.allclose([curvature.min(), curvature.max()], [low, high], atol=1e-3)


def test_own_law_of_a_langevin_step_is_the_inflated_gaussian(walkers, monkeypatch):
    monkeypatch.setattr(walkers, "HEIGHT", 0.0)
    monkeypatch.setattr(walkers, "TILT", 0.0)
    step_size = 0.3125
    density, relaxation = walkers.own_law.__wrapped__(step_size)
    variance = np.trapezoid(density * walkers.GRID**2, walkers.GRID)
    assert np.isclose(variance, oracles.ula_variance(walkers.PRIOR_PRECISION, step_size), rtol=1e-3)
    assert abs(variance - 1) > 0.1  # and not the law of the limit of short steps
    assert np.isclose(relaxation, -1 / np.log(1 - step_size), rtol=1e-3)


def test_exact_wells_agree_with_an_adaptive_quadrature(walkers):
    from scipy.integrate import quad

    def density(z: float) -> float:
        return np.exp(-walkers.HEIGHT * np.exp(-0.5 * z * z) + walkers.TILT * z - 0.5 * walkers.PRIOR_PRECISION * z * z)

    truth = walkers.exact()
    left, right = quad(density, -12, truth.saddle)[0], quad(density, truth.saddle, 12)[0]
    assert np.isclose(truth.weight, right / (left + right), atol=3e-4)
    assert abs(walkers.drift(np.array(truth.mode))) < 0.05
    assert np.isclose(np.sum(walkers.binned(truth.density)), 1)
    assert truth.weight > 0.55  # the wells differ, so that a sampler stuck where it started is found out


@pytest.mark.slow
def test_walkers(tmp_path):
    rows = {(row["step size"], row["kernel"]): row for row in run_experiment("walkers", tmp_path, computes=True)}
    assert min(picture_size(tmp_path / "walkers.png")) >= 600
    assert picture_size(tmp_path / "walkers.png")[0] >= 1200
    assert (tmp_path / "table.md").stat().st_size > 500

    def number(step_size: str, kernel: str, column: str) -> float:
        return float(rows[step_size, kernel][column])

    for step_size, inflation in (("0.1", 1.15), ("0.25", 1.45)):
        assert number(step_size, "langevin", "variance / exact") > inflation
        found = number(step_size, "langevin", "variance / exact")
        assert abs(found - number(step_size, "langevin", "own law")) < 0.06
        assert number(step_size, "langevin", "TV to own law") < 0.04
        for kernel in ("leimkuhler_matthews", "mala", "pcnl"):
            assert number(step_size, kernel, "TV to exact") < 0.04
            assert abs(number(step_size, kernel, "variance / exact") - 1) < 0.05
            assert abs(number(step_size, kernel, "right well") - number("-", "exact", "right well")) < 0.04
    assert number("0.25", "langevin", "TV to exact") > 0.1
    for kernel in ("langevin", "leimkuhler_matthews"):
        assert rows["2.2", kernel]["status"].startswith("stopped")
    for kernel in ("mala", "pcnl"):
        assert rows["2.2", kernel]["status"] == "ok"
        assert number("2.2", kernel, "TV to exact") < 0.03
        assert number("2.2", kernel, "acceptance") < 0.5


# An energy against a network


@pytest.mark.slow
def test_an_adversarial_energy_alone_fills_the_wedge(tmp_path):
    rows = {row["what learns"]: row for row in run_experiment("adversarial", tmp_path, computes=True)}
    assert min(picture_size(tmp_path / "adversarial.png")) >= 900
    assert abs(float(rows["energy fixed"]["in-wedge cc"])) < 0.2
    assert float(rows["energy learned"]["in-wedge cc"]) > 0.5
    energies = [float(rows[name]["wedge energy"]) for name in ("energy fixed", "energy learned")]
    assert 3 * energies[0] < energies[1] < 1.5
    assert float(rows["consistency"]["in-wedge cc"]) > 0.7


# Calibration


@pytest.fixture(scope="module")
def intervals() -> types.ModuleType:
    return load("calibration", "intervals")


FAMILY_SHAPE, FAMILY_SIZE = (16, 24, 24), 8


def gaussian_family(intervals: types.ModuleType, scale: float):
    """Truth and members from one Gaussian law, voxels independent but of different means and deviations."""
    rng = np.random.default_rng(7)
    mean, deviation = rng.normal(size=FAMILY_SHAPE), rng.uniform(0.3, 3.0, size=FAMILY_SHAPE)
    draws = mean + deviation * rng.normal(size=(1 + FAMILY_SIZE, *FAMILY_SHAPE))
    draws[1:] = mean + scale * (draws[1:] - mean)
    spectra = intervals.spectra(draws)
    everything = np.ones(spectra.shape[1:], bool)
    weights = np.full(FAMILY_SIZE, 1 / FAMILY_SIZE)
    return intervals.component(spectra[0], spectra[1:], weights, everything, FAMILY_SHAPE)


def standard_errors(found: np.ndarray, expected: np.ndarray, count: int) -> np.ndarray:
    expected = np.asarray(expected)
    return (np.asarray(found) - expected) / np.sqrt(expected * (1 - expected) / count)


def test_a_calibrated_family_has_nominal_coverage(intervals):
    part = gaussian_family(intervals, 1.0)
    count = part.truth.size
    assert np.abs(standard_errors(intervals.coverage(part), intervals.NOMINAL, count)).max() < 4
    # normal intervals of eight members cover less than they say, and as much less as expected
    expected = intervals.normal_coverage_expected(FAMILY_SIZE)
    found = intervals.coverage(part, (0.95,), normal=True)
    assert np.abs(standard_errors(found, expected, count)) < 4
    assert standard_errors(found, 0.95, count) < -10
    assert abs(intervals.spread_over_error(part) - 1) < 0.05
    uniform = np.full(FAMILY_SIZE + 1, 1 / (FAMILY_SIZE + 1))
    assert np.abs(standard_errors(intervals.ranks(part), uniform, count)).max() < 4
    # deviations that differ from voxel to voxel: error and spread go together, as the family foretells
    assert abs(intervals.correlation(part) - intervals.correlation_expected(part)) < 0.04
    assert intervals.correlation(part) > 0.3


def test_a_family_with_too_small_a_spread_has_not(intervals):
    part = gaussian_family(intervals, 0.7)
    count = part.truth.size
    assert standard_errors(intervals.coverage(part), intervals.NOMINAL, count).max() < -10
    expected = 0.7**2 * (1 + 1 / FAMILY_SIZE) / (1 + 0.7**2 / FAMILY_SIZE)
    assert abs(intervals.spread_over_error(part) - expected) < 0.05
    uniform = np.full(FAMILY_SIZE + 1, 1 / (FAMILY_SIZE + 1))
    assert standard_errors(intervals.ranks(part), uniform, count)[[0, -1]].min() > 10


def test_bands_of_both_regions_divide_the_spectrum(intervals):
    shape = (24, 20, 22)
    mask = np.asarray(cg.wedge_mask(shape, (-50.0, 60.0)))
    wholes = [intervals.selection(mask, shape, region, intervals.WHOLE) for region in intervals.REGIONS]
    assert not np.any(wholes[0] & wholes[1])
    for region, whole in zip(intervals.REGIONS, wholes, strict=True):
        bands = [intervals.selection(mask, shape, region, band) for band in intervals.BANDS[:-1]]
        assert np.array_equal(np.sum(bands, axis=0), whole)
        assert all(band.any() for band in bands[1:])
    radius = fourier.radial_frequency(shape)
    assert np.array_equal(wholes[0] | wholes[1], (radius > 0) & (radius < 0.25))
    assert not np.any(mask[wholes[0]])


def test_pooled_voxels_are_those_that_were_asked_for(intervals):
    part = gaussian_family(intervals, 1.0)
    where = part.truth > 1
    both = intervals.pooled([part, part], [where, ~where])
    assert both.truth.size == part.truth.size
    assert both.members.shape == (FAMILY_SIZE, part.truth.size)
    assert np.isclose(intervals.spread_over_error(both), intervals.spread_over_error(part))
    assert np.all(intervals.pooled([part], [where]).truth > 1)


@pytest.mark.slow
def test_truths_of_the_calibration_have_the_precision_of_the_prior():
    prior_draws = load("calibration", "prior_draws")
    truths = jax.jit(jax.vmap(prior_draws.draw_prior))(jax.random.split(jax.random.key(1), 60))[:, 0]
    squares = jax.vmap(lambda z: jnp.sum(z * prior_draws.prior_precision(z)))(truths)
    count = truths[0].size
    assert abs(np.mean(squares) / count - 1) < 4 * np.sqrt(2 / (count * 60))
    assert 0.6 < np.var(squares) / (2 * count) < 1.6


@pytest.mark.slow
def test_calibration(tmp_path):
    rows = run_experiment("calibration", tmp_path, "--witness", "solvent", computes=False)
    assert min(picture_size(tmp_path / "calibration.png")) >= 600
    assert (tmp_path / "tables.md").stat().st_size > 1000
    bands = {(row["region"], row["band"]): row for row in rows if "band" in row}
    objects = {row["object"]: row for row in rows if "voxels" in row}
    assert len(bands) == 1 + 2 * 6
    assert {"solvent", "membrane", "particles"} <= set(objects)
    envelope = {
        (row["object"], row["model says"]): float(row["share of voxels"]) for row in rows if "model says" in row
    }
    assert envelope["solvent", "solvent"] > envelope["particles", "solvent"]
    assert abs(envelope["particles", "solvent"] + envelope["particles", "particle"] - 1) < 0.011
    reference = bands["-", "-"]
    assert float(reference["95 %"]) == 0.95
    assert abs(float(reference["normal 95 %"]) - 0.855) < 0.001  # of four members
    whole = bands["measured", "0.00-0.25"]
    assert 0.9 < float(whole["95 %"]) < 0.99
    assert 0.5 < float(whole["spread / error"]) < 2
    ranks = [row for row in rows if "statistic" in row]
    assert {row["draws"]: row["flagged"] for row in ranks} == {
        "chains of restore": "no",
        "the same, spread x 0.7": "yes",
    }


# Four methods


@pytest.mark.slow
def test_four_methods(tmp_path):
    table = run_experiment("four_methods", tmp_path, "--witness", "solvent", computes=False)
    rows = {row["method"]: row for row in table}
    assert min(picture_size(tmp_path / "four_methods.png")) >= 600
    assert len(rows) == 6

    def number(method: str, column: str) -> float:
        return float(rows[method][column])

    assert number("tomogram itself", "in-wedge cc") == 0
    assert number("tomogram itself", "wedge energy") == 0
    family, weighted = "CryoWGEN-II (langevin)", "CryoWGEN-I (mc)"
    assert number(weighted, "ESS") == 8
    for method in (family, weighted):
        assert number(method, "in-wedge cc") > number("POCS", "in-wedge cc")
        assert 0.8 < number(method, "95 % coverage") < 1
    assert number(family, "in-wedge cc") > number(weighted, "in-wedge cc")  # solved for, and a mean of 8
    # the model is Gaussian: its maximum is its mean
    assert number("CryoGEN-I (map)", "in-wedge cc") == pytest.approx(number(family, "in-wedge cc"), abs=0.01)
    for method in ("POCS", "CryoGEN-I (map)", "CryoGEN-II (ot)"):
        assert rows[method]["spread / error"] == "-"


class TestCleanMaps:
    def test_mean_shell_correlation(self, rng):
        clean_maps = load("restoration_quality", "clean_maps")
        truth = rng.standard_normal((16, 20, 24))
        assert clean_maps.mean_shell_correlation(truth, 3 * truth + 1) == pytest.approx(1, abs=1e-5)
        other = rng.standard_normal(truth.shape)
        assert abs(clean_maps.mean_shell_correlation(truth, other)) < 0.2
        assert clean_maps.mean_shell_correlation(truth, truth + other) == pytest.approx(np.sqrt(0.5), abs=0.1)


class TestHiddenTilts:
    def test_rows_are_of_what_was_hidden(self, rng):
        """The mean is right by half in the hidden part, and wrong outside of it, which is not to count."""
        agreement = load("hidden_tilts", "agreement")
        shape = (24, 12, 24)
        hidden = np.asarray(cg.wedge_mask(shape, (-60.0, 60.0)) * (1 - cg.wedge_mask(shape, (-40.0, 40.0)))) > 0
        truth, error = (np.asarray(fourier.rfftn(jnp.asarray(rng.standard_normal(shape)))) for _ in range(2))

        def volume(spectrum):
            return np.asarray(fourier.irfftn(jnp.asarray(spectrum), shape))

        restored = 0.5 * np.where(hidden, truth, error)
        members = np.stack([volume(restored + sign * 0.5 * truth) for sign in (1, -1)])
        family = cg.Restoration(volume(restored), None, members, np.full(2, 0.5), None, None, None)
        rows = agreement.rows(volume(truth), volume(np.where(hidden, -truth, truth)), family, hidden)
        assert [row[0] for row in rows] == ["0.05-0.10", "0.10-0.20", "0.01-0.25"]  # nothing is hidden below 0.05
        for row in rows:
            assert [float(cell) for cell in row[1:4]] == [1.0, 0.25, -1.0]
            assert float(row[4]) == 3.0  # two members: their variance counts three times

    def test_figure_shows_every_volume(self, rng, tmp_path):
        agreement = load("hidden_tilts", "agreement")
        volumes = {name: rng.standard_normal((8, 10, 16)) for name in ("one", "other")}
        agreement.figure(volumes, [2, 5]).savefig(tmp_path / "figure.png")
        width, height = picture_size(tmp_path / "figure.png")
        assert width == 900
        assert 600 < height < 900


class TestNeedle:
    def test_back_projection_shows_the_wedge_that_is_missing(self):
        """A rod along y in projections that are its known chords, tilts of +-50 degrees."""
        needle = load("hidden_tilts", "needle")
        size, radius, angles = 32, 6.0, np.arange(-50.0, 51.0, 2.0)
        across = np.arange(size) - size // 2
        chord = 2 * np.sqrt(np.maximum(radius**2 - across**2, 0))
        volume = needle.back_project(np.broadcast_to(chord, (len(angles), 4, size)), angles)
        assert volume.shape == (size, 4, size)
        power = np.abs(np.fft.rfftn(volume)) ** 2
        inside = np.asarray(cg.wedge_mask(volume.shape, (-50.0, 50.0))) > 0
        low = np.fft.fftfreq(size)[:, None, None] ** 2 + np.fft.rfftfreq(size)[None, None] ** 2 < 0.15**2
        low = np.broadcast_to(low, inside.shape).copy()
        low[0, 0, 0] = False
        assert power[low & ~inside].mean() < 0.1 * power[low & inside].mean()
        fewer = needle.back_project(np.broadcast_to(chord, (26, 4, size)), angles[::2])
        assert fewer.max() == pytest.approx(volume.max() / 2, rel=0.1)  # every angle has the same weight

    def test_binned(self, rng):
        volume = rng.standard_normal((4, 6, 8))
        binned = load("hidden_tilts", "needle").binned(volume, 2)
        assert binned.shape == (2, 3, 4)
        assert binned[1, 2, 3] == pytest.approx(volume[2:, 4:, 6:].mean())


# Scenes to learn from


def test_families_that_are_held_out_are_held_out_once():
    scenes = load("learned_witness", "scenes")
    held_out = json.loads(scenes.HELD_OUT.read_text())
    assert set(held_out) == {"validation", "test"}
    assert not set(held_out["validation"]) & set(held_out["test"])
    assert len(held_out["test"]) >= 20


@pytest.mark.slow
def test_a_scene_is_a_tomogram_and_what_the_solvent_model_makes_of_it(shared_data):
    scenes = load("learned_witness", "scenes")
    pools = {split: scenes.complexes(shared_data / "structures", split) for split in scenes.SPLITS}
    families = {split: {one.family for one in pool} for split, pool in pools.items()}
    assert not families["train"] & (families["validation"] | families["test"])
    shape = (24, 32, 32)
    scene = scenes.make_scene(0, pools["validation"], shape, fixed=True)
    truth, data, *others = (
        getattr(scene, name).astype(float) for name in ("truth", "data", "solvent", "mean", "envelope")
    )
    for volume in (truth, data, *others):
        assert volume.shape == (1, *shape)
        assert np.isfinite(volume).all()
    wedge = np.asarray(cg.wedge_mask(shape, (-60, 60))) == 0
    assert np.abs(np.fft.rfftn(data[0]))[wedge].max() < 3e-3 * np.abs(np.fft.rfftn(data[0])).max()
    for mean in others[:2]:
        assert np.corrcoef(truth.ravel(), mean.ravel())[0, 1] > 0.5
    other = scenes.make_scene(3, pools["train"], shape, fixed=False)
    assert all(np.isfinite(volume).all() for volume in (other.truth, other.data, other.mean))


@pytest.mark.slow
def test_a_denoiser_is_trained_in_two_stages(tmp_path):
    path, names = tmp_path / "scenes.npz", [field.name for field in dataclasses.fields(Scenes) if field.name != "box"]
    np.savez(path, **{name: getattr(scenes_of_noise(), name) for name in names})

    def train(output, *options):
        command = [sys.executable, str(EXPERIMENTS / "learned_witness" / "train_denoiser.py"), "--scenes", str(path)]
        command += ["--validation", str(path), "--output", str(tmp_path / output), "--iterations", "50"]
        environment = os.environ | {"XLA_FLAGS": QUICK_TO_COMPILE}
        targets = [sys.executable, str(EXPERIMENTS / "learned_witness" / "targets.py"), "--scenes", str(path)]
        subprocess.run([*targets, "--output", str(tmp_path / "targets.npz")], check=True, capture_output=True)
        command += ["--targets", str(tmp_path / "targets.npz")]
        sizes = ["--widths", "2", "3", "--pairs", "0", "1", "--batch", "1", "--box", "8", "8", "8"]
        finished = subprocess.run([*command, *sizes, *options], capture_output=True, text=True, env=environment)
        assert finished.returncode == 0, finished.stderr
        return json.loads(finished.stdout.splitlines()[-1]), load_weights(tmp_path / output)

    (before, (first, settings)) = train("first.safetensors")
    after, (second, _) = train("second.safetensors", "--start", str(tmp_path / "first.safetensors"), "--loss", "errors")
    assert after["loss"] < before["loss"]
    assert settings["widths"] == "[2, 3]"
    assert first.keys() == second.keys()
    moved = [name for name in first if np.abs(first[name] - second[name]).max() > 0]
    assert all(name.startswith("second") for name in moved)
    assert any("gain" in name for name in moved), "what the network says of its errors is learned in the second stage"
    assert (tmp_path / "second.csv").read_text().startswith("iteration,")


class TestAsTheyCome:
    def test_cases_are_judged_where_nothing_was_spoiled(self):
        run, spoiled = load("as_they_come", "run"), load("as_they_come", "spoiled")
        shape = (32, 64, 64)
        seen = simulate_tomogram(shape, run.TILTS, snr=0.1, seed=4)
        mask = np.asarray(cg.wedge_mask(shape, run.TILTS))
        found = spoiled.cases(seen, mask)
        assert len(found) == 20
        sd = seen.half1.std()
        for name, (change, judged) in found.items():
            difference = change(seen.half1) - seen.half1
            assert (name == "clean") == (not difference.any())
            assert 0.3 < judged.mean() <= 1
            if "bead" in name or "hot" in name:
                assert np.abs(difference[judged]).max() < 0.6 * np.abs(difference).max()
                assert np.abs(difference).max() > sd

    def test_agreement(self):
        run = load("as_they_come", "run")
        seen = simulate_tomogram((32, 48, 48), run.TILTS, snr=0.1, seed=4)
        case = run.Spoiled("", "", seen.truth, (seen.half1, seen.half2), np.ones(seen.truth.shape, bool))
        slope = 100 * np.linspace(-1, 1, 48, dtype=np.float32)[:, None]  # on the lines that are left out
        assert run.agreement(case, seen.truth + slope) == pytest.approx(1, abs=1e-3)
        assert run.agreement(case, -seen.truth) == pytest.approx(-1)
        assert abs(run.agreement(case, seen.half1)) < 0.2, "nothing was measured there"
