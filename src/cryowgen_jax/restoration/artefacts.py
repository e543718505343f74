r"""What is in a tomogram and is no specimen: found, kept away from the model, and put back as it was.

.. math:: y = b + T_M\, g + s\, x

b is a background, smooth or constant along the beam, and g are spots that outshine the specimen (gold beads, hot
voxels), seen through the wedge T_M. s(x) is the strength of the noise relative to most of the field; it is more on
carbon, say. The model is made of x. Where the tomogram does not vary at all it is empty, and x is noise.

Coefficients that b takes tell nothing of the specimen: for the model they were not measured. Each finding has to make
sense of the field as a whole. Without b the field has to be flatter (``background``), and beside g there has to be a
specimen (``spots``). Otherwise what stands out is the specimen itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from cryowgen_jax.restoration.background import background_of
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.preparation import SMALLEST_AXIS, data_region
from cryowgen_jax.restoration.spectra import FINE, LEAST_NOISE, noise_of, shells_of, through
from cryowgen_jax.restoration.spots import spots_of
from cryowgen_jax.spatial import fourier

EMPTY, NOISY = 0.1, 1.0  # of the common difference of neighbours; of the standard deviation
CORNER = 3  # voxels
MARGIN = 12  # voxels of noise around what is not empty
STRENGTH_WIDTH, STRENGTH_MEDIAN = 2.0, 7  # voxels: of a blur; every second voxel: of a median, which keeps edges sharp
OTHER_STRENGTH = {1: 2.0, 2: 1.35}  # from which on noise is another one, by the number of halves
LOCAL_WIDTH = 4.0  # voxels
LEAST_LOCAL_NOISE = {1: 0.02, 2: 0.001}  # of the variance within that width, by the number of halves
LEAST_FILLED = 0.02  # of the blur's kernel
LEAST_REGION = 0.01  # of the field, that has such noise
SPECK = 64  # voxels: what a single one becomes with its rim


@dataclasses.dataclass(frozen=True)
class Artefacts:
    """What was found in a tomogram, in its units, within a box around what is not empty.

    Attributes
    ----------
    tomogram
        The tomogram, or the mean of its halves, (Z, Y, X).
    box
        The part of it that the other volumes cover.
    mask
        The wedge of that part, rfftn layout.
    taken
        The level, b and T_M g.
    strength
        s.
    empty
        Where there is nothing.
    noise
        What takes its place in each half.
    apart
        Where there is nothing, a spot, or another texture.
    lost
        Coefficients that tell nothing of the specimen, rfftn layout; None where all do.
    found
        A line on each kind.
    """

    tomogram: np.ndarray
    box: tuple[slice, ...]
    mask: np.ndarray
    taken: np.ndarray
    strength: np.ndarray
    empty: np.ndarray
    noise: Sequence[np.ndarray]
    apart: np.ndarray
    lost: np.ndarray | None
    found: tuple[str, ...]

    def without(self, volume: np.ndarray, half: int | None = None) -> np.ndarray:
        """Return x of a volume with the same artefacts, such as a ``half``, which has noise where it is empty."""
        noise = self.noise[half] if half is not None else 0
        return np.where(self.empty, noise, (volume[self.box] - self.taken) / self.strength).astype(np.float32)

    def put_back(self, part: np.ndarray) -> np.ndarray:
        """A restored x as a tomogram, with all that was taken out of it, as far as it was measured."""
        whole = np.array(self.tomogram)
        whole[self.box] = np.where(self.empty, self.tomogram[self.box], part + self._returned) if self.found else part
        return whole

    @functools.cached_property
    def _returned(self) -> np.ndarray:
        """What was taken out of the tomogram, as far as it was measured; every member gets it back."""
        taken = self.tomogram[self.box] - self.without(self.tomogram)
        return through(np.where(self.empty, self.taken, taken), self.mask)

    def put_back_spread(self, std: np.ndarray) -> np.ndarray:
        """The standard deviation of x as that of the tomogram; 0 where nothing was restored."""
        return self.fill(np.where(self.empty, 0, std * self.strength))

    @property
    def inner(self) -> tuple[slice, ...]:
        """The part of the box around what is not empty."""
        return _around(~np.broadcast_to(self.empty, self.strength.shape))

    def fill(self, part: np.ndarray) -> np.ndarray:
        """A volume of the tomogram's shape that holds ``part`` in the box and 0 outside."""
        whole = np.zeros(self.tomogram.shape, np.float32)
        whole[self.box] = part
        return whole


