"""The samplers that ``cg.sample`` knows by name, one row each.

A new one is a file in ``samplers`` that ends with its ``Recipe``, and a row of ``SAMPLERS`` here; its name goes into
the docstring of ``cg.sample`` and into docs/samplers.md, where tests look for it. A ``Recipe`` with ``quality`` needs a
posterior, whose Gaussian part gives the number of voxels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cryowgen_jax import potentials
from cryowgen_jax.chains import annealing
from cryowgen_jax.chains.kernel import Kernel, Move
from cryowgen_jax.potentials import FourierGaussian, Posterior
from cryowgen_jax.pytrees import as_pytree, bind
from cryowgen_jax.samplers.interface import Recipe
from cryowgen_jax.samplers.kinetic import KINETIC, KINETIC_UNADJUSTED
from cryowgen_jax.samplers.langevin import LANGEVIN
from cryowgen_jax.samplers.leimkuhler_matthews import LEIMKUHLER_MATTHEWS
from cryowgen_jax.samplers.mala import MALA
from cryowgen_jax.samplers.pcnl import PCNL, PCNL_UNADJUSTED
from cryowgen_jax.samplers.preconditioned import PRECONDITIONED
from cryowgen_jax.samplers.sk_rock import NUM_STAGES, SK_ROCK
from cryowgen_jax.samplers.stochastic import STOCHASTIC
from cryowgen_jax.samplers.tempered import TEMPERED
from cryowgen_jax.types import Array, FourierDiagonal, LogDensityFn, PRNGKey

UNKNOWN_GAP = 10.0  # in place of a bound, where adaptation has to find the step size by itself


class Target(NamedTuple):
    """What is to be sampled, and its two parts.

    Attributes
    ----------
    key
        For pilot runs and for estimating the curvature of decoders.
    given
        A ``Posterior``, or the log-density of one position.
    gaussian, witness
        The posterior's Gaussian part and what is left of its witness, None where nothing is left. Both None for a
        log-density.
    """

    key: PRNGKey
    given: Any
    gaussian: Any = None
    witness: Any = None

    @property
    def log_density(self) -> LogDensityFn:
        """F: position -> scalar."""
        return self.given.log_density if isinstance(self.given, Posterior) else self.given

    @property
    def is_diagonal(self) -> bool:
        """Whether the decoder is diagonal in Fourier space, so that the data fit is in the Gaussian part."""
        return isinstance(self.given, Posterior) and isinstance(self.given.decoder, FourierDiagonal)


# What samplers need


@dataclasses.dataclass(frozen=True)
class Need:
    """A condition on the target, and the error where it is not met: the sampler's name, then ``otherwise``."""

    is_met: Callable[[Target], bool]
    otherwise: str
    error: type[Exception] = ValueError


POSTERIOR = Need(
    lambda target: isinstance(target.given, Posterior),
    "needs a cg.Posterior: a bare log-density has no Gaussian part to tell apart",
)
DIAGONAL_DECODER = Need(
    lambda target: target.is_diagonal,
    "needs a decoder with a Fourier transfer, such as cg.Wedge(mask): the Gaussian part of any other cannot be drawn "
    "exactly; use sampler='kinetic'",
    TypeError,
)
WITNESS_BOUND = Need(
    lambda target: isinstance(target.given, Posterior) and potentials.has_curvature(target.given.witness),
    "takes its step size from a curvature bound: give a cg.Posterior whose witness has a curvature_bounds() method, or "
    "an algorithm with a step size of its own, such as cg.langevin(log_density, step_size), or use sampler='kinetic' "
    "(for a bare log-density 'mala')",
)
DECODER_BOUND = Need(
    lambda target: target.is_diagonal,
    "needs a decoder with a Fourier transfer to bound its curvature: give an algorithm with a step size of its own, "
    "such as cg.langevin(posterior.log_density, step_size), or use sampler='mala'",
)


# What samplers are told


