"""A background in a tomogram: smooth, or constant along the beam.

A polynomial is fitted to what most of the field follows. Where none is enough, the background is found coefficient by
coefficient, as what is far above its shell and, where it is constant along the beam, above its neighbours. Such
coefficients tell nothing of the specimen. Without a background the field as a whole has to be flatter, which it is not
without a membrane or a filament.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from cryowgen_jax.restoration.spectra import robust_spread, through
from cryowgen_jax.spatial import fourier

LONG, LESS_LONG = 1 / 40, 1 / 16  # cycles per voxel, of a background; the second where it is connected with the first
OUTLIER = {"long": 12.0, "constant along the beam": 12.0, "perhaps": 100.0}  # times the power that is expected
CONNECTED = {"in the plane": 4.0, "beside it": 8.0}  # the same for coefficients next to such
HIGHEST = {"constant along the beam": 25.0, "any": 60.0}  # the same for the highest of a background
LITTLE = 0.1  # of the highest outlier, that a polynomial may leave
EVEN = 0.97  # of its variance, that does not change along the beam
FEW = 20  # coefficients of a shell whose median is worth nothing
ROUNDS = 4  # in which the background is continued through empty parts
FIELD_WIDTH, COARSE = 2.0, 3  # voxels
DEGREES = (1, 2)
TUKEY, TUKEY_ROUNDS = 3.0, 12  # robust standard deviations that count at all
LEAST_BACKGROUND, FLATTER = 0.02, 0.8  # of the variance; of the spread of the blurred field that is left


def background_of(volume: np.ndarray, empty: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return b of a volume with the beam first, and the coefficients that it takes; 0 and None where there is none.

    A polynomial where it leaves no outliers, since it takes next to nothing of the specimen; otherwise the outliers.
    """
    background, taken, highest = _outlying(volume, empty, mask)
    if highest == 0:
        return np.zeros_like(volume), None
    for degree in DEGREES:
        smooth = polynomial(volume, empty, degree)
        if _is_flatter(volume, smooth, empty, mask):
            left, _, remaining = _outlying(volume - smooth, empty, mask)
            usual = min(HIGHEST["any"], LITTLE * highest)  # of a specimen with large parts
            if remaining == 0 or (remaining < usual and not _is_even(left)):
                return smooth, None
    enough = highest > HIGHEST["constant along the beam" if _is_even(background) else "any"]
    if enough and _is_flatter(volume, background, empty, mask):
        return background, taken
    return np.zeros_like(volume), None


