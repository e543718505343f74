"""Parallel tempering between the Gaussian part and the posterior, with exact draws at the bottom of the ladder."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from cryowgen_jax.pytrees import bind
from cryowgen_jax.samplers.interface import GaussianPart, Recipe, Witness, algorithm
from cryowgen_jax.samplers.kinetic import LONGEST_STEP, KineticState, adjusted_step
from cryowgen_jax.samplers.kinetic import init as kinetic_init
from cryowgen_jax.types import Array, PRNGKey

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm


class TemperedState(NamedTuple):
    """The position at t = 1, the kinetic states of all rungs from t = 0 up, and whether even pairs swap next."""

    position: Array
    rungs: KineticState
    even: Array


class TemperedInfo(NamedTuple):
    """Mean acceptance rate of the rungs' moves, and share of the swaps that were accepted."""

    acceptance_rate: Array
    swap_rate: Array


def build(
    witness: Witness, gaussian: GaussianPart, powers: Array, step_sizes: Array | float, scale: Array | float = 1.0
) -> SamplingAlgorithm:
    r"""Parallel tempering on rho_t(z) ~ exp(t w(z)) N(z; mu, C), for wedges with several modes.

    Every rung takes one Metropolis-adjusted kinetic step. Then neighbours swap positions with probability

    .. math:: \min\{1, \exp[(t_i - t_j)\,(w(z_j) - w(z_i))]\},

    even and odd pairs in turn. At t = 0 a step is an exact draw, independent of the last.

    Parameters
    ----------
    witness
        w: volume -> scalar, deterministic; a random one would bias the swaps.
    gaussian
        The Gaussian part.
    powers
        0 = t_0 < t_1 < ... < t_T = 1. Swaps succeed where sqrt(Var_t(w)) (t_{i+1} - t_i) is about 1, so that the number
        of rungs grows like sqrt(Var w).
    step_sizes
        h of every rung, or one for all. The rung at t = 0 always takes a quarter turn.
    scale
        Factor on all step sizes, for drivers that adapt one number.

    Returns
    -------
    SamplingAlgorithm
        BlackJAX's pair of ``init(position, rng_key)``, which draws the velocities, and ``step(rng_key, state)``.

    Notes
    -----
    One witness gradient per rung and step, rungs vectorised. Parallel tempering is Geyer's (1991); even and odd pairs
    in turn is what Syed, Bouchard-Cote, Deligiannidis and Doucet (JRSS B 2022) recommend.

    Examples
    --------
    >>> from cryowgen_jax.potentials import gaussian_part
    >>> decoder, volume = cg.Wedge(cg.wedge_mask((4, 4, 4))), jnp.ones((4, 4, 4))
    >>> posterior = cg.Posterior(lambda z: -jnp.sum(jnp.cosh(z)), decoder, volume, 0 * volume, 10.0, 1.0)
    >>> algorithm = cg.tempered(posterior.witness, gaussian_part(posterior), jnp.linspace(0, 1, 5), step_sizes=0.5)
    >>> state, info = algorithm.step(jax.random.key(1), algorithm.init(volume, jax.random.key(0)))
    >>> state.position.shape, state.rungs.position.shape
    ((4, 4, 4), (5, 4, 4, 4))
    """
    return algorithm(bind(init, witness, gaussian, powers), bind(step, witness, gaussian, powers, scale * step_sizes))


def first_step(curvature: None) -> Array:
    """The scale 1, which leaves the rungs their own step sizes."""
    del curvature
    return jnp.ones(())


def init(
    witness: Witness, gaussian: GaussianPart, powers: Array, position: Array, rng_key: PRNGKey | None = None
) -> TemperedState:
    """Start all rungs at ``position``. Velocities are drawn with ``rng_key``; without a key they are zero."""
    keys = None if rng_key is None else jax.random.split(rng_key, powers.shape[0])
    positions = jnp.broadcast_to(position, (powers.shape[0], *position.shape))
    in_axes = (None, None, 0, None if keys is None else 0)
    rungs = jax.vmap(kinetic_init, in_axes=in_axes)(witness, gaussian, positions, keys)
    return TemperedState(position, rungs, jnp.ones((), bool))


def step(
    witness: Witness,
    gaussian: GaussianPart,
    powers: Array,
    step_sizes: Array,
    rng_key: PRNGKey,
    state: TemperedState,
) -> tuple[TemperedState, TemperedInfo]:
    """One step of every rung, and one round of swaps."""
    move_key, swap_key = jax.random.split(rng_key)
    count = powers.shape[0]
    sizes = jnp.broadcast_to(jnp.asarray(step_sizes, state.position.dtype), (count,))
    sizes = jnp.where(powers == 0, LONGEST_STEP, sizes)

    def move(key: PRNGKey, size: Array, power: Array, rung: KineticState) -> tuple[KineticState, Array]:
        rung, info = adjusted_step(witness, gaussian, size, None, power, key, rung)
        return rung, info.acceptance_rate

    rungs, rates = jax.vmap(move)(jax.random.split(move_key, count), sizes, powers, state.rungs)
    tries, accepted = _swaps(swap_key, powers, rungs.witness, state.even)
    below = jnp.arange(count)
    order = jnp.where(accepted, below + 1, below)
    order = jnp.where(jnp.roll(accepted, 1), below - 1, order)
    rungs = jax.tree.map(lambda x: x[order], rungs)
    swap_rate = jnp.sum(accepted) / jnp.maximum(jnp.sum(tries), 1)
    info = TemperedInfo(jnp.mean(rates), swap_rate.astype(rates.dtype))
    return TemperedState(rungs.position[-1], rungs, ~state.even), info


def _swaps(key: PRNGKey, powers: Array, witness: Array, even: Array) -> tuple[Array, Array]:
    """Which rungs try to swap with the next one up, and which of them do."""
    index = jnp.arange(powers.shape[0])
    tries = (index % 2 == jnp.where(even, 0, 1)) & (index < powers.shape[0] - 1)
    log_alpha = (powers - jnp.roll(powers, -1)) * (jnp.roll(witness, -1) - witness)
    uniform = jax.random.uniform(key, powers.shape, witness.dtype)
    return tries, tries & (jnp.log(uniform) < log_alpha)


TEMPERED = Recipe(build, first_step)
