"""The learned model: its posterior is the Gaussian that the network describes, and the shipped network fills wedges."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.models import denoising_network, prior_network
from cryowgen_jax.operators import wedge_mask
from cryowgen_jax.potentials import split
from cryowgen_jax.restoration import learned_model, load_witness, restore, save_witness, solvent_fit
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.learned_model import model_of
from cryowgen_jax.restoration.prior_weights import PriorWeights, shipped_weights
from cryowgen_jax.simulation import evaluate_family, simulate_tomogram
from cryowgen_jax.types import InputError

SIZES = {"channels": 2, "levels": 1, "widths": "[4, 4]", "pairs": "[1, 1]"}
SHAPE, TILTS = (24, 24, 24), (-60.0, 50.0)  # a cube, so that other axes need no other programs
MASK = np.asarray(wedge_mask(SHAPE, TILTS))


@functools.cache
def untrained():
    """A small network whose answers are none in particular, but not those of zero weights either."""
    first = jax.jit(lambda: shaken(prior_network(channels=2, levels=1)))()
    second = jax.jit(lambda: shaken(denoising_network((4, 4), (1, 1))))()
    return PriorWeights(first, second, SIZES)


def shaken(network):
    leaves, structure = jax.tree.flatten(network)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noisy = [leaf + 0.1 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, noisy)


@functools.cache
def simulated_halves():
    sim = simulate_tomogram(SHAPE, TILTS, snr=0.3, seed=2)
    return sim.half1, sim.half2


@functools.cache
def model():
    return seen_as(simulated_halves(), Geometry(TILTS))


def seen_as(halves, geometry):
    mask = geometry.mask(halves[0].shape)
    solvent = solvent_fit.fit(tuple(map(jnp.asarray, halves)), mask, geometry, of_spread=False)
    return model_of(untrained(), solvent, mask, geometry)


def whitened(volume):
    spectrum = np.fft.rfftn(np.asarray(volume, np.float64), norm="ortho") / np.sqrt(model().variance)
    return np.fft.irfftn(spectrum, SHAPE, axes=(0, 1, 2), norm="ortho")


def test_exponent_is_the_gaussian_that_was_described(rng):
    """F(z) - F(m) = -1/2 sum_x e [V^-1/2 (z - m)]^2 in float64, data term and tether included."""
    posterior, described = model().posterior(MASK), model()
    assert described.precision.std() > 0.01 * described.precision.mean()
    log_density = jax.jit(posterior.log_density)
    top = float(log_density(jnp.asarray(described.mean)))
    for size in (0.3, 1.0):
        step = size * rng.normal(size=SHAPE).astype(np.float32) * described.mean.std()
        expected = -0.5 * np.sum(described.precision * whitened(step) ** 2)
        found = float(log_density(jnp.asarray(described.mean + step))) - top
        assert found == pytest.approx(expected, rel=5e-3)


def test_drift_vanishes_at_the_mean():
    posterior = model().posterior(MASK)
    drift_at = jax.jit(posterior.drift)
    drift, away = (np.asarray(drift_at(jnp.asarray(z))) for z in (model().mean, 1.1 * model().mean))
    assert np.abs(drift).max() < 1e-2 * np.abs(away).max()


def test_gaussian_part_is_positive_and_bounds_the_rest():
    gaussian, remainder = jax.jit(split)(model().posterior(MASK))
    assert np.min(gaussian.precision) > 0
    low, high = map(np.asarray, jax.jit(lambda w: w.spectral_curvature_bounds())(remainder))
    assert np.all(np.maximum(np.abs(low), np.abs(high)) < np.asarray(gaussian.precision))


def test_measured_coefficients_vary_no_more_than_the_noise():
    noise = model().shells.spread(model().noise)
    assert np.all(model().variance[MASK > 0] <= noise[MASK > 0] * 1.0001)


def test_starts_are_draws_of_the_posterior():
    draws = [model().draw(jax.random.key(i), MASK) for i in range(20)]
    squares = np.mean([model().precision * whitened(np.asarray(d) - model().mean) ** 2 for d in draws])
    assert squares == pytest.approx(1, abs=4 * np.sqrt(2 / (20 * np.prod(SHAPE))))


@pytest.mark.parametrize(
    ("tilt_axis", "beam_axis"),
    [
        pytest.param(*axes, marks=() if axes in (("x", "y"), ("z", "x")) else pytest.mark.slow)
        for axes in itertools.permutations("xyz", 2)
    ],
)
def test_permuted_axes_give_the_permuted_answer(tilt_axis, beam_axis):
    halves, straight = simulated_halves(), model()
    geometry = Geometry(TILTS, tilt_axis, beam_axis)
    back = np.argsort(geometry.order)
    other = seen_as(tuple(half.transpose(back) for half in halves), geometry)
    scale = straight.mean.std()
    np.testing.assert_allclose(other.mean.transpose(geometry.order), straight.mean, atol=2e-2 * scale)
    np.testing.assert_allclose(other.precision.transpose(geometry.order), straight.precision, rtol=3e-2)


def test_standard_deviation_is_that_of_draws():
    draws = jax.lax.map(lambda key: model().draw(key, MASK), jax.random.split(jax.random.key(1), 400))
    found, expected = np.asarray(model().standard_deviation([])), np.std(np.asarray(draws) - model().mean, axis=0)
    ratio = found / expected
    assert ratio.mean() == pytest.approx(1, abs=0.005)
    assert ratio.std() < 1.2 * np.sqrt(0.5 / 400)
    assert found.std() > 2 * ratio.std() * found.mean(), "it is not the same everywhere"


def test_the_second_network_sees_the_first_and_the_solvent_model():
    halves, geometry = tuple(map(jnp.asarray, simulated_halves())), Geometry(TILTS)
    solvent = solvent_fit.fit(halves, MASK, geometry, of_spread=False)
    weights, expected = untrained(), model().mean
    others = {
        "first": (dataclasses.replace(weights, first=prior_network(channels=2, levels=1)), solvent),
        "second": (dataclasses.replace(weights, second=denoising_network((4, 4), (1, 1))), solvent),
        "mean": (weights, dataclasses.replace(solvent, mean=np.roll(solvent.mean, 5, 2))),
        "envelope": (weights, dataclasses.replace(solvent, envelope=1 - solvent.envelope)),
    }
    for name, (changed, shown) in others.items():
        found = model_of(changed, shown, MASK, geometry).mean
        assert np.std(found - expected) > 1e-3 * np.std(expected), name
    untaught = dataclasses.replace(weights, second=denoising_network((4, 4), (1, 1)))
    first = learned_model.first_look(untaught, solvent, MASK, geometry)
    answer = learned_model.second_look(untaught, solvent, first, geometry)
    np.testing.assert_allclose(answer.center, first, atol=1e-5 * first.std())


def test_settings_come_back_from_a_file(tmp_path):
    save_witness(tmp_path / "w", dataclasses.replace(untrained(), settings=SIZES | {"note": "a"}))
    assert load_witness(tmp_path / "w").settings["note"] == "a"


@pytest.mark.parametrize(
    "changes",
    [
        {"levels": 2},
        {"levels": 10**6},
        {"levels": -1},
        {"channels": 3},
        {"channels": "x"},
        {"channels": 1.5},
        {"widths": "[4, 5]"},
        {"widths": "3"},
        {"pairs": "[1, 2]"},
        {"pairs": "[[1]]"},
        {"pairs": "many"},
        {"pairs": "[" * 100_000},
        {"third_widths": "[4]"},
        None,
    ],
)
def test_weights_of_other_networks_are_refused(tmp_path, changes):
    settings = {} if changes is None else SIZES | changes
    save_witness(tmp_path / "w", dataclasses.replace(untrained(), settings=settings))
    with pytest.raises(InputError, match="save_witness"):
        load_witness(tmp_path / "w")


@pytest.mark.slow
@pytest.mark.computes
def test_shipped_network_fills_the_wedge_of_phantoms():
    sim = simulate_tomogram((48, 64, 64), (-60.0, 60.0), snr=0.1, seed=5)
    mask = np.asarray(wedge_mask(sim.truth.shape, (-60.0, 60.0)))
    result = restore(sim.half1, (-60.0, 60.0), half2=sim.half2, witness="learned")
    score = evaluate_family(sim.truth, result.mean, result.samples, result.weights, mask)
    assert score.in_wedge_correlation > 0.4
    assert 0.4 < score.spread_over_error < 2.0
    assert result.report.envelope.max() <= 1
    assert shipped_weights().settings["channels"] == 20
