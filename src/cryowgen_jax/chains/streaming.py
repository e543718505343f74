"""Mean and variance of a chain in one pass over its positions, and of all chains together."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from cryowgen_jax.types import Array


class Moments(NamedTuple):
    """Number of draws, their mean, and the sum of their squared deviations from it, element by element."""

    draws: Array
    mean: Array
    sum_squares: Array


def empty(like: Array) -> Moments:
    """Moments of no draws, for positions like this one."""
    return Moments(jnp.zeros((), like.dtype), jnp.zeros_like(like), jnp.zeros_like(like))


def update(moments: Moments, position: Array) -> Moments:
    """Moments with one position more: Welford's update (Technometrics 1962), stable in float32."""
    count = moments.draws + 1
    difference = position - moments.mean
    mean = moments.mean + difference / count
    return Moments(count, mean, moments.sum_squares + difference * (position - mean))


def pool(moments: Moments) -> tuple[Array, Array]:
    """Mean and variance over all draws of all chains, which lead the arrays (Chan, Golub and LeVeque 1983).

    The variance includes the spread between chains. The mean of no draws and the variance of one are nan.
    """
    total = jnp.sum(moments.draws)
    counts = moments.draws.reshape((-1,) + (1,) * (moments.mean.ndim - 1))
    mean = jnp.sum(counts * moments.mean, axis=0) / total
    between = jnp.sum(counts * (moments.mean - mean[None]) ** 2, axis=0)
    return mean, (jnp.sum(moments.sum_squares, axis=0) + between) / jnp.maximum(total - 1, 0)
