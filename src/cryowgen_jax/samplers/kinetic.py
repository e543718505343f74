"""Kinetic Langevin on the Gaussian part's own space: exact rotation, kicks by the gradient of w, Metropolis test."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from cryowgen_jax.pytrees import bind
from cryowgen_jax.samplers.interface import GaussianPart, Recipe, Witness, algorithm, score, value_and_spectral_gradient
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, PRNGKey

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm

LONGEST_STEP = math.pi / 2  # a quarter turn: where w = 0, positions a step apart are independent
LONGEST_UNADJUSTED_STEP = 1.0
METROPOLIS_SIZE = 512  # elements above which a test on the sum of all energy errors would shrink the steps
TARGET_ACCEPTANCE = 0.75

Regressors = tuple[Array, Array, Array, Array]


class KineticState(NamedTuple):
    """Position, its half spectrum less the Gaussian mean's, the velocity's, and the witness with its gradient's."""

    position: Array
    offset: Array
    velocity: Array
    witness: Array
    gradient: Array


class KineticInfo(NamedTuple):
    """min(1, e^-dH) of the proposal (1 where nothing is rejected), whether it was taken, and dH itself."""

    acceptance_rate: Array
    is_accepted: Array
    energy_error: Array


def build(
    witness: Witness,
    gaussian: GaussianPart,
    step_size: Array | float,
    persistence: Array | float | None = None,
    *,
    power: Array | float = 1.0,
    adjusted: bool = True,
) -> SamplingAlgorithm:
    r"""Preconditioned kinetic Langevin for exp(t w(z)) N(z; mu, C), C diagonal in Fourier space, velocity u ~ N(0, C).

    One step is

    .. math::
        O:&\; u \leftarrow c\,u + \sqrt{1 - c^2}\, C^{1/2} \xi \\
        B:&\; u \leftarrow u + \tfrac h2\, t\, C \nabla w(z) \\
        R:&\; (z - \mu, u) \leftarrow (\cos h\, (z - \mu) + \sin h\, u,\; \cos h\, u - \sin h\, (z - \mu)) \\
        B:&\; u \leftarrow u + \tfrac h2\, t\, C \nabla w(z)

    in which every Gaussian mode turns at unit frequency, however stiff. The Metropolis test of B-R-B has no Gaussian
    terms: with g = grad w, u_0 the velocity before the first kick and u_2 the one before the last,

    .. math:: \Delta H = t\,(w(z_0) - w(z_1)) + \tfrac h2 t\, (g_0 \cdot u_0 + g_1 \cdot u_2)
              + \tfrac{h^2}{8} t^2 (|C^{1/2} g_0|^2 + |C^{1/2} g_1|^2);

    a refused step turns the velocity round.

    Parameters
    ----------
    witness
        w: volume -> scalar, smooth.
    gaussian
        The Gaussian part.
    step_size
        h in (0, pi/2]. On a mode where w has curvature g / C stable iff h tan(h/2) < 2/g, whatever the data weight.
    persistence
        c in [0, 1), what is left of the velocity after the refreshment. By default tan^2(pi/4 - h/2), at which a mode
        of unit frequency is critically damped: 0 at a quarter turn, 1 - 2h for small steps.
    power
        t in [0, 1], for ladders from the Gaussian part (0) to the posterior (1).
    adjusted
        Apply the Metropolis test. Without it, on such a mode, Var z = C/(1 + g h cot h - g^2 h^2/4), and the mean is
        k g/(1 + k g) of the way to the witness's, k = (h/2) cot(h/2), in place of g/(1 + g): both exact where the mean
        force and curvature of w have been moved into the Gaussian part, as ``cg.sample`` does.

    Notes
    -----
    One witness gradient (the last kick's is kept) and three transforms a step. Hamiltonian Monte Carlo on Hilbert
    space (Beskos, Pinski, Sanz-Serna and Stuart, SPA 2011) with partial refreshment (Horowitz 1991); that this
    splitting needs the preconditioner is shown by Casas, Sanz-Serna and Shaw (arXiv 2207.07516).
    """
    function = adjusted_step if adjusted else unadjusted_step
    return algorithm(bind(init, witness, gaussian), bind(function, witness, gaussian, step_size, persistence, power))


