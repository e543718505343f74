"""A quadratic witness that is not stationary: it acts where an envelope says solvent."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SolventWitness:
    r"""Keeps the density near the solvent level where an envelope says solvent.

    .. math:: w(z) = -\tfrac12 \sum_x e(x)\, [F^{-1} W F (z - c)]^2(x), \qquad W_k^2 = 1 / P_{s,k} .

    Where e = 1 the volume follows a stationary Gaussian field about the solvent level c with power spectrum P_s; where
    e = 0 nothing is said. Concave, and its curvature lies between 0 and W_k^2 coefficient by coefficient.

    Parameters
    ----------
    envelope
        e, (Z, Y, X), in [0, 1].
    whitening
        W, in rfftn layout, positive.
    level
        c, scalar.
    """

    envelope: Array
    whitening: Array
    level: Array | float

    def __call__(self, position: Array) -> Array:
        """Return w(z)."""
        return -0.5 * jnp.sum(self.envelope * fourier.filter_volume(position - self.level, self.whitening) ** 2)

    def curvature_bounds(self) -> tuple[Array, Array]:
        """0 and the largest W_k^2."""
        return jnp.zeros(()), jnp.max(self.whitening) ** 2

    def spectral_curvature_bounds(self) -> tuple[Array, Array]:
        """0 and W_k^2: 0 <= -Hess w <= F^-1 W^2 F as quadratic forms."""
        return jnp.zeros_like(self.whitening), self.whitening**2
