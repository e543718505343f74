"""The only loops over optimiser steps: descent along a stochastic gradient, and minimisation of a function.

No other file updates parameters with an Optax transformation. ``training.descent`` puts chunks, checkpoints and logs
around the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cryowgen_jax.types import Array, PyTree

MEMORY = 10  # past gradients of L-BFGS
RESOLUTION = 1e-6  # root mean square of a gradient that float32 does not tell from zero

Gradient = Callable[[Any, PyTree, PyTree], tuple[PyTree, PyTree, PyTree]]
Average = Callable[[Any, PyTree, PyTree], PyTree]


class Iterate(NamedTuple):
    """Where a descent is: parameters, their average, the optimiser's state, and the state of the gradient."""

    parameters: PyTree
    average: PyTree
    optimizer: PyTree
    state: PyTree


def follow_gradient(
    gradient: Gradient,
    optimizer: optax.GradientTransformation,
    start: Iterate,
    items: PyTree,
    average: Average | None = None,
) -> tuple[Iterate, PyTree]:
    """Take one step of the optimiser per item, downhill, as one ``lax.scan``.

    Parameters
    ----------
    gradient
        (item, parameters, state) -> gradient of the parameters, state after it, log.
    optimizer
        Optax transformation.
    start
        Where to start from.
    items
        One per step, such as its key or number: arrays with a leading axis for the steps.
    average
        (item, parameters after the step, average before it) -> average after it. Without it ``start.average`` is kept.

    Returns
    -------
    tuple[Iterate, PyTree]
        The last iterate, and the logs of all steps, stacked along a leading axis.
    """

    def step(at: Iterate, item: Any) -> tuple[Iterate, PyTree]:
        slope, state, log = gradient(item, at.parameters, at.state)
        updates, optimizer_state = optimizer.update(slope, at.optimizer, at.parameters)
        parameters = optax.apply_updates(at.parameters, updates)
        mean = at.average if average is None else average(item, parameters, at.average)
        return Iterate(parameters, mean, optimizer_state, state), log

    return jax.lax.scan(step, start, items)


def start_average(parameters: PyTree) -> PyTree:
    """The state of a :func:`debiased_average` before its first parameters."""
    return optax.ema(0.0).init(parameters)


def debiased_average(decay: float, parameters: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
    """Running average a_n = sum_i d^(n-i) p_i / sum_i d^(n-i) with these parameters added, and its state after."""
    return optax.ema(decay).update(parameters, state)


class _Descent(NamedTuple):
    position: Array
    optimizer: PyTree
    slope: Array
    step: Array


def minimise(function: Callable[[Array], Array], start: Array, num_steps: int) -> Array:
    """Minimum of a function near a point, by L-BFGS with a line search.

    Parameters
    ----------
    function
        Position -> scalar, differentiable.
    start
        Where to start from, float32.
    num_steps
        Most steps. The search ends earlier where the root mean square of the gradient has fallen below 1e-6.

    Returns
    -------
    Array
        The last position.
    """
    optimizer = optax.lbfgs(memory_size=MEMORY)
    value_and_slope = optax.value_and_grad_from_state(function)
    tiny = RESOLUTION * jnp.sqrt(jnp.asarray(start.size, start.dtype))

    def unfinished(at: _Descent) -> Array:
        return (at.step < num_steps) & (jnp.sqrt(jnp.sum(at.slope**2)) > tiny)

    def step(at: _Descent) -> _Descent:
        value, slope = value_and_slope(at.position, state=at.optimizer)
        updates, state = optimizer.update(slope, at.optimizer, at.position, value=value, grad=slope, value_fn=function)
        return _Descent(optax.apply_updates(at.position, updates), state, slope, at.step + 1)

    first = _Descent(start, optimizer.init(start), jnp.full_like(start, jnp.inf), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, step, first).position
