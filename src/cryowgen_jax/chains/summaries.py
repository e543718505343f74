"""A few numbers that stand for a position, recorded along a chain in place of the position itself."""

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
class ShellSummary:
    r"""Summary of a volume by Fourier shell, those of the wedge first, then those of the measured region.

    Three numbers for each shell of n real coefficients, c being the reference:

    .. math:: \mathrm{Re} \sum_k s_k (z - c)_k, \qquad \sum_k |z - c|_k^2, \qquad
              \frac{1}{n} \sum_k (z - c)_k \cdot (\nabla F)_k .

    The first, with fixed random signs s, shows how the mean mixes, the energy how the variance does. The third, the
    virial, is -1 on average over the posterior whatever c is (integrate by parts). It needs the score grad F.

    Attributes
    ----------
    label
        Shell of every coefficient, rfftn layout.
    signs
        s, of modulus 1.
    reference
        c as a half spectrum.
    num_shells
        Of the wedge, and as many of the measured region.
    """

    label: Array
    signs: Array
    reference: Array
    num_shells: int = dataclasses.field(metadata={"static": True})
    kinds: ClassVar[int] = 2  # numbers per shell besides the virial

    @property
    def size(self) -> int:
        """Number of shells, both regions together."""
        return 2 * self.num_shells

    def __call__(self, position: Array, score: Array | None = None) -> Array:
        """All functionals, then all energies, then all virials.

        Parameters
        ----------
        position
            One volume.
        score
            Gradient of the log-density there, a volume or its half spectrum; None leaves out the virials.

        Returns
        -------
        Array
            (3 size,), or (2 size,) without a score.
        """
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


def shell_summary(reference: Array, transfer: Array, shape: tuple[int, ...]) -> ShellSummary:
    """The summary for volumes of one shape.

    Parameters
    ----------
    reference
        Half spectrum from which energies are measured, such as the Gaussian part's mean.
    transfer
        Of the decoder, rfftn layout; the wedge is where it vanishes.
    shape
        (Z, Y, X). Shells are those of ``fourier.shell_index``, half as many as the shortest edge has voxels.
    """
    num_shells = max(1, min(shape) // 2)
    shells = np.maximum(fourier.shell_index(shape, num_shells), 0)
    signs = np.random.default_rng(0).choice([1, -1, 1j, -1j], fourier.spectrum_shape(shape)).astype(np.complex64)
    label = jnp.asarray(shells) + num_shells * (transfer > 0)
    return ShellSummary(label, jnp.asarray(signs), reference, num_shells)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CoordinateSummary:
    """Coordinates of a position, and the virial z_i (grad F)_i of each, which is -1 on average.

    ``index``: which coordinates of the flattened position.
    """

    index: Array
    kinds: ClassVar[int] = 1  # numbers per coordinate besides the virial

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return int(self.index.shape[0])

    def __call__(self, position: Array, score: Array | None = None) -> Array:
        """Coordinates, (size,), and behind them their virials where there is a score, an array or its half spectrum."""
        values = position.reshape(-1)[self.index]
        if score is None:
            return values
        force = fourier.irfftn(score, position.shape) if jnp.iscomplexobj(score) else score
        return jnp.concatenate([values, values * force.reshape(-1)[self.index]])


def coordinate_summary(shape: tuple[int, ...]) -> CoordinateSummary:
    """The summary for positions of one shape: all coordinates, or a fixed random 256 where there are more."""
    size = int(np.prod(shape))
    chosen = np.arange(size)
    if size > MAX_COORDINATES:
        chosen = np.sort(np.random.default_rng(0).choice(size, MAX_COORDINATES, replace=False))
    return CoordinateSummary(jnp.asarray(chosen))
