"""CryoWGEN-II: a family by Langevin chains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from cryowgen_jax.chains import Progress, sample
from cryowgen_jax.methods.family import Family
from cryowgen_jax.potentials import Posterior
from cryowgen_jax.types import PRNGKey


def cryowgen_langevin(
    key: PRNGKey,
    posterior: Posterior,
    *,
    num_samples: int = 8,
    num_steps: int = 500,
    warmup: int | None = None,
    sampler: str = "auto",
    devices: Sequence[jax.Device] | None = None,
    progress: bool | Callable[[Progress], None] = False,
) -> Family:
    """CryoWGEN-II: one chain per member, whose last state it is; mean and std are over all chains and steps.

    Parameters
    ----------
    key
        The same key gives the same family.
    posterior
        The target.
    num_samples
        Members of the family, and chains.
    num_steps, warmup, sampler, devices, progress
        As in ``cg.sample``.

    Returns
    -------
    Family
        With equal weights.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, cryowgen_jax as cg
    >>> wedge, zeros = cg.Wedge(cg.wedge_mask((8, 8, 8))), jnp.zeros((8, 8, 8))
    >>> witness = cg.QuadraticWitness(curvature=jnp.ones((8, 8, 5)), mean=zeros)
    >>> posterior = cg.Posterior(witness, wedge, wedge(zeros + 1.2), zeros, data_weight=10.0, prior_precision=1.0)
    >>> family = cg.cryowgen_langevin(jax.random.key(0), posterior, num_samples=4, num_steps=8)
    >>> family.samples.shape, family.weights.tolist()
    ((4, 8, 8, 8), [0.25, 0.25, 0.25, 0.25])
    """
    result = sample(
        key,
        posterior,
        sampler=sampler,
        num_chains=num_samples,
        num_steps=num_steps,
        warmup=warmup,
        num_kept=1,
        devices=devices,
        progress=progress,
    )
    weights = jnp.full((num_samples,), 1.0 / num_samples)
    return Family(result.samples[:, -1], weights, result.mean, jnp.sqrt(result.variance))
