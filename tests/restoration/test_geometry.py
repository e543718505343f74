"""Geometry: its masks are the operators', its contradictions those of the spectrum, and it refuses nonsense."""

import dataclasses

import numpy as np
import pytest

from cryowgen_jax.operators import wedge_mask, wedge_mask_from_tilts
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.wedge_inspection import WedgeReport
from cryowgen_jax.types import InputError

SHAPE = (9, 12, 10)


@pytest.mark.parametrize(("tilt_axis", "beam_axis"), [("y", "z"), ("x", "y"), ("z", "x")])
def test_the_mask_of_a_range_is_the_operators(tilt_axis, beam_axis):
    geometry = Geometry((-40, 60), tilt_axis, beam_axis)
    wanted = wedge_mask(SHAPE, (-40, 60), tilt_axis=tilt_axis, beam_axis=beam_axis)
    np.testing.assert_array_equal(geometry.mask(SHAPE), wanted)


def test_what_a_list_of_tilts_hardly_covers_counts_as_missing():
    angles = np.arange(-60, 61, 12.0)
    mask, coverage = Geometry((-60, 60), tilt_angles=angles).mask(SHAPE), wedge_mask_from_tilts(SHAPE, angles)
    hardly = (np.asarray(coverage) > 0) & (np.asarray(coverage) < 0.1)
    assert hardly.any()
    assert not mask[hardly].any()
    np.testing.assert_array_equal(mask[~hardly], np.asarray(coverage)[~hardly])


def test_a_mask_cannot_be_changed_by_who_gets_it():
    for angles in (None, (-60.0, 0.0, 60.0)):
        with pytest.raises(ValueError, match="read-only"):
            Geometry((-60, 60), tilt_angles=angles).mask(SHAPE)[0] = 0


@pytest.mark.parametrize(("beam_axis", "tilt_axis", "order"), [("z", "y", (0, 1, 2)), ("x", "z", (2, 0, 1))])
def test_order_puts_the_beam_first_and_the_tilt_axis_second(beam_axis, tilt_axis, order):
    assert Geometry((-60, 60), tilt_axis, beam_axis).order == order


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tilt_range": (60, -60)}, "reversed"),
        ({"tilt_range": (-95, 60)}, "between -90 and 90"),
        ({"tilt_range": (-1.05, 1.05)}, "degrees, not radians"),
        ({"tilt_axis": "z"}, "axis"),
        ({"beam_axis": "w"}, "axis"),
        ({"tilt_angles": (-60, 20)}, "span -60 to 20 degrees and tilt_range is -60 to 60"),
        ({"tilt_angles": (-60, np.nan, 60)}, "finite"),
        ({"tilt_angles": ()}, "at least two angles"),
    ],
)
def test_geometries_that_cannot_be_are_refused_at_once(options, words):
    with pytest.raises(InputError, match=words):
        Geometry(**{"tilt_range": (-60, 60), **options})


def test_a_range_may_be_a_degree_off_the_outermost_tilts():
    Geometry((-60, 60), tilt_angles=(-60.9, 0, 60))
    with pytest.raises(InputError, match="make them agree"):
        Geometry((-60, 60), tilt_angles=(-61.1, 0, 60))


FOUND = WedgeReport("z", "y", (-41.0, 61.0), 0.001)


@pytest.mark.parametrize(
    ("geometry", "words"),
    [
        (Geometry((-60, 60)), "looks like -41 to 61 degrees"),
        (Geometry((-60, 40)), "sign of the tilt angles looks reversed"),
        (Geometry((-40, 60), "x"), "tilt axis y and beam axis z"),
        (Geometry((-40, 60), "y", "x"), "tilt axis y and beam axis z"),
    ],
)
def test_a_spectrum_contradicts_other_geometries(geometry, words):
    assert words in geometry.contradiction(FOUND)


@pytest.mark.parametrize("tilt_range", [(-41, 61), (-49, 53), (-33, 69)])
def test_eight_degrees_are_no_contradiction(tilt_range):
    assert Geometry(tilt_range).contradiction(FOUND) is None


@pytest.mark.parametrize("tilt_range", [(-50, 61), (-41, 52), (-32, 61), (-41, 70)])
def test_nine_are(tilt_range):
    assert "check the tilt range" in Geometry(tilt_range).contradiction(FOUND)


def test_no_visible_wedge_is_a_contradiction():
    assert "no missing wedge is visible" in Geometry((-60, 60)).contradiction(WedgeReport(None, None, None, 0.8))


def test_equal_geometries_are_equal():
    assert Geometry((-60, 60)) == Geometry((-60.0, 60.0), tilt_angles=None)
    assert dataclasses.replace(Geometry((-60, 60)), tilt_axis="x") == Geometry((-60, 60), "x")