def regressors(state: KineticState) -> Regressors:
    """What :func:`regression` needs the means of: offset, gradient, offset squared, gradient times offset."""
    offset, gradient = state.offset, state.gradient
    return offset, gradient, fourier.real_product(offset, offset), fourier.real_product(gradient, offset)


def regression(gaussian: GaussianPart, means: Regressors, least: float) -> tuple[Array, Array]:
    r"""The quadratic form that is most like the witness where the chain was: its gradient regressed on the position.

    .. math:: S_k = -\frac{\mathrm{Cov}(g_k, z_k)}{\mathrm{Var}(z_k)}, \qquad b_k = E g_k + S_k E z_k ,

    so that -S_k z_k + b_k predicts the gradient g_k best. On a Gaussian this is the mean curvature (Stein), and a
    witness that is quadratic is found exactly. Returns (S, b) in rfftn layout.

    Parameters
    ----------
    gaussian
        The Gaussian part that the offsets are from.
    means
        Of :func:`regressors`.
    least
        The curvature is at least ``least - 1`` times the precision, so that this part of the precision is left.
    """
    offset, gradient, squares, products = means
    variance = jnp.maximum(squares - fourier.real_product(offset, offset), 1e-3 / gaussian.precision)
    curvature = -(products - fourier.real_product(gradient, offset)) / variance
    curvature = jnp.maximum(curvature, (least - 1) * gaussian.precision)
    return curvature, gradient + curvature * (gaussian.mean_spectrum + offset)


def acceptance_of_a_part(fraction: Array | float, info: KineticInfo) -> Array:
    r"""2 Phi(-s/2), s = |dH| sqrt(fraction): how a Metropolis test would fare that saw this fraction of the modes.

    Energy errors add up over modes, so that dH grows with the square root of their number and any fixed acceptance
    needs smaller steps in larger boxes. This one does not; it measures the energy error per mode.
    """
    return jax.lax.erfc(jnp.abs(info.energy_error) * jnp.sqrt(jnp.asarray(fraction / 8.0, info.energy_error.dtype)))


def quality_without_a_test(size: int) -> Callable[[KineticInfo], Array]:
    """:func:`acceptance_of_a_part` for positions of ``size`` elements, the part being ``METROPOLIS_SIZE`` of them."""
    return bind(acceptance_of_a_part, min(1.0, METROPOLIS_SIZE / size))


def first_step(gap: Array) -> Array:
    """A step that is well accepted where w has curvature at most gap / C."""
    return jnp.minimum(0.5, 0.7 * jax.lax.rsqrt(jnp.maximum(gap, 1e-6)))


def critical_persistence(step_size: Array) -> Array:
    """C = tan^2(pi/4 - h/2): critical damping of the unit-frequency oscillator that is refreshed every h."""
    return jnp.tan(jnp.maximum(jnp.pi / 4 - step_size / 2, 0.0)) ** 2


def init(witness: Witness, gaussian: GaussianPart, position: Array, rng_key: PRNGKey | None = None) -> KineticState:
    """Start a chain; the velocity is drawn with ``rng_key``, or zero without one."""
    offset = fourier.rfftn(position) - gaussian.mean_spectrum
    velocity = jnp.zeros_like(offset)
    if rng_key is not None:
        velocity = jax.lax.rsqrt(gaussian.precision) * _white(rng_key, position)
    value, gradient = value_and_spectral_gradient(witness, position, gaussian.mean_spectrum + offset)
    return KineticState(position, offset, velocity, value, gradient)


