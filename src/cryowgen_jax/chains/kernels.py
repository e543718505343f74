"""From a posterior and a sampler's name to a kernel, where its chains start and what to watch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax import potentials, samplers
from cryowgen_jax.chains import annealing
from cryowgen_jax.chains.run import Kernel, Move
from cryowgen_jax.chains.summaries import CoordinateProbe, ShellProbe, coordinate_probe, shell_probe
from cryowgen_jax.potentials import Posterior
from cryowgen_jax.pytrees import as_pytree, bind
from cryowgen_jax.types import Array, FourierDiagonal, LogDensityFn, PRNGKey, Stochastic

NAMES = (
    "auto",
    "kinetic",
    "kinetic_unadjusted",
    "pcnl",
    "pcnl_unadjusted",
    "preconditioned",
    "langevin",
    "leimkuhler_matthews",
    "mala",
    "tempered",
    "stochastic",
    "sk_rock",
)
FOURIER = ("kinetic", "kinetic_unadjusted", "pcnl", "pcnl_unadjusted", "preconditioned", "tempered", "stochastic")
_NO_START = "init=None: a log-density does not say where to start; give init, one position or one per chain"
STEP_OVER_CURVATURE = 0.2  # Euler steps: variance of the stiffest mode off by at most 1 / (1 - 0.1)
METROPOLIS_SIZE = 512  # elements above which a test on the sum of all energy errors would shrink the steps
KINETIC_TARGET = 0.75
LONGEST_UNADJUSTED_STEP = 1.0
SK_ROCK_STAGES = 10
UNKNOWN_GAP = 10.0  # where adaptation has to find the step by itself


class Assembly(NamedTuple):
    """A kernel, key -> start position (None: the caller gives one), the probe of its positions, and why this kernel."""

    kernel: Kernel
    start: Callable[[Array], Array] | None
    probe: ShellProbe | CoordinateProbe
    reason: str


def assemble(key: PRNGKey, target: Posterior | LogDensityFn, sampler: Any, example: Array | None) -> Assembly:
    """Choose kernel, start and probe.

    Parameters
    ----------
    key
        For what has to be found out by trial: ladders, and the curvature of decoders.
    target
        A posterior, or any log-density of one position.
    sampler
        One of ``NAMES``, or a BlackJAX SamplingAlgorithm that already knows its target.
    example
        One start position where the caller has one; a log-density needs it.
    """
    gaussian, remainder, drawable = None, None, False
    if isinstance(target, Posterior):
        posterior: Posterior = as_pytree(target)
        target, drawable = posterior, isinstance(posterior.decoder, FourierDiagonal)
        gaussian, remainder = (potentials.split if drawable else potentials.split_tether)(posterior)
    probe = _probe(target, gaussian if drawable else None, example)
    start = None if gaussian is None else as_pytree(gaussian.draw)
    if not isinstance(sampler, str):
        return Assembly(_ready_made(sampler), start, probe, "given")
    if sampler not in NAMES:
        raise ValueError(f"sampler={sampler!r} is not known: give one of {', '.join(NAMES)} or a BlackJAX algorithm")
    reason = "asked for by name"
    if sampler == "auto":
        sampler, reason = _choose(target, gaussian, remainder, drawable)
    if sampler in FOURIER:
        if gaussian is None or not isinstance(target, Posterior):
            raise ValueError(f"{sampler} needs a cg.Posterior: a bare log-density has no Gaussian part to tell apart")
        if not drawable and not sampler.startswith("kinetic"):
            potentials.gaussian_part(target)  # raises with the reason
        if sampler == "tempered" and remainder is not None:
            return Assembly(_tempered(key, gaussian, remainder), start, probe, reason)
        return Assembly(_fourier(sampler, gaussian, remainder), start, probe, reason)
    if sampler == "sk_rock":
        return Assembly(_sk_rock(key, target), start, probe, reason)
    log_density = target.log_density if isinstance(target, Posterior) else target
    return Assembly(_euler(sampler, log_density, target), start, probe, reason)


def _choose(
    target: Posterior | LogDensityFn,
    gaussian: potentials.FourierGaussian | None,
    remainder: Callable[[Array], Array] | None,
    drawable: bool,
) -> tuple[str, str]:
    """Which kernel suits the target, and why, in words."""
    if gaussian is None:
        return "mala", "a bare log-density says nothing of its structure"
    if remainder is None:
        return "kinetic", "nothing but the Gaussian part is left, and that is drawn exactly"
    if potentials.is_stochastic(remainder) and drawable:
        return "stochastic", "the witness is random, so that nothing can be rejected; its noise is measured and removed"
    size = int(np.prod(gaussian.shape))
    if not drawable:
        return (
            "kinetic",
            "no transform diagonalises the decoder: the tether is the Gaussian part, and steps are tested",
        )
    if size <= METROPOLIS_SIZE:
        return "kinetic", f"{size} elements are few enough for a Metropolis test, which makes it exact"
    return "kinetic_unadjusted", (
        f"a Metropolis test over {size} elements would shrink the steps, so the energy error per element is "
        "held small instead, which biases variances by less than a per cent: sampler='kinetic' is exact and slower"
    )


def _fourier(sampler: str, gaussian: potentials.FourierGaussian, remainder: Callable[[Array], Array] | None) -> Kernel:
    """Kernels that know the Gaussian part; a remainder with |Hess| <= g min q bounds their steps."""
    if remainder is None:
        builder = bind(_independent_builder, gaussian)
        return Kernel(Move(builder), jnp.ones(()), name="exact Gaussian draws", gradients_per_step=0)
    known = potentials.has_curvature(remainder)
    gap = potentials.contraction_gap(gaussian, remainder) if known else jnp.asarray(UNKNOWN_GAP)
    if not known and sampler in ("preconditioned", "pcnl_unadjusted"):
        raise ValueError(
            f"sampler={sampler!r} needs a witness that bounds its curvature: give it a curvature_bounds() method, or "
            "use sampler='kinetic'"
        )
    if sampler.startswith("kinetic"):
        return _kinetic(sampler, gaussian, remainder, gap)
    if sampler == "preconditioned":
        builder = bind(samplers.preconditioned, remainder, gaussian)
        return Kernel(Move(builder), samplers.largest_step(gap), name=sampler)
    adjusted, score = sampler == "pcnl", bind(samplers.score, gaussian)
    if sampler == "stochastic":
        builder = bind(_stochastic_builder, remainder, gaussian)
        step_size = jnp.minimum(0.5, 0.3 / (1.0 + gap))
        return Kernel(Move(builder, score), step_size, name=sampler, gradients_per_step=2)
    builder = bind(_adjusted_builder if adjusted else _unadjusted_builder, remainder, gaussian)
    step_size = jnp.minimum(0.5, 0.3 / (1.0 + gap))
    move = Move(builder, score)
    if adjusted:
        return Kernel(move, step_size, name=sampler, target=0.7, max_step_size=1.0)
    return Kernel(move, step_size, name=sampler)


def _kinetic(
    sampler: str, gaussian: potentials.FourierGaussian, remainder: Callable[[Array], Array], gap: Array
) -> Kernel:
    """Kinetic Langevin that learns in warm-up which quadratic form is most like the witness."""
    adjusted = sampler == "kinetic"
    start = jnp.minimum(0.5, 0.7 * jax.lax.rsqrt(jnp.maximum(gap, 1e-6)))
    fraction = min(1.0, METROPOLIS_SIZE / int(np.prod(gaussian.shape)))
    return Kernel(
        _kinetic_move(adjusted, remainder, gaussian),
        start,
        quality=None if adjusted else bind(samplers.acceptance_of_a_part, fraction),
        observe=as_pytree(samplers.regressors),
        refit=bind(_refitted if adjusted else _refitted_unadjusted, remainder, gaussian),
        name=sampler,
        target=KINETIC_TARGET,
        max_step_size=samplers.LONGEST_STEP if adjusted else LONGEST_UNADJUSTED_STEP,
        ramps=True,
    )


def _tempered(key: PRNGKey, gaussian: potentials.FourierGaussian, remainder: Callable[[Array], Array]) -> Kernel:
    """Parallel tempering on rungs that a pilot run spaces evenly; as many as it needs, unless the run is traced."""
    powers, step_sizes, num_rungs = annealing.even_ladder(key, remainder, gaussian)
    return Kernel(
        Move(bind(_tempered_builder, remainder, gaussian, powers, step_sizes)),
        jnp.ones(()),
        name="tempered",
        gradients_per_step=num_rungs,
    )


def _sk_rock(key: PRNGKey, target: Posterior | LogDensityFn) -> Kernel:
    """SK-ROCK preconditioned by what takes nothing from the operator: the tether and quadratic witnesses."""
    if not isinstance(target, Posterior) or not potentials.has_curvature(target.witness):
        raise ValueError(
            "sampler='sk_rock' takes its step from a curvature bound: give it a cg.Posterior whose witness has a "
            "curvature_bounds() method, pass cg.sk_rock(log_density, step_size) itself, or use sampler='kinetic'"
        )
    metric = 1.0 / potentials.split_tether(target)[0].precision
    curvature = potentials.largest_curvature(target, key, metric=metric)
    builder = bind(_sk_rock_builder, target.log_density, metric)
    step_size = samplers.largest_sk_rock_step(curvature, SK_ROCK_STAGES)
    return Kernel(Move(builder), step_size, name="sk_rock", gradients_per_step=SK_ROCK_STAGES)


def _kinetic_move(adjusted: bool, remainder: Callable[[Array], Array], gaussian: potentials.FourierGaussian) -> Move:
    builder = _kinetic_builder if adjusted else _kinetic_unadjusted_builder
    return Move(bind(builder, remainder, gaussian), bind(samplers.score, gaussian))


def _refitted(remainder: Callable[[Array], Array], gaussian: potentials.FourierGaussian, means: Any) -> Move:
    return _kinetic_move(True, *_absorbed(remainder, gaussian, means))


def _refitted_unadjusted(remainder: Callable[[Array], Array], gaussian: potentials.FourierGaussian, means: Any) -> Move:
    return _kinetic_move(False, *_absorbed(remainder, gaussian, means))


def _absorbed(remainder: Callable[[Array], Array], gaussian: potentials.FourierGaussian, means: Any) -> tuple[Any, Any]:
    """Remainder and Gaussian part when the quadratic form that fits the witness best has moved over."""
    gaussian, remainder = annealing.learn(gaussian, remainder, means)
    return remainder, gaussian


def _euler(sampler: str, log_density: LogDensityFn, target: Posterior | LogDensityFn) -> Kernel:
    """MALA, or an unadjusted scheme whose step comes from the curvature bound where there is one."""
    if sampler == "mala":
        move = Move(bind(_mala_builder, log_density), as_pytree(_logdensity_grad))
        return Kernel(move, jnp.asarray(1e-3), name="mala", target=0.574)
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
    return Kernel(Move(bind(builder, log_density)), STEP_OVER_CURVATURE / stiffest, name=sampler)


def _ready_made(algorithm: Any) -> Kernel:
    if not (hasattr(algorithm, "init") and hasattr(algorithm, "step")):
        raise ValueError(
            f"sampler={algorithm!r}: give one of {', '.join(NAMES)} or a BlackJAX SamplingAlgorithm (init, step)"
        )
    fixed = bind(_given, as_pytree(algorithm.init), as_pytree(algorithm.step))
    return Kernel(Move(fixed), jnp.asarray(jnp.nan), name="given")


def _probe(
    target: Any, gaussian: potentials.FourierGaussian | None, example: Array | None
) -> ShellProbe | CoordinateProbe:
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


def _independent_builder(gaussian: potentials.FourierGaussian, step_size: Array) -> Any:
    del step_size
    return samplers.independent(gaussian.draw)


def _kinetic_builder(
    witness: Callable[[Array], Array], gaussian: potentials.FourierGaussian, step_size: Array, power: Array
) -> Any:
    return samplers.kinetic(witness, gaussian, step_size, power=power)


def _kinetic_unadjusted_builder(
    witness: Callable[[Array], Array], gaussian: potentials.FourierGaussian, step_size: Array, power: Array
) -> Any:
    return samplers.kinetic(witness, gaussian, step_size, power=power, adjusted=False)


def _adjusted_builder(witness: Callable[[Array], Array], gaussian: potentials.FourierGaussian, step_size: Array) -> Any:
    return samplers.pcnl(witness, gaussian, step_size, adjusted=True)


def _unadjusted_builder(
    witness: Callable[[Array], Array], gaussian: potentials.FourierGaussian, step_size: Array
) -> Any:
    return samplers.pcnl(witness, gaussian, step_size, adjusted=False)


def _mala_builder(log_density: LogDensityFn, step_size: Array) -> Any:
    import blackjax

    return blackjax.mala(log_density, step_size)


def _stochastic_builder(witness: Stochastic, gaussian: potentials.FourierGaussian, step_size: Array) -> Any:
    return samplers.stochastic(witness, gaussian, step_size)


def _tempered_builder(
    witness: Callable[[Array], Array],
    gaussian: potentials.FourierGaussian,
    powers: Array,
    step_sizes: Array,
    step_size: Array,
) -> Any:
    return samplers.tempered(witness, gaussian, powers, step_size * step_sizes)


def _sk_rock_builder(log_density: LogDensityFn, metric: Array, step_size: Array) -> Any:
    return samplers.sk_rock(log_density, step_size, SK_ROCK_STAGES, metric)


def _logdensity_grad(state: Any) -> Array:
    return state.logdensity_grad


def _given(init: Callable[..., Any], step: Callable[..., Any], step_size: Array) -> Any:
    del step_size
    return samplers.algorithm(init, step)
