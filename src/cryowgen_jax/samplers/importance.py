"""Importance sampling: candidates from a reference, weights that close the gap. CryoWGEN-I's estimator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cryowgen_jax import platform
from cryowgen_jax.pytrees import as_pytree
from cryowgen_jax.types import Array, PRNGKey


class WeightedFamily(NamedTuple):
    """Candidates with their weights.

    ``samples`` (K, ...), ``log_weights`` (K,) not normalised, ``mean`` and ``variance`` per voxel under the normalised
    weights, ``ess`` = 1 / sum of squared weights (1 means that one candidate carries all), ``psi`` the estimate of the
    effective potential, biased upwards by O(1/K).
    """

    samples: Array
    log_weights: Array
    mean: Array
    variance: Array
    ess: Array
    psi: Array


def weigh(
    key: PRNGKey,
    draw: Callable[[PRNGKey], Array],
    log_weight: Callable[[Array], Array],
    log_integral: Array,
    num_candidates: int,
    batch_size: int,
) -> WeightedFamily:
    r"""Draw K candidates z_i from a reference r and weigh them.

    .. math:: l_i = F(z_i) - \log r(z_i), \quad \omega = \mathrm{softmax}(l), \quad
              \hat\Psi = -\log \tfrac1K \sum_i e^{l_i}, \quad \mathrm{ESS} = 1/\sum_i \omega_i^2 .

    Parameters
    ----------
    key
        Candidate i uses ``fold_in(key, i)`` whatever the batch size.
    draw, log_weight
        key -> z_i, and z_i -> l_i less ``log_integral``; pytree callables trace once for any arrays.
    log_integral
        Log of the mass of the reference measure, common to all weights.
    num_candidates, batch_size
        K, and how many candidates are alive in one vectorised call.
    """
    compiled = _compiled(num_candidates, min(batch_size, num_candidates))
    return compiled(key, as_pytree(draw), as_pytree(log_weight), log_integral)


@functools.lru_cache(maxsize=32)
def _compiled(num_candidates: int, batch_size: int) -> Callable[..., WeightedFamily]:
    return platform.jit(functools.partial(_weigh, num_candidates, batch_size))


def _weigh(
    num_candidates: int,
    batch_size: int,
    key: PRNGKey,
    draw: Callable[[PRNGKey], Array],
    log_weight: Callable[[Array], Array],
    log_integral: Array,
) -> WeightedFamily:
    def candidate(index: Array) -> tuple[Array, Array]:
        position = draw(jax.random.fold_in(key, index))
        return position, log_weight(position)

    samples, log_weights = jax.lax.map(candidate, jnp.arange(num_candidates), batch_size=batch_size)
    return weighted(samples, log_weights, log_integral)


def weighted(samples: Array, log_weights: Array, log_integral: Array | float = 0.0) -> WeightedFamily:
    """Candidates (K, ...) that were drawn already, with l_i less ``log_integral``, (K,); as in :func:`weigh`."""
    weights = jax.nn.softmax(log_weights)
    broadcast = weights.reshape((-1,) + (1,) * (samples.ndim - 1))
    mean = jnp.sum(broadcast * samples, axis=0)
    variance = jnp.sum(broadcast * (samples - mean[None]) ** 2, axis=0)
    log_mean = jax.nn.logsumexp(log_weights) - jnp.log(len(log_weights))
    return WeightedFamily(
        samples, log_weights + log_integral, mean, variance, 1 / jnp.sum(weights**2), -log_mean - log_integral
    )