def unadjusted_step(
    witness: Witness,
    gaussian: GaussianPart,
    step_size: Array,
    persistence: Array | None,
    power: Array,
    rng_key: PRNGKey,
    state: KineticState,
) -> tuple[KineticState, KineticInfo]:
    """One update that is taken unless it is not finite."""
    state = _refresh(gaussian, step_size, persistence, rng_key, state)
    proposal, energy_error = _move(witness, gaussian, step_size, power, state)
    finite = jnp.isfinite(energy_error)
    chosen = jax.tree.map(lambda new, old: jnp.where(finite, new, old), proposal, state)
    return chosen, KineticInfo(finite.astype(energy_error.dtype), finite, energy_error)


def adjusted_step(
    witness: Witness,
    gaussian: GaussianPart,
    step_size: Array,
    persistence: Array | None,
    power: Array,
    rng_key: PRNGKey,
    state: KineticState,
) -> tuple[KineticState, KineticInfo]:
    """One update with the Metropolis test; a proposal that is not finite is refused."""
    refresh_key, accept_key = jax.random.split(rng_key)
    state = _refresh(gaussian, step_size, persistence, refresh_key, state)
    proposal, energy_error = _move(witness, gaussian, step_size, power, state)
    rate = jnp.exp(jnp.minimum(jnp.where(jnp.isfinite(energy_error), -energy_error, -jnp.inf), 0.0))
    accept = jax.random.uniform(accept_key, dtype=rate.dtype) < rate
    turned = state._replace(velocity=-state.velocity)
    chosen = jax.tree.map(lambda new, old: jnp.where(accept, new, old), proposal, turned)
    return chosen, KineticInfo(rate, accept, energy_error)


def _refresh(
    gaussian: GaussianPart, step_size: Array, persistence: Array | None, key: PRNGKey, state: KineticState
) -> KineticState:
    kept = critical_persistence(step_size) if persistence is None else persistence
    kept = jnp.asarray(kept, state.position.dtype)
    noise = jnp.sqrt((1 - kept) * (1 + kept) / gaussian.precision) * _white(key, state.position)
    return state._replace(velocity=kept * state.velocity + noise)


def _move(
    witness: Witness, gaussian: GaussianPart, step_size: Array, power: Array, state: KineticState
) -> tuple[KineticState, Array]:
    """B-R-B and its error of energy."""
    shape, dtype = state.position.shape, state.position.dtype
    h, t = jnp.asarray(step_size, dtype), jnp.asarray(power, dtype)
    kick = 0.5 * h * t / gaussian.precision
    kicked = state.velocity + kick * state.gradient
    offset = jnp.cos(h) * state.offset + jnp.sin(h) * kicked
    turned = jnp.cos(h) * kicked - jnp.sin(h) * state.offset
    spectrum = gaussian.mean_spectrum + offset
    position = fourier.irfftn(spectrum, shape)
    value, gradient = value_and_spectral_gradient(witness, position, spectrum)
    velocity = turned + kick * gradient
    # the kinetic energy that a kick adds is its mean velocity times the force
    work = fourier.real_product(state.gradient, 0.5 * (state.velocity + kicked)) + fourier.real_product(
        gradient, 0.5 * (turned + velocity)
    )
    energy_error = t * (state.witness - value) + 0.5 * h * t * jnp.sum(work * fourier.multiplicity(shape))
    return KineticState(position, offset, velocity, value, gradient), energy_error


def _white(key: PRNGKey, like: Array) -> Array:
    return fourier.rfftn(jax.random.normal(key, like.shape, like.dtype))


KINETIC = Recipe(build, first_step, TARGET_ACCEPTANCE, LONGEST_STEP, score, observe=regressors, ramps=True)
KINETIC_UNADJUSTED = KINETIC._replace(
    build=functools.partial(build, adjusted=False),
    max_step_size=LONGEST_UNADJUSTED_STEP,
    quality=quality_without_a_test,
)
