"""Figures show the data they were given, at its proportions, and leave no global state."""

import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cryowgen_jax.report import coverage_figure, shell_figure, slice_figure, spectrum_figure
from cryowgen_jax.report.figures import _plane_power
from cryowgen_jax.types import InputError

SHAPE = (12, 20, 30)


@pytest.fixture
def volume(rng):
    return rng.standard_normal(SHAPE).astype(np.float32)


def images(figure):
    return [axis.images[0] for axis in figure.axes if axis.images]


def draw(figure):
    assert isinstance(figure, Figure)
    FigureCanvasAgg(figure).draw()
    return figure


def test_slices_are_the_ones_asked_for(volume):
    shown = [np.asarray(image.get_array()) for image in images(slice_figure({"a": volume}, centre=(3, 7, 11)))]
    for picture, expected in zip(shown, (volume[3], volume[:, 7], volume[:, :, 11]), strict=True):
        np.testing.assert_array_equal(picture, expected)
    middle = [np.asarray(image.get_array()) for image in images(slice_figure({"a": volume}))]
    np.testing.assert_array_equal(middle[0], volume[6])


def test_each_volume_has_one_robust_grey_scale(volume):
    spoiled = volume.copy()
    spoiled[6, 10, 15] = 1e6
    figure = slice_figure({"a": spoiled, "b": 100 * volume})
    limits = [image.get_clim() for image in images(figure)]
    first, second = limits[0::2], limits[1::2]
    assert len(set(first)) == len(set(second)) == 1
    assert first[0][1] < 10
    assert second[0][1] > 100


def test_voxels_are_square_and_of_one_size(volume):
    figure = draw(slice_figure({"a": volume, "b": volume}, voxel_size_angstrom=10.0))
    sizes = []
    for axis in figure.axes:
        box, (x0, x1), (y0, y1) = axis.get_window_extent(), axis.get_xlim(), axis.get_ylim()
        sizes += [box.width / (x1 - x0), box.height / (y1 - y0)]
    np.testing.assert_allclose(sizes, sizes[0], rtol=0.02)


@pytest.mark.parametrize(("voxel_size_angstrom", "text"), [(10.0, "5 nm"), (2.0, "1 nm"), (70.0, "50 nm")])
def test_scale_bar_has_its_stated_length(volume, voxel_size_angstrom, text):
    axis = slice_figure({"a": volume}, voxel_size_angstrom=voxel_size_angstrom).axes[0]
    assert [label.get_text() for label in axis.texts] == [text]
    start, stop = axis.lines[0].get_xdata()
    assert (stop - start) * voxel_size_angstrom / 10 == pytest.approx(float(text.split()[0]))
    assert not slice_figure({"a": volume}).axes[0].texts


def test_spread_is_coloured_from_zero_with_a_bar(volume):
    figure = draw(slice_figure({"a": volume, "std": np.abs(volume)}, spread=("std",)))
    maps = [image.get_cmap().name for image in images(figure)]
    assert maps[:6] == ["gray", "viridis"] * 3
    assert images(figure)[1].get_clim()[0] == 0
    assert images(figure)[0].get_clim()[0] < 0
    assert any(axis.get_xlabel() == "standard deviation" for axis in figure.axes)
    plain = draw(slice_figure({"a": volume}))
    assert not any(axis.get_xlabel() for axis in plain.axes)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_flat_volumes_can_be_drawn(value):
    flat = np.full(SHAPE, value, np.float32)
    draw(slice_figure({"std": flat}, spread=("std",)))


def test_flat_spectrum_can_be_drawn():
    draw(spectrum_figure({"zero": np.zeros(SHAPE, np.float32)}))


