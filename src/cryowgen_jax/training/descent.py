"""Stochastic descent in chunks, with a running average of the parameters, logs, checkpoints and progress.

The loop over the steps of a chunk is ``optimisation.follow_gradient``.
"""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cryowgen_jax import io, platform
from cryowgen_jax.optimisation import Iterate, follow_gradient
from cryowgen_jax.pytrees import as_pytree
from cryowgen_jax.types import Array, InputError, PRNGKey, PyTree

DEFAULT_OPTIMIZER = optax.adam(1e-3)
SECONDS_BETWEEN_SAVES = 30.0

Log = dict[str, Array]
Gradient = Callable[[PRNGKey, PyTree, PyTree], tuple[PyTree, PyTree, Log]]


class TrainingProgress(NamedTuple):
    """What a progress callback gets after every chunk of iterations.

    ``log`` has the chunk's means by name. ``average`` and ``state`` are the present ones of :class:`Descent`, so that a
    callback can validate them.
    """

    step: int
    num_steps: int
    log: dict[str, float]
    seconds: float
    average: PyTree
    state: PyTree


class Descent(NamedTuple):
    """Parameters after the last good iteration, their running average, the state, logs by name, and how it ended.

    ``log`` has one value per iteration; ``status`` is "ok" or says at which iteration the descent stopped, and why.
    """

    parameters: PyTree
    average: PyTree
    state: PyTree
    log: dict[str, np.ndarray]
    status: str


def descend(
    key: PRNGKey,
    gradient: Gradient,
    parameters: PyTree,
    state: PyTree,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_iterations: int,
    decay: float = 0.99,
    chunk: int = 50,
    checkpoint: str | pathlib.Path | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> Descent:
    r"""Follow a stochastic gradient downhill.

    Parameters
    ----------
    key
        Iteration i uses ``fold_in(key, i)``, so that a resumed run is the uninterrupted one bit for bit.
    gradient
        (key, parameters, state) -> gradient of the parameters, state after it, logged scalars by name. A pytree
        callable (``pytrees.bind``) is not compiled again for new arrays.
    parameters, state
        Pytrees of arrays: what is optimised, and what one evaluation of the gradient hands on to the next.
    optimizer
        Optax transformation, Adam with a step of 1e-3 by default.
    num_iterations
        In total, those of a resumed checkpoint included.
    decay
        Of the running average: a_i = d a_{i-1} + (1 - d) p_i with d = min(decay, i / (i + 9)), so that the start has
        little weight.
    chunk
        Iterations of one compiled call; after each the descent is checked, reported and saved.
    checkpoint
        Folder to save in and to resume from.
    progress
        Called after every chunk.

    Returns
    -------
    Descent
        ``average`` is usually better than ``parameters``.

    Raises
    ------
    InputError
        Where numbers do not fit, or the checkpoint is of another run.
    """
    if num_iterations < 0 or chunk < 1:
        raise InputError(f"num_iterations={num_iterations}, chunk={chunk}: give at least 0 and 1")
    optimizer = DEFAULT_OPTIMIZER if optimizer is None else optimizer
    started = saved = time.monotonic()
    gradient, parameters = as_pytree(gradient), jax.tree.map(jnp.asarray, parameters)
    carry = _strongly_typed(Iterate(parameters, parameters, optimizer.init(parameters), state))
    done, log = 0, _empty_log(key, gradient, carry, num_iterations)
    if checkpoint is not None and (found := io.load_checkpoint(checkpoint, (carry, log))) is not None:
        done, (carry, log) = found
    status, on_disk = "ok", done
    try:
        while done < num_iterations:
            length = min(chunk, num_iterations - done)
            new, rows = _chunk(optimizer, length)(key, gradient, jnp.float32(decay), carry, jnp.int32(done))
            values_of = {name: np.asarray(values) for name, values in rows.items()}
            broken = _first_broken(new.parameters, values_of)
            if broken is not None:
                status = f"stopped at iteration {done + broken}: not finite; parameters are those of iteration {done}"
                break
            for name, values in values_of.items():
                log[name][done : done + length] = values
            carry, done = new, done + length
            if progress is not None:
                means = {name: float(np.mean(values)) for name, values in values_of.items()}
                seconds = time.monotonic() - started
                progress(TrainingProgress(done, num_iterations, means, seconds, carry.average, carry.state))
            if checkpoint is not None and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                io.save_checkpoint(checkpoint, done, (carry, log))
                saved, on_disk = time.monotonic(), done
    finally:
        if checkpoint is not None and done > on_disk:
            io.save_checkpoint(checkpoint, done, (carry, log))
    log = {name: values[:done] for name, values in log.items()}
    return Descent(carry.parameters, carry.average, carry.state, log, status)


def require_batch(batch_size: int, number: int, of: str) -> None:
    """Raise ``InputError`` for an empty batch, or one larger than the number of items."""
    if not 1 <= batch_size <= number:
        raise InputError(f"batch_size={batch_size}: give 1 to {number}, the number of {of}")


def mean_slope(loss: Callable[..., tuple[Array, Log]], parameters: PyTree, items: PyTree) -> tuple[PyTree, Log]:
    """Means over the items (leading axis) of the gradient of ``loss(parameters, item)`` and of its log.

    Large items are taken one by one, so that one backward pass is in memory at a time. Small ones are taken together,
    so that the gradient in the parameters is computed once and not once per item.
    """

    def mean(values: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), values)

    def one(item: PyTree) -> tuple[PyTree, Log]:
        (_, log), slope = jax.value_and_grad(loss, has_aux=True)(parameters, item)
        return slope, log

    def all_of_them(parameters: PyTree) -> tuple[Array, Log]:
        values, log = jax.vmap(lambda item: loss(parameters, item))(items)
        return jnp.mean(values), mean(log)

    if platform.one_by_one(lambda item: loss(parameters, item), items):
        slope, log = mean(jax.lax.map(one, items))
    else:
        (_, log), slope = jax.value_and_grad(all_of_them, has_aux=True)(parameters)
    return slope, log


