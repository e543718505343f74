r"""The largest curvature of a posterior with any decoder, which bounds the step size of explicit samplers.

.. math:: L \ge \lambda_{\max}\big(\lambda J^T J + \beta I + F^{-1} S F\big), \qquad -\mathrm{Hess}\, w \le F^{-1} S F,

with J the Jacobian of the decoder.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cryowgen_jax.potentials.posterior import Posterior, draw_conditional_prior
from cryowgen_jax.potentials.witnesses import QuadraticWitness, ScaledWitness, SumWitness, spectral_curvature_bounds
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, FourierDiagonal, PRNGKey

_OVERLAP = 1e-3  # a normal number is smaller in size with probability 0.0008
_ROUNDING = 1.0001

LinearMap = Callable[[Array], Array]


def largest_curvature(
    posterior: Posterior,
    key: PRNGKey,
    *,
    num_iterations: int = 100,
    num_points: int = 4,
    metric: Array | None = None,
) -> Array:
    r"""Upper bound L of the curvature of -log rho, for the step sizes of ``langevin``, ``sk_rock`` and their like.

    Exact for decoders that are diagonal in Fourier space. For all others L = f + |G|, with f = min(beta + S_k) and |G|
    from power iteration with G = lambda J^T J + F^-1 (beta + S) F - f I on a standard normal v: since
    <v, e>^2 |G|^{2k} <= |G^k v|^2 for the unit eigenvector e of the largest eigenvalue |G|,

    .. math:: |G| \le \big(|G^k v| / \delta\big)^{1/k}, \qquad \delta = 10^{-3},

    unless |<v, e>| < delta, which has probability 0.0008 over the key. The margin over |G| is at most
    (sqrt(D) / delta)^{1/k} for D voxels: 11 % at D = 10^3 and 15 % at D = 10^6, k = 100.

    Parameters
    ----------
    posterior
        Its witness has to bound its curvature.
    key
        For v, and for the points below.
    num_iterations
        k. One costs about two gradients of the data fit.
    num_points
        The Jacobian is taken at ``posterior.center`` and at this many draws of the conditional prior, and the largest
        value counts. Where the decoder is linear 0 is enough.
    metric
        P_k > 0, real, in rfftn layout: bounds the curvature P^{1/2} H P^{1/2} of preconditioned chains instead.

    Returns
    -------
    Array
        L, scalar.

    Raises
    ------
    TypeError
        Where the witness does not bound its curvature.

    Notes
    -----
    The curvature of a decoder that is not linear, times its misfit, is left out (Gauss-Newton), and the Jacobian may
    be larger elsewhere: there L is an estimate. J v is computed as the transpose of the transpose, so that decoders
    that define only a reverse-mode derivative work too.
    """
    scale = jnp.ones((), posterior.center.dtype) if metric is None else metric
    rest = scale * (posterior.prior_precision + _witness_bound(posterior.witness))
    decoder = posterior.decoder
    if isinstance(decoder, FourierDiagonal):
        return jnp.max(scale * posterior.data_weight * decoder.transfer**2 + rest)
    floor = jnp.min(rest)  # shifts every eigenvalue by the same amount, so the margin need not cover it

    def at(point: tuple[Array, PRNGKey]) -> Array:
        position, key = point
        gram = _gram(decoder, position)

        def curvature(v: Array) -> Array:
            root = _filter(v, jnp.sqrt(scale))
            return posterior.data_weight * _filter(gram(root), jnp.sqrt(scale)) + _filter(v, rest - floor)

        start = jax.random.normal(key, position.shape, position.dtype)
        return _largest_eigenvalue(curvature, start, num_iterations)

    key, draw_key = jax.random.split(key)
    draws = jax.vmap(lambda k: draw_conditional_prior(posterior, k))(jax.random.split(draw_key, num_points))
    points = jnp.concatenate([posterior.center[None], draws])
    return floor + jnp.max(jax.lax.map(at, (points, jax.random.split(key, len(points)))))


def _witness_bound(witness: Callable[[Array], Array]) -> Array:
    """S: one number, or one per coefficient."""
    if isinstance(witness, QuadraticWitness):
        return witness.curvature
    if isinstance(witness, ScaledWitness):
        return witness.scale * _witness_bound(witness.witness)
    if isinstance(witness, SumWitness):
        return sum((_witness_bound(term) for term in witness.terms), jnp.zeros(()))
    return spectral_curvature_bounds(witness)[1]


def _gram(decoder: Callable[[Array], Array], position: Array) -> LinearMap:
    """Return v -> J^T J v at a position."""
    observation, pull_back = jax.vjp(decoder, position)
    _, push_forward = jax.vjp(lambda u: pull_back(u)[0], observation)  # linear in u, so it does not matter where
    return lambda v: pull_back(*push_forward(v))[0]


def _filter(volume: Array, transfer: Array) -> Array:
    return transfer * volume if jnp.ndim(transfer) == 0 else fourier.filter_volume(volume, transfer)


def _largest_eigenvalue(matrix: LinearMap, start: Array, num_iterations: int) -> Array:
    """Bound of the largest eigenvalue of a positive semi-definite map by powers of it on a normal vector."""

    def iterate(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        v, log_growth = carry
        v = matrix(v)
        norm = jnp.maximum(jnp.linalg.norm(v.reshape(-1)), jnp.finfo(v.dtype).tiny)
        return v / norm, log_growth + jnp.log(norm)

    _, log_growth = jax.lax.fori_loop(0, num_iterations, iterate, (start, jnp.zeros((), start.dtype)))
    return _ROUNDING * jnp.exp((log_growth - jnp.log(_OVERLAP)) / num_iterations)
