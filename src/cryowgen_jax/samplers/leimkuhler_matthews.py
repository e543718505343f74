"""The Leimkuhler-Matthews scheme: Langevin steps with the mean of two successive noises."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from cryowgen_jax.pytrees import bind
from cryowgen_jax.samplers.interface import Recipe, algorithm
from cryowgen_jax.samplers.langevin import LangevinInfo, first_step
from cryowgen_jax.types import Array, LogDensityFn, PRNGKey

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm


class LeimkuhlerMatthewsState(NamedTuple):
    """Position of the chain, and the last noise, which the next step uses again."""

    position: Array
    noise: Array


def build(log_density: LogDensityFn, step_size: Array | float) -> SamplingAlgorithm:
    r"""Leimkuhler-Matthews scheme (Appl. Math. Res. Express 2013, arXiv 1203.5428).

    .. math:: z_{k+1} = z_k + \eta \nabla F(z_k) + \sqrt{2 \eta}\,\tfrac{\xi_k + \xi_{k+1}}{2}.

    Parameters
    ----------
    log_density
        F: one position, any shape -> scalar, in nats, not normalised.
    step_size
        eta > 0. Stable on a Gaussian of precision q iff eta < 2/q.

    Returns
    -------
    SamplingAlgorithm
        BlackJAX's pair of ``init(position, rng_key)``, which draws the first noise, and ``step(rng_key, state)``.

    Notes
    -----
    On that Gaussian the stationary variance is exactly 1/q. One gradient a step, as in ``langevin``.

    Examples
    --------
    >>> algorithm = cg.leimkuhler_matthews(lambda z: -0.5 * jnp.sum(z**2), step_size=0.5)
    >>> state = algorithm.init(jnp.zeros(3), jax.random.key(0))
    >>> state, info = algorithm.step(jax.random.key(1), state)
    >>> state.position.shape
    (3,)
    """
    return algorithm(init, bind(step, log_density, step_size))


def init(position: Array, rng_key: PRNGKey | None = None) -> LeimkuhlerMatthewsState:
    """Start a chain. The first noise is drawn with ``rng_key``; without a key it is zero."""
    noise = jnp.zeros_like(position) if rng_key is None else jax.random.normal(rng_key, position.shape, position.dtype)
    return LeimkuhlerMatthewsState(position, noise)


def step(
    log_density: LogDensityFn, step_size: Array, rng_key: PRNGKey, state: LeimkuhlerMatthewsState
) -> tuple[LeimkuhlerMatthewsState, LangevinInfo]:
    """One step."""
    value, gradient = jax.value_and_grad(log_density)(state.position)
    noise = jax.random.normal(rng_key, state.position.shape, state.position.dtype)
    kick = jnp.sqrt(0.5 * step_size) * (state.noise + noise)
    return (
        LeimkuhlerMatthewsState(state.position + step_size * gradient + kick, noise),
        LangevinInfo(value, jnp.ones_like(value)),
    )


LEIMKUHLER_MATTHEWS = Recipe(build, first_step)
