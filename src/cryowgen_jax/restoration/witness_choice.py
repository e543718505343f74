"""Which witness suits a tomogram: tilts that are hidden from all candidates say.

The outermost tilts are left out, every candidate restores what is left, and its mean is compared with the data in the
part of the wedge that was hidden. There the truth is known up to noise, which is the same for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.restoration import learned_model, solvent_fit
from cryowgen_jax.restoration.learned_model import LearnedModel
from cryowgen_jax.restoration.prior_weights import PriorWeights
from cryowgen_jax.restoration.volume_family import PreparedVolume, ProgressFn
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, InputError

HIDDEN_SHARE = 0.25  # of the tilt range, half of it on either side
JUDGED = (0.01, 0.25)  # cycles per voxel
PHASE = "choosing the witness"
DRAWS = 4  # of the learned model, whose spread is judged
LEAST_EXCESS = 0.02  # of the noise, that the error has to be for its size to be known
LARGEST_WIDENING = 2.0
EMPTY = 1e-9  # of the data's energy, which rounding leaves


class Choice(NamedTuple):
    """The witness that was taken, its name, and each candidate's correlation with the hidden tilts by name.

    ``agreement`` is empty where there was nothing to choose from. ``widening`` is the variance that the family of the
    learned model lacks in the hidden tilts, as a factor.
    """

    name: str
    witness: PriorWeights | Literal["solvent"]
    agreement: dict[str, float]
    widening: float = 1.0


def choose(
    volume: PreparedVolume, weights: PriorWeights, progress: ProgressFn | None = None, *, of_spread: bool = True
) -> Choice:
    """The solvent model or that of a network's ``weights``: whichever foretells hidden tilts better.

    The solvent model where there are too few tilts to hide some. ``of_spread``: whether the width of the learned
    model's family is wanted too, for which members are drawn.
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
    if agreement["learned"] <= agreement["solvent"]:
        return Choice("solvent", "solvent", agreement)
    if learned.coarse is None or not of_spread:
        return Choice("learned", weights, agreement)
    draws = [learned.draw(jax.random.key(number), fewer.mask) for number in range(DRAWS)]
    return Choice("learned", weights, agreement, widening_of(learned, draws, data, judged))


def widening_of(model: LearnedModel, draws: Sequence[Array], data: np.ndarray, judged: np.ndarray) -> float:
    """The squared error of a model's mean over its family's variance, in what was hidden and ``judged``.

    The error is what differs from the data beyond their noise. 1 where there is too little of either to say.
    """
    mean = np.asarray(fourier.rfftn(jnp.asarray(model.mean)))
    energy = np.sum(judged * np.abs(data - mean) ** 2)
    noise = np.sum(judged * model.shells.spread(model.noise))
    spread = np.mean([np.sum(judged * np.abs(np.asarray(fourier.rfftn(draw)) - mean) ** 2) for draw in draws])
    if energy - noise < LEAST_EXCESS * noise or spread <= 0:
        return 1.0
    return float(np.clip((energy - noise) / spread, 1 / LARGEST_WIDENING, LARGEST_WIDENING))


def _told(progress: ProgressFn | None) -> ProgressFn | None:
    return None if progress is None else lambda p: progress(p._replace(phase=PHASE))


def _correlation(found: np.ndarray, data: np.ndarray, weight: np.ndarray) -> float:
    """Of two spectra; 0 where one of them is empty."""
    cross = np.sum(weight * np.real(found * np.conj(data)))
    energy, reference = np.sum(weight * np.abs(found) ** 2), np.sum(weight * np.abs(data) ** 2)
    return float(cross / np.sqrt(energy * reference)) if energy > EMPTY * reference else 0.0
