"""Small summaries of a position, recorded along a chain in place of the position itself."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array

MAX_COORDINATES = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShellProbe:
    """Per Fourier shell, wedge and measured region apart: a linear functional, the energy and the virial.

    The functional (coefficients summed with fixed random signs) shows how the mean mixes, the energy about a reference
    how the variance does. The virial, sum_k (z - c)_k . (grad F)_k over the shell's number of real coefficients, is -1
    on average over the posterior, whatever c is (an integration by parts). Call it on a volume and its score:
    (6 * num_shells,), or without a score, (4 * num_shells,). Wedge shells come first.
    """

    label: Array
    signs: Array
    reference: Array
    num_shells: int = dataclasses.field(metadata={"static": True})
    summaries: ClassVar[int] = 2  # kinds of summaries before the virial

    @property
    def size(self) -> int:
        """Entries of one kind."""
        return 2 * self.num_shells

    def __call__(self, position: Array, score: Array | None = None) -> Array:
        """Summaries of one volume; ``score``: gradient of the log-density there, a volume or its half spectrum."""
        spectrum = fourier.rfftn(position) - self.reference
        weight = fourier.multiplicity(position.shape)
        linear = jnp.real(spectrum * self.signs) * weight
        energy = fourier.power(spectrum) * weight

        def sums(values: Array) -> Array:
            return jax.ops.segment_sum(values.reshape(-1), self.label.reshape(-1), num_segments=self.size)

        if score is None:
            return jnp.concatenate([sums(linear), sums(energy)])
        force = score if jnp.iscomplexobj(score) else fourier.rfftn(score)
        virial = fourier.real_product(spectrum, force) * weight
        freedom = jnp.maximum(sums(jnp.broadcast_to(weight, virial.shape)), 1.0)
        return jnp.concatenate([sums(linear), sums(energy), sums(virial) / freedom])


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
    """The coordinates of a position, or a fixed random 256 of them where there are more, and their virials.

    The virial of coordinate i is z_i (grad F)_i, -1 on average.
    """

    index: Array
    summaries: ClassVar[int] = 1

    @property
    def size(self) -> int:
        """Entries of one kind."""
        return int(self.index.shape[0])

    def __call__(self, position: Array, score: Array | None = None) -> Array:
        """Summaries of one position; ``score``: gradient of the log-density there, or its half spectrum."""
        values = position.reshape(-1)[self.index]
        if score is None:
            return values
        force = fourier.irfftn(score, position.shape) if jnp.iscomplexobj(score) else score
        return jnp.concatenate([values, values * force.reshape(-1)[self.index]])


def coordinate_probe(shape: tuple[int, ...]) -> CoordinateProbe:
    """Probe for positions of this shape."""
    size = int(np.prod(shape))
    chosen = np.arange(size)
    if size > MAX_COORDINATES:
        chosen = np.sort(np.random.default_rng(0).choice(size, MAX_COORDINATES, replace=False))
    return CoordinateProbe(jnp.asarray(chosen))
