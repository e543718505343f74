"""The unadjusted Langevin algorithm, which is CryoWGEN-II's update of negative samples as published."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from cryowgen_jax.pytrees import bind
from cryowgen_jax.samplers.interface import Recipe, algorithm
from cryowgen_jax.types import Array, LogDensityFn, PRNGKey

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm

STEP_TIMES_CURVATURE = 0.2


class LangevinState(NamedTuple):
    """Position of the chain."""

    position: Array


class LangevinInfo(NamedTuple):
    """Log-density of the position before the step, and the acceptance rate: 1, as nothing is rejected."""

    log_density: Array
    acceptance_rate: Array


def build(log_density: LogDensityFn, step_size: Array | float) -> SamplingAlgorithm:
    r"""Unadjusted Langevin algorithm (ULA).

    .. math:: z \leftarrow z + \eta \nabla F(z) + \sqrt{2 \eta}\,\xi, \qquad \xi \sim N(0, I).

    Parameters
    ----------
    log_density
        F: one position, any shape -> scalar, in nats, not normalised. Where it is a pytree, new arrays in it need no
        new compilation.
    step_size
        eta > 0. Stable on a Gaussian of precision q iff eta < 2/q.

    Returns
    -------
    SamplingAlgorithm
        BlackJAX's pair of ``init(position)`` and ``step(rng_key, state)``.

    Notes
    -----
    There is no Metropolis test: on that Gaussian the stationary variance is 1/(q(1 - eta q/2)), and the autocovariance
    at lag k is (1 - eta q)^k times it. ``leimkuhler_matthews`` is exact there, ``kinetic`` and ``pcnl`` everywhere.

    Examples
    --------
    >>> algorithm = cg.langevin(lambda z: -0.5 * jnp.sum(z**2), step_size=0.1)
    >>> state, info = algorithm.step(jax.random.key(0), algorithm.init(jnp.zeros(3)))
    >>> state.position.shape
    (3,)
    """
    return algorithm(init, bind(step, log_density, step_size))


def first_step(curvature: Array) -> Array:
    """A step size that inflates no variance by more than 1 / (1 - 0.1), where -Hess F <= ``curvature``."""
    return STEP_TIMES_CURVATURE / curvature


def init(position: Array, rng_key: PRNGKey | None = None) -> LangevinState:
    """Start a chain; ``rng_key`` is not used."""
    del rng_key
    return LangevinState(position)


def step(
    log_density: LogDensityFn, step_size: Array, rng_key: PRNGKey, state: LangevinState
) -> tuple[LangevinState, LangevinInfo]:
    """One step."""
    value, gradient = jax.value_and_grad(log_density)(state.position)
    noise = jax.random.normal(rng_key, state.position.shape, state.position.dtype)
    position = state.position + step_size * gradient + jnp.sqrt(2 * step_size) * noise
    return LangevinState(position), LangevinInfo(value, jnp.ones_like(value))


LANGEVIN = Recipe(build, first_step)
