"""From a posterior and a sampler's name to a kernel, where its chains start and what is recorded of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cryowgen_jax import potentials, samplers
from cryowgen_jax.chains.kernel import Kernel, Move
from cryowgen_jax.chains.sampler_table import POSTERIOR, SAMPLERS, Target
from cryowgen_jax.chains.summaries import CoordinateSummary, ShellSummary, coordinate_summary, shell_summary
from cryowgen_jax.potentials import FourierGaussian, Posterior
from cryowgen_jax.pytrees import as_pytree, bind
from cryowgen_jax.types import Array, FourierDiagonal, LogDensityFn, PRNGKey

AUTO = "auto"
_GAUSSIAN = "nothing but the Gaussian part is left, and that is drawn exactly"
_NO_START = "init=None: a log-density does not say where to start; give init, one position or one per chain"


class Assembly(NamedTuple):
    """A kernel, where its chains start, and what is recorded of them.

    Attributes
    ----------
    kernel
        With its first step size.
    start
        Key -> start position; None where the caller has to give one.
    summary
        Position and score -> numbers to record.
    reason
        Why this kernel.
    """

    kernel: Kernel
    start: Callable[[Array], Array] | None
    summary: ShellSummary | CoordinateSummary
    reason: str


def assemble(key: PRNGKey, given: Posterior | LogDensityFn, sampler: Any, example: Array | None) -> Assembly:
    """Choose kernel, start and summary.

    Parameters
    ----------
    key
        For pilot runs and for estimating the curvature of decoders.
    given
        A posterior, or the log-density of one position.
    sampler
        "auto", a name in ``SAMPLERS``, or a BlackJAX SamplingAlgorithm, which knows its target already.
    example
        One start position where the caller has one; needed for a log-density.

    Raises
    ------
    ValueError
        Where the sampler is not known, or its needs are not met.
    TypeError
        Where it needs a decoder that is diagonal in Fourier space.
    """
    target = _target(key, given)
    start = None if target.gaussian is None else as_pytree(target.gaussian.draw)
    summary = _summary(target, example)
    if not isinstance(sampler, str):
        return Assembly(_ready_made(sampler), start, summary, "given")
    reason = "asked for by name"
    if sampler == AUTO:
        sampler, reason = _choose(target)
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler={sampler!r} is not known: give one of {_names()} or a BlackJAX algorithm")
    row = SAMPLERS[sampler]
    row.require(target)
    if POSTERIOR in row.needs and target.witness is None:
        return Assembly(_exact_draws(target.gaussian), start, summary, _GAUSSIAN)
    return Assembly(row.kernel(target), start, summary, reason)


def require_start(assembly: Assembly) -> Callable[[Array], Array]:
    """Key -> start position; a ValueError where the caller has to give the start."""
    if assembly.start is None:
        raise ValueError(_NO_START)
    return assembly.start


def _target(key: PRNGKey, given: Posterior | LogDensityFn) -> Target:
    if not isinstance(given, Posterior):
        return Target(key, given)
    posterior: Posterior = as_pytree(given)
    split = potentials.split if isinstance(posterior.decoder, FourierDiagonal) else potentials.split_tether
    return Target(key, posterior, *split(posterior))


def _choose(target: Target) -> tuple[str, str]:
    """The name of the sampler that suits the target, and why."""
    if target.gaussian is None:
        return "mala", "a bare log-density says nothing of its structure"
    if target.witness is None:
        return "kinetic", _GAUSSIAN
    if potentials.is_stochastic(target.witness) and target.is_diagonal:
        return "stochastic", "the witness is random, so that nothing can be rejected; its noise is measured and removed"
    if not target.is_diagonal:
        return (
            "kinetic",
            "no transform diagonalises the decoder: the tether is the Gaussian part, and steps are tested",
        )
    size = int(np.prod(target.gaussian.shape))
    if size <= samplers.METROPOLIS_SIZE:
        return "kinetic", f"{size} elements are few enough for a Metropolis test, which makes it exact"
    return "kinetic_unadjusted", (
        f"a Metropolis test over {size} elements would shrink the steps, so the energy error per element is "
        "held small instead, which biases variances by less than a per cent: sampler='kinetic' is exact and slower"
    )


def _exact_draws(gaussian: FourierGaussian) -> Kernel:
    move = _unchanging(samplers.independent(gaussian.draw))
    return Kernel(move, jnp.ones(()), name="exact Gaussian draws", gradients_per_step=0, is_exact=True)


def _ready_made(algorithm: Any) -> Kernel:
    if not (hasattr(algorithm, "init") and hasattr(algorithm, "step")):
        raise ValueError(f"sampler={algorithm!r}: give one of {_names()} or a BlackJAX SamplingAlgorithm (init, step)")
    return Kernel(_unchanging(algorithm), jnp.asarray(jnp.nan), name="given")


def _unchanging(algorithm: Any) -> Move:
    """The move of an algorithm that has its own step size, or needs none."""
    return Move(bind(_whatever_the_step_size, algorithm.init, algorithm.step))


def _whatever_the_step_size(init: Callable[..., Any], step: Callable[..., Any], step_size: Array) -> Any:
    del step_size
    return samplers.algorithm(init, step)


def _names() -> str:
    return ", ".join((AUTO, *SAMPLERS))


def _summary(target: Target, example: Array | None) -> ShellSummary | CoordinateSummary:
    if target.gaussian is None:
        return coordinate_summary(_require_example(example).shape)
    if target.is_diagonal and len(target.gaussian.shape) == 3:
        return shell_summary(target.gaussian.mean_spectrum, target.given.decoder.transfer, target.gaussian.shape)
    return coordinate_summary(target.gaussian.shape)


def _require_example(example: Array | None) -> Array:
    if example is None:
        raise ValueError(_NO_START)
    return example
