"""Whether chains have converged: effective sample sizes and R-hat as BlackJAX computes them, and the virial."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cryowgen_jax.types import Array

MIN_DRAWS = 8  # of a chain, below which nothing is said
LARGEST_R_HAT, LEAST_ESS = 1.05, 100.0  # of a run that counts as converged
LARGEST_VIRIAL, VIRIAL_ERRORS = 0.05, 5.0  # the residual may be as large as this, or so many standard errors
LEAST_ACCEPTANCE = 0.05


class Diagnosis(NamedTuple):
    """Convergence of every group of coordinates; nan where a group never moves or was not recorded.

    For volumes a group is a Fourier shell of the wedge (the first half of each array) or of the measured region, and
    the worse of its linear functional and its energy counts. Otherwise a group is a coordinate.

    Attributes
    ----------
    ess_bulk, ess_tail, r_hat
        Rank-normalised (Vehtari, Gelman, Simpson, Carpenter and Buerkner, Bayesian Analysis 2021).
    virial
        Mean of (z - c) . grad F per real coordinate, plus 1. It is 0 for draws of the posterior, and tells a wrong
        temperature without any reference solution.
    virial_error
        Its standard error.
    """

    ess_bulk: Array
    ess_tail: Array
    r_hat: Array
    virial: Array
    virial_error: Array


def diagnose(records: Array, size: int, kinds: int) -> Diagnosis:
    """Convergence of every group of a run.

    Parameters
    ----------
    records
        (chains, draws, k size): ``kinds`` numbers for each of ``size`` groups, and behind them the virials if k is
        larger, as the summaries of :mod:`cryowgen_jax.chains.summaries` give them.
    size, kinds
        Of the summary.

    Returns
    -------
    Diagnosis
        Arrays (size,).
    """
    from blackjax.diagnostics import ess_bulk, ess_tail, rhat

    shape = (*records.shape[:2], -1, size)
    by_kind = records.reshape(shape)
    if records.shape[1] < MIN_DRAWS:
        return Diagnosis(*[jnp.full((size,), jnp.nan)] * 5)
    plain = by_kind[:, :, :kinds].reshape(*records.shape[:2], -1)
    moves = _moves(plain)

    def worst(values: Array, reduce: Callable[..., Array]) -> Array:
        return reduce(jnp.where(moves, values, jnp.nan).reshape(kinds, size), axis=0)

    plain = _standardise(plain)
    virial = virial_error = jnp.full((size,), jnp.nan)
    if by_kind.shape[2] > kinds:
        virial, virial_error = virial_residual(by_kind[:, :, kinds])
    with jax.numpy_rank_promotion("allow"):  # BlackJAX relies on it
        bulk, tail, r_hat = ess_bulk(plain), ess_tail(plain), rhat(plain)
    return Diagnosis(
        ess_bulk=worst(bulk, jnp.nanmin),
        ess_tail=worst(tail, jnp.nanmin),
        r_hat=worst(r_hat, jnp.nanmax),
        virial=virial,
        virial_error=virial_error,
    )


@jax.jit
def virial_residual(virials: Array) -> tuple[Array, Array]:
    """Mean of the recorded virials plus 1, and its standard error.

    (chains, draws, groups) -> (groups,) each; nan where a group never moves.
    """
    moves = _moves(virials)
    mean = jnp.mean(virials, axis=(0, 1)) + 1.0
    error = jnp.std(virials, axis=(0, 1)) / jnp.sqrt(effective_sample_size(virials))
    return jnp.where(moves, mean, jnp.nan), jnp.where(moves, error, jnp.nan)


def words(status: str, ess: float, r_hat: float, virial: tuple[float, float], acceptance: float) -> str:
    """Whether a run can be relied on, in a sentence.

    Parameters
    ----------
    status
        Of the run; anything but "ok" makes it unusable.
    ess, r_hat
        Smallest effective sample size and largest R-hat of all groups.
    virial
        Worst residual of all groups, and its standard error.
    acceptance
        Mean acceptance rate.
    """
    if status != "ok":
        return f"not usable: {status}"
    faults = []
    if acceptance < LEAST_ACCEPTANCE:
        faults.append(f"only {100 * acceptance:.1f} % of the steps were accepted")
    if math.isnan(r_hat):
        faults.append("too few draws were recorded to judge: run longer")
    elif r_hat > LARGEST_R_HAT:
        faults.append(f"chains disagree (R-hat {r_hat:.2f}, should be below {LARGEST_R_HAT}): run longer")
    if ess < LEAST_ESS:
        faults.append(
            f"{ess:.0f} effective samples (should be {LEAST_ESS:.0f}): run {LEAST_ESS / ess:.1f} times longer"
        )
    residual, error = virial
    if abs(residual) > max(LARGEST_VIRIAL, VIRIAL_ERRORS * error):
        faults.append(
            f"the virial is off by {residual:+.2f} (standard error {error:.2f}): chains are not where the density says"
        )
    return "converged" if not faults else "not converged: " + "; ".join(faults)


@jax.jit
def effective_sample_size(records: Array) -> Array:
    """Effective sample size of each recorded number, chains pooled; nan where it never moves.

    (chains, draws, numbers) -> (numbers,).
    """
    from blackjax.diagnostics import effective_sample_size as blackjax_ess

    if records.shape[1] < MIN_DRAWS:
        return jnp.full(records.shape[2:], jnp.nan)
    return jnp.where(_moves(records), blackjax_ess(_standardise(_halves(records))), jnp.nan)


@jax.jit
def split_r_hat(records: Array) -> Array:
    """Gelman and Rubin's R-hat of each recorded number, every chain cut in halves; nan where it never moves.

    (chains, draws, numbers) -> (numbers,).
    """
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