@pytest.mark.parametrize("shape", [(12, 20, 30), (13, 21, 31), (16, 9, 15)])
def test_plane_power_is_that_of_the_full_transform(rng, shape):
    volume = rng.standard_normal(shape).astype(np.float32)
    full = np.abs(np.fft.fftn(volume.astype(np.float64), norm="ortho")) ** 2
    expected = np.fft.fftshift(full[:, np.abs(np.fft.fftfreq(shape[1])) < 0.1].mean(axis=1))
    logs, extent = _plane_power(volume)
    zero = (shape[0] // 2, shape[2] // 2)
    logs[zero] = np.log10(expected[zero])
    np.testing.assert_allclose(logs, np.log10(expected), atol=1e-3)
    assert np.abs(logs - np.log10(expected)[::-1]).max() > 0.1
    middle_z, middle_x = (zero[0] + 0.5) / shape[0], (zero[1] + 0.5) / shape[2]
    assert extent[0] + middle_x == pytest.approx(0, abs=1e-9)
    assert extent[2] + middle_z == pytest.approx(0, abs=1e-9)


def test_wave_along_the_beam_lies_on_the_kz_axis(rng):
    z = np.arange(32)[:, None, None]
    wave = (np.cos(2 * np.pi * 8 * z / 32) + 1e-3 * rng.standard_normal((32, 24, 24))).astype(np.float32)
    image = images(spectrum_figure({"wave": wave}))[0]
    rows, columns = np.nonzero(np.asarray(image.get_array()) > 1)
    assert set(columns) == {12}
    assert set(rows) == {8, 24}


def test_spectrum_lines_and_units(volume):
    figure = draw(spectrum_figure({"a": volume, "b": volume}, voxel_size_angstrom=5.0, tilt_range=(-50, 60)))
    slopes = [line.get_slope() for line in figure.axes[0].lines]
    np.testing.assert_allclose(slopes, np.tan(np.deg2rad([-50, 60])))
    assert "1/nm" in figure.axes[0].get_xlabel()
    assert figure.axes[0].get_xlim()[1] == pytest.approx(2 * 0.5, rel=0.1)
    assert not spectrum_figure({"a": volume}).axes[0].lines


def test_shells_are_at_their_frequencies(rng):
    measured, wedge = rng.random(10) + 1, np.r_[np.nan, rng.random(9) + 1]
    figure = draw(
        shell_figure({"R-hat": (measured, wedge), "ESS": (1000 * measured, wedge)}, thresholds={"R-hat": 1.05})
    )
    first, second = figure.axes
    np.testing.assert_allclose(first.lines[0].get_xdata(), 0.05 * (np.arange(10) + 0.5))
    np.testing.assert_array_equal(first.lines[1].get_ydata(), wedge)
    assert first.lines[2].get_ydata()[0] == 1.05
    assert len(second.lines) == 2
    assert (first.get_yscale(), second.get_yscale()) == ("linear", "log")
    in_nm = shell_figure({"R-hat": (measured, wedge)}, voxel_size_angstrom=5.0).axes[0]
    np.testing.assert_allclose(in_nm.lines[0].get_xdata(), 2 * first.lines[0].get_xdata())


def test_coverage_is_drawn_against_the_nominal():
    nominal = np.linspace(0.1, 0.9, 9)
    axis = draw(coverage_figure(nominal, {"one": nominal, "two": nominal**2})).axes[0]
    np.testing.assert_array_equal(axis.lines[2].get_xdata(), nominal)
    np.testing.assert_array_equal(axis.lines[2].get_ydata(), nominal**2)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["one", "two"]


def test_unusable_input_is_refused(volume):
    with pytest.raises(InputError, match="shape"):
        slice_figure({})
    with pytest.raises(InputError, match="shape"):
        slice_figure({"a": volume, "b": volume[1:]})
    with pytest.raises(InputError, match="shape"):
        spectrum_figure({"a": volume[0]})
    with pytest.raises(InputError, match="centre"):
        slice_figure({"a": volume}, centre=(12, 0, 0))
    with pytest.raises(InputError, match="shells"):
        shell_figure({"a": (np.ones(3), np.ones(4))})
    with pytest.raises(InputError, match="thresholds"):
        shell_figure({"a": (np.ones(3), np.ones(3))}, thresholds={"b": 1.0})
    with pytest.raises(InputError, match="shape"):
        coverage_figure(np.ones(3), {"a": np.ones(4)})


def test_pyplot_is_not_imported():
    assert "matplotlib.pyplot" not in sys.modules
