"""Which witness suits a tomogram: tilts that are hidden from all candidates say.

The outermost tilts are left out, every candidate restores what is left, and its mean is compared with the data in the
part of the wedge that was hidden. There the truth is known up to noise, which is the same for all.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from cryowgen_jax.restoration import learned_model, solvent_fit
from cryowgen_jax.restoration.learned_model import PriorWeights
from cryowgen_jax.restoration.volume_family import PreparedVolume, ProgressFn
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import InputError

HIDDEN_SHARE = 0.25  # of the tilt range, half of it on either side
JUDGED = (0.01, 0.25)  # cycles per voxel
PHASE = "choosing the witness"
EMPTY = 1e-9  # of the data's energy, which rounding leaves


class Choice(NamedTuple):
    """The witness that was taken, its name, and each candidate's correlation with the hidden tilts by name.

    ``agreement`` is empty where there was nothing to choose from.
    """

    name: str
    witness: PriorWeights | Literal["solvent"]
    agreement: dict[str, float]


def choose(volume: PreparedVolume, weights: PriorWeights, progress: ProgressFn | None = None) -> Choice:
    """The solvent model or that of a network's ``weights``: whichever foretells hidden tilts better.

    The solvent model where there are too few tilts to hide some.
    """
    low, high = volume.geometry.tilt_range
    margin = 0.5 * HIDDEN_SHARE * (high - low)
    try:
        fewer = dataclasses.replace(volume, geometry=volume.geometry.within((low + margin, high - margin)))
    except InputError:
        return Choice("solvent", "solvent", {})
    solvent = solvent_fit.fit(fewer.halves, fewer.mask, fewer.geometry, _told(progress), of_spread=False)
    learned = learned_model.model_of(weights, solvent, fewer.mask, fewer.geometry)
    shape = volume.halves[0].shape
    radius = fourier.radial_frequency(shape)
    judged = np.where((radius > JUDGED[0]) & (radius < JUDGED[1]), volume.mask * (1 - fewer.mask), 0)
    judged = judged * fourier.multiplicity(shape)
    data = np.mean([np.asarray(fourier.rfftn(half)) for half in volume.halves], axis=0)
    agreement = {
        name: _correlation(np.asarray(fourier.rfftn(jnp.asarray(model.mean))), data, judged)
        for name, model in (("solvent", solvent), ("learned", learned))
    }
    if agreement["learned"] > agreement["solvent"]:
        return Choice("learned", weights, agreement)
    return Choice("solvent", "solvent", agreement)


def _told(progress: ProgressFn | None) -> ProgressFn | None:
    return None if progress is None else lambda p: progress(p._replace(phase=PHASE))


def _correlation(found: np.ndarray, data: np.ndarray, weight: np.ndarray) -> float:
    """Of two spectra; 0 where one of them is empty."""
    cross = np.sum(weight * np.real(found * np.conj(data)))
    energy, reference = np.sum(weight * np.abs(found) ** 2), np.sum(weight * np.abs(data) ** 2)
    return float(cross / np.sqrt(energy * reference)) if energy > EMPTY * reference else 0.0
