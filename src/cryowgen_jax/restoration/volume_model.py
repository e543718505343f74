"""What every model of a tomogram is: data behind a wedge, noise, and a posterior."""

from __future__ import annotations

import abc
import dataclasses
import enum
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from cryowgen_jax.operators import Wedge
from cryowgen_jax.potentials import Posterior
from cryowgen_jax.restoration import spectra
from cryowgen_jax.restoration.spectra import Shells
from cryowgen_jax.samplers import NoiseFn, white_noise
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, PRNGKey

POOLING_WIDTH = 4.0  # voxels: of a blur of squared deviations, which are few


class NoiseRule(enum.Enum):
    """How the noise spectrum was found; the value says it to people."""

    HALVES = "difference of the halves"
    WHITE = "white, from the weakest shells"
    COLOURED = "coloured, as in solvent"


@dataclasses.dataclass(frozen=True)
class VolumeModel(abc.ABC):
    """What every model of a tomogram holds. A subclass adds what volumes are like: witness, centre and beta.

    Attributes
    ----------
    shells
        Fourier shells of the box and its measured region.
    halves
        Half spectra of one volume or two halves, 0 in the missing wedge.
    noise_rule, noise
        How the noise spectrum was found, and N per shell, of the average of the halves.
    mean
        Mean of the posterior, (Z, Y, X).
    """

    shells: Shells
    halves: tuple[np.ndarray, ...]
    noise_rule: NoiseRule
    noise: np.ndarray
    mean: np.ndarray

    @property
    @abc.abstractmethod
    def firmness(self) -> np.ndarray:
        """How strongly the prior fixes each voxel, (Z, Y, X): 1 in solvent, 0 in particles."""

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
    def gaussian_draw(self, key: PRNGKey, mask: np.ndarray, draw_noise: NoiseFn = white_noise) -> Array:
        """A draw of :meth:`posterior`, which is Gaussian; ``draw_noise`` makes white volumes of (key, shape)."""

    def draw(self, key: PRNGKey, mask: np.ndarray, draw_noise: NoiseFn = white_noise) -> Array:
        """A member of the model's family."""
        return self.gaussian_draw(key, mask, draw_noise)

    @property
    def drawing(self) -> str:
        """How :meth:`draw` works, in a word or two."""
        return "exact"

    @abc.abstractmethod
    def standard_deviation(self, draws: Sequence[Array]) -> Array:
        """Of the posterior per voxel, (Z, Y, X); ``draws`` of it help where it is not known in closed form."""

    def scaled_to(self, draws: Sequence[Array], local: np.ndarray) -> Array:
        """The root of a ``local`` variance, scaled to the squared deviations of draws, both blurred."""
        deviations = np.mean([np.square(np.asarray(draw) - self.mean) for draw in draws], axis=0)
        excess = spectra.blur(deviations, POOLING_WIDTH) / spectra.blur(local, POOLING_WIDTH)
        return jnp.asarray(np.sqrt(np.maximum(local * excess, 0.0)), jnp.float32)

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
