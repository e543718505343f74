"""Posteriors that the benchmarks of samplers and of the effective potential have in common.

Volumes behind a missing wedge, tilts +-60 degrees, tether beta = 1 about zero, data weight lambda = ratio.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import cryowgen_jax as cg

CURVATURE, CONCAVITY, WIDTH = 10.0, 0.5, 0.5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HiddenWitness:
    """A witness that only admits to the bounds of its curvature, whatever else the library would know of it."""

    witness: Any

    def __call__(self, volume: jax.Array) -> jax.Array:
        """Energy of one volume."""
        return self.witness(volume)

    def curvature_bounds(self) -> tuple[jax.Array, jax.Array]:
        """Smallest and largest curvature over all frequencies."""
        return self.witness.curvature_bounds()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogCoshWitness:
    """w(z) = -c d^2 sum_i log cosh(z_i / d): curvature c in the middle, straight flanks, 0 <= -Hess w <= c."""

    curvature: jax.Array
    width: jax.Array

    def __call__(self, volume: jax.Array) -> jax.Array:
        """Energy of one volume."""
        t = jnp.abs(volume) / self.width
        return -self.curvature * self.width**2 * jnp.sum(t + jnp.log1p(jnp.exp(-2 * t)) - jnp.log(2.0))

    def curvature_bounds(self) -> tuple[jax.Array, jax.Array]:
        """0 and c."""
        return jnp.zeros(()), self.curvature


def smooth_witness(name: str) -> Callable[[jax.Array], jax.Array]:
    """The library's learned form, "conv", at its initial filters, or "log-cosh"; curvature up to ``CURVATURE``."""
    if name == "conv":
        return cg.from_nnx(cg.ConvWitness(curvature=CURVATURE, concavity=CONCAVITY, rngs=nnx.Rngs(0)))
    return LogCoshWitness(jnp.float32(CURVATURE), jnp.float32(WIDTH))


def posterior(witness: Callable[[jax.Array], jax.Array], size: int, ratio: float, seed: int = 7) -> cg.Posterior:
    """A random volume seen through the wedge with noise of variance 1 / ``ratio``."""
    shape = (size,) * 3
    rng = np.random.default_rng(seed)
    truth, noise = rng.standard_normal((2, *shape)).astype(np.float32)
    decoder = cg.Wedge(cg.wedge_mask(shape))
    observation = decoder(jnp.asarray(truth + noise / np.float32(ratio) ** 0.5))
    return cg.Posterior(witness, decoder, observation, jnp.zeros(shape), jnp.float32(ratio), jnp.float32(1.0))
