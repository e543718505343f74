"""Phantoms: shapes as described, objects apart, the same for the same seed."""

import functools

import numpy as np
import pytest
from scipy.ndimage import label

from cryowgen_jax.simulation.crowding import (
    FILAMENT_LABEL,
    FIRST_PARTICLE_LABEL,
    MEMBRANE_LABEL,
    crowded_maps,
    crowded_phantom,
    surroundings,
)
from cryowgen_jax.simulation.phantoms import (
    Blobs,
    barrel,
    bilayer,
    draw,
    membrane,
    microtubule,
    oligomer,
    species,
    symmetric_copies,
    thin_filament,
    turn,
)


@functools.cache
def make(shape=(40, 60, 64), seed=3, voxel_size_angstrom=10.0):
    return crowded_phantom(shape, np.random.default_rng(seed), voxel_size_angstrom)


def touching_pairs(labels):
    """Voxels that have a neighbour along an axis or a diagonal of the xy plane with another object's number."""
    count = 0
    for step in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1)):
        a = labels[step[0] :, step[1] :, step[2] :]
        b = labels[: labels.shape[0] - step[0], : labels.shape[1] - step[1], : labels.shape[2] - step[2]]
        count += np.sum((a != b) & (a > 0) & (b > 0))
    return int(count)


def test_phantom_is_deterministic_and_differs_by_seed():
    first, again, other = make(), make.__wrapped__(), make(seed=4)
    np.testing.assert_array_equal(first.density, again.density)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert np.mean(first.labels != other.labels) > 0.1


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_phantom_is_bright_crowded_and_complete(seed):
    phantom = make((64, 96, 96), seed)
    assert phantom.density.dtype == np.float32
    assert phantom.labels.dtype == np.int16
    assert phantom.density.min() >= 0
    assert np.percentile(phantom.density[phantom.labels > 2], 90) == pytest.approx(1.0, abs=0.35)
    assert phantom.density[phantom.labels == 0].mean() < 0.05
    assert 0.12 < np.mean(phantom.labels > 0) < 0.5
    assert phantom.labels.max() >= 20
    assert {MEMBRANE_LABEL, FILAMENT_LABEL} <= set(np.unique(phantom.labels))


@pytest.mark.parametrize("seed", [3, 4, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 1, 2))])
def test_objects_never_touch(seed):
    assert touching_pairs(make(seed=seed).labels) == 0


def test_touching_check_sees_an_object_laid_over_others():
    labels = make().labels.copy()
    labels[20:30, 30:40, 30:40] = labels.max() + 1
    assert touching_pairs(labels) > 0


@pytest.mark.parametrize(
    ("shape", "voxel_size_angstrom"),
    [
        ((24, 24, 24), 15.0),
        ((25, 40, 31), 15.0),
        ((30, 24, 64), 15.0),
        *(pytest.param(s, 6.0, marks=pytest.mark.slow) for s in ((24, 24, 24), (25, 40, 31), (30, 24, 64))),
    ],
)
def test_small_and_odd_boxes_hold_something(shape, voxel_size_angstrom):
    phantom = make(shape, 1, voxel_size_angstrom)
    assert phantom.density.shape == shape
    assert np.isfinite(phantom.density).all()
    assert phantom.labels.any()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_species_measure_eight_to_thirty_nanometres(seed):
    for blobs in species(np.random.default_rng(seed), 1.0):
        _, density = draw(blobs, 1.0)
        extents = [np.ptp(indices) + 1 for indices in np.nonzero(density > 0.2)]
        assert 7 <= max(extents) <= 31
        assert np.percentile(density[density > 0.1 * density.max()], 90) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(("order", "dihedral"), [(1, False), (3, False), (4, True)])
def test_copies_have_the_stated_symmetry(rng, order, dihedral):
    copies = symmetric_copies(rng.standard_normal((5, 3)) + 3.0, order, dihedral)
    assert len(copies) == 5 * order * (2 if dihedral else 1)
    c, s = np.cos(2 * np.pi / order), np.sin(2 * np.pi / order)
    about_z = np.array([[1, 0, 0], [0, c, s], [0, -s, c]])  # acts on (z, y, x)
    about_x = np.diag([-1.0, -1.0, 1.0])

    def distance(matrix):
        gaps = np.linalg.norm((copies @ matrix.T)[:, None] - copies[None], axis=2)
        return gaps.min(axis=1).max()

    assert distance(about_z) < 1e-9
    assert (distance(about_x) < 1e-9) == dihedral
    half_step = np.array([[1, 0, 0], [0, np.cos(0.3), np.sin(0.3)], [0, -np.sin(0.3), np.cos(0.3)]])
    assert distance(half_step) > 0.1


def test_oligomer_and_barrel_repeat_their_subunit(rng):
    assert len(oligomer(rng, 3, True).positions) % 6 == 0
    hollow = barrel(rng)
    assert np.linalg.norm(hollow.positions[:, 1:], axis=1).min() > 1.5  # nothing on the axis


def test_drawing_matches_the_sum_of_gaussians(rng):
    blobs = Blobs(rng.uniform(-4, 4, (6, 3)), rng.uniform(1.0, 2.0, 6), rng.uniform(0.5, 2.0, 6))
    voxel = 0.8
    origin, density = draw(blobs, voxel)
    for index in rng.integers(0, density.shape, (20, 3)):
        where = (origin + index + 0.5) * voxel
        expected = sum(h * np.exp(-np.sum((where - p) ** 2) / (2 * s**2)) for p, s, h in zip(*blobs, strict=True))
        assert density[tuple(index)] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_turning_acts_on_x_y_z():
    quarter_about_z = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # x -> y, y -> -x
    np.testing.assert_allclose(turn(np.array([[7.0, 0.0, 1.0]]), quarter_about_z), [[7.0, 1.0, 0.0]])
    np.testing.assert_allclose(turn(np.array([[7.0, 1.0, 0.0]]), quarter_about_z), [[7.0, 0.0, -1.0]])


