"""CryoGEN-I and II: the point estimates, both a maximum of an exponent."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cryowgen_jax import platform
from cryowgen_jax.methods.family import Family
from cryowgen_jax.optimisation import minimise
from cryowgen_jax.potentials import Posterior, drawable_part, split
from cryowgen_jax.pytrees import as_pytree
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, FourierDiagonal, PRNGKey

COLDEST = 1e-3  # temperature at which cryogen_ot looks for its answer


def cryogen_map(key: PRNGKey, posterior: Posterior, *, num_steps: int = 200, num_starts: int = 1) -> Family:
    r"""CryoGEN-I: the maximum a posteriori volume, argmax of

    .. math:: F(z) = w(z) - \tfrac\lambda2 |x - A(z)|^2 - \tfrac\beta2 |z - \bar z|^2 .

    Parameters
    ----------
    key
        For all starts but the first, which is the mean of what is Gaussian in the posterior (``potentials.split``).
    posterior
        The target; in CryoGEN-I w is minus an energy that was learned from re-degraded rotations.
    num_steps
        Most steps of L-BFGS, in coordinates in which the same is white, quadratic witnesses and half of the bound on
        the curvature of others included, so that they feel neither lambda nor how loose the tether is. It ends earlier
        where the gradient has fallen below the resolution of float32.
    num_starts
        The answer is the best of as many ascents; further ones start from draws of the Gaussian part, or of the
        conditional prior.

    Returns
    -------
    Family
        One sample of weight 1; ``std`` is 0: a point estimate says nothing of its error.
    """
    if num_steps < 1 or num_starts < 1:
        raise ValueError(f"num_steps={num_steps}, num_starts={num_starts}: give at least 1 of each")
    posterior = as_pytree(posterior)
    best = _climb(num_steps, num_starts)(key, posterior)
    return Family(best[None], jnp.ones(1), best, jnp.zeros_like(best))


def cryogen_ot(key: PRNGKey, posterior: Posterior, *, num_steps: int = 200, num_starts: int = 1) -> Family:
    r"""CryoGEN-II: the answer of deterministic optimal transport, the temperature-zero limit of CryoWGEN-II.

    With the dual potential w of the transport from observations to clean volumes, the minimiser of its c-transform

    .. math:: w^c(x) = \min_z \{ \tfrac\lambda2 |x - A(z)|^2 - w(z) \},

    the one nearest to z-bar where that is not unique: kappa is the reference measure, whose exponent does not grow as
    the temperature falls, so that F at temperature :math:`10^{-3}` has it as its maximum.

    Parameters
    ----------
    key, posterior, num_steps, num_starts
        As in :func:`cryogen_map`.
    """
    return cryogen_map(key, untethered(posterior), num_steps=num_steps, num_starts=num_starts)


def untethered(posterior: Posterior) -> Posterior:
    """The posterior whose maximum is CryoGEN-II's answer: a thousandth of the tether is left."""
    return dataclasses.replace(posterior, prior_precision=COLDEST * jnp.asarray(posterior.prior_precision))


@functools.lru_cache(maxsize=8)
def _climb(num_steps: int, num_starts: int) -> Callable[[PRNGKey, Posterior], Array]:
    return platform.jit(functools.partial(_best_of, num_steps, num_starts))


def _best_of(num_steps: int, num_starts: int, key: PRNGKey, posterior: Posterior) -> Array:
    gaussian = drawable_part(posterior)
    stiff = gaussian
    if isinstance(posterior.decoder, FourierDiagonal):
        stiff, _ = split(posterior)
    precision = jnp.maximum(stiff.precision, gaussian.precision)

    def unwhiten(u: Array) -> Array:
        return fourier.filter_volume(u, jax.lax.rsqrt(precision))

    def one(index: Array) -> tuple[Array, Array]:
        start = jnp.where(index == 0, stiff.mean, gaussian.draw(jax.random.fold_in(key, index)))
        down = minimise(lambda u: -posterior.log_density(start + unwhiten(u)), jnp.zeros_like(start), num_steps)
        found = start + unwhiten(down)
        return found, posterior.log_density(found)

    found, heights = jax.lax.map(one, jnp.arange(num_starts))
    return found[jnp.argmax(jnp.where(jnp.isnan(heights), -jnp.inf, heights))]
