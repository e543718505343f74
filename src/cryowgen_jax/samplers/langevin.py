"""The unadjusted Langevin algorithm: CryoWGEN-II's negative-sample update as published."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from cryowgen_jax.pytrees import bind
from cryowgen_jax.samplers.interface import Recipe, algorithm
from cryowgen_jax.types import Array, LogDensityFn, PRNGKey

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm

STEP_OVER_CURVATURE = 0.2  # at which the variance of the stiffest mode is 1 / (1 - 0.1) times too large


class LangevinState(NamedTuple):
    """Where the chain is."""

    position: Array


class LangevinInfo(NamedTuple):
    """Log-density of the position that the step left, and the acceptance rate (1: nothing is rejected)."""

    log_density: Array
    acceptance_rate: Array


def build(log_density: LogDensityFn, step_size: Array | float) -> SamplingAlgorithm:
    r"""Unadjusted Langevin algorithm (ULA).

    .. math:: z \leftarrow z + \eta \nabla F(z) + \sqrt{2 \eta}\,\xi, \qquad \xi \sim N(0, I).

    Parameters
    ----------
    log_density
        F: one position, any shape -> scalar, in nats, not normalised. A pytree callable keeps the step free of
        recompilation when its arrays change.
    step_size
        eta > 0. Stable on a Gaussian of precision q iff eta < 2/q.

    Notes
    -----
    No accept/reject step: on that Gaussian the stationary variance is 1/(q(1 - eta q/2)) and the autocovariance at lag
    k is (1 - eta q)^k times it. For kernels without that bias see ``leimkuhler_matthews`` and ``pcnl``.
    """
    return algorithm(init, bind(step, log_density, step_size))


def first_step(curvature: Array) -> Array:
    """A step whose bias is small in every mode where -F has curvature at most ``curvature``."""
    return STEP_OVER_CURVATURE / curvature


def init(position: Array, rng_key: PRNGKey | None = None) -> LangevinState:
    """Start a chain; ``rng_key`` is not used."""
    del rng_key
    return LangevinState(position)


def step(
    log_density: LogDensityFn, step_size: Array, rng_key: PRNGKey, state: LangevinState
) -> tuple[LangevinState, LangevinInfo]:
    """One update."""
    value, gradient = jax.value_and_grad(log_density)(state.position)
    noise = jax.random.normal(rng_key, state.position.shape, state.position.dtype)
    position = state.position + step_size * gradient + jnp.sqrt(2 * step_size) * noise
    return LangevinState(position), LangevinInfo(value, jnp.ones_like(value))


LANGEVIN = Recipe(build, first_step)
