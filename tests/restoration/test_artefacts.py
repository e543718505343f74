"""What is no specimen is found, a clean tomogram is left alone, and all that was taken comes back."""

import functools

import numpy as np
import pytest

from cryowgen_jax.restoration import restore
from cryowgen_jax.restoration.artefacts import empty_of, find_artefacts
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.spectra import robust_spread, through
from cryowgen_jax.restoration.spots import spots_of
from cryowgen_jax.simulation import simulate_tomogram
from cryowgen_jax.types import InputError

SHAPE = (40, 72, 80)
TILTS = (-60.0, 60.0)
GEOMETRY = Geometry(TILTS)
MASK = GEOMETRY.mask(SHAPE)
Z, Y, X = np.indices(SHAPE).astype(np.float32)


@functools.cache
def tomogram(snr=0.1, seed=5):
    return simulate_tomogram(SHAPE, TILTS, snr=snr, seed=seed)


def halves(change=lambda half: half, snr=0.1):
    seen = tomogram(snr)
    return [np.asarray(change(half), np.float32) for half in (seen.half1, seen.half2)]


def noise_level():
    return float(np.std((tomogram().half1 - tomogram().half2) / np.sqrt(2)))


def balls(radius, places, shape=SHAPE):
    grid = np.indices(shape)
    distances = (np.sqrt(sum((axis - c) ** 2 for axis, c in zip(grid, place, strict=True))) for place in places)
    return sum(1 / (1 + np.exp((r - radius) / 0.4)) for r in distances).astype(np.float32)


BACKGROUNDS = {
    "slope across the tilt axis": 2 * X / SHAPE[2] - 1,
    "slope along the tilt axis": 2 * Y / SHAPE[1] - 1,
    "oblique slope": (X + Y + Z - 90) / 60,
    "bowl": 2 * ((X - 40) ** 2 + (Y - 36) ** 2) / 40**2,
    "bump": 2 * np.exp(-((X - 50) ** 2 + (Y - 30) ** 2) / (2 * 20**2)),
    "ball": 3 * np.exp(-((X - 40) ** 2 + (Y - 36) ** 2 + (Z - 20) ** 2) / (2 * 14**2)),
    "step": 2.0 * (X + 0.3 * Y > 45),
    "stripes": np.sin(2 * np.pi * (X + 0.2 * Y) / 13),
}


def cleaned(parts, artefacts):
    return np.mean([artefacts.without(part, number) for number, part in enumerate(parts)], axis=0)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("snr", [0.03, 0.1, 1.0, 10.0])
def test_a_clean_tomogram_is_left_alone(snr, number):
    parts = halves(snr=snr)[:number]
    artefacts = find_artefacts(parts, GEOMETRY)
    assert artefacts.found == ()
    assert artefacts.lost is None
    assert not artefacts.apart.any()
    for half, part in enumerate(parts):
        np.testing.assert_array_equal(artefacts.without(part, half), part)
    np.testing.assert_array_equal(artefacts.put_back(parts[0]), parts[0])
    np.testing.assert_array_equal(artefacts.put_back_spread(parts[0]), parts[0])


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_a_background_is_found_and_what_is_left_is_the_clean_tomogram(name):
    shape = BACKGROUNDS[name] * noise_level()
    parts, clean = halves(lambda half: half + shape), np.mean(halves(), axis=0)
    artefacts = find_artefacts(parts, GEOMETRY)
    assert [line.split(":")[0] for line in artefacts.found] == ["a background"]
    lost = np.zeros(MASK.shape, bool) if artefacts.lost is None else artefacts.lost
    assert lost.mean() < 0.02
    kept = MASK * ~lost
    kept[0, 0, 0] = 0  # the level
    remains = through(cleaned(parts, artefacts) - clean, kept)
    assert remains.std() < 0.25 * through(shape, MASK).std(), "of the background hardly anything is left"
    assert remains.std() < 0.12 * noise_level()


