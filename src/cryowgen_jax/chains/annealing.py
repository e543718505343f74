r"""Annealing from the Gaussian part, which is drawn exactly, to the posterior, and back.

.. math:: \rho_t(z) \propto e^{t w(z)} N(z; \mu, C), \quad \frac{d}{dt} E_t[w] = \mathrm{Var}_t(w), \quad 0 \le t \le 1.

The ladder of powers t is made of rungs. Neighbours that are a standard deviation of w apart, Var_t(w) dt^2 = 1, overlap
evenly. Particles are carried up and down it by Metropolis-adjusted kinetic steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cryowgen_jax import platform, potentials, samplers
from cryowgen_jax.chains import parallel
from cryowgen_jax.samplers.kinetic import KineticState
from cryowgen_jax.types import Array, PRNGKey

MAX_RUNGS = 1024
PILOT_SPACING, PILOT_PARTICLES, PILOT_MOVES = 1.0, 16, 4
TRACED_RUNGS = 16  # in a trace, whose shapes cannot depend on how many the pilot run finds
LEAST_PRECISION = 0.1  # share of the Gaussian part's precision that learning leaves at least
FIRST_STEP_SIZE = 0.5
TARGET_ACCEPTANCE = 0.8
ADAPTATION = 0.5  # change of log step size from rung to rung, over acceptance less target


class Ladder(NamedTuple):
    """A ladder, in arrays of fixed length.

    Attributes
    ----------
    powers
        0 = t_0 < ... < t_n = 1, then ones; (MAX_RUNGS,).
    step_sizes
        Step size of the kinetic kernel at each power.
    num_rungs
        n.
    """

    powers: Array
    step_sizes: Array
    num_rungs: Array


def even_ladder(
    key: PRNGKey, witness: Callable[[Array], Array], gaussian: potentials.FourierGaussian
) -> tuple[Array, Array, int]:
    """The ladder that a pilot run finds, for parallel tempering.

    Parameters
    ----------
    key
        Key.
    witness, gaussian
        The two parts of the posterior.

    Returns
    -------
    powers, step_sizes, num_powers
        t from 0 to 1, the step size at each, and how many there are. In a trace there are ``TRACED_RUNGS`` + 1, and the
        ladder of the pilot run is interpolated.
    """
    draw_key, climb_key = jax.random.split(key)
    starts = exact_states(draw_key, witness, gaussian, PILOT_PARTICLES)
    ladder, _ = _find_ladder(climb_key, witness, gaussian, starts)
    rungs = TRACED_RUNGS if parallel.is_traced(ladder.num_rungs) else max(int(ladder.num_rungs), 1)
    place = jnp.linspace(0.0, 1.0, rungs + 1) * ladder.num_rungs
    index = jnp.arange(MAX_RUNGS)
    powers, step_sizes = (jnp.interp(place, index, values) for values in (ladder.powers, ladder.step_sizes))
    return powers.at[0].set(0.0).at[-1].set(1.0), step_sizes, rungs + 1


@platform.jit
def _find_ladder(
    key: PRNGKey, witness: Callable[[Array], Array], gaussian: potentials.FourierGaussian, states: KineticState
) -> tuple[Ladder, KineticState]:
    return find_ladder(key, witness, gaussian, states, PILOT_SPACING, PILOT_MOVES)


def learn(
    gaussian: potentials.FourierGaussian, witness: Callable[[Array], Array], means: samplers.Regressors
) -> tuple[potentials.FourierGaussian, potentials.ShiftedWitness]:
    """Move the quadratic form that is most like the witness into the Gaussian part.

    Parameters
    ----------
    gaussian, witness
        The two parts of the posterior.
    means
        Of ``samplers.regressors`` over draws of the posterior.

    Returns
    -------
    gaussian, witness
        With the same product.
    """
    return potentials.absorb(gaussian, witness, *samplers.regression(gaussian, means, LEAST_PRECISION))


def exact_states(
    key: PRNGKey, witness: Callable[[Array], Array], gaussian: potentials.FourierGaussian, count: int
) -> KineticState:
    """States of ``count`` particles at exact draws of the Gaussian part."""
    position_key, velocity_key = jax.random.split(key)
    positions = platform.map_items(gaussian.draw, jax.random.split(position_key, count))
    return states_at(velocity_key, witness, gaussian, positions)


def states_at(
    key: PRNGKey, witness: Callable[[Array], Array], gaussian: potentials.FourierGaussian, positions: Array
) -> KineticState:
    """States of particles at these positions, (count, ...), with velocities drawn."""
    init = samplers.kinetic(witness, gaussian, FIRST_STEP_SIZE).init
    return platform.map_items(lambda pair: init(*pair), (positions, jax.random.split(key, positions.shape[0])))


class Annealed(NamedTuple):
    """Log-weights of particles that were carried along a ladder, and their states at its end."""

    log_weights: Array
    states: KineticState


class _Climb(NamedTuple):
    """A ladder as far as it has been found, and the particles on its last rung."""

    rung: Array
    powers: Array
    step_sizes: Array
    step_size: Array
    states: KineticState


def find_ladder(
    key: PRNGKey,
    witness: Callable[[Array], Array],
    gaussian: samplers.GaussianPart,
    states: KineticState,
    spacing: Array | float,
    num_moves: int,
) -> tuple[Ladder, KineticState]:
    """Find a ladder by carrying particles from t = 0 to 1 once.

    Parameters
    ----------
    key
        Key.
    witness, gaussian
        The two parts of the posterior.
    states
        Kinetic states at exact draws of the Gaussian part; particles lead.
    spacing
        sqrt(Var_t(w)) dt between rungs, the variance being that of the particles.
    num_moves
        Kinetic steps of each particle at every rung; their acceptance adapts the step size from rung to rung.

    Returns
    -------
    ladder, states
        The ladder, and the states at its top.
    """

    def unfinished(climb: _Climb) -> Array:
        return (climb.powers[climb.rung] < 1.0) & (climb.rung < MAX_RUNGS - 1)

    def step(climb: _Climb) -> _Climb:
        n, step_size = climb.rung, climb.step_size
        spread = jnp.std(climb.states.witness, ddof=1)
        power = jnp.minimum(climb.powers[n] + spacing / jnp.maximum(spread, 1e-6), 1.0)
        power = jnp.where(n == MAX_RUNGS - 2, 1.0, power)
        move_key = jax.random.fold_in(key, n)
        states, acceptance = _move(witness, gaussian, move_key, climb.states, step_size, power, num_moves)
        step_size = step_size * jnp.exp(ADAPTATION * (acceptance - TARGET_ACCEPTANCE))
        step_size = jnp.minimum(step_size, samplers.LONGEST_STEP)
        return _Climb(
            rung=n + 1,
            powers=climb.powers.at[n + 1].set(power),
            step_sizes=climb.step_sizes.at[n + 1].set(step_size),
            step_size=step_size,
            states=states,
        )

    start = _Climb(
        rung=jnp.zeros((), jnp.int32),
        powers=jnp.ones(MAX_RUNGS).at[0].set(0.0),
        step_sizes=jnp.full(MAX_RUNGS, FIRST_STEP_SIZE),
        step_size=jnp.float32(FIRST_STEP_SIZE),
        states=states,
    )
    top = jax.lax.while_loop(unfinished, step, start)
    return Ladder(top.powers, top.step_sizes, top.rung), top.states


def anneal(
    key: PRNGKey,
    witness: Callable[[Array], Array],
    gaussian: samplers.GaussianPart,
    ladder: Ladder,
    states: KineticState,
    num_moves: int,
    up: Array | bool,
) -> Annealed:
    r"""Annealed importance sampling up or down a ladder (Neal, Statistics and Computing 2001).

    .. math:: \log W = \sum_i (t_{i+1} - t_i)\, w(z_i), \qquad E\,W = Z_1 / Z_0

    on the way up, z_i being where the steps at t_i have left the particle, and Z_t the integral of e^{t w} N(mu, C). On
    the way down the differences are negative, and E W = Z_0 / Z_1 for particles that start from the posterior.

    Parameters
    ----------
    key
        Key.
    witness, gaussian
        The two parts of the posterior.
    ladder
        As :func:`find_ladder` finds it, with other particles.
    states
        Kinetic states of the particles, at draws of the Gaussian part (up) or of the posterior (down).
    num_moves
        Kinetic steps of each particle at every rung.
    up
        Direction; may be traced.
    """
    n = ladder.num_rungs

    def one(i: Array, carry: tuple[Array, KineticState]) -> tuple[Array, KineticState]:
        log_weights, states = carry
        here, there = jnp.where(up, i, n - i), jnp.where(up, i + 1, n - i - 1)
        log_weights = log_weights + (ladder.powers[there] - ladder.powers[here]) * states.witness
        states, _ = _move(
            witness,
            gaussian,
            jax.random.fold_in(key, i),
            states,
            ladder.step_sizes[there],
            ladder.powers[there],
            num_moves,
        )
        return log_weights, states

    return Annealed(*jax.lax.fori_loop(0, n, one, (jnp.zeros(states.witness.shape), states)))


def _move(
    witness: Callable[[Array], Array],
    gaussian: samplers.GaussianPart,
    key: PRNGKey,
    states: KineticState,
    step_size: Array,
    power: Array,
    num_moves: int,
) -> tuple[KineticState, Array]:
    """The particles after ``num_moves`` Metropolis-adjusted steps at one rung, and the mean acceptance."""
    algorithm = samplers.kinetic(witness, gaussian, step_size, power=power)

    def particle(inputs: tuple[PRNGKey, KineticState]) -> tuple[KineticState, Array]:
        def step(state: KineticState, key: PRNGKey) -> tuple[KineticState, Array]:
            state, info = algorithm.step(key, state)
            return state, info.acceptance_rate

        return jax.lax.scan(step, inputs[1], jax.random.split(inputs[0], num_moves))

    keys = jax.random.split(key, states.witness.shape[0])
    states, acceptance = platform.map_items(particle, (keys, states))
    return states, jnp.mean(acceptance)
