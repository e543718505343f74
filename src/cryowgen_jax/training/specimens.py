"""Examples to learn a conditional prior from: known volumes, rotated, textured, and observed in many ways."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.spatial import fourier
from cryowgen_jax.spatial.rotation import turn_cube
from cryowgen_jax.training.conditional_prior import Example, example
from cryowgen_jax.types import Array, PRNGKey

LARGEST_TEXTURE = 0.3  # share of the variance
TEXTURE_WIDTHS = (0.7, 2.5)  # voxels
BLURS = (0.0, 1.2)  # voxels
NOISE_LEVELS = (2e-3, 60.0)  # variance of the noise over that of the truth
HIGHEST_TILTS = (38.0, 72.0)  # degrees
_LEAST_TEXTURE = 1e-4  # of one unit squared: a box may be empty


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Specimens:
    """Key -> one example: a box of one volume in one of 24 orientations, with random texture, blur, noise and tilts.

    Texture is a smooth Gaussian field, which cannot be predicted. Noise is white, coloured, or blurred like the
    specimen. All choices are uniform between the bounds of this file, the noise level in its logarithm. A fifth of the
    examples has no texture.

    Parameters
    ----------
    volumes
        (M, n, n, n), any dtype.
    box
        (Z, Y, X) of an example, no larger than n.
    """

    volumes: Array
    box: tuple[int, int, int] = dataclasses.field(metadata={"static": True})

    def __call__(self, key: PRNGKey) -> Example:
        """One example."""
        keys = iter(jax.random.split(key, 16))
        number = jax.random.randint(next(keys), (), 0, self.volumes.shape[0])
        truth = self._cut(number, next(keys), next(keys))

        def between(low: float, high: float) -> Array:
            return jax.random.uniform(next(keys), minval=low, maxval=high)

        share = jnp.maximum(between(-0.25 * LARGEST_TEXTURE, LARGEST_TEXTURE), 0.0)
        width = between(*TEXTURE_WIDTHS)
        truth = textured(next(keys), truth, share, width)
        blur = _gaussian(self.box, between(*BLURS) * jax.random.bernoulli(next(keys), 0.5))
        truth = fourier.filter_volume(truth, blur)
        level = jnp.exp(between(*np.log(NOISE_LEVELS))) * jnp.var(truth)
        colour, width = between(-1.0, 1.0), between(0.5, 2.0)
        noise = jnp.maximum(colour, 0.0) * _gaussian(self.box, width) + 1 - jnp.maximum(colour, 0.0)
        noise = noise * jnp.where(colour < -0.5, blur**2, 1.0)
        noise = level * noise / jnp.mean(noise)
        tilt_range = jnp.stack([-between(*HIGHEST_TILTS), between(*HIGHEST_TILTS)])
        return example(truth, noise, tilt_range, next(keys))

    def _cut(self, number: Array, turn: PRNGKey, place: PRNGKey) -> Array:
        turned = turn_cube(self.volumes[number].astype(jnp.float32), jax.random.randint(turn, (), 0, 24))
        room = jnp.asarray(self.volumes.shape[1:]) - jnp.asarray(self.box)
        start = jax.random.randint(place, (3,), 0, room + 1)
        return jax.lax.dynamic_slice(turned, start, self.box)


def textured(key: PRNGKey, volume: Array, share: Array | float, width: Array | float) -> Array:
    """The volume plus a smooth Gaussian field of this width in voxels, which has this share of the total variance."""
    field = fourier.filter_volume(jax.random.normal(key, volume.shape), _gaussian(volume.shape, width))
    return volume + field * jnp.sqrt((share / (1 - share) * jnp.var(volume) + _LEAST_TEXTURE) / jnp.var(field))


def _gaussian(shape: tuple[int, ...], width: Array | float) -> Array:
    """Transfer of a Gaussian blur, standard deviation in voxels."""
    radius = jnp.asarray(fourier.radial_frequency(shape), jnp.float32)
    return jnp.exp(-2 * (jnp.pi * width * radius) ** 2)