def test_microtubule_is_the_13_3_helix():
    tube = microtubule(120.0).positions
    np.testing.assert_allclose(np.linalg.norm(tube[:, 1:], axis=1), 11.2)
    strands = {}
    for position in tube:
        strands.setdefault(round(np.rad2deg(np.arctan2(position[1], position[2])), 3), []).append(position[0])
    assert len(strands) == 13
    for heights in strands.values():
        np.testing.assert_allclose(np.diff(heights), 4.0)
    # one step on the three-start helix: a thirteenth of a turn and 12 / 13 nm; it closes after three repeats
    c, s = np.cos(2 * np.pi / 13), np.sin(2 * np.pi / 13)
    onward = tube @ np.array([[1, 0, 0], [0, c, s], [0, -s, c]]).T + np.array([12 / 13, 0, 0])
    inner = onward[np.abs(onward[:, 0]) < 40]
    assert np.linalg.norm(inner[:, None] - tube[None], axis=2).min(axis=1).max() < 1e-9


def test_thin_filament_has_two_strands():
    positions = thin_filament(60.0).positions
    along = positions[2:] - positions[:-2]
    np.testing.assert_allclose(along[:, 0], 5.5)
    assert (
        np.linalg.norm(along[:, 1:], axis=1).max()
        < np.linalg.norm((positions[1:] - positions[:-1])[:, 1:], axis=1).min()
    )


def test_bilayer_has_two_leaflets():
    distance = np.linspace(-6, 6, 121)
    profile = bilayer(distance, 1.0)
    peaks = distance[1:-1][(profile[1:-1] > profile[:-2]) & (profile[1:-1] > profile[2:])]
    np.testing.assert_allclose(np.sort(peaks), [-1.9, 1.9], atol=0.15)
    assert profile[60] < 0.5 * profile.max()


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
def test_membrane_is_one_piece_that_parts_the_box(seed):
    density = membrane(np.random.default_rng(seed), (64, 96, 96), 1.0)
    pieces = label(density > 0.12, np.ones((3, 3, 3)))[1]
    assert pieces == 1
    assert label(density < 0.12)[1] >= 2  # solvent on both sides
    assert 0.01 < np.mean(density > 0.12) < 0.2


def test_maps_are_crowded_without_touching(rng):
    small, large = np.zeros((6, 6, 6), np.float32), np.zeros((10, 10, 10), np.float32)
    small[1:-1, 1:-1, 1:-1], large[2:-2, 2:-2, 2:-2] = 1.0, 0.5
    crowd = crowded_maps((32, 32, 32), [small, large], rng)
    assert crowd.labels.max() - FIRST_PARTICLE_LABEL > 10
    assert crowd.density.max() < 1.01, "densities of two objects never add up"
    alone = crowded_maps((32, 32, 32), [small, large], rng, scale=1.5, most=1)
    assert set(np.unique(alone.labels)) <= {0, FIRST_PARTICLE_LABEL}
    assert alone.density.max() == pytest.approx(0.5, abs=0.01), "the largest map comes first"
    assert alone.density.sum() == pytest.approx(0.5 * 6**3 * 1.5**3, rel=0.2)


def fractions_of_a_voxel(density, rng):
    """By how much distances between the middles of copies, however turned, differ from whole voxels."""
    labels = crowded_maps((40, 40, 40), [density], rng, most=12).labels
    copies = [np.argwhere(labels == number) for number in range(FIRST_PARTICLE_LABEL, labels.max() + 1)]
    middles = np.array([voxels.mean(axis=0) for voxels in copies if voxels.min() > 0 and voxels.max() < 39])  # whole
    assert len(middles) > 5
    apart = middles - middles[0]
    return np.abs(apart - np.round(apart)).max()


@pytest.mark.parametrize("shape", [(7, 7, 7), (6, 6, 6), (7, 6, 9)])
def test_the_centre_of_a_map_stays_the_centre_when_it_is_turned(rng, shape):
    """Copies of a map that is symmetric about its centre are whole voxels apart."""
    z, y, x = (np.arange(n) - (n - 1) / 2 for n in shape)
    blob = np.exp(-0.3 * (z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)).astype(np.float32)
    blob[blob < 0.2] = 0.0
    assert fractions_of_a_voxel(blob, rng) < 1e-6
    off_centre = np.pad(blob, ((0, 1), (0, 1), (0, 1)))
    assert fractions_of_a_voxel(off_centre, rng) > 0.1


def test_of_a_map_larger_than_the_box_a_part_is_seen(rng):
    large = np.zeros((30, 30, 30), np.float32)
    large[2:-2, 2:-2, 2:-2] = 1.0
    cut = crowded_maps((12, 16, 14), [large], rng, most=1)
    assert np.mean(cut.labels == FIRST_PARTICLE_LABEL) > 0.05


def test_maps_are_laid_around_what_is_there(rng):
    shape, block = (24, 24, 24), np.pad(np.ones((4, 4, 4), np.float32), 1)
    there = surroundings(shape, rng, 20.0, with_filament=False)
    before = there.labels.copy()
    crowd = crowded_maps(shape, [block], rng, around=there)
    taken = before == MEMBRANE_LABEL
    assert taken.any()
    np.testing.assert_array_equal(there.labels, before)
    np.testing.assert_array_equal(crowd.labels[taken], MEMBRANE_LABEL)
    assert np.sum(crowd.labels >= FIRST_PARTICLE_LABEL) > 100
    empty = surroundings(shape, rng, 20.0, with_membrane=False, with_filament=False)
    assert not empty.density.any()