@pytest.mark.parametrize("axes", [(2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_axes_may_be_any(axes):
    """A volume with its axes turned has the same background in the same turned coefficients."""
    parts = halves(lambda half: half + noise_level() * BACKGROUNDS["bump"])
    names, turned = "zyx", Geometry(TILTS, "zyx"[axes.index(1)], "zyx"[axes.index(0)])
    assert {turned.beam_axis, turned.tilt_axis} <= set(names)
    one, other = find_artefacts(parts, GEOMETRY), find_artefacts([part.transpose(axes) for part in parts], turned)
    assert one.found == other.found
    np.testing.assert_allclose(other.taken, one.taken.transpose(axes), atol=1e-4)
    volume = np.random.default_rng(1).normal(size=SHAPE)
    np.testing.assert_allclose(
        through(volume.transpose(axes), other.lost), through(volume, one.lost).transpose(axes), atol=1e-5
    )


def test_a_filament_across_the_tilt_axis_is_no_background():
    """It has no power where neighbours along the beam were measured, so that nothing but its size tells."""
    tube = np.hypot(Z - 20, Y - 36)
    tube = 0.5 * ((tube < 12) & (tube > 8))
    parts = halves(lambda half: half + noise_level() * through(tube, MASK))
    assert find_artefacts(parts, GEOMETRY).found == ()


@pytest.mark.parametrize(("radius", "height"), [(2, 12), (4, 4), (4, 12), (6, -8)])
def test_beads_are_found_with_their_streaks(radius, height):
    places = [(9, 12, 14), (30, 60, 22), (20, 40, 66), (12, 30, 44)]
    beads = through(balls(radius, places), MASK) * height * np.percentile(tomogram().truth, 99)
    parts, clean = halves(lambda half: half + beads), np.mean(halves(), axis=0)
    artefacts = find_artefacts(parts, GEOMETRY)
    assert artefacts.found == ("4 beads or other spots",)
    far = balls(radius + 5, places) < 0.5
    left = (cleaned(parts, artefacts) - clean)[far]
    assert np.std(left) < 0.06 * noise_level(), "their streaks are gone"
    assert np.std(left) < 0.35 * np.std(beads[far])


def test_hot_voxels():
    hot = np.zeros(SHAPE)
    places = np.random.default_rng(2).integers(2, np.array(SHAPE) - 2, (15, 3))
    hot[tuple(places.T)] = 60 * noise_level()
    parts, clean = halves(lambda half: half + through(hot, MASK)), np.mean(halves(), axis=0)
    artefacts = find_artefacts(parts, GEOMETRY)
    assert artefacts.found == ("15 hot voxels",)
    off = (cleaned(parts, artefacts) - clean)[~artefacts.apart]
    assert np.std(off) < 0.05 * noise_level()


def test_what_stands_out_alone_is_the_specimen():
    """A particle in nothing but noise, as high above it as gold."""
    random = np.random.default_rng(3)
    particle = through(balls(5, [(20, 36, 40)]), MASK) * 20
    noise = [through(random.normal(size=SHAPE), MASK) for _ in range(2)]
    for parts in ([particle + part for part in noise], [particle + noise[0]]):
        assert find_artefacts(parts, GEOMETRY).found == ()
    standard = [(particle + part) / robust_spread(part) for part in noise]
    assert not spots_of(standard, MASK).any()
    among = [part + tomogram(1.0).half1 * 4 for part in standard]
    assert spots_of(among, MASK).any(), "the same one beside a specimen is a spot"


@pytest.mark.parametrize("level", [0.0, 3.0])
@pytest.mark.parametrize("number", [1, 2])
def test_an_empty_border_of_any_shape(number, level):
    angle = 0.4
    u, v = ((X - 40) * c + (Y - 36) * s for c, s in ((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))))
    inside = (np.abs(u) < 34) & (np.abs(v) < 30)
    parts = halves(lambda half: np.where(inside, half + level, 0))[:number]
    artefacts = find_artefacts(parts, GEOMETRY)
    assert [line.split(":")[0] for line in artefacts.found] == ["empty parts"]
    corners = np.mean(artefacts.empty != ~inside[artefacts.box])
    assert corners < 0.004, "all but corners that are one or two voxels wide"
    empty = np.ones(SHAPE, bool)
    empty[artefacts.box] = artefacts.empty
    for half, part in enumerate(parts):
        left = artefacts.without(part, half)
        noise = [through(left, artefacts.mask)[chosen].std() for chosen in (artefacts.empty, ~artefacts.empty)]
        assert noise[0] == pytest.approx(noise[1], rel=0.25), "it is filled with noise"
    result = artefacts.put_back(cleaned(parts, artefacts))
    np.testing.assert_array_equal(result[empty], np.mean(parts, axis=0)[empty])
    assert result[inside].mean() == pytest.approx(np.mean(parts, axis=0)[inside].mean(), abs=0.05)
    assert np.all(artefacts.put_back_spread(np.ones(artefacts.empty.shape))[empty] == 0)


def test_noise_in_empty_parts_is_that_of_the_halves():
    inside = Y < 50
    parts = halves(lambda half: np.where(inside, half, 7))
    artefacts = find_artefacts(parts, GEOMETRY)
    first, second = (artefacts.without(part, half) for half, part in enumerate(parts))
    filled = artefacts.empty
    ratio = np.std((first - second)[filled]) / np.std((first - second)[~filled])
    assert ratio == pytest.approx(1, abs=0.05)
    assert np.corrcoef(first[filled], second[filled])[0, 1] == pytest.approx(0, abs=0.05)


def test_a_part_of_another_texture():
    film = Y > 44
    parts, clean = halves(lambda half: np.where(film, 3 * half + 2 * noise_level(), half)), np.mean(halves(), axis=0)
    artefacts = find_artefacts(parts, GEOMETRY)
    assert [line.split(":")[0] for line in artefacts.found] == ["a background", "another texture"]
    away = np.abs(Y - 44) > 4
    assert np.median(artefacts.strength[film & away]) == pytest.approx(3, rel=0.1)
    assert np.all(artefacts.strength[~film & away] == 1)
    kept = through(cleaned(parts, artefacts) - clean, MASK * ~artefacts.lost)
    assert kept[~film & away].std() < 0.15 * noise_level()
    np.testing.assert_allclose(
        artefacts.put_back_spread(np.ones(SHAPE, np.float32))[film & away], artefacts.strength[film & away]
    )


def test_what_was_measured_is_put_back():
    """Background, beads and texture at once: the tomogram's measured coefficients come out as they were."""
    film, gold = Y > 50, through(balls(4, [(12, 12, 20), (25, 30, 60)]), MASK) * 12
    parts = halves(lambda half: np.where(film, 2 * half, half) + gold + noise_level() * BACKGROUNDS["stripes"])
    artefacts = find_artefacts(parts, GEOMETRY)
    assert len(artefacts.found) == 3
    whole = np.mean(parts, axis=0)
    difference = artefacts.put_back(cleaned(parts, artefacts)) - whole
    assert through(difference, MASK).std() < 1e-3 * whole.std()


def test_where_gold_was_erased():
    """It is empty where all around is noise; where there is none, only what does not vary at all is."""
    random = np.random.default_rng(4)
    erased = np.where(balls(6, [(20, 30, 40)]) > 0.5, -3 + 0.01 * random.normal(size=SHAPE), random.normal(size=SHAPE))
    found = empty_of(erased.astype(np.float32))
    assert found[20, 30, 40]
    assert not found[5, 5, 5]
    smooth = np.exp(-((X - 40) ** 2 + (Y - 36) ** 2 + (Z - 20) ** 2) / (2 * 6**2))
    assert not empty_of(smooth).any()


def odd_volumes(shape):
    noise = np.random.default_rng(7).normal(size=shape)
    return {
        "tiny": 1e-30 * noise,
        "huge": 1e30 * noise,
        "offset": noise + 1e6,
        "integers": np.round(2 * noise),
        "binary": noise > 0,
        "a hot plane": np.where(np.indices(shape)[0] == 3, 1e8, noise),
        "a hot voxel": noise + 1e20 * (np.arange(noise.size) == 99).reshape(shape),
        "a ramp": np.indices(shape)[2],
        "blank but for a corner": np.where(np.indices(shape).max(0) < 4, noise, 0),
        "blank but for a voxel": 1.0 * (np.arange(noise.size) == 99).reshape(shape),
    }


@pytest.mark.parametrize("name", odd_volumes((2, 2, 2)))
@pytest.mark.parametrize("tilts", [(-60.0, 60.0), (-8.0, 10.0), (20.0, 70.0), (-90.0, 90.0)])
@pytest.mark.filterwarnings("error")
def test_no_volume_is_too_odd(name, tilts):
    volume = odd_volumes((17, 30, 23))[name].astype(np.float32)
    noise = np.random.default_rng(8).normal(size=volume.shape) * volume.std(dtype=np.float64)
    for parts in ([volume], [volume, (volume + noise).astype(np.float32)]):
        artefacts = find_artefacts(parts, Geometry(tilts, "x", "y"))
        left = [artefacts.without(part, half) for half, part in enumerate(parts)]
        assert np.isfinite(left).all()
        back = artefacts.put_back(np.mean(left, axis=0))
        assert back.shape == volume.shape
        assert np.isfinite(back).all()


def restored(parts, **options):
    return restore(parts[0], TILTS, half2=parts[1], witness="solvent", method="cryogen_map", **options)


def agreement(volume, where=(MASK == 0)):
    low = (
        np.sqrt(
            sum(
                f**2
                for f in np.meshgrid(*(np.fft.fftfreq(n) for n in SHAPE[:2]), np.fft.rfftfreq(SHAPE[2]), indexing="ij")
            )
        )
        < 0.25
    )
    return np.corrcoef(through(volume, low & where).ravel(), through(tomogram().truth, low & where).ravel())[0, 1]


@pytest.mark.computes
def test_a_restoration_does_not_feel_a_slope():
    shape = BACKGROUNDS["slope along the tilt axis"] * 2 * noise_level()
    clean, sloping = agreement(restored(halves()).mean), restored(halves(lambda half: half + shape))
    assert sloping.report.found
    assert agreement(sloping.mean) > clean - 0.03
    assert agreement(restored(halves(lambda half: half + shape), as_given=True).mean) < clean - 0.3


@pytest.mark.computes
def test_coefficients_that_a_background_takes_do_not_count_as_measured():
    striped = restored(halves(lambda half: half + noise_level() * BACKGROUNDS["stripes"]))
    assert striped.report.found
    assert np.all(striped.wedge <= MASK)
    lost = striped.wedge < MASK
    assert 0 < lost.mean() < 0.02
    assert agreement(striped.mean) > agreement(restored(halves()).mean) - 0.2


@pytest.mark.computes
def test_outside_of_a_mask_nothing_changes():
    """What lies there is no matter, not even if it would break all."""
    inside = np.abs(Z - 20 + 0.2 * (Y - 36)) < 14
    parts = halves(lambda half: np.where(inside, half, 30 * half))
    result = restored(parts, inside=inside)
    np.testing.assert_array_equal(result.mean[~inside], np.mean(parts, axis=0)[~inside])
    assert np.all(result.std[~inside] == 0)
    np.testing.assert_array_equal(result.report.specimen > 0, inside)
    only = restored(parts, inside=inside, as_given=True)
    assert [line.split(":")[0] for line in only.report.found] == ["empty parts"]
    truth = tomogram().truth
    assert np.corrcoef(only.mean[inside], truth[inside])[0, 1] > 0.6


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        (np.ones((3, 3, 3)), "the mask has shape"),
        (np.zeros(SHAPE), "0 everywhere"),
        (np.full(SHAPE, np.nan), "finite"),
        (np.full(SHAPE, "a"), "entries of type"),
    ],
)
def test_masks_that_mean_nothing(inside, message):
    with pytest.raises(InputError, match=message):
        restore(tomogram().half1, TILTS, inside=inside)
