"""Preconditioned Crank-Nicolson Langevin: exact on the Gaussian part, which is diagonal in Fourier space."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from cryowgen_jax.pytrees import bind
from cryowgen_jax.samplers.interface import GaussianPart, Recipe, Witness, algorithm, score, value_and_spectral_gradient
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, PRNGKey

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm


class PcnlState(NamedTuple):
    """State of a chain.

    Attributes
    ----------
    position
        z.
    offset, gradient
        Half spectra of z - mu and of grad w(z).
    witness
        w(z).
    """

    position: Array
    offset: Array
    witness: Array
    gradient: Array


class PcnlInfo(NamedTuple):
    """min(1, alpha) of the proposal, 1 without a Metropolis test, and whether it was taken."""

    acceptance_rate: Array
    is_accepted: Array


def build(
    witness: Witness, gaussian: GaussianPart, step_size: Array | float, *, adjusted: bool = True
) -> SamplingAlgorithm:
    r"""Preconditioned Crank-Nicolson Langevin (pCNL) for exp(w(z)) N(z; mu, C), C diagonal in Fourier space.

    With the step size h and a = 1 - h the proposal from u is

    .. math:: v = \mu + a (u - \mu) + h\, C \nabla w(u) + \sqrt{1 - a^2}\, C^{1/2} \xi .

    Its Metropolis test has no Gaussian terms (Cotter, Roberts, Stuart and White, Stat. Sci. 2013): with u' = u - mu and
    g = grad w,

    .. math:: \log\alpha = w(v) - w(u) + \sum_k \tfrac{1}{1 + a}\{ g(v)_k (u' - a v')_k - g(u)_k (v' - a u')_k
              - \tfrac12 h\, C_k (|g(v)_k|^2 - |g(u)_k|^2) \}.

    Parameters
    ----------
    witness
        w: volume -> scalar, smooth.
    gaussian
        The Gaussian part.
    step_size
        h in (0, 1]. Where w = 0, steps of 1 give independent draws. A scalar, or one per coefficient in rfftn layout.
    adjusted
        Apply the Metropolis test. Without it, on a mode where w has curvature g / C the stationary variance is
        C/(1 + g) (2 - h)/(2 - h - h g); stable iff h (1 + g) < 2, whatever the data weight.

    Returns
    -------
    SamplingAlgorithm
        BlackJAX's pair of ``init(position)`` and ``step(rng_key, state)``.

    Notes
    -----
    One witness gradient and three transforms a step.

    Examples
    --------
    >>> from cryowgen_jax.potentials import gaussian_part
    >>> decoder, volume = cg.Wedge(cg.wedge_mask((4, 4, 4))), jnp.ones((4, 4, 4))
    >>> posterior = cg.Posterior(lambda z: -jnp.sum(jnp.cosh(z)), decoder, volume, 0 * volume, 10.0, 1.0)
    >>> algorithm = cg.pcnl(posterior.witness, gaussian_part(posterior), step_size=0.2)
    >>> state, info = algorithm.step(jax.random.key(0), algorithm.init(volume))
    >>> state.position.shape
    (4, 4, 4)
    """
    function = adjusted_step if adjusted else unadjusted_step
    return algorithm(bind(init, witness, gaussian), bind(function, witness, gaussian, step_size))


def first_step(gap: Array) -> Array:
    """A step size that is stable and well accepted where |Hess w| <= gap / C."""
    return jnp.minimum(0.5, 0.3 / (1.0 + gap))


def init(witness: Witness, gaussian: GaussianPart, position: Array, rng_key: PRNGKey | None = None) -> PcnlState:
    """Start a chain; ``rng_key`` is not used."""
    del rng_key
    return _state(witness, gaussian, position, fourier.rfftn(position) - gaussian.mean_spectrum)


def unadjusted_step(
    witness: Witness, gaussian: GaussianPart, step_size: Array, rng_key: PRNGKey, state: PcnlState
) -> tuple[PcnlState, PcnlInfo]:
    """One step without a Metropolis test."""
    proposal = _propose(witness, gaussian, step_size, rng_key, state)
    return proposal, PcnlInfo(jnp.ones(()), jnp.ones((), bool))


def adjusted_step(
    witness: Witness, gaussian: GaussianPart, step_size: Array, rng_key: PRNGKey, state: PcnlState
) -> tuple[PcnlState, PcnlInfo]:
    """One step with the Metropolis test; a proposal that is not finite is rejected."""
    proposal_key, accept_key = jax.random.split(rng_key)
    proposal = _propose(witness, gaussian, step_size, proposal_key, state)
    log_alpha = _log_acceptance(gaussian, step_size, state, proposal)
    log_alpha = jnp.where(jnp.isnan(log_alpha), -jnp.inf, log_alpha)
    rate = jnp.exp(jnp.minimum(log_alpha, 0.0))
    accept = jax.random.uniform(accept_key) < rate
    chosen = jax.tree.map(lambda new, old: jnp.where(accept, new, old), proposal, state)
    return chosen, PcnlInfo(rate, accept)


def _state(witness: Witness, gaussian: GaussianPart, position: Array, offset: Array) -> PcnlState:
    value, gradient = value_and_spectral_gradient(witness, position, gaussian.mean_spectrum + offset)
    return PcnlState(position=position, offset=offset, witness=value, gradient=gradient)


def _propose(
    witness: Witness, gaussian: GaussianPart, step_size: Array, rng_key: PRNGKey, state: PcnlState
) -> PcnlState:
    noise = fourier.rfftn(jax.random.normal(rng_key, state.position.shape, state.position.dtype))
    a = 1 - jnp.asarray(step_size, state.position.dtype)
    offset = (
        a * state.offset
        + (1 - a) / gaussian.precision * state.gradient
        + jnp.sqrt((1 - a) * (1 + a) / gaussian.precision) * noise
    )
    position = fourier.irfftn(gaussian.mean_spectrum + offset, state.position.shape)
    return _state(witness, gaussian, position, offset)


def _log_acceptance(gaussian: GaussianPart, step_size: Array, old: PcnlState, new: PcnlState) -> Array:
    a = 1 - jnp.asarray(step_size, old.position.dtype)
    g_new, g_old, u, v = new.gradient, old.gradient, old.offset, new.offset
    # |g_new|^2 - |g_old|^2 as a product of sum and difference keeps its digits.
    terms = fourier.real_product(g_new, u - a * v) - fourier.real_product(g_old, v - a * u)
    terms = terms - 0.5 * (1 - a) / gaussian.precision * fourier.real_product(g_new - g_old, g_new + g_old)
    return new.witness - old.witness + jnp.sum(terms / (1 + a) * fourier.multiplicity(old.position.shape))


PCNL = Recipe(build, first_step, target=0.7, max_step_size=1.0, score=score)
PCNL_UNADJUSTED = Recipe(functools.partial(build, adjusted=False), first_step, score=score)
