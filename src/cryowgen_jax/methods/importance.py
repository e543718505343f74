"""CryoWGEN-I: candidates from a reference, weighted by the Boltzmann factor."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from cryowgen_jax.methods.family import Family
from cryowgen_jax.potentials import DataFit, Posterior, SumWitness, draw_conditional_prior, gaussian_part
from cryowgen_jax.samplers import WeightedFamily, as_pytree, bind, weigh
from cryowgen_jax.types import PRNGKey

Reference = Literal["gaussian", "conditional_prior"]


def importance_sample(
    key: PRNGKey,
    posterior: Posterior,
    num_candidates: int,
    *,
    reference: Reference = "gaussian",
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
        agree with the data.
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
    witness, decoder = as_pytree(posterior.witness), as_pytree(posterior.decoder)
    posterior = dataclasses.replace(posterior, witness=witness, decoder=decoder)
    if reference == "gaussian":
        gaussian = gaussian_part(posterior)
        return weigh(
            key, as_pytree(gaussian.draw), posterior.witness, gaussian.log_integral, num_candidates, batch_size
        )
    if reference == "conditional_prior":
        beta = jnp.asarray(posterior.prior_precision, jnp.float32)
        log_integral = 0.5 * posterior.center.size * jnp.log(2 * jnp.pi / beta)
        draw = bind(draw_conditional_prior, posterior)
        log_weight = SumWitness((witness, DataFit(decoder, posterior.observation, posterior.data_weight)))
        return weigh(key, draw, log_weight, log_integral, num_candidates, batch_size)
    raise ValueError(f'reference={reference!r} is not known: give "gaussian" or "conditional_prior"')


def cryowgen_mc(
    key: PRNGKey, posterior: Posterior, *, num_candidates: int = 256, num_samples: int = 8, batch_size: int = 16
) -> Family:
    """CryoWGEN-I: ``num_candidates`` from the Gaussian part, of which the ``num_samples`` heaviest are returned.

    Mean and std are over all candidates. The weights of the returned ones are renormalised to 1.
    """
    weighted = importance_sample(key, posterior, num_candidates, batch_size=batch_size)
    heaviest = jnp.argsort(-weighted.log_weights)[: min(num_samples, num_candidates)]
    weights = jax.nn.softmax(weighted.log_weights[heaviest])
    return Family(weighted.samples[heaviest], weights, weighted.mean, jnp.sqrt(weighted.variance))
