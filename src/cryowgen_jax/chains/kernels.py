"""From a posterior and a sampler's name to a kernel, where its chains start and what to watch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from cryowgen_jax import potentials, samplers
from cryowgen_jax.chains.probes import coordinate_probe, shell_probe
from cryowgen_jax.chains.run import Kernel
from cryowgen_jax.potentials import Posterior
from cryowgen_jax.types import Array, FourierDiagonal, LogDensityFn

NAMES = ("auto", "langevin", "leimkuhler_matthews", "pcnl", "pcnl_unadjusted", "preconditioned", "mala")
_NO_START = "init=None: a log-density does not say where to start; give init, one position or one per chain"
STEP_OVER_CURVATURE = 0.2  # Euler steps: variance of the stiffest mode off by at most 1 / (1 - 0.1)


class Assembly(NamedTuple):
    """A kernel, key -> start position (None: the caller gives one), and the probe of its positions."""

    kernel: Kernel
    start: Callable[[Array], Array] | None
    probe: Callable[[Array], Array]


def assemble(target: Posterior | LogDensityFn, sampler: Any, example: Array | None) -> Assembly:
    """Choose kernel, start and probe.

    Parameters
    ----------
    target
        A posterior, or any log-density of one position.
    sampler
        One of ``NAMES``, or a BlackJAX SamplingAlgorithm that already knows its target.
    example
        One start position where the caller has one; a log-density needs it.
    """
    gaussian, remainder = None, None
    if isinstance(target, Posterior):
        witness, decoder = samplers.as_pytree(target.witness), samplers.as_pytree(target.decoder)
        target = dataclasses.replace(target, witness=witness, decoder=decoder)
    if isinstance(target, Posterior) and isinstance(target.decoder, FourierDiagonal):
        gaussian, remainder = potentials.split(target)
    probe = _probe(target, gaussian, example)
    start = None if gaussian is None else samplers.as_pytree(gaussian.draw)
    if not isinstance(sampler, str):
        return Assembly(_ready_made(sampler), start, probe)
    if sampler not in NAMES:
        raise ValueError(f"sampler={sampler!r} is not known: give one of {', '.join(NAMES)} or a BlackJAX algorithm")
    if sampler == "auto":
        sampler = "mala" if gaussian is None else "pcnl"
    if sampler in ("pcnl", "pcnl_unadjusted", "preconditioned"):
        if gaussian is None:
            potentials.gaussian_part(_require_posterior(target))  # raises with the reason
            raise ValueError("pcnl needs a posterior whose Gaussian part is diagonal in Fourier space")
        return Assembly(_fourier(sampler, gaussian, remainder), start, probe)
    log_density = target.log_density if isinstance(target, Posterior) else target
    if start is None and isinstance(target, Posterior):
        start = samplers.bind(potentials.draw_conditional_prior, target)
    return Assembly(_euler(sampler, log_density, target), start, probe)


def _fourier(sampler: str, gaussian: potentials.FourierGaussian, remainder: Callable[[Array], Array] | None) -> Kernel:
    """Kernels that know the Gaussian part; a remainder with |Hess| <= g min q bounds their steps."""
    if remainder is None:
        builder = samplers.bind(_independent_builder, gaussian)
        return Kernel(builder, jnp.ones(()), "exact Gaussian draws", gradients_per_step=0)
    adjusted = sampler == "pcnl"
    if potentials.has_curvature(remainder):
        gap = potentials.contraction_gap(gaussian, remainder)
    elif adjusted:
        gap = jnp.asarray(10.0)  # adaptation takes over
    else:
        raise ValueError(
            f"sampler={sampler!r} needs a witness that bounds its curvature: give it a curvature_bounds() method, or "
            "use sampler='pcnl'"
        )
    if sampler == "preconditioned":
        builder = samplers.bind(samplers.preconditioned, remainder, gaussian)
        return Kernel(builder, samplers.largest_step(gap), sampler)
    step_size = jnp.minimum(0.5, 0.3 / (1.0 + gap))
    if adjusted:
        builder = samplers.bind(_adjusted_builder, remainder, gaussian)
        return Kernel(builder, step_size, sampler, target_acceptance=0.7, max_step_size=1.0)
    return Kernel(samplers.bind(_unadjusted_builder, remainder, gaussian), step_size, sampler)


def _euler(sampler: str, log_density: LogDensityFn, target: Posterior | LogDensityFn) -> Kernel:
    """MALA, or an unadjusted scheme whose step comes from the curvature bound where there is one."""
    if sampler == "mala":
        return Kernel(samplers.bind(_mala_builder, log_density), jnp.asarray(1e-3), "mala", target_acceptance=0.574)
    builder = samplers.langevin if sampler == "langevin" else samplers.leimkuhler_matthews
    if not isinstance(target, Posterior) or not potentials.has_curvature(target.witness):
        raise ValueError(
            f"sampler={sampler!r} takes its step from a curvature bound, and this target has none: give the witness a "
            f"curvature_bounds() method, pass cg.{sampler}(log_density, step_size) itself, or use sampler='mala'"
        )
    if not isinstance(target.decoder, FourierDiagonal):
        raise ValueError(
            f"sampler={sampler!r} needs a decoder with a Fourier transfer to bound its curvature: pass "
            f"cg.{sampler}(posterior.log_density, step_size) itself, or use sampler='mala'"
        )
    _, high = potentials.curvature_bounds(target.witness)
    stiffest = target.data_weight * jnp.max(target.decoder.transfer) ** 2 + target.prior_precision + high
    return Kernel(samplers.bind(builder, log_density), STEP_OVER_CURVATURE / stiffest, sampler)


def _ready_made(algorithm: Any) -> Kernel:
    if not (hasattr(algorithm, "init") and hasattr(algorithm, "step")):
        raise ValueError(
            f"sampler={algorithm!r}: give one of {', '.join(NAMES)} or a BlackJAX SamplingAlgorithm (init, step)"
        )
    fixed = samplers.bind(_given, samplers.as_pytree(algorithm.init), samplers.as_pytree(algorithm.step))
    return Kernel(fixed, jnp.asarray(jnp.nan), "given")


def _probe(target: Any, gaussian: potentials.FourierGaussian | None, example: Array | None) -> Callable[[Array], Array]:
    if gaussian is not None and len(gaussian.shape) == 3:
        return shell_probe(gaussian.mean_spectrum, target.decoder.transfer, gaussian.shape)
    shape = target.center.shape if isinstance(target, Posterior) else _require_example(example).shape
    return coordinate_probe(shape)


def require_start(assembly: Assembly) -> Callable[[Array], Array]:
    """Where chains start by themselves; a ValueError where the caller has to say."""
    if assembly.start is None:
        raise ValueError(_NO_START)
    return assembly.start


def _require_example(example: Array | None) -> Array:
    if example is None:
        raise ValueError(_NO_START)
    return example


def _require_posterior(target: Any) -> Posterior:
    if not isinstance(target, Posterior):
        raise ValueError("pcnl needs a cg.Posterior: a bare log-density has no Gaussian part that can be told apart")
    return target


def _independent_builder(gaussian: potentials.FourierGaussian, step_size: Array) -> Any:
    del step_size
    return samplers.independent(gaussian.draw)


def _adjusted_builder(witness: Callable[[Array], Array], gaussian: potentials.FourierGaussian, step_size: Array) -> Any:
    return samplers.pcnl(witness, gaussian, 1.0 - step_size, adjusted=True)


def _unadjusted_builder(
    witness: Callable[[Array], Array], gaussian: potentials.FourierGaussian, step_size: Array
) -> Any:
    return samplers.pcnl(witness, gaussian, 1.0 - step_size, adjusted=False)


def _mala_builder(log_density: LogDensityFn, step_size: Array) -> Any:
    import blackjax

    return blackjax.mala(log_density, step_size)


def _given(init: Callable[..., Any], step: Callable[..., Any], step_size: Array) -> Any:
    del step_size
    return samplers.algorithm(init, step)
