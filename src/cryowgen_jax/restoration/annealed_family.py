r"""Draws of the learned model that are not Gaussian: Langevin dynamics on half the grid, Gaussian draws for the rest.

Above half of Nyquist hardly anything can be known inside the wedge. Below, a third network knows D(z, sigma), the mean
of the volume given the tomogram and z = volume + sigma * noise (``models.denoiser``), with m and V those of the
Gaussian that the second network leads to. So

.. math:: \nabla \log p_\sigma(z) = \frac{D(z, \sigma) - z}{\sigma^2}

is the gradient of the exponent at the level sigma, and ``methods.reverse_diffusion`` walks from N(m, V + s^2) at the
level s = ``LARGEST``, where the posterior is lost in noise, down to ``SMALLEST``. Where the network says nothing, D is
the Gaussian's, and so are the draws.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax import platform
from cryowgen_jax.methods import noise_levels, reverse_diffusion
from cryowgen_jax.models import NnxFunction
from cryowgen_jax.models.denoiser import Sight, reversed_tilts, shrunk
from cryowgen_jax.pytrees import as_pytree
from cryowgen_jax.restoration.geometry import HALF_TURNS, reverses_tilts
from cryowgen_jax.samplers import NoiseFn
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, PRNGKey

LARGEST, SMALLEST, NUM_LEVELS = 3.0, 0.05, 16  # of sigma, in standard deviations of the signal
LEAST_EDGE = 16  # voxels: half the grid of smaller boxes is too small for a network


@dataclasses.dataclass(frozen=True)
class CoarsePosterior:
    """The posterior on half the grid.

    Attributes
    ----------
    network
        D, a ``models.Denoiser``.
    sight
        What it is shown, V included, with the beam along the first axis and the tilt axis second.
    level
        The level of m, which the sight is without.
    order
        Axes of the tomogram in the order of the sight.
    shape
        (Z, Y, X) of the tomogram.
    """

    network: NnxFunction
    sight: Sight
    level: float
    order: tuple[int, int, int]
    shape: tuple[int, ...]

    def draw(self, key: PRNGKey, draw_noise: NoiseFn) -> Array:
        """The low-passed part of a member, (Z, Y, X)."""
        noise = CoarseNoise(as_pytree(draw_noise), self.shape, self.order)
        levels = noise_levels(LARGEST, SMALLEST, NUM_LEVELS)
        return self._enlarged(self.level + self.sight.scale * walked(self.network, self.sight, key, noise, levels))

    def correction(self) -> Array:
        """What D at sigma = infinity adds to m, (Z, Y, X), averaged over half turns."""
        found = [np.flip(_corrected(self.network, half_turned(self.sight, flips)), flips) for flips in HALF_TURNS]
        return self._enlarged(self.sight.scale * jnp.asarray(np.mean(found, axis=0)))

    def _enlarged(self, volume: Array) -> Array:
        turned = tuple(self.shape[axis] for axis in self.order)
        return fourier.enlarge(volume, turned).transpose(np.argsort(self.order))

    def low_passed(self, volume: Array) -> Array:
        """The part of a volume that :meth:`draw` replaces."""
        smaller = fourier.halved(volume.shape)
        return fourier.enlarge(fourier.shrink(volume, smaller), volume.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CoarseNoise:
    """White noise on half the grid, made of white noise of the tomogram: (key, shape) -> volume.

    ``shape`` is that of the tomogram, ``order`` the order of its axes that is wanted.
    """

    fine: NoiseFn
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    order: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, key: PRNGKey, smaller: tuple[int, ...]) -> Array:
        """Variance 1, except at the Nyquist frequency of the smaller grid, where it is 0."""
        volume = self.fine(key, self.shape).transpose(self.order)
        return np.float32(np.sqrt(volume.size / np.prod(smaller))) * fourier.shrink(volume, smaller)


def half_turned(sight: Sight, flips: tuple[int, ...]) -> Sight:
    """What the network is shown of a tomogram that was turned, sigma being infinite."""
    conditions = reversed_tilts(sight.conditions) if reverses_tilts(flips) else sight.conditions
    return sight._replace(channels=jnp.flip(sight.channels, flips), conditions=conditions, power=None)


@platform.jit
def _corrected(network: NnxFunction, sight: Sight) -> Array:
    return network(sight, sight.mean, jnp.zeros(())).volume - sight.mean


@platform.jit
def walked(network: NnxFunction, sight: Sight, key: PRNGKey, draw_noise: NoiseFn, levels: Array | np.ndarray) -> Array:
    """A draw on half the grid, in the unit of the sight and without its level; it holds the noise of the last level."""
    start_key, walk_key = jax.random.split(key)
    noise = draw_noise(start_key, sight.mean.shape)
    start = sight.mean + fourier.filter_volume(noise, jnp.sqrt(jnp.asarray(sight.power) + levels[0] ** 2))
    return reverse_diffusion(walk_key, lambda z, s: network(sight, z, s).volume, start, levels, draw_noise)


@platform.jit
def coarse_sight(sight: Sight, variance: Array) -> Sight:
    """What the network is shown of ``sight`` and of V, in the unit of the tomogram squared, rfftn layout."""
    return shrunk(sight, variance / sight.scale**2)
