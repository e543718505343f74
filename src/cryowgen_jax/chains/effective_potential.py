"""The effective potential Psi = -log INT exp F, by annealing between the Gaussian part and the posterior."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cryowgen_jax import platform, potentials, samplers
from cryowgen_jax.chains import annealing
from cryowgen_jax.potentials import Posterior
from cryowgen_jax.pytrees import as_pytree
from cryowgen_jax.samplers.kinetic import KineticState
from cryowgen_jax.types import Array, InputError, PRNGKey


class PsiEstimate(NamedTuple):
    """Psi in nats, between two bounds.

    Attributes
    ----------
    value, standard_error
        The middle of the bounds, and its Monte-Carlo error.
    lower, upper
        Their expectations are bounds on Psi. Each has a Monte-Carlo error of about ``standard_error``. Where the
        posterior is Gaussian all three values are Psi itself, and the error is 0.
    num_rungs
        Of the ladder between Gaussian part and posterior.
    num_gradients
        Gradients of the witness, all particles.
    """

    value: Array
    lower: Array
    upper: Array
    standard_error: Array
    num_rungs: Array
    num_gradients: Array


def effective_potential(
    key: PRNGKey,
    posterior: Posterior,
    *,
    num_particles: int = 16,
    num_moves: int = 4,
    num_equilibration: int = 64,
    spacing: float = 0.5,
    draws: Array | None = None,
    normalised: bool = False,
) -> PsiEstimate:
    r"""Estimate Psi = -log INT exp F(z) dz between bounds that hold in expectation.

    The Gaussian part is e^{-Psi_0} N(mu, C). Annealed importance sampling carries particles from exact draws of it up
    rho_t ~ e^{t w} N(mu, C) to the posterior, and down again. By Jensen's inequality

    .. math:: \Psi_0 + E \log W_{down} \;\le\; \Psi \;\le\; \Psi_0 - E \log W_{up}

    (bidirectional Monte Carlo: Grosse, Ghahramani and Adams, arXiv 1511.02543). The value is the middle of both, where
    the two gaps cancel to leading order. A pilot run comes first: it learns the quadratic form that is most like the
    witness and moves it into the Gaussian part, which leaves less to anneal.

    Parameters
    ----------
    key
        Key.
    posterior
        Its decoder has to be diagonal in Fourier space.
    num_particles, num_moves
        K >= 2, and Metropolis-adjusted steps of each particle at every rung.
    num_equilibration
        Steps at t = 1 between the way up and the way down. The lower bound supposes that the particles have reached the
        posterior by then.
    spacing
        sqrt(Var_t(w)) dt between rungs; the gap between the bounds is about proportional to it.
    draws
        Exact posterior draws (K, ...) to start the way down from, where there are any; the lower bound then supposes
        nothing.
    normalised
        Estimate Psi - D/2 log(beta / 2 pi) - n_M/2 log(lambda / 2 pi), the form whose descent learns beta and lambda
        (:func:`cryowgen_jax.potentials.log_normaliser`).

    Returns
    -------
    PsiEstimate
        ``value`` with ``standard_error``, ``lower``, ``upper``, and the cost.

    Raises
    ------
    TypeError
        Where the decoder is not diagonal in Fourier space, so that the Gaussian part cannot be drawn exactly.
    InputError
        Where numbers or shapes do not fit.

    Examples
    --------
    >>> mask, volume = cg.wedge_mask((4, 4, 4)), jnp.ones((4, 4, 4))
    >>> witness = cg.QuadraticWitness(curvature=jnp.ones(mask.shape), mean=0 * volume)
    >>> posterior = cg.Posterior(witness, cg.Wedge(mask), volume, 0 * volume, 10.0, 1.0)
    >>> psi = cg.effective_potential(jax.random.key(0), posterior)
    >>> bool(psi.lower <= psi.value <= psi.upper)
    True
    """
    if num_particles < 2 or num_moves < 1 or num_equilibration < 1 or not spacing > 0:
        raise InputError(
            f"num_particles={num_particles}, num_moves={num_moves}, num_equilibration={num_equilibration}, "
            f"spacing={spacing}: give at least 2, 1 and 1, and a positive spacing"
        )
    expected = (num_particles, *jnp.shape(posterior.center))
    if draws is not None and jnp.shape(draws) != expected:
        raise InputError(f"draws has shape {jnp.shape(draws)}: give one posterior draw per particle, {expected}")
    witness, decoder = as_pytree(posterior.witness), as_pytree(posterior.decoder)
    posterior = dataclasses.replace(posterior, witness=witness, decoder=decoder)
    gaussian, remainder = potentials.split(posterior)
    offset = potentials.log_normaliser(posterior) if normalised else jnp.zeros(())
    if remainder is None:
        psi, none = offset - gaussian.log_integral, jnp.zeros((), jnp.int32)
        return PsiEstimate(psi, psi, psi, standard_error=jnp.zeros(()), num_rungs=none, num_gradients=none)
    climb, carry, settle = _programs(num_moves, num_equilibration)
    size = num_particles
    pilot, fit, search, rise, rest, fall = jax.random.split(key, 6)
    # Absorbing zeros gives the pilot's witness the structure of the run's, so that both share compiled programs.
    nothing = jnp.zeros_like(gaussian.precision)
    gaussian, witness = potentials.absorb(gaussian, remainder, nothing, nothing.astype(gaussian.mean_spectrum.dtype))
    starts = annealing.exact_states(pilot, witness, gaussian, size)
    pilot_ladder, states = climb(pilot, witness, gaussian, starts, annealing.PILOT_SPACING)
    _, means = settle(fit, witness, gaussian, pilot_ladder, states)
    gaussian, witness = annealing.learn(gaussian, remainder, means)

    starts = annealing.exact_states(search, witness, gaussian, size)
    ladder, _ = climb(search, witness, gaussian, starts, spacing)
    starts = annealing.exact_states(rise, witness, gaussian, size)
    up, top = carry(rise, witness, gaussian, ladder, starts, True)
    if draws is None:
        top, _ = settle(rest, witness, gaussian, ladder, top)
    else:
        top = annealing.states_at(rest, witness, gaussian, draws)
    down, _ = carry(fall, witness, gaussian, ladder, top, False)
    steps = num_moves * (pilot_ladder.num_rungs + 3 * ladder.num_rungs) + num_equilibration * (1 + (draws is None))
    psi = offset - gaussian.log_integral
    error = jnp.std(up - down, ddof=1) / 2 / jnp.sqrt(size)
    lower, upper = psi + jnp.mean(down), psi - jnp.mean(up)
    return PsiEstimate(
        value=0.5 * (lower + upper),
        lower=lower,
        upper=upper,
        standard_error=error,
        num_rungs=ladder.num_rungs,
        num_gradients=size * (steps + 4),
    )


@functools.lru_cache(maxsize=32)
def _programs(num_moves: int, num_equilibration: int) -> tuple[Callable[..., Any], ...]:
    """Finding a ladder, annealing and equilibrating, compiled once for all posteriors of one structure."""

    def climb(key: PRNGKey, witness: Any, gaussian: Any, states: KineticState, spacing: Array) -> Any:
        return annealing.find_ladder(key, witness, gaussian, states, spacing, num_moves)

    def carry(key: PRNGKey, witness: Any, gaussian: Any, ladder: Any, states: KineticState, up: Array) -> Any:
        return annealing.anneal(key, witness, gaussian, ladder, states, num_moves, up)

    def settle(key: PRNGKey, witness: Any, gaussian: Any, ladder: Any, states: KineticState) -> Any:
        return _equilibrate(key, witness, gaussian, ladder, states, num_equilibration)

    return platform.jit(climb), platform.jit(carry), platform.jit(settle)


def _equilibrate(
    key: PRNGKey,
    witness: Callable[[Array], Array],
    gaussian: potentials.FourierGaussian,
    ladder: annealing.Ladder,
    states: KineticState,
    num_steps: int,
) -> tuple[KineticState, samplers.Regressors]:
    """Particles after steps at t = 1, and means of the regressors over the second half of these and all particles."""
    algorithm = samplers.kinetic(witness, gaussian, ladder.step_sizes[ladder.num_rungs])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), samplers.regressors(states))

    def particle(inputs: tuple[PRNGKey, KineticState]) -> tuple[KineticState, samplers.Regressors]:
        def step(carry: tuple[KineticState, samplers.Regressors], i: Array) -> Any:
            state, sums = carry
            state, _ = algorithm.step(jax.random.fold_in(inputs[0], i), state)
            late = (i >= num_steps // 2).astype(jnp.float32)
            return (state, jax.tree.map(lambda s, x: s + late * x, sums, samplers.regressors(state))), None

        (state, sums), _ = jax.lax.scan(step, (inputs[1], zeros), jnp.arange(num_steps))
        return state, jax.tree.map(lambda s: s / (num_steps - num_steps // 2), sums)

    states, means = platform.map_items(particle, (jax.random.split(key, states.witness.shape[0]), states))
    return states, jax.tree.map(lambda x: jnp.mean(x, axis=0), means)
