"""What a restoration needs of its caller, checked before anything is computed."""

from __future__ import annotations

import numpy as np

from cryowgen_jax.chains.sampler_table import SAMPLERS
from cryowgen_jax.restoration.prior_weights import PriorWeights
from cryowgen_jax.types import InputError

METHODS = ("cryowgen_langevin", "cryowgen_mc", "cryogen_ot", "cryogen_map")
POINT_METHODS = ("cryogen_ot", "cryogen_map")  # one answer, no family
WITNESSES = ("auto", "solvent", "learned")
SAMPLER_NAMES = ("auto", *SAMPLERS)
CONTRASTS = ("auto", "bright", "dark")


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
