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
    """What candidates may be drawn from; a pytree, such as a ``FourierGaussian``."""

    def draw(self, key: PRNGKey) -> Array:
        """One candidate."""
        ...

    def log_density(self, position: Array) -> Array:
        """Log r(z), normalised (or Psi is off by what is missing)."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DefensiveMixture:
    """Candidates from ``safe`` with probability ``share`` and from ``bold`` otherwise (Hesterberg, Technometrics 1995).

    No weight is above that of ``safe`` alone divided by ``share``, however wrong ``bold`` is.
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
    r"""Importance sampling of a posterior.

    Parameters
    ----------
    key
        Candidate i depends on ``fold_in(key, i)`` alone.
    posterior
        The target.
    num_candidates
        K.
    reference
        "conditional_prior": z_i from kappa = N(zbar, I/beta), the method as published, with
        l_i = w(z_i) - lambda/2 \|x - A z_i\|^2; its effective sample size is 1 beyond a few tens of measured
        coefficients. "gaussian": z_i from the exact Gaussian part N(mu0, C), with l_i = w(z_i): candidates already
        agree with the data. Or anything with ``draw(key)`` and ``log_density(z)``, l_i = F(z_i) - log r(z_i): an
        amortised reference is ``informed_part(posterior, center, variance)`` with what a network says of them, made
        safe by ``DefensiveMixture(it, gaussian_part(posterior))``.
    batch_size
        Candidates alive at a time.

    Returns
    -------
    WeightedFamily
        With ``ess`` as it is, 1 included, and ``psi``.

    Raises
    ------
    TypeError
        reference="gaussian" where the decoder is not diagonal in Fourier space.
    ValueError
        Where numbers or the reference's name do not fit.
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
    """CryoWGEN-I: ``num_candidates`` from the Gaussian part, of which the ``num_samples`` heaviest are returned."""
    return heaviest(importance_sample(key, posterior, num_candidates, batch_size=batch_size), num_samples)


def heaviest(candidates: WeightedFamily, num_samples: int) -> Family:
    """The ``num_samples`` heaviest candidates, their weights renormalised; mean and std are those of all."""
    chosen = jnp.argsort(-candidates.log_weights)[:num_samples]
    weights = jax.nn.softmax(candidates.log_weights[chosen])
    return Family(candidates.samples[chosen], weights, candidates.mean, jnp.sqrt(candidates.variance))