@dataclasses.dataclass(frozen=True)
class Known:
    """What a sampler is told of its target.

    Attributes
    ----------
    arguments, options
        Of its ``build``: by position, the step size coming behind them, and by name.
    curvature
        Bound that its ``first_step`` is told; None for samplers that ask for none.
    gaussian
        The Gaussian part, where the sampler knows it.
    positions
        Number of positions that one step moves.
    """

    arguments: tuple[Any, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    curvature: Array | None = None
    gaussian: FourierGaussian | None = None
    positions: int = 1


def parts(target: Target) -> Known:
    """The witness w and the Gaussian part; the bound is on |Hess w| in units of the precision."""
    gaussian, witness = target.gaussian, target.witness
    bounded = potentials.has_curvature(witness)
    gap = potentials.contraction_gap(gaussian, witness) if bounded else jnp.asarray(UNKNOWN_GAP)
    return Known((witness, gaussian), curvature=gap, gaussian=gaussian)


def parts_and_ladder(target: Target) -> Known:
    """The witness, the Gaussian part, and the ladder between them that a pilot run finds."""
    powers, step_sizes, num_rungs = annealing.even_ladder(target.key, target.witness, target.gaussian)
    arguments = (target.witness, target.gaussian, powers, step_sizes)
    return Known(arguments, gaussian=target.gaussian, positions=num_rungs)


def exponent(target: Target) -> Known:
    """The log-density alone."""
    return Known((target.log_density,))


def bounded_exponent(target: Target) -> Known:
    """The log-density; the bounds on witness, data fit and tether add up to one on its curvature."""
    posterior = target.given
    _, high = potentials.curvature_bounds(posterior.witness)
    stiffest = posterior.data_weight * jnp.max(posterior.decoder.transfer) ** 2 + posterior.prior_precision + high
    return Known((posterior.log_density,), curvature=stiffest)


def exponent_and_metric(target: Target) -> Known:
    """The log-density, and the covariance of tether and quadratic witnesses as a preconditioner."""
    metric = 1.0 / potentials.split_tether(target.given)[0].precision
    curvature = potentials.largest_curvature(target.given, target.key, metric=metric)
    return Known((target.log_density,), {"preconditioner": metric}, curvature)


# The table


@dataclasses.dataclass(frozen=True)
class Sampler:
    """One row.

    Attributes
    ----------
    name
        What ``cg.sample`` calls it.
    needs
        Conditions on the target, in the order in which they are checked.
    told
        A target that meets them -> what the sampler is told of it.
    recipe
        How the kernel is made and adapted; from the sampler's own file.
    gradients_per_step
        Gradients of witness or log-density in one step, for each position that it moves.
    """

    name: str
    needs: tuple[Need, ...]
    told: Callable[[Target], Known]
    recipe: Recipe
    gradients_per_step: int = 1

    def require(self, target: Target) -> None:
        """Raise the error of the first need that the target does not meet."""
        for need in self.needs:
            if not need.is_met(target):
                raise need.error(f"sampler={self.name!r} {need.otherwise}")

    def kernel(self, target: Target) -> Kernel:
        """The kernel for a target that meets all needs."""
        known, recipe = self.told(target), self.recipe
        learns = recipe.observe is not None
        return Kernel(
            self._move(known),
            recipe.first_step(known.curvature),
            quality=None if recipe.quality is None else recipe.quality(int(np.prod(target.gaussian.shape))),
            observe=as_pytree(recipe.observe) if learns else None,
            refit=bind(self._refitted, *known.arguments) if learns else None,
            name=self.name,
            target=recipe.target,
            max_step_size=recipe.max_step_size,
            gradients_per_step=self.gradients_per_step * known.positions,
            ramps=recipe.ramps,
        )

    def _move(self, known: Known) -> Move:
        build, score = bind(self.recipe.build, *known.arguments, **known.options), self.recipe.score
        if score is None:
            return Move(build)
        return Move(build, as_pytree(score) if known.gaussian is None else bind(score, known.gaussian))

    def _refitted(self, witness: Callable[[Array], Array], gaussian: FourierGaussian, means: Any) -> Move:
        """The move after the quadratic form that is most like the witness has moved into the Gaussian part."""
        gaussian, witness = annealing.learn(gaussian, witness, means)
        return self._move(Known((witness, gaussian), gaussian=gaussian))


SAMPLERS = {
    row.name: row
    for row in (
        Sampler("kinetic", (POSTERIOR,), parts, KINETIC),
        Sampler("kinetic_unadjusted", (POSTERIOR,), parts, KINETIC_UNADJUSTED),
        Sampler("pcnl", (POSTERIOR, DIAGONAL_DECODER), parts, PCNL),
        Sampler("pcnl_unadjusted", (POSTERIOR, DIAGONAL_DECODER, WITNESS_BOUND), parts, PCNL_UNADJUSTED),
        Sampler("preconditioned", (POSTERIOR, DIAGONAL_DECODER, WITNESS_BOUND), parts, PRECONDITIONED),
        Sampler("langevin", (WITNESS_BOUND, DECODER_BOUND), bounded_exponent, LANGEVIN),
        Sampler("leimkuhler_matthews", (WITNESS_BOUND, DECODER_BOUND), bounded_exponent, LEIMKUHLER_MATTHEWS),
        Sampler("mala", (), exponent, MALA),
        Sampler("tempered", (POSTERIOR, DIAGONAL_DECODER), parts_and_ladder, TEMPERED),
        Sampler("stochastic", (POSTERIOR, DIAGONAL_DECODER), parts, STOCHASTIC, gradients_per_step=2),
        Sampler("sk_rock", (WITNESS_BOUND,), exponent_and_metric, SK_ROCK, gradients_per_step=NUM_STAGES),
    )
}
