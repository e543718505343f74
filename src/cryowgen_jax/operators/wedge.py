r"""The missing wedge of single-axis tomography: which Fourier coefficients a tilt series measures, and the operator.

A projection at one tilt angle measures a plane through the origin of Fourier space that contains the tilt axis. With
beam axis b, tilt axis t and third axis p the plane at angle a holds the frequencies (k_p, k_b) = r (cos a, sin a), in
cycles per voxel; positive angles are those with k_p k_b > 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, InputError

AXES = {"z": 0, "y": 1, "x": 2}
_ROUNDING = 1e-9  # degrees: a coefficient on the boundary counts as measured


def wedge_mask(
    shape: tuple[int, ...],
    tilt_range: tuple[float, float] = (-60.0, 60.0),
    *,
    tilt_axis: str = "y",
    beam_axis: str = "z",
    edge: float = 0.0,
) -> Array:
    r"""Return the mask of a tilt range: 1 where measured, 0 in the missing wedge.

    With tilt axis y and beam axis z, and for lo < 0 < hi, a coefficient is missing if

    .. math:: |k_x| < |k_z| \tan(90 - hi) \text{ where } k_x k_z > 0, \qquad
              |k_x| < |k_z| \tan(90 + lo) \text{ where } k_x k_z < 0,

    in cycles per voxel, so boxes need not be cubes; where k_x = 0 it is missing if both hold. k_z = 0 counts as
    measured, and so does the zero frequency. For another pair of axes read p, the third axis, for x and the beam axis
    for z: positive tilt angles measure k_p k_beam > 0.

    Parameters
    ----------
    shape
        (Z, Y, X) of the volume: odd, even, thin or not cubic.
    tilt_range
        (lo, hi) in degrees, -90 <= lo < hi <= 90.
    tilt_axis, beam_axis
        Two different ones of "x", "y", "z".
    edge
        Width in degrees of a raised-cosine edge centred on the boundary; 0 for a hard one.

    Returns
    -------
    Array
        float32 in [0, 1], rfftn layout (Z, Y, X // 2 + 1).

    Raises
    ------
    InputError
        For a shape, range, axis or edge that cannot be used.

    Notes
    -----
    A Nyquist coefficient of an even axis stands for both +1/2 and -1/2 and gets the smaller of their two values.
    Otherwise an asymmetric mask would not be Hermitian, and the filter no projector.

    Examples
    --------
    >>> import cryowgen_jax as cg
    >>> mask = cg.wedge_mask((64, 64, 64), (-60, 60))
    >>> mask.shape, float(mask[0, 0, 9]), float(mask[9, 0, 0])  # across the beam, along the beam
    ((64, 64, 33), 1.0, 0.0)
    """
    shape = _checked_shape(shape)
    lo, hi = _checked_range(tilt_range)
    _check_axes(tilt_axis, beam_axis)
    if not (math.isfinite(edge) and 0 <= edge <= hi - lo):
        raise InputError(
            f"edge must be a width in degrees between 0 and that of the tilt range ({hi - lo:g}), got {edge:g}"
        )

    def coverage(k_plane: np.ndarray, k_beam: np.ndarray) -> np.ndarray:
        inside = degrees_inside(np.rad2deg(np.arctan2(k_beam, k_plane)), lo, hi)
        if edge == 0 or hi - lo >= 180:
            return (inside >= -_ROUNDING).astype(np.float64)
        return 0.5 - 0.5 * np.cos(np.pi * np.clip(inside / edge + 0.5, 0, 1))

    return _spread_over_box(shape, tilt_axis, beam_axis, coverage)


def traced_wedge_mask(shape: tuple[int, ...], tilt_range: Array) -> Array:
    """Return the mask of a tilt range that is an array: one drawn at random, or traced by ``jit`` or ``vmap``.

    The same as :func:`wedge_mask` for tilt axis y, beam axis z and a hard edge, with two differences: on the Nyquist
    planes of even axes one of the two signs decides alone, and the range is not checked.

    Parameters
    ----------
    shape
        (Z, Y, X) of the volume.
    tilt_range
        (lo, hi) in degrees, shape (2,).

    Returns
    -------
    Array
        float32, 0 or 1, rfftn layout (Z, Y, X // 2 + 1).
    """
    k_beam, _, k_plane = fourier.frequencies(shape)
    angle = np.rad2deg(np.arctan2(k_beam, k_plane)).astype(np.float32)
    lo, hi = tilt_range
    inside = (degrees_inside(angle, lo, hi) >= 0) | (k_beam == 0)
    return jnp.broadcast_to(inside, fourier.spectrum_shape(shape)).astype(jnp.float32)


def tilt_slope(angle: float) -> float:
    """k_beam / k_plane on the plane that a projection at this tilt angle, in degrees, measures."""
    return float(np.tan(np.deg2rad(angle)))


def degrees_inside(angle: np.ndarray, lo: float | Array, hi: float | Array) -> Any:
    """How far planes at these angles are inside a tilt range, all in degrees; negative in the missing wedge."""
    return (hi - lo) / 2 - abs((angle - (lo + hi) / 2 + 90) % 180 - 90)


def wedge_mask_from_tilts(
    shape: tuple[int, ...],
    tilt_angles: Sequence[float] | np.ndarray,
    *,
    tilt_axis: str = "y",
    beam_axis: str = "z",
    thickness: float | None = None,
) -> Array:
    r"""Return the mask of a list of tilts: how well each coefficient is covered, from 0 to 1.

    The projection of an object of thickness T measures a slab about each tilt's plane. With d the distance from the
    plane in cycles per voxel,

    .. math:: M(k) = \min\Big(1, \sum_i \cos^2\big(\tfrac{\pi}{2} \min(1, T d_i)\big)\Big), \qquad
              d_i = |k_b \cos a_i - k_p \sin a_i|,

    half height at d = 1 / (2 T). Neighbouring slabs a step s apart (radians) fill the range without a gap up to the
    frequency 1 / (T s) and part beyond it (Crowther, DeRosier & Klug, Proc. R. Soc. A 317, 319, 1970).

    Parameters
    ----------
    shape
        (Z, Y, X) of the volume.
    tilt_angles
        At least two angles in degrees within +-90, in any order; signs as in :func:`wedge_mask`.
    tilt_axis, beam_axis
        Two different ones of "x", "y", "z".
    thickness
        T in voxels; the box along the beam unless given.

    Returns
    -------
    Array
        float32 in [0, 1], rfftn layout (Z, Y, X // 2 + 1). k_beam = 0 counts as measured.

    Raises
    ------
    InputError
        For a shape, angle list, axis or thickness that cannot be used.

    Examples
    --------
    >>> import cryowgen_jax as cg
    >>> mask = cg.wedge_mask_from_tilts((64, 64, 64), range(-60, 61, 3))
    >>> round(float(mask[2, 0, 3]), 3), round(float(mask[9, 0, 0]), 3)  # between two tilts, along the beam
    (1.0, 0.0)
    """
    shape = _checked_shape(shape)
    angles = _checked_angles(tilt_angles)
    _check_axes(tilt_axis, beam_axis)
    if thickness is None:
        thickness = shape[AXES[beam_axis]]
    if not (math.isfinite(thickness) and thickness > 0):
        raise InputError(f"thickness must be a positive number of voxels, got {thickness:g}")

    def coverage(k_plane: np.ndarray, k_beam: np.ndarray) -> np.ndarray:
        total = np.zeros(np.broadcast_shapes(k_plane.shape, k_beam.shape))
        for angle in np.deg2rad(angles):
            distance = np.abs(k_beam * np.cos(angle) - k_plane * np.sin(angle))
            total += np.cos(np.pi / 2 * np.minimum(1, thickness * distance)) ** 2
        return np.minimum(1, total)

    return _spread_over_box(shape, tilt_axis, beam_axis, coverage)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Wedge:
    r"""The forward operator v -> F^-1 (M . F v) of a tilt series; self-adjoint, and a projector if M is 0 or 1.

    Parameters
    ----------
    transfer
        M, real, in the rfftn layout of the volumes that it is meant for, such as a :func:`wedge_mask`. Volumes may have
        any number of dimensions.

    Examples
    --------
    >>> import jax.numpy as jnp, cryowgen_jax as cg
    >>> wedge = cg.Wedge(cg.wedge_mask((8, 8, 8)))
    >>> layers = jnp.broadcast_to(jnp.cos(jnp.pi * jnp.arange(8) / 2)[:, None, None], (8, 8, 8))  # across the beam
    >>> round(float(jnp.abs(wedge(layers)).max()), 5)  # planes across the beam lie in the wedge
    0.0
    """

    transfer: Array

    def __call__(self, volume: Array) -> Array:
        """Filter one volume; ``InputError`` if the mask was made for another shape."""
        volume = jnp.asarray(volume)
        if not jnp.issubdtype(volume.dtype, jnp.floating):
            volume = volume.astype(jnp.float32)
        wanted = fourier.spectrum_shape(volume.shape) if volume.ndim else ()
        if jnp.shape(self.transfer) != wanted:
            raise InputError(
                f"the wedge mask has shape {jnp.shape(self.transfer)} but a volume of shape {volume.shape} needs "
                f"{wanted}; make the mask for the volume's shape (jax.vmap for batches)"
            )
        return fourier.filter_volume(volume, jnp.asarray(self.transfer))


def _spread_over_box(
    shape: tuple[int, ...],
    tilt_axis: str,
    beam_axis: str,
    coverage: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Array:
    """An even function of (k_p, k_beam) on the half spectrum; Nyquist and k_beam = 0 as ``wedge_mask`` has them."""
    k = fourier.frequencies(shape)
    (plane_axis,) = {0, 1, 2} - {AXES[tilt_axis], AXES[beam_axis]}
    k_plane, k_beam = k[plane_axis], k[AXES[beam_axis]]
    values = coverage(k_plane, k_beam)
    two_signs = (np.abs(k_plane) == 0.5) | (np.abs(k_beam) == 0.5)
    values = np.where(two_signs, np.minimum(values, coverage(k_plane, -k_beam)), values)
    values = np.where(k_beam == 0, 1.0, values)
    return jnp.asarray(np.broadcast_to(values, fourier.spectrum_shape(shape)), jnp.float32)


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    sizes = tuple(shape)
    if len(sizes) != 3 or any(not isinstance(n, int | np.integer) or n < 1 for n in sizes):
        raise InputError(f"a wedge mask needs a shape (Z, Y, X) of three positive integers, got {sizes}")
    return tuple(int(n) for n in sizes)


def _check_axes(tilt_axis: str, beam_axis: str) -> None:
    for name, axis in (("tilt", tilt_axis), ("beam", beam_axis)):
        if axis not in AXES:
            raise InputError(f"the {name} axis must be one of x, y, z, got {axis!r}")
    if tilt_axis == beam_axis:
        raise InputError(f"the tilt axis and the beam axis are both {tilt_axis!r}; give two different axes")


def _checked_range(tilt_range: tuple[float, float]) -> tuple[float, float]:
    angles = _usable_angles(tilt_range)
    if angles.shape != (2,):
        raise InputError(f"a tilt range is two angles in degrees (lowest, highest), got {tilt_range!r}")
    lo, hi = (float(a) for a in angles)
    if lo == hi:
        raise InputError(f"the tilt range {lo:g} to {hi:g} has no width; give the lowest and the highest tilt angle")
    if lo > hi:
        raise InputError(f"the tilt range {lo:g} to {hi:g} is reversed; give the lowest angle first: {hi:g} {lo:g}")
    return lo, hi


def _checked_angles(tilt_angles: Sequence[float] | np.ndarray) -> np.ndarray:
    angles = _usable_angles(tilt_angles)
    if angles.ndim != 1 or angles.size < 2:
        raise InputError(f"a tilt list needs at least two angles in one row, got shape {angles.shape}")
    if angles.min() == angles.max():
        raise InputError(f"all {angles.size} tilt angles are {angles[0]:g} degrees; a tilt series needs a range")
    return angles


def _usable_angles(values: Sequence[float] | np.ndarray) -> np.ndarray:
    try:
        angles = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"tilt angles must be numbers in degrees, got {values!r}") from None
    if not np.isfinite(angles).all():
        raise InputError(f"tilt angles must be finite numbers in degrees, got {angles[~np.isfinite(angles)][0]}")
    beyond = angles[np.abs(angles) > 90]
    if beyond.size:
        raise InputError(f"tilt angles must lie between -90 and 90 degrees, got {beyond[0]:g}")
    return angles