def _strongly_typed(tree: PyTree) -> PyTree:
    """Without weak types: a chunk's results have none, so that the second chunk would be compiled anew."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype) if hasattr(leaf, "dtype") else leaf, tree)


def _empty_log(key: PRNGKey, gradient: Gradient, carry: Iterate, length: int) -> dict[str, np.ndarray]:
    *_, rows = jax.eval_shape(lambda c: gradient(key, c.parameters, c.state), carry)
    return {name: np.full(length, np.nan, np.float32) for name in rows}


def _first_broken(parameters: PyTree, rows: dict[str, np.ndarray]) -> int | None:
    """Iteration of the chunk at which something was not finite, or None."""
    finite = np.logical_and.reduce([np.isfinite(values) for values in rows.values()])
    if not finite.all():
        return int(np.argmin(finite))
    good = all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(parameters))
    return None if good else len(finite) - 1


@functools.lru_cache(maxsize=32)
def _chunk(optimizer: optax.GradientTransformation, length: int) -> Callable[..., tuple[Iterate, Log]]:
    def run(key: PRNGKey, gradient: Gradient, decay: Array, start: Iterate, first: Array) -> tuple[Iterate, Log]:
        def slope_at(i: Array, parameters: PyTree, state: PyTree) -> tuple[PyTree, PyTree, Log]:
            return gradient(jax.random.fold_in(key, i), parameters, state)

        def averaged(i: Array, parameters: PyTree, average: PyTree) -> PyTree:
            kept = jnp.minimum(decay, i / (i + 9.0))
            return optax.incremental_update(parameters, average, 1.0 - kept)

        return follow_gradient(slope_at, optimizer, start, first + jnp.arange(length), averaged)

    return platform.jit(run)
