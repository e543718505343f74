"""The map of what may be missing is a probability: calibrated where the family is the truth's own."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from cryowgen_jax.restoration.missed_density import WIDTH, missed_density

SHAPE = (32, 40, 36)
EDGES = (0.02, 0.1, 0.3)


def blurred(volume):
    return gaussian_filter(volume.astype(float), WIDTH, mode="wrap")


def made(rng, number=32, noise=2.0):
    """A mean with particles, a family about it, and a truth that is one more member."""
    particles = gaussian_filter(rng.normal(size=SHAPE), 3.0, mode="wrap")
    particles = np.clip(particles / particles.std() - 0.7, 0, 1)
    field = gaussian_filter(rng.normal(size=(number + 1, *SHAPE)), (0, 1, 1, 1), mode="wrap") * noise
    family = (particles + field).astype(np.float32)
    firmness = (particles < 0.5).astype(np.float32)
    return particles.astype(np.float32), family[1:], firmness, family[0]


def test_it_is_as_often_right_as_it_says(rng):
    counts, hits, expected, found = np.zeros(4), np.zeros(4), [], []
    for _ in range(4):
        mean, family, firmness, truth = made(rng)
        missed, share = missed_density(mean, family, np.full(len(family), 1 / len(family)), firmness)
        level, top = np.median(blurred(mean)), blurred(mean)[firmness < 0.5].mean()
        there, shown = blurred(truth) > (level + top) / 2, blurred(mean) > (level + top) / 2
        assert np.all(missed[shown] == 0)
        bins = np.digitize(missed[~shown], EDGES)
        counts += np.bincount(bins, minlength=4)
        hits += np.bincount(bins, there[~shown], minlength=4)
        expected.append(share)
        found.append(np.sum(there & ~shown) / (np.sum(there & ~shown) + np.sum(shown)))
    rates = hits / counts
    assert rates[0] < 0.02
    assert 0.02 < rates[1] < 0.1
    assert 0.1 < rates[2] < 0.3
    assert 0.3 < rates[3] < 0.5
    assert np.mean(expected) == pytest.approx(np.mean(found), rel=0.15)


def test_a_family_of_one_kind_misses_nothing(rng):
    mean, family, firmness, _ = made(rng, noise=0.0)
    missed, share = missed_density(mean, family, np.full(len(family), 1 / len(family)), firmness)
    assert share < 1e-6
    assert missed.max() < 0.5


def test_members_count_by_their_weight_and_units_do_not(rng):
    mean, family, firmness, _ = made(rng, 8)
    even = np.full(8, 1 / 8)
    one, share = missed_density(mean, family, even, firmness)
    other, same = missed_density(5 * mean + 3, 5 * family + 3, even, firmness)
    np.testing.assert_allclose(one, other, atol=1e-3)
    assert share == pytest.approx(same, rel=1e-2)
    _, fewer = missed_density(mean, np.concatenate([family[:1], mean[None]]), np.array([0.1, 0.9]), firmness)
    assert fewer < share


def test_without_particles_the_densest_voxels_stand_for_them(rng):
    mean, family, firmness, _ = made(rng, 8)
    missed, share = missed_density(mean, family, np.full(8, 1 / 8), np.ones_like(firmness))
    assert np.isfinite(missed).all()
    assert 0 <= share <= 1
