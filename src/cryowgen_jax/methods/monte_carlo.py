"""CryoWGEN-I: candidates from a reference, weighted by the Boltzmann factor."""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from cryowgen_jax.methods.family import Family
from cryowgen_jax.potentials import DataFit, Posterior, SumWitness, draw_conditional_prior, gaussian_part
from cryowgen_jax.pytrees import as_pytree, bind
from cryowgen_jax.samplers import WeightedFamily, weigh
from cryowgen_jax.types import Array, PRNGKey


@runtime_checkable
class Reference(Protocol):
    """A distribution to draw candidates from; a pytree, such as a ``FourierGaussian``."""

    def draw(self, key: PRNGKey) -> Array:
        """One candidate."""
        ...

    def log_density(self, position: Array) -> Array:
        """Log r(z). It has to be normalised, or Psi is wrong by the missing constant."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DefensiveMixture:
    """Candidates from ``safe`` with probability ``share``, else from ``bold`` (Hesterberg, Technometrics 1995).

    However wrong ``bold`` is, no weight exceeds the weight under ``safe`` alone divided by ``share``.
    """

    bold: Reference
    safe: Reference
    share: Array | float = 0.1

    def draw(self, key: PRNGKey) -> Array:
        """One candidate."""
        which, own = jax.random.split(key)
        return jnp.where(jax.random.bernoulli(which, self.share), self.safe.draw(own), self.bold.draw(own))

    def log_density(self, position: Array) -> Array:
        """Log of the mixture's density."""
        return jnp.logaddexp(
            jnp.log1p(-self.share) + self.bold.log_density(position),
            jnp.log(self.share) + self.safe.log_density(position),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Excess:
    """F(z) - log r(z)."""

    posterior: Posterior
    reference: Reference

    def __call__(self, position: Array) -> Array:
        return self.posterior.log_density(position) - self.reference.log_density(position)


def importance_sample(
    key: PRNGKey,
    posterior: Posterior,
    num_candidates: int,
    *,
    reference: Literal["gaussian", "conditional_prior"] | Reference = "gaussian",
    batch_size: int = 16,
) -> WeightedFamily:
    r"""Importance sampling of a posterior: candidates z_i of a reference r, with log weights l_i = F(z_i) - log r(z_i).

    Parameters
    ----------
    key
        Candidate i depends on ``fold_in(key, i)`` alone.
    posterior
        The target.
    num_candidates
        K.
    reference
        "gaussian": the exact Gaussian part N(mu0, C), whose draws agree with the data; l_i = w(z_i).
        "conditional_prior": kappa = N(zbar, I/beta), the method as published; l_i = w(z_i) - lambda/2 \|x - A z_i\|^2,
        and the effective sample size is 1 beyond a few tens of measured coefficients.
        Or any object with ``draw(key)`` and ``log_density(z)``. An amortised reference is
        ``informed_part(posterior, center, variance)`` with the center and the variance from a network;
        ``DefensiveMixture(amortised, gaussian_part(posterior))`` makes it safe.
    batch_size
        Candidates in memory at a time.

    Returns
    -------
    WeightedFamily
        All candidates, with their effective sample size ``ess``, which may be 1, and the estimate ``psi``.

    Raises
    ------
    TypeError
        reference="gaussian" where the decoder is not diagonal in Fourier space.
    ValueError
        Where numbers or the reference's name do not fit.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, cryowgen_jax as cg
    >>> wedge, zeros = cg.Wedge(cg.wedge_mask((8, 8, 8))), jnp.zeros((8, 8, 8))
    >>> witness = cg.QuadraticWitness(curvature=jnp.ones((8, 8, 5)), mean=zeros)
    >>> posterior = cg.Posterior(witness, wedge, wedge(zeros + 1.2), zeros, data_weight=10.0, prior_precision=1.0)
    >>> candidates = cg.importance_sample(jax.random.key(0), posterior, num_candidates=32)
    >>> candidates.samples.shape, candidates.log_weights.shape
    ((32, 8, 8, 8), (32,))
    """
    if num_candidates < 1 or batch_size < 1:
        raise ValueError(f"num_candidates={num_candidates}, batch_size={batch_size}: give at least 1 of each")
    posterior = as_pytree(posterior)
    if reference == "gaussian":
        gaussian = gaussian_part(posterior)
        return weigh(
            key, as_pytree(gaussian.draw), posterior.witness, gaussian.log_integral, num_candidates, batch_size
        )
    if reference == "conditional_prior":
        beta = jnp.asarray(posterior.prior_precision, jnp.float32)
        log_integral = 0.5 * posterior.center.size * jnp.log(2 * jnp.pi / beta)
        draw = bind(draw_conditional_prior, posterior)
        fit = DataFit(posterior.decoder, posterior.observation, posterior.data_weight)
        log_weight = SumWitness((posterior.witness, fit))
        return weigh(key, draw, log_weight, log_integral, num_candidates, batch_size)
    if isinstance(reference, Reference):
        excess = _Excess(posterior, as_pytree(reference))
        return weigh(key, as_pytree(reference.draw), excess, jnp.zeros(()), num_candidates, batch_size)
    known = 'give "gaussian", "conditional_prior", or what has draw(key) and log_density(position)'
    raise ValueError(f"reference={reference!r} is not known: {known}")


def cryowgen_mc(
    key: PRNGKey, posterior: Posterior, *, num_candidates: int = 256, num_samples: int = 8, batch_size: int = 16
) -> Family:
    """CryoWGEN-I: candidates from the Gaussian part, weighted by exp w(z); the heaviest are the members.

    Parameters
    ----------
    key
        Candidate i depends on ``fold_in(key, i)`` alone.
    posterior
        The target; its decoder has to be diagonal in Fourier space.
    num_candidates
        Candidates; ``mean`` and ``std`` of the family are those of all of them.
    num_samples
        Members of the family.
    batch_size
        Candidates in memory at a time.

    Returns
    -------
    Family
        Weights are normalised over the members.

    Raises
    ------
    TypeError
        Where the decoder is not diagonal in Fourier space.
    ValueError
        Where numbers do not fit.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, cryowgen_jax as cg
    >>> wedge, zeros = cg.Wedge(cg.wedge_mask((8, 8, 8))), jnp.zeros((8, 8, 8))
    >>> witness = cg.QuadraticWitness(curvature=jnp.ones((8, 8, 5)), mean=zeros)
    >>> posterior = cg.Posterior(witness, wedge, wedge(zeros + 1.2), zeros, data_weight=10.0, prior_precision=1.0)
    >>> family = cg.cryowgen_mc(jax.random.key(0), posterior, num_candidates=32, num_samples=4)
    >>> family.samples.shape, round(float(family.weights.sum()), 5)
    ((4, 8, 8, 8), 1.0)
    """
    return heaviest(importance_sample(key, posterior, num_candidates, batch_size=batch_size), num_samples)


def heaviest(candidates: WeightedFamily, num_samples: int) -> Family:
    """The ``num_samples`` heaviest candidates with weights that sum to 1; mean and std are those of all candidates."""
    chosen = jnp.argsort(-candidates.log_weights)[:num_samples]
    weights = jax.nn.softmax(candidates.log_weights[chosen])
    return Family(candidates.samples[chosen], weights, candidates.mean, jnp.sqrt(candidates.variance))
