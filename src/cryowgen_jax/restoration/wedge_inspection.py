r"""Find the missing wedge of a tomogram in its own power spectrum."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, InputError

_AXES = "zyx"
_SHELLS = np.linspace(0.05, 0.45, 17)  # cycles per voxel; the first twelve, to 0.7 of Nyquist, say if there is a wedge
_DECIDING = 12
_NEAR_BEAM = 15.0  # degrees about the beam that any useful tilt range leaves out
_WEDGE_VISIBLE = 0.2  # contrast ratio: real tomograms have 0.001, wedge-free density maps 0.5 to 1
_SHELL_USABLE = 0.3  # mean power near the beam over the rest in a shell that shows the wedge's edges
_BRIGHTEST = 8.0  # times the mean power of its shell: what one coefficient (a layer line, a bead) may count for
_TILE = 256  # voxels: longer axes are looked at in two tiles of this length
_SMALLEST_AXIS, _SMALLEST_VOLUME = 8, 4096  # voxels: fewer coefficients than that tell nothing
_STEP = 0.25  # degrees
_EDGE_WINDOW = 25.0  # degrees about a tilt limit that decide it
_TINY = 1e-30  # keeps empty shells from dividing by zero


class WedgeReport(NamedTuple):
    """What the power spectrum says about the missing wedge.

    Attributes
    ----------
    beam_axis, tilt_axis
        "x", "y" or "z", or None where no wedge is visible.
    tilt_range
        (lowest, highest) tilt angle in degrees, or None. Signs as in ``wedge_mask``.
    contrast_ratio
        Power near the beam over power elsewhere: about 0.001 in a tomogram, 0.5 to 1 without a wedge.
    """

    beam_axis: str | None
    tilt_axis: str | None
    tilt_range: tuple[float, float] | None
    contrast_ratio: float


def inspect_wedge(volume: Array | np.ndarray) -> WedgeReport:
    r"""Find beam axis, tilt axis and tilt range from the power spectrum of a tomogram.

    For each of the six pairs of axes, the power of the coefficients within 15 degrees of the beam (in the plane across
    the tilt axis) is compared with that of the others, shell by shell between 0.1 and 0.7 of Nyquist. The pair with the
    smallest ratio of means is the tomogram's, since only there all of those coefficients are missing; the geometric
    mean over shells of its ratio of medians is the contrast ratio, and below 0.2 there is a wedge.

    Each tilt limit a is then the edge that fits the shell-normalised power Q(k_p, k_b) best,

    .. math:: \min_{a, c} \sum_k (Q_k - c\, \Phi(d_k(a) / s(a)))^2, \qquad
              s^2 = \tfrac13 (\sin^2 a / n_p^2 + \cos^2 a / n_b^2),

    with d the distance from the edge and s the width of the Hann window's blur, which matters in thin tomograms.

    Parameters
    ----------
    volume
        (Z, Y, X), any real type, at least 8 voxels along each axis and 4096 in all.

    Returns
    -------
    WedgeReport
        On real tomograms good to a few degrees.

    Raises
    ------
    InputError
        If the volume is not 3-D, too small, not finite or constant.

    Notes
    -----
    The tilt limits are looked for on either side of zero tilt.

    Examples
    --------
    >>> import cryowgen_jax as cg
    >>> from cryowgen_jax.simulation import simulate_tomogram
    >>> found = cg.inspect_wedge(simulate_tomogram((48, 64, 64), (-50, 60), snr=1.0).half1)
    >>> found.beam_axis, found.tilt_axis
    ('z', 'y')
    """
    array = _checked(volume)
    power = _power_spectrum(array)
    tile = tuple(min(n, _TILE) for n in array.shape)
    shells = np.digitize(fourier.radial_frequency(tile).astype(np.float32), _SHELLS).astype(np.int8) - 1
    beam, tilt, ratio = _strongest_wedge(power, shells, tile)
    spectrum = _power_across_tilt_axis(power, shells, tile, beam, tilt)
    if ratio > _WEDGE_VISIBLE or not spectrum.power.size:
        return WedgeReport(None, None, None, ratio)
    plane = 3 - beam - tilt
    high = _tilt_limit(spectrum, sizes=(tile[plane], tile[beam]), sign=1)
    low = _tilt_limit(spectrum, sizes=(tile[plane], tile[beam]), sign=-1)
    return WedgeReport(_AXES[beam], _AXES[tilt], (low, high), ratio)


def _checked(volume: Array | np.ndarray) -> np.ndarray:
    array = np.asarray(volume)
    if array.ndim != 3 or min(array.shape) < _SMALLEST_AXIS or array.size < _SMALLEST_VOLUME:
        raise InputError(
            f"finding the missing wedge needs a 3-D volume of at least {_SMALLEST_AXIS} voxels along each axis and "
            f"{_SMALLEST_VOLUME} in all, got shape {array.shape}; give a larger part of the tomogram"
        )
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"the volume has {np.sum(~np.isfinite(array))} values that are not finite; replace them first")
    if array.min() == array.max():
        raise InputError(f"every voxel of the volume is {array.flat[0]:g}; give a reconstruction with contrast")
    return array - array.mean(dtype=np.float64).astype(np.float32)


def _power_spectrum(array: np.ndarray) -> np.ndarray:
    """Mean power over Hann-windowed tiles; the window keeps the volume's faces from crossing the wedge."""
    tile = tuple(min(n, _TILE) for n in array.shape)
    window = np.ones((1, 1, 1), np.float32)
    for axis, n in enumerate(tile):
        hann = np.hanning(n + 2)[1:-1].astype(np.float32)
        window = window * hann.reshape([-1 if axis == i else 1 for i in range(3)])
    total = np.zeros(fourier.spectrum_shape(tile), np.float32)
    corners = itertools.product(*[sorted({0, n - t}) for n, t in zip(array.shape, tile, strict=True)])
    scale = float(np.abs(array).max())
    for corner in corners:
        part = array[tuple(slice(c, c + t) for c, t in zip(corner, tile, strict=True))] / scale
        part = (part - np.average(part, weights=window)) * window
        total += np.abs(np.asarray(fourier.rfftn(jnp.asarray(part)))) ** 2
    return total


