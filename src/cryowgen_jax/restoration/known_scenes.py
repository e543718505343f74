"""Scenes to learn from: a volume, observations of it, and what was made of those before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.restoration import solvent_fit
from cryowgen_jax.restoration.annealed_family import LEAST_EDGE
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.learned_model import coarse_sight_of, first_look, gaussian_of
from cryowgen_jax.restoration.prior_weights import PriorWeights
from cryowgen_jax.spatial import fourier
from cryowgen_jax.training import CoarseScenes, Scenes
from cryowgen_jax.types import Array, InputError

AnyScenes = TypeVar("AnyScenes", Scenes, CoarseScenes)


def scene_of(weights: PriorWeights, truth: np.ndarray, halves: tuple[Array, ...], geometry: Geometry) -> Scenes:
    """One scene: a volume, and what the second network is shown of observations of it; beam z and tilt axis y."""
    mask = geometry.mask(truth.shape)
    model = solvent_fit.fit(halves, mask, geometry, of_spread=False)

    def volume(values: np.ndarray | Array) -> np.ndarray:
        return np.asarray(values, np.float16)[None]

    def row(values: np.ndarray | tuple[float, float]) -> np.ndarray:
        return np.asarray(values, np.float32)[None]

    return Scenes(
        truth=volume(truth),
        data=volume(fourier.irfftn(jnp.asarray(model.observation), truth.shape)),
        solvent=volume(model.mean),
        envelope=volume(model.envelope),
        mean=volume(first_look(weights, model, mask, geometry)),
        noise=row(model.noise),
        signal=row(model.signal),
        tilt_range=row(geometry.tilt_range),
    )


def coarse_scene_of(
    weights: PriorWeights, truth: np.ndarray, halves: tuple[Array, ...], geometry: Geometry
) -> CoarseScenes:
    """The same on half the grid, for the third network, after both others have looked."""
    if min(truth.shape) < LEAST_EDGE:
        raise InputError(
            f"a scene of shape {truth.shape} is too small: give {LEAST_EDGE} voxels or more along each axis"
        )
    mask = geometry.mask(truth.shape)
    solvent = solvent_fit.fit(halves, mask, geometry, of_spread=False)
    _, mean, variance = gaussian_of(weights, solvent, mask, geometry)
    sight = coarse_sight_of(solvent, mean, variance, geometry)
    volume = fourier.shrink(jnp.asarray(truth, jnp.float32), fourier.halved(truth.shape))
    return CoarseScenes(
        truth=np.asarray((volume - np.mean(mean)) / sight.scale, np.float16)[None],
        channels=np.asarray(sight.channels, np.float16)[None],
        power=np.asarray(sight.power, np.float32)[None],
        conditions=np.asarray(sight.conditions, np.float32)[None],
    )


def together(scenes: Sequence[AnyScenes]) -> AnyScenes:
    """All of them as one."""
    joined: AnyScenes = jax.tree.map(lambda *arrays: np.concatenate(arrays), *scenes)
    return joined
