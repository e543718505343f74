r"""Learning a conditional prior from known volumes: degrade them, predict, compare.

An example is a volume v, observed through a random wedge with random noise, or with those of a given tomogram. The
prior that the network predicts and the data make a Gaussian posterior, coefficient by coefficient

.. math:: V = \Big(\frac1P + \frac{M}{N}\Big)^{-1}, \qquad m = V \Big(\frac{\bar z}{P} + \frac{M y}{N}\Big)

and the loss is

.. math:: \frac{|m - v|^2}{D} + \tfrac15 \sum_k u_k \Big[\log V_k + \frac{|v_k - m_k|^2}{V_k}\Big]
          + \tfrac{1}{5D} \sum_x \Big[\log s^2 + \frac{r^2}{s^2}\Big](x),

with three terms: the error of the posterior mean; minus twice the log-likelihood of the truth per frequency, where u_k
gives shells similar weights; and the same of the whitened error r of the missing part per voxel, from which the network
learns where its errors are.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cryowgen_jax.models import prior_net as priors
from cryowgen_jax.operators import traced_wedge_mask
from cryowgen_jax.pytrees import as_pytree
from cryowgen_jax.spatial import fourier
from cryowgen_jax.training import scenes
from cryowgen_jax.training.descent import Descent, Log, TrainingProgress, descend
from cryowgen_jax.training.scenes import FLOOR
from cryowgen_jax.types import Array, PRNGKey, PyTree

LIKELIHOOD_SHARE = 0.2
SMALL_MATRIX = 16  # rows or columns, up to which Muon leaves a matrix to Adam
Loss = Callable[[Any, Any, PRNGKey], tuple[Array, Log]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Example:
    """One volume, in units in which the signal's variance is 1, and an observation of it.

    Attributes
    ----------
    truth
        v, (Z, Y, X).
    spectrum
        y, the half spectrum of the observation.
    noise, signal
        Power N of the noise and S of the signal, per coefficient.
    mask
        M, rfftn layout.
    tilt_range
        (lo, hi) in degrees, tilt axis y and beam z.
    """

    truth: Array
    spectrum: Array
    noise: Array
    signal: Array
    mask: Array
    tilt_range: Array


def example(truth: Array, noise: Array, tilt_range: Array, key: PRNGKey) -> Example:
    """Observe a volume through a wedge (beam z, tilt axis y) with noise of power ``noise`` per coefficient.

    S is the mean power of the truth over the measured part of each shell, which is how it is estimated from a tomogram.
    The volume is shifted to mean 0 and scaled to variance 1 by S, and all else is scaled with it.
    """
    shape = truth.shape
    truth = truth - jnp.mean(truth)
    mask = traced_wedge_mask(shape, tilt_range)
    spectrum = fourier.rfftn(truth)
    white = fourier.rfftn(jax.random.normal(key, shape))
    signal = shell_means(jnp.abs(spectrum) ** 2, mask, shape)
    weight = np.broadcast_to(fourier.multiplicity(shape), mask.shape)
    variance = jnp.sum(signal * weight) / np.prod(shape)
    unit = jnp.sqrt(variance)
    signal, noise = signal / variance + FLOOR, noise / variance + FLOOR
    seen = mask * (spectrum / unit + jnp.sqrt(noise) * white)
    return Example(truth / unit, seen, noise, signal, mask, tilt_range)


def shell_means(power: Array, mask: Array, shape: tuple[int, ...]) -> Array:
    """Mean over the measured coefficients of each Fourier shell, one value per coefficient."""
    index, number = fourier.wide_shell_index(shape)
    index[0, 0, 0] = index[0, 0, 1]
    weight = (mask * fourier.multiplicity(shape)).at[0, 0, 0].set(0.0)
    total, count = (fourier.shell_sums(values, index, number) for values in (power * weight, weight))
    return (total / jnp.maximum(count, 1e-9))[index]


def prior_loss(
    network: Callable[[priors.Features], priors.ConditionalPrior], seen: Example, key: PRNGKey | None = None
) -> tuple[Array, Log]:
    """The loss of one example, and its parts by name, with the correlation and spread over error in the wedge.

    It needs no ``key``.
    """
    told = priors.features(seen.spectrum, seen.noise, seen.signal, seen.tilt_range, seen.truth.shape)
    prior = network(told)
    return posterior_loss(seen, prior.center * told.scale, prior.log_variance, prior.log_gain)


def posterior_loss(
    seen: Example | scenes.Example, center: Array, log_variance: Array, log_gain: Array, *, blended: bool = True
) -> tuple[Array, Log]:
    """The loss of a prediction, zbar, log s^2 and log P / S at the knots, as in :func:`prior_loss`.

    ``blended`` combines it with the data; otherwise m is zbar and V is P.
    """
    shape = seen.truth.shape
    weight = np.broadcast_to(fourier.multiplicity(shape), seen.mask.shape)
    power = priors.residual_power(log_gain, seen.signal, seen.mask, shape) + FLOOR
    truth, guess = fourier.rfftn(seen.truth), fourier.rfftn(center)
    off = guess - truth
    data = seen.mask / seen.noise if blended else jnp.zeros(seen.mask.shape)
    variance = 1 / (1 / power + data)
    error = variance * (off / power + data * (seen.spectrum - truth))
    squared = jnp.abs(error) ** 2
    distance = jnp.sum(weight * squared) / np.prod(shape)
    shells = weight / (fourier.radial_frequency(shape) + 0.04) ** 2
    shells[0, 0, 0] = 0.0
    shells = shells / shells.sum()
    likelihood = jnp.sum(shells * (jnp.log(variance) + squared / variance))
    passed = (1 - seen.mask) * priors.local_filter(shape)
    expected = jnp.sum(weight * passed**2 * power) / np.prod(shape)
    missing = jax.lax.stop_gradient(fourier.irfftn(passed * off, shape) ** 2 / expected)
    local = jnp.mean(log_variance + missing * jnp.exp(-log_variance))
    wedge = weight * (1 - seen.mask) * (fourier.radial_frequency(shape) < 0.25)
    cross = jnp.sum(wedge * jnp.real(truth * jnp.conj(guess)))
    norm = jnp.sqrt(jnp.sum(wedge * jnp.abs(truth) ** 2) * jnp.sum(wedge * jnp.abs(guess) ** 2))
    total = distance + LIKELIHOOD_SHARE * (likelihood + local)
    return total, {
        "loss": total,
        "distance": distance,
        "likelihood": likelihood,
        "local": local,
        "wedge_correlation": cross / (norm + 1e-9),
        "spread_over_error": jnp.sum(wedge * variance) / jnp.sum(wedge * squared),
    }


def learn_prior(
    key: PRNGKey,
    network: Callable[..., Any],
    draw: Callable[[PRNGKey], Any],
    *,
    loss: Loss = prior_loss,
    optimizer: optax.GradientTransformation,
    num_iterations: int,
    batch_size: int = 4,
    decay: float = 0.999,
    chunk: int = 50,
    checkpoint: str | pathlib.Path | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> Descent:
    """Fit a network to examples.

    Parameters
    ----------
    key
        Iteration i depends on ``fold_in(key, i)``.
    network
        Where to start: ``models.prior_network`` or ``from_nnx`` of a ``PriorNet``; ``models.denoising_network``.
    draw
        Key -> one example: ``Specimens``, or ``Scenes`` for a denoiser.
    loss
        (network, example, key) -> loss and what to log: :func:`prior_loss`; ``diffusion_loss`` or ``correction_loss``
        for a denoiser.
    optimizer
        Optax transformation, such as :func:`warmed_adam` or :func:`warmed_muon`.
    batch_size
        Examples per iteration, one in memory at a time.
    num_iterations, decay, chunk, checkpoint, progress
        As in :func:`~cryowgen_jax.training.descent.descend`.

    Returns
    -------
    Descent
        ``average`` is the network to use.
    """
    return descend(
        key,
        _Step(as_pytree(draw), loss, batch_size),
        as_pytree(network),
        (),
        optimizer=optimizer,
        num_iterations=num_iterations,
        decay=decay,
        chunk=chunk,
        checkpoint=checkpoint,
        progress=progress,
    )


@functools.lru_cache(maxsize=8)
def warmed_adam(rate: float, num_iterations: int) -> optax.GradientTransformation:
    """Adam with gradients clipped to norm 1, whose rate rises over a twentieth of the iterations and falls to 1 %.

    The same arguments give the same object, so that a second descent does not compile again.
    """
    length = max(num_iterations, 20)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, length // 20, length, 0.01 * rate)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


@functools.lru_cache(maxsize=8)
def warmed_muon(rate: float, num_iterations: int) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) for convolutions and matrices, Adam for all else; gradients clipped to norm 1.

    The rate rises over 3 % of the iterations, stays until 40 % and falls to 1 %. It means what Adam's means.
    """
    length = max(num_iterations, 100)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, rate, 3 * length // 100),
            optax.constant_schedule(rate),
            optax.cosine_decay_schedule(rate, 6 * length // 10, 0.01),
        ],
        [3 * length // 100, 4 * length // 10],
    )
    muon = optax.contrib.muon(schedule, consistent_rms=0.2, muon_weight_dimension_numbers=_matrices)
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def _matrices(parameters: PyTree) -> PyTree:
    """Which axes of each leaf are the rows and columns of its matrix; None for leaves that are none, or small."""
    dimensions = optax.contrib.MuonDimensionNumbers

    def of(leaf: Array) -> Any:
        if leaf.ndim == 5 and leaf.shape[-1] > SMALL_MATRIX:
            return dimensions(reduction_axis=(0, 1, 2, 3), output_axis=4)
        is_matrix = leaf.ndim == 2 and min(leaf.shape) > SMALL_MATRIX
        return dimensions(reduction_axis=0, output_axis=1) if is_matrix else None

    return jax.tree.map(of, parameters)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Step:
    """(key, network, ()) -> gradient of the loss, (), log; one example in memory at a time."""

    draw: Callable[[PRNGKey], Any]
    loss: Loss = dataclasses.field(metadata={"static": True})
    batch_size: int = dataclasses.field(metadata={"static": True})

    def __call__(self, key: PRNGKey, network: PyTree, state: tuple[()]) -> tuple[PyTree, tuple[()], Log]:
        """One estimate of the gradient."""

        def one(key: PRNGKey) -> tuple[PyTree, Log]:
            (_, log), slope = jax.value_and_grad(self.loss, has_aux=True)(
                network, self.draw(key), jax.random.fold_in(key, 1)
            )
            return slope, log

        each = jax.lax.map(one, jax.random.split(key, self.batch_size))
        slope, log = jax.tree.map(lambda values: jnp.mean(values, axis=0), each)
        return slope, state, log
