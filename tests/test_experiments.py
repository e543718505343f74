"""The experiments run, their closed forms hold, and so do the conclusions of their READMEs."""

import importlib.util
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

from tests import QUICK_TO_COMPILE, oracles

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1] / "experiments"


def load(experiment: str, name: str) -> types.ModuleType:
    """A module of an experiment, under a name of its own."""
    unique = f"experiment_{experiment}_{name}"
    if unique not in sys.modules:
        spec = importlib.util.spec_from_file_location(unique, EXPERIMENTS / experiment / f"{name}.py")
        sys.modules[unique] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[unique])
    return sys.modules[unique]


def run_experiment(name: str, folder: pathlib.Path, *, computes: bool) -> list[dict[str, str]]:
    """Lines of all tables that ``run.py --quick`` prints, by column.

    What ``computes`` longer than it compiles is compiled with all optimisations.
    """
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {} if computes else {"XLA_FLAGS": QUICK_TO_COMPILE}
    command = [sys.executable, str(EXPERIMENTS / name / "run.py"), "--quick", "--output", str(folder)]
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
    """An observation, and the posterior of method sheet 2.3 by dense matrices for these weights of the witness."""
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


def test_posterior_on_one_dimension_differs_from_the_exact_density_by_a_constant(signals):
    width, rng = 11, np.random.default_rng(5)
    observation, law = dense_law(signals, width, np.asarray(signals.witness().weights, float))
    positions = law.draw(rng, 6) + 0.1 * rng.normal(size=(6, signals.LENGTH))
    logs = np.log(law.weights) + np.stack(
        [oracles.log_normal(positions, m, c) for m, c in zip(law.means, law.covariances, strict=True)], axis=-1
    )
    expected = np.log(np.sum(np.exp(logs - logs.max()), axis=-1)) + logs.max()
    found = jax.vmap(signals.posterior(observation, width).log_density)(jnp.asarray(positions, jnp.float32))
    assert np.ptp(np.asarray(found) - expected) < 2e-3  # float32, of values that spread by hundreds
    other = jax.vmap(signals.posterior(observation, 7).log_density)(jnp.asarray(positions, jnp.float32))
    assert np.ptp(np.asarray(other) - expected) > 1


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
    mean, draw = answers["11", "exact posterior, mean"], answers["11", "CryoWGEN-II, a draw by pcnl"]
    assert float(mean["rms error"]) < min(float(point["rms error"]), float(transport["rms error"]))
    assert float(draw["TV to prior"]) < 0.15


# Walkers


@pytest.fixture(scope="module")
def walkers() -> types.ModuleType:
    return load("walkers", "run")


def test_drift_of_the_double_well_is_that_of_the_posterior(walkers):
    positions = np.linspace(-4, 4, 33)[:, None]
    found = jax.vmap(walkers.double_well().drift)(jnp.asarray(positions, jnp.float32))
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
