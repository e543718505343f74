"""How a tomogram was tilted, and what follows: its missing wedge, and whether its spectrum agrees."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from cryowgen_jax.operators import wedge_mask, wedge_mask_from_tilts
from cryowgen_jax.operators.wedge import AXES
from cryowgen_jax.restoration.wedge_inspection import WedgeReport
from cryowgen_jax.types import InputError

ANGLE_TOLERANCE = 1.0  # degrees between the outermost tilts and the range that was stated
CONTRADICTION = 8.0  # degrees between a tilt limit that was stated and the one found in the spectrum
LEAST_RANGE = 6.0  # degrees: a tomogram of less does not exist, and angles in radians span no more
LEAST_COVERAGE = 0.1  # by a list of tilts: below it a coefficient counts as missing
_ANY_SHAPE = (2, 2, 2)
HALF_TURNS = ((), (0, 2), (0, 1), (1, 2))  # the axes along which they flip a volume; a wedge stays one


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Tilt range or angles, and axes.

    Parameters
    ----------
    tilt_range
        Lowest and highest tilt in degrees.
    tilt_axis, beam_axis
        Two different ones of "x", "y", "z".
    tilt_angles
        Every tilt in degrees, which must span ``tilt_range``; None for a range without gaps.

    Raises
    ------
    InputError
        Where no wedge can be made of these.
    """

    tilt_range: tuple[float, float]
    tilt_axis: str = "y"
    beam_axis: str = "z"
    tilt_angles: Sequence[float] | np.ndarray | None = None

    def __post_init__(self) -> None:
        wedge_mask(_ANY_SHAPE, self.tilt_range, tilt_axis=self.tilt_axis, beam_axis=self.beam_axis)
        low, high = (float(limit) for limit in self.tilt_range)
        object.__setattr__(self, "tilt_range", (low, high))
        if high - low < LEAST_RANGE:
            raise InputError(
                f"tilt range {low:g} to {high:g} is narrower than {LEAST_RANGE:g}: give degrees, not radians"
            )
        if self.tilt_angles is None:
            return
        wedge_mask_from_tilts(_ANY_SHAPE, self.tilt_angles, tilt_axis=self.tilt_axis, beam_axis=self.beam_axis)
        angles = tuple(float(angle) for angle in self.tilt_angles)
        object.__setattr__(self, "tilt_angles", angles)
        if max(abs(min(angles) - low), abs(max(angles) - high)) > ANGLE_TOLERANCE:
            raise InputError(
                f"tilt_angles span {min(angles):g} to {max(angles):g} degrees and tilt_range is {low:g} to {high:g}: "
                "make them agree"
            )

    @property
    def order(self) -> tuple[int, int, int]:
        """Axes of a volume such that beam, tilt axis and the third come first, second and last."""
        beam, tilt = AXES[self.beam_axis], AXES[self.tilt_axis]
        return beam, tilt, 3 - beam - tilt

    def mask(self, shape: tuple[int, ...]) -> np.ndarray:
        """The wedge of a box of this shape, in [0, 1], rfftn layout; read-only.

        Between the tilts of a list, what is hardly covered counts as missing.
        """
        return _mask(self, tuple(shape))

    def within(self, tilt_range: tuple[float, float]) -> Geometry:
        """The same without the tilts outside of a narrower range."""
        if self.tilt_angles is None:
            return dataclasses.replace(self, tilt_range=tilt_range)
        low, high = tilt_range
        kept = [angle for angle in self.tilt_angles if low <= angle <= high]
        if len(kept) < 2:
            raise InputError(f"tilt_angles has {len(kept)} tilts between {low:g} and {high:g} degrees: give a range")
        return dataclasses.replace(self, tilt_range=(min(kept), max(kept)), tilt_angles=kept)

    def contradiction(self, found: WedgeReport) -> str | None:
        """Return a one-line warning where a tomogram's own spectrum contradicts this geometry, else None.

        A contradiction is another axis, a tilt limit more than 8 degrees away, or no visible wedge at all.
        """
        stated = f"tilt range {_degrees(self.tilt_range)} about {self.tilt_axis} with the beam along {self.beam_axis}"
        if found.tilt_range is None:
            return (
                f"no missing wedge is visible (contrast ratio {found.contrast_ratio:.2f}) although a {stated} was "
                "given; check that this is an unfilled, unrotated reconstruction"
            )
        if (found.tilt_axis, found.beam_axis) != (self.tilt_axis, self.beam_axis):
            return (
                f"the missing wedge looks like tilt axis {found.tilt_axis} and beam axis {found.beam_axis}, "
                f"range {_degrees(found.tilt_range)}, not like the {stated} that was given; check the axes"
            )
        (found_low, found_high), (low, high) = found.tilt_range, self.tilt_range
        if max(abs(found_low - low), abs(found_high - high)) <= CONTRADICTION:
            return None
        mirrored = max(abs(found_low + high), abs(found_high + low)) <= CONTRADICTION
        advice = "the sign of the tilt angles looks reversed" if mirrored else "check the tilt range"
        looks = _degrees(found.tilt_range)
        return f"the missing wedge looks like {looks}, not like the {stated} that was given; {advice}"


def reverses_tilts(flips: tuple[int, ...]) -> bool:
    """Whether a half turn, of a volume with the beam first and the tilt axis second, reverses the tilts.

    One about the tilt axis keeps them.
    """
    return flips not in ((), (0, 2))


@functools.lru_cache(maxsize=2)
def _mask(geometry: Geometry, shape: tuple[int, ...]) -> np.ndarray:
    tilt, beam = geometry.tilt_axis, geometry.beam_axis
    if geometry.tilt_angles is None:
        return np.asarray(wedge_mask(shape, geometry.tilt_range, tilt_axis=tilt, beam_axis=beam))
    coverage = np.asarray(wedge_mask_from_tilts(shape, geometry.tilt_angles, tilt_axis=tilt, beam_axis=beam))
    mask = np.where(coverage < LEAST_COVERAGE, 0, coverage)
    mask.flags.writeable = False
    return mask


def _degrees(tilt_range: tuple[float, float]) -> str:
    return f"{tilt_range[0]:.0f} to {tilt_range[1]:.0f} degrees"
