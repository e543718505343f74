"""Stochastic-gradient Langevin steps: the noise of the gradient is measured, and so much less noise is injected."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from cryowgen_jax.pytrees import as_pytree, bind
from cryowgen_jax.samplers.interface import GaussianPart, Recipe, algorithm, score, value_and_spectral_gradient
from cryowgen_jax.samplers.pcnl import first_step
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, PRNGKey, Stochastic

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm


class StochasticState(NamedTuple):
    """State of a chain.

    Attributes
    ----------
    position
        z.
    offset
        Half spectrum of z - mu.
    gradient
        Half spectrum of g, drawn at z when the last step arrived there. The next step goes along it; its noise is
        independent of z.
    gradient_variance
        V_k: mean of the estimates of the variance of g so far, the last included.
    draws
        Number of these estimates.
    """

    position: Array
    offset: Array
    gradient: Array
    gradient_variance: Array
    draws: Array


class StochasticInfo(NamedTuple):
    """What a step tells.

    Attributes
    ----------
    acceptance_rate
        1, as nothing is rejected.
    inflation
        Variance that the noise of the gradient adds, over the variance that a step with the exact gradient injects.
    remaining
        The part of it that could not be removed, over the same variance.
    """

    acceptance_rate: Array
    inflation: Array
    remaining: Array


def build(
    witness: Stochastic, gaussian: GaussianPart, step_size: Array | float, *, corrected: bool = True
) -> SamplingAlgorithm:
    r"""Stochastic-gradient pCNL for exp(w(z)) N(z; mu, C), C diagonal in Fourier space, w known by random draws only.

    With the step size h and a = 1 - h a step from u is

    .. math:: v = \mu + a (u - \mu) + h\, C g + \sigma\, \xi, \qquad g = \tfrac12 (g_1 + g_2),

    g_1 and g_2 being the gradients at u of two independent draws of w. Their difference measures the variance of g,

    .. math:: V_k = \tfrac14\, \overline{|F (g_1 - g_2)|_k^2}, \qquad E V_k = E\,|F (g - E g)|_k^2 ,

    where the mean is over all steps so far. The step injects that much less noise:

    .. math:: \sigma_k^2 = \max\{0,\; (1 - a^2)\, C_k - h^2 C_k^2 V_k\},

    so that the noise of the gradient and the injected noise together have the variance (1 - a^2) C_k which the scheme
    with the exact gradient injects.

    Parameters
    ----------
    witness
        w as a pytree with ``at(key)``, which draws a deterministic witness.
    gaussian
        The Gaussian part.
    step_size
        h in (0, 1]. A scalar, or one per coefficient in rfftn layout.
    corrected
        False leaves out the V_k term: stochastic gradient Langevin (Welling and Teh, ICML 2011) in these coordinates.

    Returns
    -------
    SamplingAlgorithm
        BlackJAX's pair of ``init(position, rng_key)``, which draws the first gradient, and ``step(rng_key, state)``.

    Raises
    ------
    TypeError
        Where the witness has no ``at(key)``.

    Notes
    -----
    On a mode of Gaussian variance C where E w has curvature g / C, and the gradient has additive noise of variance V, a
    step multiplies the offset by m and adds independent noise:

    .. math:: m = a - h\, g, \qquad \mathrm{Var} = m^2\, \mathrm{Var} + (1 - a^2)\, C + h^2 C^2 V
              = \frac{(1 - a^2)\, C + h^2 C^2 V}{1 - m^2} ,

    the counterpart of (2 + eta V)/(2 q - eta q^2), the variance that Euler steps of size eta along such a gradient give
    on a mode of precision q. With the correction the V term is gone, and the variance is that of unadjusted pCNL; its
    difference from C/(1 + g) is due to the step size. On such a mode the inflation is h C V / (2 - h). Above 1 it
    cannot be removed whole, and ``remaining`` is above 0: choose a smaller h.

    The step is stable iff g > -1 and h (1 + g) < 2, with additive noise or without. Noise that grows with the distance
    from a point z_0, of variance V_0 + s^2 |z - z_0|^2, needs h^2 C^2 s^2 < 1 - m^2 as well.

    The correction is of first order (Vollmer, Zygalakis and Teh, JMLR 17, 2016): it corrects the variance of every
    coefficient, on average over the positions of the chain. Covariances of the gradient's noise between coefficients,
    and its higher cumulants, stay. Two gradients and four transforms a step.
    """
    witness = as_pytree(witness)
    if not isinstance(witness, Stochastic):
        raise TypeError(f"{type(witness).__name__} cannot be drawn: give a pytree with at(key) -> witness, or use pcnl")
    function = corrected_step if corrected else plain_step
    return algorithm(bind(init, witness, gaussian), bind(function, witness, gaussian, step_size))


def init(
    witness: Stochastic, gaussian: GaussianPart, position: Array, rng_key: PRNGKey | None = None
) -> StochasticState:
    """Start a chain. The first gradient is drawn with ``rng_key``; without a key it is that of the expected witness."""
    spectrum = fourier.rfftn(position)
    offset = spectrum - gaussian.mean_spectrum
    state = StochasticState(
        position=position,
        offset=offset,
        gradient=offset,  # of the right type, until it is drawn
        gradient_variance=jnp.zeros(offset.shape, position.dtype),
        draws=jnp.zeros((), jnp.int32),
    )
    if rng_key is None:
        return state._replace(gradient=value_and_spectral_gradient(witness, position, spectrum)[1])
    return _draw(witness, gaussian, jax.random.fold_in(rng_key, 2), state)  # a child key that steps do not use


def corrected_step(
    witness: Stochastic, gaussian: GaussianPart, step_size: Array, rng_key: PRNGKey, state: StochasticState
) -> tuple[StochasticState, StochasticInfo]:
    """One step that injects the noise that the gradient does not add already."""
    wanted, added = _variances(gaussian, step_size, state)
    return _move(witness, gaussian, step_size, jnp.maximum(wanted - added, 0.0), rng_key, state)


def plain_step(
    witness: Stochastic, gaussian: GaussianPart, step_size: Array, rng_key: PRNGKey, state: StochasticState
) -> tuple[StochasticState, StochasticInfo]:
    """One step that injects all noise, whatever the gradient adds."""
    wanted, _ = _variances(gaussian, step_size, state)
    return _move(witness, gaussian, step_size, wanted, rng_key, state)


def _variances(gaussian: GaussianPart, step_size: Array, state: StochasticState) -> tuple[Array, Array]:
    """Per coefficient: the variance that a step has to add, and the part that the noise of the gradient adds."""
    a = 1 - jnp.asarray(step_size, state.position.dtype)
    wanted = (1 - a) * (1 + a) / gaussian.precision
    return wanted, ((1 - a) / gaussian.precision) ** 2 * state.gradient_variance


def _move(
    witness: Stochastic,
    gaussian: GaussianPart,
    step_size: Array,
    injected: Array,
    rng_key: PRNGKey,
    state: StochasticState,
) -> tuple[StochasticState, StochasticInfo]:
    noise_key, draw_key = jax.random.split(rng_key)
    shape, dtype = state.position.shape, state.position.dtype
    a = 1 - jnp.asarray(step_size, dtype)
    noise = fourier.rfftn(jax.random.normal(noise_key, shape, dtype))
    offset = a * state.offset + (1 - a) / gaussian.precision * state.gradient + jnp.sqrt(injected) * noise
    position = fourier.irfftn(gaussian.mean_spectrum + offset, shape)
    wanted, added = _variances(gaussian, step_size, state)
    weights = fourier.multiplicity(shape)
    total = jnp.sum(wanted * weights)
    info = StochasticInfo(
        acceptance_rate=jnp.ones((), dtype),
        inflation=jnp.sum(added * weights) / total,
        remaining=jnp.sum((injected - wanted + added) * weights) / total,
    )
    return _draw(witness, gaussian, draw_key, state._replace(position=position, offset=offset)), info


def _draw(witness: Stochastic, gaussian: GaussianPart, key: PRNGKey, state: StochasticState) -> StochasticState:
    """The state with a gradient drawn at its position, and with one more estimate of the variance."""

    def gradient(key: PRNGKey) -> Array:
        return value_and_spectral_gradient(witness.at(key), state.position, gaussian.mean_spectrum + state.offset)[1]

    one, two = jax.vmap(gradient)(jax.random.split(key))
    draws = state.draws + 1
    estimate = 0.25 * fourier.real_product(one - two, one - two)
    variance = state.gradient_variance + (estimate - state.gradient_variance) / draws
    return state._replace(gradient=0.5 * (one + two), gradient_variance=variance, draws=draws)


STOCHASTIC = Recipe(build, first_step, score=score)
