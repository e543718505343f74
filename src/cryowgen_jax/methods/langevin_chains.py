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
    """CryoWGEN-II: one chain per sample, the last state of each; mean and std over all chains and steps."""
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
