"""CryoGEN-I and II: point estimates, each the maximum of an exponent."""

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
        For the starts after the first.
    posterior
        The target; in CryoGEN-I w is minus an energy that was learned from re-degraded rotations.
    num_steps
        Largest number of steps of L-BFGS. An ascent ends earlier where the gradient falls below the resolution of
        float32.
    num_starts
        Number of ascents, the best of which is returned. The first starts at the mean of the Gaussian part of
        ``potentials.split``, the others at draws of the Gaussian part. For decoders that are not diagonal in Fourier
        space the conditional prior takes its place.

    Returns
    -------
    Family
        One member of weight 1; ``std`` is 0, since a point estimate does not tell its error.

    Raises
    ------
    ValueError
        Where numbers do not fit.

    Notes
    -----
    The coordinates are those in which the Gaussian part of ``potentials.split`` is white, which includes quadratic
    witnesses and half of the bound on the curvature of others. The number of steps then depends neither on lambda nor
    on how small beta is.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, cryowgen_jax as cg
    >>> wedge, zeros = cg.Wedge(cg.wedge_mask((8, 8, 8))), jnp.zeros((8, 8, 8))
    >>> witness = cg.QuadraticWitness(curvature=jnp.ones((8, 8, 5)), mean=zeros)
    >>> posterior = cg.Posterior(witness, wedge, wedge(zeros + 1.2), zeros, data_weight=10.0, prior_precision=1.0)
    >>> family = cg.cryogen_map(jax.random.key(0), posterior)
    >>> round(float(family.mean[0, 0, 0]), 3)  # 10 * 1.2 / (10 + 1 + 1)
    1.0
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

    and where that is not unique the minimiser nearest to z-bar. It is the limit of the maximum of F as the temperature
    falls, since kappa is not tempered; the maximum at temperature :math:`10^{-3}` is returned.

    Parameters
    ----------
    key, posterior, num_steps, num_starts
        As in :func:`cryogen_map`.

    Returns
    -------
    Family
        One member of weight 1; ``std`` is 0.

    Raises
    ------
    ValueError
        Where numbers do not fit.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, cryowgen_jax as cg
    >>> wedge, zeros = cg.Wedge(cg.wedge_mask((8, 8, 8))), jnp.zeros((8, 8, 8))
    >>> witness = cg.QuadraticWitness(curvature=jnp.ones((8, 8, 5)), mean=zeros)
    >>> posterior = cg.Posterior(witness, wedge, wedge(zeros + 1.2), zeros, data_weight=10.0, prior_precision=1.0)
    >>> family = cg.cryogen_ot(jax.random.key(0), posterior)
    >>> round(float(family.mean[0, 0, 0]), 3)  # 10 * 1.2 / (10 + 1 + 0.001)
    1.091
    """
    return cryogen_map(key, untethered(posterior), num_steps=num_steps, num_starts=num_starts)


def untethered(posterior: Posterior) -> Posterior:
    """The posterior whose maximum is CryoGEN-II's answer: beta times a thousandth, all else the same."""
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
