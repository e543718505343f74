"""A Markov kernel as the loop over steps runs it: its move, its first step size, and what warm-up adapts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from cryowgen_jax.types import Array, PyTree


class Move(NamedTuple):
    """What a kernel does at a given step size, and what its states know; both are callables that are pytrees.

    Attributes
    ----------
    build
        Step size -> BlackJAX SamplingAlgorithm. Kernels that ramp take a ``power`` as well.
    score
        State -> gradient of the log-density there, as an array of the position's shape or as its half spectrum. None
        where states do not hold it.
    """

    build: Callable[..., Any]
    score: Callable[[PyTree], Array] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Markov kernel that warm-up adapts; a pytree.

    Parameters
    ----------
    move
        What it does.
    step_size
        First step size.
    quality
        Info -> number in [0, 1] that falls with the step size, by which warm-up steers; None takes the acceptance rate.
    observe
        State -> arrays, which the middle of warm-up averages over steps and chains. None where there is nothing to
        learn.
    refit
        These averages -> the ``Move`` to go on with.
    name
        What the result calls it.
    target
        Mean quality that warm-up steers to by dual averaging; None keeps ``step_size``.
    max_step_size
        Largest step size that warm-up may take.
    gradients_per_step
        Gradients of the witness or log-density in one step.
    is_exact
        Whether steps are independent draws of the target, so that nothing has to be warmed up.
    ramps
        Whether the start of warm-up raises the power t of exp(t w) N(mu, C) from 0 to 1.
    """

    move: Move
    step_size: Array
    quality: Callable[[Any], Array] | None = None
    observe: Callable[[PyTree], PyTree] | None = None
    refit: Callable[[PyTree], Move] | None = None
    name: str = dataclasses.field(default="", metadata={"static": True})
    target: float | None = dataclasses.field(default=None, metadata={"static": True})
    max_step_size: float = dataclasses.field(default=float("inf"), metadata={"static": True})
    gradients_per_step: int = dataclasses.field(default=1, metadata={"static": True})
    is_exact: bool = dataclasses.field(default=False, metadata={"static": True})
    ramps: bool = dataclasses.field(default=False, metadata={"static": True})

    def algorithm(self, step_size: Array, power: Array | float = 1.0) -> Any:
        """The kernel at this step size and power, as a BlackJAX SamplingAlgorithm."""
        return self.move.build(step_size, power=power) if self.ramps else self.move.build(step_size)
