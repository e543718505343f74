"""The Leimkuhler-Matthews scheme, preconditioned by the Gaussian part: no Metropolis test, yet exact on Gaussians."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from cryowgen_jax.pytrees import bind
from cryowgen_jax.samplers.interface import GaussianPart, Recipe, Witness, algorithm
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, PRNGKey

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm

NoiseFn = Callable[[PRNGKey, tuple[int, ...]], Array]


class PreconditionedState(NamedTuple):
    """Position, half spectrum of its offset from mu, and that of the last noise, which the next step uses again."""

    position: Array
    offset: Array
    noise: Array


class PreconditionedInfo(NamedTuple):
    """The witness at the position before the step, and the acceptance rate: 1, as nothing is rejected."""

    witness: Array
    acceptance_rate: Array


def white_noise(key: PRNGKey, shape: tuple[int, ...]) -> Array:
    """Independent standard normal voxels."""
    return jax.random.normal(key, shape)


def build(
    witness: Witness, gaussian: GaussianPart, step_size: Array | float, draw_noise: NoiseFn = white_noise
) -> SamplingAlgorithm:
    r"""Preconditioned Leimkuhler-Matthews scheme for exp(w(z)) N(z; mu, C), C diagonal in Fourier space.

    .. math:: u'_{k+1} = (1 - \eta)\, u'_k + \eta\, C \nabla w(u_k)
              + \sqrt{2 \eta}\, C^{1/2}\, \tfrac{\xi_k + \xi_{k+1}}{2}, \qquad u' = u - \mu .

    Parameters
    ----------
    witness
        w: volume -> scalar, smooth.
    gaussian
        The Gaussian part.
    step_size
        eta in (0, 2). On a mode where w has curvature g / C it is stable iff eta (1 + g) < 2, whatever the data weight.
    draw_noise
        (key, shape) -> white noise of unit variance. Chains of overlapping volumes stay together where they overlap if
        they draw the same noise there.

    Returns
    -------
    SamplingAlgorithm
        BlackJAX's pair of ``init(position, rng_key)``, which draws the first noise, and ``step(rng_key, state)``.

    Notes
    -----
    This is the scheme of Leimkuhler and Matthews (arXiv 1203.5428) in the coordinates C^{-1/2} z. On such a mode its
    stationary variance is exactly C/(1 + g). One witness gradient and three transforms a step.
    """
    return algorithm(bind(init, gaussian, draw_noise), bind(step, witness, gaussian, step_size, draw_noise))


def largest_step(gap: Array) -> Array:
    """A step size that is stable and decorrelates fast where |Hess w| <= gap / C: min(1, 1.8 / (1 + gap))."""
    return jnp.minimum(1.0, 1.8 / (1.0 + gap))


def init(
    gaussian: GaussianPart, draw_noise: NoiseFn, position: Array, rng_key: PRNGKey | None = None
) -> PreconditionedState:
    """Start a chain. The first noise is drawn with ``rng_key``; without a key it is zero."""
    noise = jnp.zeros_like(position) if rng_key is None else draw_noise(rng_key, position.shape).astype(position.dtype)
    return PreconditionedState(position, fourier.rfftn(position) - gaussian.mean_spectrum, fourier.rfftn(noise))


def step(
    witness: Witness,
    gaussian: GaussianPart,
    step_size: Array,
    draw_noise: NoiseFn,
    rng_key: PRNGKey,
    state: PreconditionedState,
) -> tuple[PreconditionedState, PreconditionedInfo]:
    """One step."""
    value, gradient = jax.value_and_grad(witness)(state.position)
    noise = fourier.rfftn(draw_noise(rng_key, state.position.shape).astype(state.position.dtype))
    offset = (
        (1 - step_size) * state.offset
        + step_size / gaussian.precision * fourier.rfftn(gradient)
        + jnp.sqrt(0.5 * step_size / gaussian.precision) * (state.noise + noise)
    )
    position = fourier.irfftn(gaussian.mean_spectrum + offset, state.position.shape)
    return PreconditionedState(position, offset, noise), PreconditionedInfo(value, jnp.ones_like(value))


PRECONDITIONED = Recipe(build, largest_step)
