"""What a restoration needs of its caller, checked before anything is computed."""

from __future__ import annotations

import numpy as np

from cryowgen_jax.chains.sampler_table import SAMPLERS
from cryowgen_jax.restoration.prior_weights import PriorWeights
from cryowgen_jax.restoration.spectra import shells_of
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import InputError

METHODS = ("cryowgen_langevin", "cryowgen_mc", "cryogen_ot", "cryogen_map")
POINT_METHODS = ("cryogen_ot", "cryogen_map")  # one answer, no family
WITNESSES = ("auto", "solvent", "learned")
SAMPLER_NAMES = ("auto", *SAMPLERS)
CONTRASTS = ("auto", "bright", "dark")
SAME_SCALE = 3.0  # between the standard deviations of two halves
LOW = 0.15  # cycles per voxel, where halves of one specimen agree if they do anywhere
SIGNIFICANT = 5.0  # standard errors of the correlation of a shell


def check_options(
    method: str,
    witness: object,
    contrast: str,
    num_samples: int,
    num_steps: int,
    warmup: int,
    tile_shape: tuple[int, int, int] | None,
    num_chains: int | None = None,
    sampler: str = "auto",
) -> None:
    """Refuse options that mean nothing, or a family of one."""
    if method not in METHODS:
        raise InputError(f"method {method!r} is not known: give one of {', '.join(METHODS)}")
    if sampler not in SAMPLER_NAMES:
        raise InputError(f"sampler {sampler!r} is not known: give one of {', '.join(SAMPLER_NAMES)}")
    if sampler != "auto" and method != "cryowgen_langevin":
        raise InputError(f"sampler {sampler!r} is for cryowgen_langevin and the method is {method!r}: leave it out")
    if tile_shape is not None and sampler not in ("auto", "preconditioned"):
        raise InputError(f"sampler {sampler!r} works on the tomogram as one box: leave out tile_shape")
    if contrast not in CONTRASTS:
        raise InputError(f"contrast {contrast!r} is not known: give one of {', '.join(CONTRASTS)}")
    if not (callable(witness) or isinstance(witness, PriorWeights) or witness in WITNESSES):
        given = repr(witness) if isinstance(witness, str) else f"of type {type(witness).__name__}"
        raise InputError(
            f'witness {given} is not known: give "auto", "solvent", "learned", what load_witness returns, or a '
            "function of one volume"
        )
    if tile_shape is not None and method != "cryowgen_langevin":
        raise InputError(f"method {method!r} works on the tomogram as one box: leave out tile_shape")
    if num_samples < 2:
        raise InputError(f"num_samples={num_samples}: a family has at least 2 members")
    if num_steps < 1 or warmup < 0:
        raise InputError(f"num_steps={num_steps}, warmup={warmup}: give at least 1 step, and 0 or more before it")
    if num_chains is not None and not 2 <= num_chains <= num_samples <= num_chains * num_steps:
        raise InputError(
            f"num_chains={num_chains} of {num_steps} steps for {num_samples} samples: give 2 chains or more, at "
            "most one a sample, with a step for each"
        )


def checked_volumes(tomogram: object, half2: object, center: object) -> list[np.ndarray]:
    """The volumes that were given, as float32 and of one shape: tomogram, half2, center."""
    names = ["the tomogram"] + ["the second half"] * (half2 is not None) + ["the centre"] * (center is not None)
    given = [np.asarray(volume) for volume in (tomogram, half2, center) if volume is not None]
    volumes = []
    for name, volume in zip(names, given, strict=True):
        if volume.dtype.kind not in "biuf":
            raise InputError(f"{name} has entries of type {volume.dtype}: give real numbers")
        volume = volume.astype(np.float32)
        if volume.ndim != 3:
            raise InputError(f"{name} has shape {volume.shape}: give one 3-D volume (Z, Y, X)")
        if volume.shape != given[0].shape:
            raise InputError(f"{name} has shape {volume.shape} and the tomogram {given[0].shape}: give equal shapes")
        if not np.isfinite(volume).all():
            raise InputError(f"{name} has {np.sum(~np.isfinite(volume))} voxels that are not finite: mend them first")
        volumes.append(volume)
    if half2 is not None and np.array_equal(volumes[0], volumes[1]):
        raise InputError("the two halves are the same volume: give two reconstructions from different tilts or frames")
    return volumes


def checked_outside(inside: object, shape: tuple[int, ...]) -> np.ndarray | None:
    """Where a mask of the inside is 0, None where there is no mask."""
    if inside is None:
        return None
    given = np.asarray(inside)
    if given.dtype.kind not in "biuf" or given.shape != shape or not np.isfinite(given).all():
        raise InputError(
            f"the mask has shape {given.shape} and entries of type {given.dtype}: give finite numbers of shape {shape}"
        )
    if not given.any():
        raise InputError("the mask is 0 everywhere: it has to be another number where the specimen is")
    return given == 0


def check_halves(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> str | None:
    """Whether two halves belong together: a sentence of doubt, or None.

    They are compared by the mean cosine between the phases of their measured coefficients, shell by shell. Unlike the
    FSC it does not heed single strong coefficients, such as those of a slope.

    Raises
    ------
    InputError
        Where one is constant, has another scale, or is the negative of the other.
    """
    spreads = [float(half.std(dtype=np.float64)) for half in (first, second)]
    for name, half, spread in zip(("first", "second"), (first, second), spreads, strict=True):
        if spread == 0:
            raise InputError(f"the {name} half is constant, every voxel is {half.flat[0]:g}: give two reconstructions")
    ratio = max(spreads) / min(spreads)
    if ratio > SAME_SCALE:
        raise InputError(
            f"the standard deviations of the halves are {spreads[0]:.4g} and {spreads[1]:.4g}, a factor of {ratio:.3g} "
            "apart: give two halves of one tomogram on the same scale"
        )
    shells = shells_of(first.shape, mask)
    spectra = [np.fft.rfftn(half / spread) for half, spread in zip((first, second), spreads, strict=True)]
    lengths = np.maximum(np.abs(spectra[0]) * np.abs(spectra[1]), 1e-30)
    correlation = shells.mean(fourier.real_product(*spectra) / lengths)
    low = (shells.frequency < LOW) & (shells.count > 1)
    excess = correlation[low] * np.sqrt(shells.count[low])
    pooled = np.sum(correlation[low] * shells.count[low]) / np.sqrt(max(np.sum(shells.count[low]), 1))
    excess = np.append(excess, pooled)
    if not low.any() or excess.max() > SIGNIFICANT:
        return None
    if excess.min() < -SIGNIFICANT:
        raise InputError(
            "the halves contradict each other, with a mean cosine between phases of "
            f"{correlation[low].min():.2f}: one has its contrast turned, or they are of different specimens"
        )
    return (
        "The halves have nothing in common at any frequency: they are of different specimens or shifted against each "
        "other, or there is no signal."
    )
