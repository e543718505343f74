"""Adapting the learned witness: what it learns from, and that it learns; tests/cli/test_train.py interrupts it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.models import denoising_network, prior_network
from cryowgen_jax.restoration import adapt, adapt_witness, estimate_adaptation
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.known_scenes import scene_of
from cryowgen_jax.restoration.prior_weights import PriorWeights
from cryowgen_jax.simulation import simulate_tomogram
from cryowgen_jax.spatial.rotation import turn_cube
from cryowgen_jax.training import Descent, correction_loss
from cryowgen_jax.types import InputError

SHAPE, TILTS = (24, 32, 28), (-60.0, 50.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(adapt, "NUM_DRAWS", 2)
    monkeypatch.setattr(adapt, "NUM_SCENES", 4)


@functools.cache
def tomogram(seed=3):
    return simulate_tomogram(SHAPE, TILTS, snr=0.5, seed=seed)


@functools.cache
def untrained(width=2):
    sizes = {"channels": 2, "levels": 1, "widths": f"[{width}]", "pairs": "[1]"}
    return PriorWeights(prior_network(channels=2, levels=1), denoising_network((width,), (1,)), sizes)


def adapted(**options):
    given = {"start": untrained(), "num_iterations": 20} | options
    return adapt_witness([tomogram().half1], TILTS, halves2=[tomogram().half2], **given)


def same(a, b):
    leaves = zip(jax.tree.leaves(a.second), jax.tree.leaves(b.second), strict=True)
    return all(np.array_equal(x, y) for x, y in leaves)


def test_without_iterations_nothing_changes():
    assert same(adapted(num_iterations=0).weights, untrained())
    assert same(adapted(num_rounds=0).weights, untrained())


def test_what_it_learns_from_agrees_with_the_tomogram(monkeypatch):
    """Cubes are turned parts of the tomogram, with the noise of its halves, as long as its shortest axis at most."""
    kept = []

    def learn(key, network, scenes, **_):
        kept.append(scenes)
        return Descent(network, network, (), {}, "ok")

    monkeypatch.setattr(adapt, "learn_prior", learn)
    adapted()
    (scenes,) = kept
    assert scenes.truth.shape == scenes.mean.shape == (4, 24, 24, 24)
    assert np.all(np.abs(np.abs(scenes.tilt_range) - [60, 50]).min(1) <= adapt.TILTS_ABOUT) or np.all(
        np.abs(np.sort(np.abs(scenes.tilt_range)) - [50, 60]) <= adapt.TILTS_ABOUT
    )
    sim = tomogram()
    tomo = 0.5 * (sim.half1 + sim.half2)
    noise = 0.5 * np.var(sim.half1 - sim.truth) / np.var(tomo)
    measured = 1 - (180 - 110) / 180
    for found in scenes.noise[:, 3:8].mean(1):
        assert 0.6 / adapt.LEVELS_ABOUT < found / (noise / measured) < 1.6 * adapt.LEVELS_ABOUT
    truth = sim.truth - sim.truth.mean()
    windows = np.lib.stride_tricks.sliding_window_view(truth, (24, 24, 24))[0]
    cube = scenes.truth[0].astype(float)
    turned = [np.asarray(turn_cube(jnp.asarray(cube), jnp.asarray(i))) for i in range(24)]
    best = [
        max(np.corrcoef(place.ravel(), other.ravel())[0, 1] for row in windows[::2] for place in row[::2])
        for other in turned
    ]
    assert max(best) > 0.5
    assert np.sort(best)[-2] < max(best) - 0.1, "one orientation is that of the tomogram"


@pytest.mark.parametrize(
    ("tomograms", "options", "words"),
    [
        ([], {}, "no tomogram"),
        ([np.zeros((24, 24, 24))], {}, "constant"),
        ([tomogram().half1, np.ones((4, 5))], {}, "tomogram 2 of 2: .*3-D"),
        ([tomogram().half1], {"halves2": []}, "1 tomograms and 0 second halves"),
        ([tomogram().half1], {"halves2": [tomogram().half1]}, "same volume"),
        ([tomogram().half1], {"num_iterations": -1}, "0 or more"),
        ([tomogram().half1], {"tilt_axis": "z"}, "different"),
    ],
)
def test_what_cannot_be_used_is_refused(tomograms, options, words):
    with pytest.raises(InputError, match=words):
        adapt_witness(tomograms, TILTS, start=untrained(), **options)


def test_cost_grows_with_the_work():
    one = estimate_adaptation([SHAPE], untrained(), num_iterations=10)
    more = estimate_adaptation([SHAPE], untrained(), num_iterations=100_000)
    assert one.num_bytes > 0
    assert more.seconds > 2 * one.seconds > 0


@functools.cache
def unseen():
    """(network, key) -> loss of a volume that is known, from a tomogram that was not adapted to."""
    sim = tomogram(8)
    halves = tuple(jnp.asarray(half[:24, 2:26, 2:26] / sim.half1.std()) for half in (sim.half1, sim.half2))
    truth = (sim.truth / sim.half1.std())[:24, 2:26, 2:26]
    scenes = scene_of(untrained(), truth - truth.mean(), halves, Geometry(TILTS))
    return jax.jit(lambda network, key: correction_loss(network, scenes(key))[0])


def held_out_loss(network):
    return float(np.mean([unseen()(network, jax.random.key(i)) for i in range(8)]))


@pytest.mark.slow
def test_adapting_lowers_the_loss_of_volumes_it_has_not_seen(monkeypatch):
    monkeypatch.setattr(adapt, "NUM_SCENES", 12)
    monkeypatch.setattr(adapt, "RATE", 2e-3)  # of a network that knows nothing
    before = held_out_loss(untrained(8).second)
    after = held_out_loss(adapted(start=untrained(8), num_iterations=60).weights.second)
    wrong = held_out_loss(adapted(start=untrained(8), num_iterations=60, contrast="dark").weights.second)
    assert after < before - 0.02
    assert wrong > after + 0.01, "negative control: with the sign turned it learns that particles are holes"
