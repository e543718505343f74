"""Mean and variance in one pass, and their pooling over chains."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from cryowgen_jax.types import Array


class Moments(NamedTuple):
    """Number of draws, mean and sum of squared deviations, per element."""

    draws: Array
    mean: Array
    sum_squares: Array


def empty(like: Array) -> Moments:
    """No draws yet."""
    return Moments(jnp.zeros((), like.dtype), jnp.zeros_like(like), jnp.zeros_like(like))


def update(moments: Moments, position: Array) -> Moments:
    """Welford's update (Technometrics 1962): stable in float32, constant memory."""
    count = moments.draws + 1
    difference = position - moments.mean
    mean = moments.mean + difference / count
    return Moments(count, mean, moments.sum_squares + difference * (position - mean))


def pool(moments: Moments) -> tuple[Array, Array]:
    """Mean and variance over all chains (leading axis) and draws: between-chain spread included (Chan et al. 1983).

    nan where there are no draws, or one, to take them from.
    """
    total = jnp.sum(moments.draws)
    counts = moments.draws.reshape((-1,) + (1,) * (moments.mean.ndim - 1))
    mean = jnp.sum(counts * moments.mean, axis=0) / total
    between = jnp.sum(counts * (moments.mean - mean[None]) ** 2, axis=0)
    return mean, (jnp.sum(moments.sum_squares, axis=0) + between) / jnp.maximum(total - 1, 0)
