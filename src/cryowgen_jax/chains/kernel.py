"""A Markov kernel as the loop over steps runs it: the move, where its step size starts, and what warm-up may adapt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from cryowgen_jax.types import Array, PyTree


class Move(NamedTuple):
    """What a kernel does at a given step size, and what its states know; both are pytree callables.

    ``build``: step size -> BlackJAX SamplingAlgorithm; it also takes a ``power`` where the kernel ramps. ``score``:
    state -> gradient of the log-density there, as an array of the position's shape or as its half spectrum; None where
    states do not hold it.
    """

    build: Callable[..., Any]
    score: Callable[[PyTree], Array] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Markov kernel that warm-up may adapt; a pytree.

    Parameters
    ----------
    move
        What it does.
    step_size
        Where adaptation starts, or the value to keep.
    quality
        info -> number in [0, 1] that falls with the step size, for adaptation to steer; None takes the acceptance.
    observe, refit
        state -> arrays, averaged over the middle of warm-up and over chains; averages -> the ``Move`` to go on with.
        None where there is nothing to learn.
    name
        What the result calls it.
    target
        Mean quality that warm-up steers to by dual averaging; None keeps ``step_size``.
    max_step_size
        Largest step size that makes sense.
    gradients_per_step
        Gradients of the witness or log-density that one step takes.
    ramps
        Whether the first part of warm-up raises the power t of rho_t ~ exp(t w) N(mu, C) from 0 to 1.
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
    ramps: bool = dataclasses.field(default=False, metadata={"static": True})

    def algorithm(self, step_size: Array, power: Array | float = 1.0) -> Any:
        """The kernel at this step size and power, as a BlackJAX SamplingAlgorithm."""
        return self.move.build(step_size, power=power) if self.ramps else self.move.build(step_size)
