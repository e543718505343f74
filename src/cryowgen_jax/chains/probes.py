"""Small summaries of a position, recorded along a chain in place of the position itself."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array

MAX_COORDINATES = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShellProbe:
    """Per Fourier shell, measured region and wedge apart: one linear functional and the energy about a reference.

    The functional (coefficients summed with fixed random signs) shows how the mean mixes, the energy how the variance
    does. Call it on a volume: (4 * num_shells,).
    """

    label: Array
    signs: Array
    reference: Array
    num_shells: int = dataclasses.field(metadata={"static": True})

    def __call__(self, position: Array) -> Array:
        """Summaries of one volume."""
        spectrum = fourier.rfftn(position) - self.reference
        weight = fourier.multiplicity(position.shape)
        linear = jnp.real(spectrum * self.signs) * weight
        energy = (jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2) * weight

        def sums(values: Array) -> Array:
            return jax.ops.segment_sum(values.reshape(-1), self.label.reshape(-1), num_segments=2 * self.num_shells)

        return jnp.concatenate([sums(linear), sums(energy)])


def shell_probe(reference: Array, transfer: Array, shape: tuple[int, ...]) -> ShellProbe:
    """Probe for volumes of this shape; the wedge is where the transfer vanishes. Shells as in ``fourier.shell_index``.

    ``reference`` is a half spectrum to measure energies from, such as the Gaussian part's mean.
    """
    num_shells = max(1, min(shape) // 2)
    shells = np.maximum(fourier.shell_index(shape, num_shells), 0)
    signs = np.random.default_rng(0).choice([1, -1, 1j, -1j], fourier.spectrum_shape(shape)).astype(np.complex64)
    label = jnp.asarray(shells) + num_shells * (transfer > 0)
    return ShellProbe(label, jnp.asarray(signs), reference, num_shells)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CoordinateProbe:
    """The coordinates of a position, or a fixed random 256 of them where there are more."""

    index: Array

    def __call__(self, position: Array) -> Array:
        """Summaries of one position."""
        return position.reshape(-1)[self.index]


def coordinate_probe(shape: tuple[int, ...]) -> CoordinateProbe:
    """Probe for positions of this shape."""
    size = int(np.prod(shape))
    chosen = np.arange(size)
    if size > MAX_COORDINATES:
        chosen = np.sort(np.random.default_rng(0).choice(size, MAX_COORDINATES, replace=False))
    return CoordinateProbe(jnp.asarray(chosen))
