"""Adapting the learned witness: what it learns from, and that it learns; tests/cli/test_train.py interrupts it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.models import prior_network
from cryowgen_jax.restoration import adapt, adapt_witness, estimate_adaptation
from cryowgen_jax.restoration.learned_model import PriorWeights
from cryowgen_jax.restoration.volume_family import Plan
from cryowgen_jax.simulation import simulate_tomogram
from cryowgen_jax.training import Descent, Sighting, Specimens, prior_loss
from cryowgen_jax.types import InputError

SHAPE, TILTS = (24, 32, 28), (-60.0, 50.0)
QUICK = Plan(num_samples=2, num_chains=2, num_steps=4, warmup=2)


@functools.cache
def tomogram(seed=3):
    return simulate_tomogram(SHAPE, TILTS, snr=0.5, seed=seed)


@functools.cache
def untrained(channels=2, levels=1):
    return PriorWeights(prior_network(channels=channels, levels=levels), {"channels": channels, "levels": levels})


def adapted(**options):
    given = {"start": untrained(), "num_iterations": 20} | options
    return adapt_witness([tomogram().half1], TILTS, halves2=[tomogram().half2], **given)


def same(a, b):
    leaves = zip(jax.tree.leaves(a.network), jax.tree.leaves(b.network), strict=True)
    return all(np.array_equal(x, y) for x, y in leaves)


def test_without_iterations_nothing_changes():
    assert same(adapted(num_iterations=0).weights, untrained())
    assert same(adapted(num_rounds=0).weights, untrained())


def test_what_it_learns_from_agrees_with_the_tomogram(monkeypatch):
    """Cubes correlate with where they were cut from; noise is that of the halves; the longest axis is not a cube's."""
    monkeypatch.setattr(adapt, "PLAN", QUICK)
    kept = []

    def learn(key, network, specimens, **_):
        kept.append(specimens)
        return Descent(network, network, (), {}, "ok")

    monkeypatch.setattr(adapt, "learn_prior", learn)
    adapted()
    (specimens,) = kept
    assert specimens.volumes.shape == (QUICK.num_samples * adapt.FEWEST_CUBES, 24, 24, 24)
    assert specimens.box == (24, 24, 24)
    np.testing.assert_array_equal(specimens.sighting.tilt_range, TILTS)
    sim = tomogram()
    tomo = 0.5 * (sim.half1 + sim.half2)
    noise = 0.5 * np.var(sim.half1 - sim.truth) / np.var(tomo)
    measured = 1 - (180 - 110) / 180
    middle = float(np.median(specimens.sighting.noise[:, 5:18]))
    assert middle == pytest.approx(noise / measured, rel=0.25)
    truth = sim.truth - sim.truth.mean()
    cube = np.asarray(specimens.volumes[0], np.float64)
    places = np.lib.stride_tricks.sliding_window_view(truth, cube.shape)[0]
    best = max(np.corrcoef(place.ravel(), cube.ravel())[0, 1] for row in places for place in row)
    assert best > 0.7


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
    """(network, key) -> loss of volumes that are known, from a tomogram that was not adapted to."""
    truth = jnp.asarray(tomogram(8).truth[:24, 2:26, 2:26])[None]
    noise = jnp.full((1, 32), 0.5 * float(np.var(tomogram(8).half1 - tomogram(8).truth)))
    draw = Specimens(truth, (24, 24, 24), Sighting(noise, jnp.asarray(TILTS)))
    return jax.jit(lambda network, key: prior_loss(network, draw(key))[0])


def held_out_loss(network):
    return float(np.mean([unseen()(network, jax.random.key(i)) for i in range(24)]))


@pytest.mark.slow
def test_adapting_lowers_the_loss_of_volumes_it_has_not_seen(monkeypatch):
    monkeypatch.setattr(adapt, "PLAN", QUICK)
    monkeypatch.setattr(adapt, "RATE", 2e-3)  # of a network that knows nothing
    before = held_out_loss(untrained(4, 1).network)
    after = held_out_loss(adapted(start=untrained(4, 1), num_iterations=20).weights.network)
    wrong = held_out_loss(adapted(start=untrained(4, 1), num_iterations=20, contrast="dark").weights.network)
    assert after < before - 0.02
    assert wrong > after + 0.01, "negative control: with the sign turned it learns that particles are holes"
