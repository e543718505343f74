"""Simulation-based calibration: whether the spread of posterior draws is right, on average over a prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax import platform
from cryowgen_jax.chains import parallel
from cryowgen_jax.types import Array, InputError, PRNGKey, PyTree

DRAWS_PER_BIN = 10  # least number of ranks that the test expects in a bin


class CalibrationResult(NamedTuple):
    """Ranks of truths among the posterior draws of their own observations.

    Attributes
    ----------
    ranks
        (simulations, statistics), from 0 to ``num_draws``. Uniform where model and sampler are right. A histogram like
        a U means that the spread is too small, like a hill that it is too large, like a slope that there is a bias.
    num_draws
        Posterior draws of each simulation.
    p_values
        (statistics,), of the chi-squared test of uniformity.
    """

    ranks: Array
    num_draws: int
    p_values: np.ndarray


def simulation_based_calibration(
    key: PRNGKey,
    draw_prior: Callable[[PRNGKey], Array],
    observe: Callable[[PRNGKey, Array], PyTree],
    draw_posterior: Callable[[PRNGKey, PyTree], Array],
    statistics: Callable[[Array], Array],
    num_simulations: int = 200,
) -> CalibrationResult:
    r"""Rank truths among the posterior draws of their own observations (Talts et al., arXiv 1804.06788).

    .. math:: z^* \sim p(z), \quad x \sim p(x \mid z^*), \quad z_1 \dots z_L \sim \rho(z \mid x), \quad
              r = \#\{l : f(z_l) < f(z^*)\} \sim U\{0, \dots, L\} .

    Parameters
    ----------
    key
        Simulation i depends on ``fold_in(key, i)`` alone.
    draw_prior
        key -> z*, from the law that exp{w - beta/2 |z - zbar|^2} is proportional to.
    observe
        (key, z*) -> a ``Posterior``, or whatever ``draw_posterior`` takes.
    draw_posterior
        (key, posterior) -> draws (L, ...), nearly independent of each other: thin chains to their effective sample
        size, as in ``cg.sample(k, p, num_chains=1, num_kept=31, num_steps=31 * 20).samples[0]``.
    statistics
        z -> (S,) numbers to rank, such as voxels, shell energies, the witness.
    num_simulations
        Number of truths, at least 20.

    Returns
    -------
    CalibrationResult
        Ranks, and p-values that are small where the spread is wrong.

    Raises
    ------
    InputError
        Where there are too few simulations for a test.

    Examples
    --------
    >>> result = cg.simulation_based_calibration(  # z ~ N(0, 1), x ~ N(z, 1), z | x ~ N(x / 2, 1 / 2)
    ...     jax.random.key(0),
    ...     draw_prior=lambda key: jax.random.normal(key, (1,)),
    ...     observe=lambda key, truth: truth + jax.random.normal(key, (1,)),
    ...     draw_posterior=lambda key, x: x[None] / 2 + jax.random.normal(key, (31, 1)) / jnp.sqrt(2),
    ...     statistics=lambda z: z,
    ... )
    >>> bool(result.p_values[0] > 0.01)
    True
    """
    if num_simulations < 2 * DRAWS_PER_BIN:
        raise InputError(f"num_simulations={num_simulations}: give at least {2 * DRAWS_PER_BIN}")

    def one(i: Array) -> tuple[Array, Array]:
        prior_key, observation_key, posterior_key = jax.random.split(jax.random.fold_in(key, i), 3)
        truth = draw_prior(prior_key)
        draws = draw_posterior(posterior_key, observe(observation_key, truth))
        below = jax.vmap(statistics)(draws) < statistics(truth)[None]
        return jnp.sum(below, axis=0), jnp.asarray(draws.shape[0])

    ranks, counts = platform.jit(lambda indices: jax.lax.map(one, indices))(jnp.arange(num_simulations))
    num_draws = int(counts[0])
    return CalibrationResult(ranks, num_draws, _uniformity(np.asarray(ranks), num_draws))


def _uniformity(ranks: np.ndarray, num_draws: int) -> np.ndarray:
    """p-values of the chi-squared test, in bins of equally many ranks."""
    from scipy import stats

    bins = parallel.largest_divisor(num_draws + 1, max(2, len(ranks) // DRAWS_PER_BIN))
    width = (num_draws + 1) // bins
    counts = np.stack([np.bincount(column // width, minlength=bins) for column in ranks.T])
    return np.asarray(stats.chisquare(counts, axis=1).pvalue)
