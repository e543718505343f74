"""The Metropolis-adjusted Langevin algorithm (MALA), BlackJAX's, for log-densities of which nothing else is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from cryowgen_jax.samplers.interface import Recipe
from cryowgen_jax.types import Array, LogDensityFn

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm


def build(log_density: LogDensityFn, step_size: Array | float) -> SamplingAlgorithm:
    """``blackjax.mala``: Langevin steps of size eta with a Metropolis test, which makes them exact."""
    import blackjax

    return blackjax.mala(log_density, step_size)


def first_step(curvature: None) -> Array:
    """A step size that is small for most densities; warm-up finds the right one."""
    del curvature
    return jnp.asarray(1e-3)


def score(state: Any) -> Array:
    """Gradient of the log-density at the state."""
    return state.logdensity_grad


OPTIMAL_ACCEPTANCE = 0.574  # in high dimension: Roberts and Rosenthal, JRSS B 1998
MALA = Recipe(build, first_step, target=OPTIMAL_ACCEPTANCE, score=score)
