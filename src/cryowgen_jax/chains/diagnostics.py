"""Convergence of the recorded summaries: effective sample size and split R-hat, by BlackJAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cryowgen_jax.types import Array

MIN_DRAWS = 8


@jax.jit
def effective_sample_size(records: Array) -> Array:
    """Chains pooled, per summary: (chains, draws, summaries) -> (summaries,); nan where a summary never moves."""
    from blackjax.diagnostics import effective_sample_size as blackjax_ess

    if records.shape[1] < MIN_DRAWS:
        return jnp.full(records.shape[2:], jnp.nan)
    return jnp.where(_moves(records), blackjax_ess(_standardise(_halves(records))), jnp.nan)


@jax.jit
def split_r_hat(records: Array) -> Array:
    """Gelman and Rubin's statistic with every chain cut in halves, per summary; nan where a summary never moves."""
    from blackjax.diagnostics import potential_scale_reduction

    if records.shape[1] < MIN_DRAWS:
        return jnp.full(records.shape[2:], jnp.nan)
    return jnp.where(_moves(records), potential_scale_reduction(_standardise(_halves(records))), jnp.nan)


def _halves(records: Array) -> Array:
    chains, draws, summaries = records.shape
    return records[:, : draws // 2 * 2].reshape(chains * 2, draws // 2, summaries)


def _moves(records: Array) -> Array:
    return jnp.std(records, axis=(0, 1)) > 1e-6 * jnp.max(jnp.abs(records), axis=(0, 1))


def _standardise(records: Array) -> Array:
    scale = jnp.std(records, axis=(0, 1), keepdims=True)
    return (records - jnp.mean(records, axis=(0, 1), keepdims=True)) / jnp.where(scale > 0, scale, 1.0)