def find_artefacts(
    halves: Sequence[np.ndarray], geometry: Geometry, outside: np.ndarray | None = None, *, as_given: bool = False
) -> Artefacts:
    """Look for what is no specimen in one tomogram or two halves, (Z, Y, X).

    Voxels ``outside`` count as empty whatever they hold; ``as_given``: nothing else is looked for.
    """
    tomogram = np.mean(np.stack(halves), axis=0)
    empty = np.zeros(tomogram.shape, bool) if outside is None else outside
    if not as_given:
        bordered = np.ones(tomogram.shape, bool)
        bordered[data_region(tomogram)] = False
        empty = empty | bordered | empty_of(tomogram)
    filled = _around(~empty) if not empty.all() else (slice(0, 0),)
    as_given = as_given or min(part.stop - part.start for part in filled) < SMALLEST_AXIS
    if as_given and outside is None:
        empty = np.zeros(tomogram.shape, bool)  # what is too small to be restored is refused where it is prepared
    box = _around(~empty, MARGIN) if empty.any() else tuple(slice(0, n) for n in tomogram.shape)
    order, back = geometry.order, np.argsort(geometry.order)
    spread = tomogram[~empty].std(dtype=np.float64)
    scale = np.float32(spread) or np.float32(1)  # so that squares of what is left do not overflow
    turned = [half[box].transpose(order) / scale for half in halves]
    beam_first = Geometry(geometry.tilt_range, "y", "z", geometry.tilt_angles)
    parts = _divided(turned, empty[box].transpose(order), beam_first.mask(turned[0].shape), as_given=as_given)
    found = parts.lines()
    taken = parts.level + parts.strength * (parts.background + parts.seen_spots)
    if not found:
        taken = np.zeros_like(taken)  # so that nothing is changed
    return Artefacts(
        tomogram=tomogram,
        box=box,
        mask=geometry.mask(tomogram[box].shape),
        taken=scale * taken.transpose(back),
        strength=parts.strength.transpose(back),
        empty=empty[box],
        noise=[scale * noise.transpose(back) for noise in parts.noise],
        apart=(parts.empty | (parts.spots != 0) | (parts.strength != 1)).transpose(back),
        lost=None if parts.lost is None else _transposed(parts.lost, turned[0].shape, back),
        found=found,
    )


class _Parts(NamedTuple):
    """What halves are divided into, the beam first; ``share``: of the variance, that of the background."""

    level: float
    background: np.ndarray
    spots: np.ndarray
    seen_spots: np.ndarray
    strength: np.ndarray
    empty: np.ndarray
    noise: Sequence[np.ndarray]
    lost: np.ndarray | None
    share: float

    def lines(self) -> tuple[str, ...]:
        """What was found, in words."""
        lines = []
        if self.empty.any():
            lines.append(f"empty parts: {_percent(self.empty.mean())} of the voxels")
        if self.background.any():
            lines.append(f"a background: {_percent(self.share)} of the variance")
        sizes = np.bincount(ndimage.label(self.spots != 0)[0].ravel())[1:]
        hot, beads = int(np.sum(sizes <= SPECK)), int(np.sum(sizes > SPECK))
        lines += [f"{hot} hot voxel{'' if hot == 1 else 's'}"] if hot else []
        lines += [f"{beads} bead{'' if beads == 1 else 's'} or other spots"] if beads else []
        other = self.strength[self.strength != 1]
        if other.size:
            share, strength = _percent(other.size / self.strength.size), float(np.median(other))
            lines.append(f"another texture: {share} of the voxels, {strength:.2g} times as noisy")
        return tuple(lines)


def _divided(halves: Sequence[np.ndarray], empty: np.ndarray, mask: np.ndarray, *, as_given: bool) -> _Parts:
    level = float(np.median(np.mean(halves, axis=0)[~empty]))
    halves = [np.where(empty, np.float32(level), half) for half in halves]
    average = np.mean(halves, axis=0)
    nothing = np.zeros_like(average)
    background, spots, seen, lost, strength = nothing, nothing, nothing, None, np.ones_like(average)
    measured = None if as_given else noise_of(halves)
    noisy = measured is not None and _is_noisy(measured, average, len(halves))
    if measured is not None and noisy:
        strength = strength_of(measured, empty, len(halves), float(average[~empty].var()))
    standard = [(half - level) / strength for half in halves]
    mean = np.mean(standard, axis=0)
    if noisy:
        background, lost = background_of(mean, empty, mask)
        spots = spots_of([np.where(empty, 0, half - background) for half in standard], mask)
        if spots.any():
            seen = through(spots, mask)
            background, lost = background_of(mean - seen, empty, mask)
    noise: Sequence[np.ndarray] = [nothing] * len(halves)
    if empty.any():
        noise = noise_like([half - background - seen for half in standard], empty, mask)
    share = min(1.0, float(background[~empty].var() / max(mean[~empty].var(), 1e-30)))
    return _Parts(level, background, spots, seen, strength, empty, noise, lost, share)


