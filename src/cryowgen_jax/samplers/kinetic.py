"""Kinetic Langevin that moves the Gaussian part exactly, with kicks by the gradient of w and a Metropolis test."""

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
METROPOLIS_SIZE = 512  # elements of a position above which a Metropolis test would shrink the steps
TARGET_ACCEPTANCE = 0.75

Regressors = tuple[Array, Array, Array, Array]


class KineticState(NamedTuple):
    """State of a chain.

    Attributes
    ----------
    position
        z.
    offset, velocity, gradient
        Half spectra of z - mu, of the velocity u, and of grad w(z).
    witness
        w(z).
    """

    position: Array
    offset: Array
    velocity: Array
    witness: Array
    gradient: Array


class KineticInfo(NamedTuple):
    """What a step tells.

    Attributes
    ----------
    acceptance_rate
        min(1, e^-dH); without a Metropolis test 1, or 0 where the proposal was not finite.
    is_accepted
        Whether the proposal was taken.
    energy_error
        dH of the proposal.
    """

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

    R turns every Gaussian mode at unit frequency, however stiff it is. The Metropolis test of B-R-B has no Gaussian
    terms: with g = grad w, u_0 the velocity before the first kick and u_2 the one before the last,

    .. math:: \Delta H = t\,(w(z_0) - w(z_1)) + \tfrac h2 t\, (g_0 \cdot u_0 + g_1 \cdot u_2)
              + \tfrac{h^2}{8} t^2 (|C^{1/2} g_0|^2 + |C^{1/2} g_1|^2) .

    After a rejection the velocity changes its sign.

    Parameters
    ----------
    witness
        w: volume -> scalar, smooth.
    gaussian
        The Gaussian part.
    step_size
        h in (0, pi/2]. On a mode where w has curvature g / C it is stable iff h tan(h/2) < 2/g, whatever the data
        weight.
    persistence
        c in [0, 1): the part of the velocity that O keeps. By default tan^2(pi/4 - h/2), which damps a mode of unit
        frequency critically: 0 at a quarter turn, 1 - 2h for small steps.
    power
        t in [0, 1], for ladders from the Gaussian part (0) to the posterior (1).
    adjusted
        Apply the Metropolis test. Without it, on such a mode, Var z = C/(1 + g h cot h - g^2 h^2/4), and the mean is
        k g/(1 + k g) of the way from mu to the witness's, k = (h/2) cot(h/2), in place of g/(1 + g). Both are exact
        where the mean force and curvature of w have been moved into the Gaussian part, as ``cg.sample`` does.

    Returns
    -------
    SamplingAlgorithm
        BlackJAX's pair of ``init(position, rng_key)``, which draws the velocity, and ``step(rng_key, state)``.

    Notes
    -----
    One witness gradient (that of the last kick is kept) and three transforms a step. This is Hamiltonian Monte Carlo on
    Hilbert space (Beskos, Pinski, Sanz-Serna and Stuart, SPA 2011) with partial refreshment (Horowitz 1991). Casas,
    Sanz-Serna and Shaw (arXiv 2207.07516) show that this splitting needs the preconditioner.

    Examples
    --------
    >>> from cryowgen_jax.potentials import gaussian_part
    >>> decoder, volume = cg.Wedge(cg.wedge_mask((4, 4, 4))), jnp.ones((4, 4, 4))
    >>> posterior = cg.Posterior(lambda z: -jnp.sum(jnp.cosh(z)), decoder, volume, 0 * volume, 10.0, 1.0)
    >>> algorithm = cg.kinetic(posterior.witness, gaussian_part(posterior), step_size=0.5)
    >>> state, info = algorithm.step(jax.random.key(1), algorithm.init(volume, jax.random.key(0)))
    >>> state.position.shape
    (4, 4, 4)
    """
    function = adjusted_step if adjusted else unadjusted_step
    return algorithm(bind(init, witness, gaussian), bind(function, witness, gaussian, step_size, persistence, power))


def regressors(state: KineticState) -> Regressors:
    """Half spectra whose means :func:`regression` takes: z - mu, g, |z - mu|^2 and g . (z - mu), g = grad w."""
    offset, gradient = state.offset, state.gradient
    return offset, gradient, fourier.real_product(offset, offset), fourier.real_product(gradient, offset)


def regression(gaussian: GaussianPart, means: Regressors, least: float) -> tuple[Array, Array]:
    r"""Fit the quadratic form -1/2 z^T S z + b^T z to the witness by regressing its gradient on the position.

    .. math:: S_k = -\frac{\mathrm{Cov}(g_k, z_k)}{\mathrm{Var}(z_k)}, \qquad b_k = E g_k + S_k E z_k ,

    the least-squares prediction of the gradient g_k being -S_k z_k + b_k. Over a Gaussian S is the mean curvature
    (Stein's lemma). A quadratic witness is found exactly.

    Parameters
    ----------
    gaussian
        The Gaussian part, from whose mean offsets are measured.
    means
        Of :func:`regressors` over draws.
    least
        S is at least (``least`` - 1) / C, so that S + 1 / C is at least ``least`` / C.

    Returns
    -------
    S, b
        In rfftn layout.
    """
    offset, gradient, squares, products = means
    variance = jnp.maximum(squares - fourier.real_product(offset, offset), 1e-3 / gaussian.precision)
    curvature = -(products - fourier.real_product(gradient, offset)) / variance
    curvature = jnp.maximum(curvature, (least - 1) * gaussian.precision)
    return curvature, gradient + curvature * (gaussian.mean_spectrum + offset)


def acceptance_of_a_part(fraction: Array | float, info: KineticInfo) -> Array:
    r"""Acceptance rate of a Metropolis test on a fraction of the modes: 2 Phi(-s/2), s = |dH| sqrt(fraction).

    The energy error dH grows with the square root of the number of modes, so that holding its own acceptance rate fixed
    shrinks the steps in larger boxes. Holding this one fixed holds the energy error per mode.
    """
    return jax.lax.erfc(jnp.abs(info.energy_error) * jnp.sqrt(jnp.asarray(fraction / 8.0, info.energy_error.dtype)))


def quality_without_a_test(size: int) -> Callable[[KineticInfo], Array]:
    """:func:`acceptance_of_a_part` for ``METROPOLIS_SIZE`` of the ``size`` elements of a position."""
    return bind(acceptance_of_a_part, min(1.0, METROPOLIS_SIZE / size))


def first_step(gap: Array) -> Array:
    """A step size that is well accepted where |Hess w| <= gap / C."""
    return jnp.minimum(0.5, 0.7 * jax.lax.rsqrt(jnp.maximum(gap, 1e-6)))


def critical_persistence(step_size: Array) -> Array:
    """The persistence c = tan^2(pi/4 - h/2), which damps an oscillator of unit frequency critically."""
    return jnp.tan(jnp.maximum(jnp.pi / 4 - step_size / 2, 0.0)) ** 2


def init(witness: Witness, gaussian: GaussianPart, position: Array, rng_key: PRNGKey | None = None) -> KineticState:
    """Start a chain. The velocity is drawn with ``rng_key``; without a key it is zero."""
    offset = fourier.rfftn(position) - gaussian.mean_spectrum
    velocity = jnp.zeros_like(offset)
    if rng_key is not None:
        velocity = jax.lax.rsqrt(gaussian.precision) * _white(rng_key, position)
    value, gradient = value_and_spectral_gradient(witness, position, gaussian.mean_spectrum + offset)
    return KineticState(position=position, offset=offset, velocity=velocity, witness=value, gradient=gradient)


def unadjusted_step(
    witness: Witness,
    gaussian: GaussianPart,
    step_size: Array,
    persistence: Array | None,
    power: Array,
    rng_key: PRNGKey,
    state: KineticState,
) -> tuple[KineticState, KineticInfo]:
    """One step without a Metropolis test; a proposal that is not finite is rejected."""
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
    """One step with the Metropolis test; a proposal that is not finite is rejected."""
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
    """B-R-B, and its energy error."""
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
    moved = KineticState(position=position, offset=offset, velocity=velocity, witness=value, gradient=gradient)
    return moved, energy_error


def _white(key: PRNGKey, like: Array) -> Array:
    return fourier.rfftn(jax.random.normal(key, like.shape, like.dtype))


KINETIC = Recipe(
    build,
    first_step,
    target=TARGET_ACCEPTANCE,
    max_step_size=LONGEST_STEP,
    score=score,
    observe=regressors,
    ramps=True,
)
KINETIC_UNADJUSTED = KINETIC._replace(
    build=functools.partial(build, adjusted=False),
    max_step_size=LONGEST_UNADJUSTED_STEP,
    quality=quality_without_a_test,
)
