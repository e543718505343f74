"""Importance sampling, CryoWGEN-I's estimator: candidates from a reference distribution, and their weights."""

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

    Attributes
    ----------
    samples
        The candidates, (K, ...).
    log_weights
        (K,), not normalised.
    mean, variance
        Per voxel, under the normalised weights.
    ess
        Effective sample size: 1 / sum of the squared normalised weights, between 1 (one candidate has all the weight)
        and K.
    psi
        Estimate of the effective potential, biased upwards by O(1/K).
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
    r"""Draw K candidates z_i from a reference r and weigh them for the target e^F.

    .. math:: l_i = F(z_i) - \log r(z_i), \quad \omega = \mathrm{softmax}(l), \quad
              \hat\Psi = -\log \tfrac1K \sum_i e^{l_i}, \quad \mathrm{ESS} = 1/\sum_i \omega_i^2 .

    Parameters
    ----------
    key
        Candidate i uses ``fold_in(key, i)``, whatever the batch size.
    draw
        Key -> z_i.
    log_weight
        z_i -> l_i less ``log_integral``. Where both are pytrees, new arrays in them need no new compilation.
    log_integral
        What is common to all l_i, such as the log of a reference measure's total mass.
    num_candidates, batch_size
        K, and how many candidates are drawn and weighed in one vectorised call.

    Returns
    -------
    WeightedFamily
        All K candidates.
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
    """The family of candidates that are drawn already.

    Parameters
    ----------
    samples
        (K, ...).
    log_weights
        l_i less ``log_integral``, (K,), with l_i as in :func:`weigh`.
    log_integral
        What is common to all l_i.
    """
    weights = jax.nn.softmax(log_weights)
    broadcast = weights.reshape((-1,) + (1,) * (samples.ndim - 1))
    mean = jnp.sum(broadcast * samples, axis=0)
    variance = jnp.sum(broadcast * (samples - mean[None]) ** 2, axis=0)
    log_mean = jax.nn.logsumexp(log_weights) - jnp.log(len(log_weights))
    return WeightedFamily(
        samples=samples,
        log_weights=log_weights + log_integral,
        mean=mean,
        variance=variance,
        ess=1 / jnp.sum(weights**2),
        psi=-log_mean - log_integral,
    )