def _outlying(volume: np.ndarray, empty: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """A background that consists of outliers among coefficients, these, and by how much the highest is one."""
    background, taken, highest = np.zeros_like(volume), np.zeros(mask.shape, bool), 0.0
    for _ in range(ROUNDS if empty.any() else 1):
        spectrum = np.fft.rfftn(np.where(empty, background, volume), norm="ortho")
        taken, highest = outliers(fourier.power(spectrum), mask > 0.5, volume.shape)
        background = np.fft.irfftn(np.where(taken, spectrum, 0), s=volume.shape, axes=range(3), norm="ortho")
        background = background.astype(np.float32)
    return background, taken, highest


def _is_even(background: np.ndarray) -> bool:
    """Whether it does not change along the beam."""
    return bool(background.mean(axis=0).var() > EVEN * background.var())


def _is_flatter(volume: np.ndarray, background: np.ndarray, empty: np.ndarray, mask: np.ndarray) -> bool:
    """Whether the field as a whole is flatter without a background."""
    field, left = (through(np.where(empty, 0, part), mask) for part in (volume, volume - background))
    before, after = (robust_spread(ndimage.gaussian_filter(part, FIELD_WIDTH)[~empty]) for part in (field, left))
    return bool(np.var(field - left) > LEAST_BACKGROUND * field.var() and after < FLATTER * before)


def polynomial(volume: np.ndarray, empty: np.ndarray, degree: int) -> np.ndarray:
    """Polynomial of a total degree that most of a blurred volume follows, by least squares with Tukey's weights."""
    coordinates = [np.linspace(-1, 1, n, dtype=np.float32) for n in volume.shape]
    powers = [p for p in np.ndindex((degree + 1,) * 3) if sum(p) <= degree]
    tables = [np.stack([np.polynomial.legendre.Legendre.basis(d)(c) for d in range(degree + 1)]) for c in coordinates]

    def sampled(step: int) -> Iterator[np.ndarray]:
        for p in powers:
            yield np.einsum("z,y,x->zyx", *(table[d, ::step] for table, d in zip(tables, p, strict=True)))

    weight = ndimage.gaussian_filter((~empty).astype(np.float32), FIELD_WIDTH)[::COARSE, ::COARSE, ::COARSE]
    blurred = ndimage.gaussian_filter(np.where(empty, 0, volume), FIELD_WIDTH)[::COARSE, ::COARSE, ::COARSE]
    known = weight > 0.5
    values = blurred[known] / weight[known]
    basis = np.stack([column[known] for column in sampled(COARSE)], axis=1)
    weights = np.ones_like(values)
    for _ in range(TUKEY_ROUNDS):
        root = np.sqrt(weights)
        fitted, *_ = np.linalg.lstsq(basis * root[:, None], values * root, rcond=None)
        off = values - basis @ fitted
        weights = np.clip(1 - (off / (TUKEY * max(robust_spread(off), 1e-30))) ** 2, 0, None) ** 2
    smooth = np.zeros(volume.shape, np.float32)
    for coefficient, column in zip(fitted, sampled(1), strict=True):
        smooth += coefficient * column
    return smooth


def outliers(power: np.ndarray, measured: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Measured coefficients with far more power than a specimen or noise would have, rfftn layout, and the most of it.

    Those of long waves are compared with shells that are less long. Those of what is constant along the beam are
    compared with their neighbours along it too. Where these were not measured it takes more to be an outlier, since a
    filament across the tilt axis has no power anywhere else.
    """
    k = fourier.radial_frequency(shape)
    expected = _expected(power, measured, shape)
    beside, verified = np.zeros_like(power[0]), np.zeros(power[0].shape, bool)
    for step in (-2, -1, 1, 2):
        local, share = (
            ndimage.uniform_filter(part, 3, mode="nearest")
            for part in (np.where(measured[step], power[step], 0), measured[step].astype(float))
        )
        beside = np.maximum(beside, np.where(measured[step], local / np.maximum(share, 1e-3), 0))
        verified |= measured[step]
    ratio = np.where(measured & (k < LESS_LONG), power / expected, 0)
    ratio[0] = power[0] / np.maximum(expected[0], beside)
    ratio[0, 0, 0] = 0
    threshold = np.where(k < LONG, OUTLIER["long"], np.inf)
    threshold[0] = np.where(verified | (k[0] < LONG), OUTLIER["constant along the beam"], OUTLIER["perhaps"])
    near = ratio > CONNECTED["beside it"]
    near[0] = ratio[0] > CONNECTED["in the plane"]
    near[0, 0, 0] = True  # joins what lies on either side of it
    found = ndimage.binary_propagation(_centred(ratio > threshold), np.ones((3, 3, 3)), _centred(near))
    found = np.fft.ifftshift(found, axes=(0, 1))
    rim = ndimage.binary_dilation(np.fft.fftshift(found[0], axes=0), np.ones((3, 3)))
    found[0] = np.fft.ifftshift(rim, axes=0) & measured[0]
    found[0, 0, 0] = False
    return found, float(ratio.max(initial=0.0, where=found))


def _expected(power: np.ndarray, measured: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Power per coefficient that its shell lets expect: from medians, which outliers do not move."""
    number = max(shape) // 2
    index = np.maximum(fourier.shell_index(shape, number), 0)
    chosen = measured.copy()
    chosen[0] = False
    order = np.argsort(index[chosen], kind="stable")
    ends = np.cumsum(np.bincount(index[chosen], minlength=number))
    shells = np.split(power[chosen][order], ends[:-1])
    median = np.array([np.median(shell) if shell.size >= FEW else np.nan for shell in shells]) / np.log(2)
    frequency, known = (np.arange(number) + 0.5) / (2 * number), np.isfinite(median)
    if not known.any():
        return np.full(power.shape, np.inf)
    median = np.interp(frequency, frequency[known], median[known])
    median[frequency < LONG] = median[frequency >= LONG][:4].max()
    return np.maximum(median, 1e-30)[index]


def _centred(coefficients: np.ndarray) -> np.ndarray:
    return np.fft.fftshift(coefficients, axes=(0, 1))
