"""What every model of a tomogram is: data behind a wedge, noise, and a posterior."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from cryowgen_jax.operators import Wedge
from cryowgen_jax.operators.wedge import AXES
from cryowgen_jax.potentials import Posterior
from cryowgen_jax.restoration.spectra import Shells
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array


class Geometry(NamedTuple):
    """Tilt range in degrees, and the axes."""

    tilt_range: tuple[float, float]
    tilt_axis: str = "y"
    beam_axis: str = "z"

    @property
    def order(self) -> tuple[int, int, int]:
        """Axes of a volume such that beam, tilt axis and the third come first, second and last."""
        beam, tilt = AXES[self.beam_axis], AXES[self.tilt_axis]
        return beam, tilt, 3 - beam - tilt


@dataclasses.dataclass(frozen=True)
class VolumeModel(abc.ABC):
    """Half spectra of the data, noise of their average per shell and where it comes from, and the posterior's mean.

    A subclass says what volumes are like: witness, centre and its precision, and where solvent is.
    """

    shells: Shells
    halves: tuple[np.ndarray, ...]
    noise_rule: str
    noise: np.ndarray
    mean: np.ndarray

    @property
    @abc.abstractmethod
    def firmness(self) -> np.ndarray:
        """How firmly each voxel is held, 0 to 1: solvent is, particles are not."""

    @property
    @abc.abstractmethod
    def center(self) -> np.ndarray:
        """Zbar."""

    @property
    @abc.abstractmethod
    def prior_precision(self) -> np.float32:
        """Beta."""

    @abc.abstractmethod
    def witness(self) -> Callable[[Array], Array]:
        """w, for the posterior's ``prior_precision``."""

    @abc.abstractmethod
    def draw(self, noises: Array, mask: np.ndarray) -> Array:
        """A start for a chain, a draw of the posterior about its ``mean``; ``noises`` are two white volumes."""

    @property
    def observation(self) -> np.ndarray:
        """Half spectrum of the data, halves averaged, measured region only."""
        return np.mean(np.stack(self.halves), axis=0)

    @property
    def data_weight(self) -> np.float32:
        """lambda: the inverse of the mean noise power over the measured region."""
        return np.float32(1 / np.average(self.shells.spread(self.noise), weights=self.shells.weight))

    def decoder(self, mask: np.ndarray) -> Wedge:
        """A = the wedge with noise whitened: sqrt(M_k / (lambda N_k))."""
        return Wedge(jnp.asarray(np.sqrt(mask / (self.data_weight * self.shells.spread(self.noise)))))

    def posterior(self, mask: np.ndarray) -> Posterior:
        """The posterior under this model; ``mask`` in [0, 1] weighs the data."""
        decoder = self.decoder(mask)
        return Posterior(
            self.witness(),
            decoder,
            fourier.irfftn(decoder.transfer * jnp.asarray(self.observation), self.shells.shape),
            jnp.asarray(self.center, jnp.float32),
            jnp.asarray(self.data_weight),
            jnp.asarray(self.prior_precision),
        )
