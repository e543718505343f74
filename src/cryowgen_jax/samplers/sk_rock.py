"""SK-ROCK: Langevin steps of several Chebyshev stages, for decoders that are not diagonal in Fourier space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.pytrees import bind
from cryowgen_jax.samplers.interface import Recipe, algorithm
from cryowgen_jax.samplers.langevin import LangevinInfo, LangevinState, init
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, InputError, LogDensityFn, PRNGKey

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm

NUM_STAGES = 10
_DAMPING = 0.05


def build(
    log_density: LogDensityFn,
    step_size: Array | float,
    num_stages: int = NUM_STAGES,
    preconditioner: Array | None = None,
) -> SamplingAlgorithm:
    r"""Stochastic orthogonal Runge-Kutta-Chebyshev scheme (SK-ROCK) of s stages and step dt.

    .. math:: K_1 &= z + \mu_1 dt\, \nabla F(z + \nu_1 Q) + \kappa_1 Q, \qquad Q = \sqrt{2\, dt}\,\xi, \\
              K_j &= \mu_j dt\, \nabla F(K_{j-1}) + \nu_j K_{j-1} + (1 - \nu_j) K_{j-2}, \qquad j = 2, \dots, s,

    with K_0 = z, the new position K_s, T_j the Chebyshev polynomials, w_0 = 1 + eta/s^2, w_1 = T_s(w_0) / T_s'(w_0),
    mu_1 = w_1/w_0, nu_1 = s w_1/2, kappa_1 = s w_1/w_0, mu_j = 2 w_1 T_{j-1}(w_0)/T_j(w_0),
    nu_j = 2 w_0 T_{j-1}(w_0)/T_j(w_0), and the usual damping eta = 0.05. Source: Pereyra, Vargas Mieles and Zygalakis,
    SIAM J. Imaging Sci. 2020, arXiv 1908.08845.

    Parameters
    ----------
    log_density
        F: one position, any shape -> scalar, in nats, not normalised.
    step_size
        dt > 0, at most :func:`largest_step` of the largest curvature of -F.
    num_stages
        s >= 2, a Python integer: the number of gradients in one step.
    preconditioner
        P_k > 0, real, in rfftn layout of the position. The chain then runs in the coordinates P^{-1/2} z, with the
        gradient P grad F and the noise P^{1/2} xi, and the curvature that bounds the step is that of P^{1/2} H P^{1/2},
        H = -Hess F. None: the plain coordinates.

    Returns
    -------
    SamplingAlgorithm
        BlackJAX's pair of ``init(position)`` and ``step(rng_key, state)``.

    Raises
    ------
    InputError
        Where ``num_stages`` is no integer of at least 2, or, in a step, the preconditioner does not fit the position.

    Notes
    -----
    A Gaussian mode of precision q moves as z' = A z + B sqrt(2 dt) xi about its mean, with x = w_0 - w_1 dt q and

    .. math:: A = \frac{T_s(x)}{T_s(w_0)}, \qquad B = \Big(1 - \frac{w_1 dt\, q}{2}\Big)
              \frac{U_{s-1}(x)}{U_{s-1}(w_0)}, \qquad \mathrm{Var} = \frac{2\, dt\, B^2}{1 - A^2} .

    The mean is exact. The variance is too small in every mode: with s = 10 by 2 % at dt q = 1, by 7 % at 2, and by 60 %
    on average over dt q > 10. Do not rely on the spread of modes with dt q > 1.

    One step goes as far as s^2 Euler steps, for s gradients. A step of 1 / (L + lambda |A|^2), which some references
    recommend, is the limit of Euler schemes; it gives this advantage away.

    Where the operator A mixes Fourier coefficients (a rotation, a projection), take the preconditioner from tether and
    quadratic witness alone: P_k = 1/(beta + S_k). It turns beta + S into I, and lambda A^T A adds at most
    lambda |A|^2 / min(beta + S_k). It pays where the largest S_k exceeds lambda. The preconditioner of a wedge,
    P_k = 1/(lambda M_k^2 + beta), is not safe: what A measures outside the mask M gets the curvature lambda / beta, and
    what it does not measure inside gets (beta + S_k) / lambda, so that the condition number may be squared.

    Examples
    --------
    >>> log_density = lambda z: -0.5 * jnp.sum(jnp.array([1.0, 10.0, 100.0]) * z**2)
    >>> algorithm = cg.sk_rock(log_density, step_size=1.0, num_stages=10)  # Euler steps are stable below 0.02
    >>> state, info = algorithm.step(jax.random.key(0), algorithm.init(jnp.zeros(3)))
    >>> state.position.shape
    (3,)
    """
    coefficients = _coefficients(_checked(num_stages))
    return algorithm(init, bind(step, log_density, step_size, coefficients, preconditioner))


def largest_step(curvature: Array | float, num_stages: int = NUM_STAGES) -> Array:
    r"""The step size that the authors recommend: dt = ((s - 1/2)^2 (2 - 4 eta / 3) - 3/2) / L.

    Parameters
    ----------
    curvature
        L, with -Hess F <= L I (or P^{1/2} (-Hess F) P^{1/2} <= L I with a preconditioner).
    num_stages
        s.

    Notes
    -----
    It grows with s^2, and its cost with s. The limit of stability is 2 w_0 / (w_1 L), about (2 - 4 eta / 3) s^2 / L.
    """
    length = (_checked(num_stages) - 0.5) ** 2 * (2 - 4 * _DAMPING / 3) - 1.5
    return length / jnp.asarray(curvature, jnp.float32)


def step(
    log_density: LogDensityFn,
    step_size: Array,
    coefficients: Array,
    preconditioner: Array | None,
    rng_key: PRNGKey,
    state: LangevinState,
) -> tuple[LangevinState, LangevinInfo]:
    """One step; ``coefficients`` has one row (mu, nu, 1 - nu, shift, kick) per stage."""
    start = state.position
    noise = jnp.sqrt(2 * jnp.asarray(step_size, start.dtype)) * jax.random.normal(rng_key, start.shape, start.dtype)
    if preconditioner is not None:
        given, needed = jnp.shape(preconditioner), fourier.spectrum_shape(start.shape)
        if given != needed:
            raise InputError(
                f"preconditioner of shape {given} does not fit positions of shape {start.shape}: give {needed}, the "
                "layout of rfftn"
            )
        noise = fourier.filter_volume(noise, jnp.sqrt(preconditioner))

    def stage(carry: tuple[Array, Array], row: Array) -> tuple[tuple[Array, Array], None]:
        last, before = carry
        mu, nu, one_less_nu, shift, kick = row
        gradient = jax.grad(log_density)(last + shift * noise)
        if preconditioner is not None:
            gradient = fourier.filter_volume(gradient, preconditioner)
        new = mu * step_size * gradient + nu * last + one_less_nu * before + kick * noise
        return (new, last), None

    (position, _), _ = jax.lax.scan(stage, (start, start), jnp.asarray(coefficients, start.dtype))
    value = log_density(start)
    return LangevinState(position), LangevinInfo(value, jnp.ones_like(value))


def _coefficients(num_stages: int) -> np.ndarray:
    """Rows (mu_j, nu_j, 1 - nu_j, shift, kick) of all stages; the noise enters in the first alone, where nu = 1."""
    s = num_stages
    w0 = 1 + _DAMPING / s**2
    angle = np.arccosh(w0)
    chebyshev = np.cosh(np.arange(s + 1) * angle)  # T_0(w0) ... T_s(w0)
    w1 = chebyshev[s] * np.sinh(angle) / (s * np.sinh(s * angle))
    ratio = chebyshev[1:-1] / chebyshev[2:]
    mu, nu = 2 * w1 * ratio, 2 * w0 * ratio
    first = [w1 / w0, 1.0, 0.0, s * w1 / 2, s * w1 / w0]
    rest = np.stack([mu, nu, 1 - nu, np.zeros(s - 1), np.zeros(s - 1)], axis=1)
    return np.concatenate([[first], rest]).astype(np.float32)


def _checked(num_stages: int) -> int:
    if isinstance(num_stages, bool) or not isinstance(num_stages, (int, np.integer)) or num_stages < 2:
        raise InputError(f"num_stages={num_stages!r} is no number of stages: give a Python integer of at least 2")
    return int(num_stages)


SK_ROCK = Recipe(build, largest_step)
