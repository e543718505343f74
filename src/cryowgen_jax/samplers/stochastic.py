"""Langevin steps along random gradients, whose noise is measured and taken off the noise that is injected."""

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
    """Position, its half spectrum less the Gaussian mean's, and what was drawn there and on the way.

    ``gradient`` is the half spectrum of the gradient drawn at ``position``, where the step arrived: the next step goes
    along it, and its noise is independent of the position. ``gradient_variance`` is V_k, the mean of the estimates of
    its variance over the ``draws`` so far, this one included.
    """

    position: Array
    offset: Array
    gradient: Array
    gradient_variance: Array
    draws: Array


class StochasticInfo(NamedTuple):
    """Acceptance rate (1: nothing is rejected), and what gradient noise adds, as shares of the variance to inject.

    ``inflation`` is the share that it adds where it is not removed, ``remaining`` the share that was not removed.
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

    g_1 and g_2 the gradients at u of two independent draws of w. Their difference measures the variance of g,

    .. math:: V_k = \tfrac14\, \overline{|F (g_1 - g_2)|_k^2}, \qquad E V_k = E\,|F (g - E g)|_k^2 ,

    the mean running over all steps, and what gradient noise adds is taken off what is injected:

    .. math:: \sigma_k^2 = \max\{0,\; (1 - a^2)\, C_k - h^2 C_k^2 V_k\},

    so that noise of both kinds together has the variance (1 - a^2) C_k that the scheme with the exact gradient injects.

    Parameters
    ----------
    witness
        w, with ``at(key)``; pytree.
    gaussian
        The Gaussian part.
    step_size
        h in (0, 1]. Scalar or one per coefficient (rfftn layout).
    corrected
        False leaves out the V_k term: stochastic gradient Langevin (Welling and Teh, ICML 2011) in these coordinates.

    Notes
    -----
    On a mode of Gaussian variance C where E w has curvature g / C, and the gradient additive noise of variance V, a
    step multiplies by m and adds independent noise:

    .. math:: m = a - h\, g, \qquad \mathrm{Var} = m^2\, \mathrm{Var} + (1 - a^2)\, C + h^2 C^2 V
              = \frac{(1 - a^2)\, C + h^2 C^2 V}{1 - m^2} ,

    the counterpart of (2 + eta V)/(2 q - eta q^2), which stochastic gradients of variance V leave on precision q with
    Euler steps of size eta. Corrected, the V term is gone and the variance is that of unadjusted pCNL; that it differs
    from C/(1 + g) is the step's own doing. On such a mode noise adds the share h C V / (2 - h). Beyond 1 the floor is
    reached, the excess stays, and ``remaining`` of the info is above 0; h has to be smaller then.

    Stable iff g > -1 and h (1 + g) < 2, additive noise or not. Noise that grows with the distance,
    V = V_0 + s^2 |z - m|^2, needs h^2 C^2 s^2 < 1 - m^2 as well.

    The correction is of first order (Vollmer, Zygalakis and Teh, JMLR 17, 2016): it mends the variance of every
    coefficient, on average over the positions that the chain was at. Covariances of gradient noise between coefficients
    and its higher cumulants stay. Two gradients and four transforms a step.
    """
    witness = as_pytree(witness)
    if not isinstance(witness, Stochastic):
        raise TypeError(f"{type(witness).__name__} cannot be drawn: give a pytree with at(key) -> witness, or use pcnl")
    function = corrected_step if corrected else plain_step
    return algorithm(bind(init, witness, gaussian), bind(function, witness, gaussian, step_size))


def init(
    witness: Stochastic, gaussian: GaussianPart, position: Array, rng_key: PRNGKey | None = None
) -> StochasticState:
    """Start a chain; the first gradient is drawn with ``rng_key``, or without one is that of the expected witness."""
    spectrum = fourier.rfftn(position)
    offset = spectrum - gaussian.mean_spectrum
    state = StochasticState(position, offset, offset, jnp.zeros(offset.shape, position.dtype), jnp.zeros((), jnp.int32))
    if rng_key is None:
        return state._replace(gradient=value_and_spectral_gradient(witness, position, spectrum)[1])
    return _draw(witness, gaussian, jax.random.fold_in(rng_key, 2), state)  # a child key that steps do not use


def corrected_step(
    witness: Stochastic, gaussian: GaussianPart, step_size: Array, rng_key: PRNGKey, state: StochasticState
) -> tuple[StochasticState, StochasticInfo]:
    """One update; injects what gradient noise does not add already."""
    wanted, added = _variances(gaussian, step_size, state)
    return _move(witness, gaussian, step_size, jnp.maximum(wanted - added, 0.0), rng_key, state)


def plain_step(
    witness: Stochastic, gaussian: GaussianPart, step_size: Array, rng_key: PRNGKey, state: StochasticState
) -> tuple[StochasticState, StochasticInfo]:
    """One update; gradient noise comes on top."""
    wanted, _ = _variances(gaussian, step_size, state)
    return _move(witness, gaussian, step_size, wanted, rng_key, state)


def _variances(gaussian: GaussianPart, step_size: Array, state: StochasticState) -> tuple[Array, Array]:
    """Per coefficient: the variance that a step has to add, and the part that gradient noise adds."""
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
        jnp.ones((), dtype),
        jnp.sum(added * weights) / total,
        jnp.sum((injected - wanted + added) * weights) / total,
    )
    return _draw(witness, gaussian, draw_key, state._replace(position=position, offset=offset)), info


def _draw(witness: Stochastic, gaussian: GaussianPart, key: PRNGKey, state: StochasticState) -> StochasticState:
    """Draw the gradient at the state's position and count it in."""

    def gradient(key: PRNGKey) -> Array:
        return value_and_spectral_gradient(witness.at(key), state.position, gaussian.mean_spectrum + state.offset)[1]

    one, two = jax.vmap(gradient)(jax.random.split(key))
    draws = state.draws + 1
    estimate = 0.25 * fourier.real_product(one - two, one - two)
    variance = state.gradient_variance + (estimate - state.gradient_variance) / draws
    return state._replace(gradient=0.5 * (one + two), gradient_variance=variance, draws=draws)


STOCHASTIC = Recipe(build, first_step, score=score)