def _is_noisy(noise: np.ndarray, average: np.ndarray, number: int) -> bool:
    """Whether there is noise to tell things from; in a map without any, what stands out is the specimen."""
    local = average - ndimage.gaussian_filter(average, LOCAL_WIDTH)
    return bool(noise.var() > LEAST_LOCAL_NOISE[number] * local.var())


def _around(inside: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """The box around what is inside, with a margin."""
    found = (np.flatnonzero(inside.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    return tuple(
        slice(max(0, int(where[0]) - margin), min(n, int(where[-1]) + 1 + margin))
        for where, n in zip(found, inside.shape, strict=True)
    )


def empty_of(tomogram: np.ndarray) -> np.ndarray:
    """Where hardly anything varies, as in a blank border or where gold was erased.

    Where there is not much noise elsewhere either, only what does not vary at all.
    """
    reach = ndimage.maximum_filter(tomogram, 3) - ndimage.minimum_filter(tomogram, 3)
    common = float(np.median(reach[reach > 0])) if reach.any() else 0.0
    still = reach <= (EMPTY * common if common > NOISY * tomogram.std(dtype=np.float64) else 0.0)
    empty = ndimage.binary_dilation(still, np.ones((3, 3, 3)))
    if empty.any():  # corners of a blank part are too small for this, and hold its value
        values, counts = np.unique(tomogram[empty], return_counts=True)
        blank = tomogram == values[counts.argmax()]
        empty |= blank & ndimage.binary_dilation(empty, iterations=CORNER)
    return empty


def strength_of(noise: np.ndarray, empty: np.ndarray, number: int, variance: float) -> np.ndarray:
    """s: 1 where the noise is as in most of the field, and what it is in large parts where it is not.

    1 everywhere where the noise of one tomogram, of this ``variance``, is not known.
    """
    noise = noise - ndimage.gaussian_filter(noise, STRENGTH_WIDTH)  # halves may differ in level and slope
    filled, power = (
        ndimage.gaussian_filter(part, STRENGTH_WIDTH)[::2, ::2, ::2]
        for part in ((~empty).astype(np.float32), np.where(empty, 0, noise**2))
    )
    known = filled > LEAST_FILLED
    power = np.where(known, power / np.maximum(filled, LEAST_FILLED), 0)
    common = np.median(power[known])
    if common == 0 or (number == 1 and common < LEAST_NOISE * variance):
        return np.ones_like(noise)
    power = ndimage.median_filter(np.where(known, power, common), STRENGTH_MEDIAN, mode="nearest")
    strength, limit = np.sqrt(power / common), OTHER_STRENGTH[number]
    parts, count = ndimage.label((strength > limit) | (strength < 1 / limit))
    large = np.bincount(parts.ravel(), minlength=count + 1) >= LEAST_REGION * parts.size
    large[0] = False
    strength = np.where(large[parts], strength, 1.0).astype(np.float32)
    for axis, n in enumerate(noise.shape):
        strength = np.take(np.repeat(strength, 2, axis), range(n), axis)
    return np.where(empty, np.float32(1), strength)


def noise_like(halves: Sequence[np.ndarray], empty: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Noise with the spectrum that it has where the volumes are not empty, for each of them.

    It is that of their difference; white for one tomogram, as strong as what is finest in it.
    """
    shape, random = empty.shape, np.random.default_rng(0)
    noise = np.where(empty, 0, noise_of(halves)) / np.sqrt(np.mean(~empty))
    power, shells = fourier.power(np.fft.rfftn(noise, norm="ortho")), shells_of(shape, mask)
    if len(halves) == 1:
        weight = shells.weight * (fourier.radial_frequency(shape) > FINE)
        amplitude = np.sqrt(np.sum(power * weight) / max(np.sum(weight), 1)) * mask
    else:
        amplitude = np.sqrt(len(halves) * shells.spread(shells.mean(power))) * mask
    spectra = (np.fft.rfftn(random.standard_normal(shape, np.float32)) for _ in halves)
    return [np.fft.irfftn(amplitude * part, s=shape, axes=range(3)).astype(np.float32) for part in spectra]


def _transposed(coefficients: np.ndarray, shape: tuple[int, ...], back: np.ndarray) -> np.ndarray:
    """A choice of coefficients of a volume of this shape as one of the volume with its axes turned back."""
    full = np.fft.ifftshift(fourier.centered_full_spectrum(coefficients.astype(np.float32), shape)).transpose(back)
    return full[..., : full.shape[-1] // 2 + 1] > 0


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %"