def _near_beam(shape: tuple[int, ...], beam: int, tilt: int) -> np.ndarray:
    k = fourier.frequencies(shape)
    near = np.abs(k[3 - beam - tilt]) < np.abs(k[beam]) * math.tan(math.radians(_NEAR_BEAM))
    return np.broadcast_to(near, fourier.spectrum_shape(shape))


def _mean_ratios(power: np.ndarray, shells: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per shell: mean power near the beam over that of the rest (NaN where one is empty), and the mean of the rest."""
    group = 2 * (shells.ravel() + 1) + near.ravel()  # shell -1, below the first, takes the first two places
    length = 2 * (len(_SHELLS) + 1)
    total, count = np.bincount(group, power.ravel(), length), np.bincount(group, minlength=length)
    mean = np.where(count > 0, (total + _TINY) / np.maximum(count, 1), np.nan).reshape(-1, 2)[1:-1]
    return mean[:, 1] / mean[:, 0], mean[:, 0]


def _strongest_wedge(power: np.ndarray, shells: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int, float]:
    """Beam axis, tilt axis and contrast ratio of the pair whose surroundings of the beam hold the least power."""

    def log_ratio(pair: tuple[int, int]) -> float:
        ratios = _mean_ratios(power, shells, _near_beam(shape, *pair))[0][:_DECIDING]
        return float(np.nanmean(np.log(ratios))) if np.isfinite(ratios).any() else np.inf

    beam, tilt = min(itertools.permutations(range(3), 2), key=log_ratio)
    near = _near_beam(shape, beam, tilt)
    medians = []
    for shell in range(_DECIDING):
        inside, outside = power[(shells == shell) & near], power[(shells == shell) & ~near]
        if inside.size and outside.size:
            medians.append((np.median(inside) + _TINY) / (np.median(outside) + _TINY))
    return beam, tilt, float(np.exp(np.mean(np.log(medians))))


class _PlaneSpectrum(NamedTuple):
    """Shell-normalised power over the plane across the tilt axis: one entry per (k_plane, k_beam), flat."""

    k_plane: np.ndarray
    k_beam: np.ndarray
    power: np.ndarray
    weight: np.ndarray  # number of coefficients averaged along the tilt axis


def _power_across_tilt_axis(
    power: np.ndarray, shells: np.ndarray, shape: tuple[int, ...], beam: int, tilt: int
) -> _PlaneSpectrum:
    ratio, mean = _mean_ratios(power, shells, _near_beam(shape, beam, tilt))
    shows_wedge = np.nan_to_num(ratio, nan=1.0) < _SHELL_USABLE
    scale = np.zeros(len(_SHELLS) + 1, np.float32)
    scale[:-2] = np.where(shows_wedge, 1 / mean, 0.0)
    weight = scale[shells]  # zero beyond the last shell and, as the last entry, for shell -1 below the first
    count = np.sum(weight > 0, axis=tilt)
    average = np.sum(np.minimum(power * weight, _BRIGHTEST), axis=tilt) / np.maximum(count, 1)
    k = fourier.frequencies(shape)
    k_plane, k_beam = (np.broadcast_to(k[a], power.shape).take(0, axis=tilt) for a in (3 - beam - tilt, beam))
    used = count > 0
    return _PlaneSpectrum(k_plane[used], k_beam[used], average[used], count[used])


def _tilt_limit(spectrum: _PlaneSpectrum, sizes: tuple[int, int], sign: int) -> float:
    """Tilt limit of this sign in degrees by least squares, over the quadrant first and then about that limit."""
    quadrant = sign * spectrum.k_plane * spectrum.k_beam >= 0
    x, y = np.abs(spectrum.k_plane[quadrant]), np.abs(spectrum.k_beam[quadrant])
    power, weight = spectrum.power[quadrant], spectrum.weight[quadrant]
    limit, window = 45.0, 90.0
    for _ in range(3):
        near = np.abs(np.rad2deg(np.arctan2(y, x)) - limit) <= window
        candidates = np.arange(max(_STEP, limit - window), min(90.0, limit + window) + _STEP / 2, _STEP)
        gains = [_edge_gain(x[near], y[near], power[near], weight[near], sizes, math.radians(a)) for a in candidates]
        limit, window = float(candidates[int(np.argmax(gains))]), _EDGE_WINDOW
    return sign * limit


def _edge_gain(
    x: np.ndarray, y: np.ndarray, power: np.ndarray, weight: np.ndarray, sizes: tuple[int, int], angle: float
) -> float:
    """By how much c Phi(d / s), with the best c, lowers the weighted sum of squares of the power."""
    distance = x * math.sin(angle) - y * math.cos(angle)
    blur = math.sqrt(((math.sin(angle) / sizes[0]) ** 2 + (math.cos(angle) / sizes[1]) ** 2) / 3)
    edge = ndtr(distance / blur)
    return float(np.sum(weight * power * edge) ** 2 / (np.sum(weight * edge**2) + _TINY))
