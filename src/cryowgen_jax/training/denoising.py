r"""Denoising score matching: a start for a witness from clean samples alone, without chains.

.. math:: \min_w \; E_{z \sim P_Z}\, E_{\sigma}\, E_{\xi \sim N(0, I)}\;
          \frac{1}{2D} \big|\sigma\, \nabla (w + u)(z + \sigma \xi) + \xi\big|^2

with log sigma uniform over a range, so that grad w is learned wherever a chain may go: near the clean samples, and
where noise dominates. At a single level the minimiser is w + u = log p_sigma, the log-density of clean samples plus
noise (Vincent, Neural Computation 2011); over a range it is the best compromise of one function between all levels. u
is the part of the log-density that is known already.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from cryowgen_jax import platform
from cryowgen_jax.pytrees import as_pytree
from cryowgen_jax.training.clean_samples import CleanSamples, drawer
from cryowgen_jax.training.descent import Descent, Log, TrainingProgress, descend
from cryowgen_jax.types import Array, InputError, PRNGKey, PyTree

Function = Callable[[Array], Array]


def denoising_loss(witness: Function, known: Function | None, clean: Array, level: Array, noise: Array) -> Array:
    """The loss of one clean sample, noise level sigma and white unit noise; 0.5 on average where the gradient is 0."""

    def density(position: Array) -> Array:
        return witness(position) if known is None else witness(position) + known(position)

    return 0.5 * jnp.mean((level * jax.grad(density)(clean + level * noise) + noise) ** 2)


def match_scores(
    key: PRNGKey,
    witness: Function,
    clean_samples: CleanSamples,
    noise_levels: tuple[float, float],
    *,
    known: Function | None = None,
    optimizer: optax.GradientTransformation | None = None,
    num_iterations: int = 1000,
    batch_size: int = 8,
    decay: float = 0.99,
    checkpoint: str | pathlib.Path | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> Descent:
    """Learn a witness by denoising score matching.

    Parameters
    ----------
    key
        Iteration i depends on ``fold_in(key, i)``.
    witness
        Where to start; a pytree callable, differentiable twice in reverse mode.
    clean_samples
        An array (M, ...), or key -> one draw.
    noise_levels
        Smallest and largest sigma, in the units of the samples.
    known
        u, which is not learned; None for 0.
    optimizer
        Optax transformation, Adam with a step of 1e-3 by default. A second run with the same object is not compiled
        again.
    batch_size
        Samples per iteration, each at a level of its own.
    num_iterations, decay, checkpoint, progress
        As in :func:`~cryowgen_jax.training.descent.descend`.

    Returns
    -------
    Descent
        ``parameters`` and ``average`` are witnesses; the average is the one to use.

    Raises
    ------
    InputError
        Where levels or sizes do not fit.
    """
    low, high = noise_levels
    if not 0 < low <= high < float("inf"):
        raise InputError(f"noise_levels={noise_levels}: give two positive numbers, the smaller first")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: give at least 1")
    known = None if known is None else as_pytree(known)
    levels = jnp.asarray([low, high], jnp.float32)
    return descend(
        key,
        _Step(drawer(clean_samples), levels, known, batch_size),
        as_pytree(witness),
        (),
        optimizer=optimizer,
        num_iterations=num_iterations,
        decay=decay,
        checkpoint=checkpoint,
        progress=progress,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Step:
    """(key, witness, ()) -> gradient of the loss, (), log."""

    draw: Callable[[PRNGKey], Array]
    levels: Array
    known: Function | None
    batch_size: int = dataclasses.field(metadata={"static": True})

    def __call__(self, key: PRNGKey, witness: PyTree, state: tuple[()]) -> tuple[PyTree, tuple[()], Log]:
        """One estimate of the gradient."""

        def one(witness: PyTree, key: PRNGKey) -> Array:
            clean_key, level_key, noise_key = jax.random.split(key, 3)
            clean = self.draw(clean_key)
            low, high = jnp.log(self.levels)
            level = jnp.exp(jax.random.uniform(level_key, minval=low, maxval=high))
            noise = jax.random.normal(noise_key, clean.shape, clean.dtype)
            return denoising_loss(witness, self.known, clean, level, noise)

        def loss(witness: PyTree) -> Array:
            return jnp.mean(platform.map_items(lambda k: one(witness, k), jax.random.split(key, self.batch_size)))

        value, slope = jax.value_and_grad(loss)(witness)
        return slope, state, {"loss": value}
