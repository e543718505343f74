"""Negatives of semi-dual training: draws by posterior chains (CryoWGEN-II), or weighted candidates (CryoWGEN-I)."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from cryowgen_jax import platform
from cryowgen_jax.chains import sample
from cryowgen_jax.methods import importance_sample
from cryowgen_jax.potentials import (
    DataFit,
    Posterior,
    SumWitness,
    drawable_part,
    split,
    split_tether,
)
from cryowgen_jax.pytrees import bind
from cryowgen_jax.samplers import LONGEST_STEP, kinetic, weigh
from cryowgen_jax.types import Array, FourierDiagonal, PRNGKey, PyTree

Posteriors = Callable[[Array], Posterior]

LOW_ACCEPTANCE, LOW_SHARE, LARGE_VIRIAL = 0.2, 0.02, 0.3
FIRST_STEP_SIZE, TARGET_ACCEPTANCE, ADAPTATION = 0.3, 0.75, 0.5  # of the kinetic kernel


class Negatives(NamedTuple):
    """Draws of one posterior.

    Attributes
    ----------
    samples
        (K, ...).
    weights
        (K,). Their sum is 1, or less where some draws do not count yet.
    quality
        Acceptance rate of chains, effective sample size of candidates over their number, or how close a network's
        answers are to maxima (1 at a maximum).
    """

    samples: Array
    weights: Array
    quality: Array


class NegativeSampler(Protocol):
    """Draws from posteriors that change little from call to call, with a state that is kept between calls."""

    def start(self, key: PRNGKey, posteriors: Posteriors, observations: Array) -> PyTree:
        """Return the state before training."""
        ...

    def draw(
        self, key: PRNGKey, posteriors: Posteriors, observations: Array, index: Array, state: PyTree
    ) -> tuple[Negatives, PyTree]:
        """Return negatives of ``observations[index]``, with a leading axis for these, and the state after."""
        ...

    def complaints(self, quality: float, virial: float) -> Iterator[str]:
        """Say in words what is wrong, given the means of ``quality`` and ``virial`` over the end of a run."""
        ...


class DatumSampler(abc.ABC):
    """A sampler with a separate state for every datum."""

    @abc.abstractmethod
    def start_one(self, key: PRNGKey, posterior: Posterior) -> PyTree:
        """The state of one datum before training."""

    @abc.abstractmethod
    def draw_one(self, key: PRNGKey, posterior: Posterior, state: PyTree) -> tuple[Negatives, PyTree]:
        """Negatives of one datum, and its state after."""

    def start(self, key: PRNGKey, posteriors: Posteriors, observations: Array) -> PyTree:
        """The states of all data, with a leading axis for these."""

        def one(item: tuple[PRNGKey, Array]) -> PyTree:
            return self.start_one(item[0], posteriors(item[1]))

        return platform.map_items(one, (jax.random.split(key, observations.shape[0]), observations))

    def draw(
        self, key: PRNGKey, posteriors: Posteriors, observations: Array, index: Array, state: PyTree
    ) -> tuple[Negatives, PyTree]:
        """Negatives of the data at ``index``; only their states change."""

        def one(item: tuple[PRNGKey, Array, PyTree]) -> tuple[Negatives, PyTree]:
            key, observation, own = item
            return self.draw_one(key, posteriors(observation), own)

        chosen = jax.tree.map(lambda leaf: leaf[index], state)
        items = (jax.random.split(key, index.size), observations[index], chosen)
        negatives, chosen = platform.map_items(one, items)
        return negatives, jax.tree.map(lambda leaf, new: leaf.at[index].set(new), state, chosen)


class LangevinState(NamedTuple):
    """The chains of one datum: positions (K, ...), visits since each was started (K,), and their step size."""

    positions: Array
    visits: Array
    step_size: Array


@dataclasses.dataclass(frozen=True)
class LangevinNegatives(DatumSampler):
    """CryoWGEN-II: chains that persist for every datum, so that few steps per iteration suffice.

    Parameters
    ----------
    sampler
        "kinetic" has a Metropolis test, so that its law is the posterior at any step size, and adapts the step size to
        the witness. Others as in ``cg.sample``, whose step sizes come from the witness's curvature bounds: "stochastic"
        for random witnesses, "kinetic_unadjusted" for large volumes.
    num_steps
        Steps per iteration.
    num_chains
        Chains per datum.
    restart
        Probability that a chain is started again, from the Gaussian part, when its datum is visited.
    visits_to_settle
        A chain that was started again has weight 0 until its datum has been visited as often as this.
    """

    sampler: str = "kinetic"
    num_steps: int = 20
    num_chains: int = 1
    restart: float = 0.02
    visits_to_settle: int = 4

    def start_one(self, key: PRNGKey, posterior: Posterior) -> LangevinState:
        """Positions from the Gaussian part. They count at once, or there would be no negatives at first."""
        positions = jax.vmap(drawable_part(posterior).draw)(jax.random.split(key, self.num_chains))
        return LangevinState(positions, jnp.full(self.num_chains, self.visits_to_settle), jnp.float32(FIRST_STEP_SIZE))

    def draw_one(self, key: PRNGKey, posterior: Posterior, state: LangevinState) -> tuple[Negatives, LangevinState]:
        """The chains' positions after ``num_steps`` more steps."""
        fresh_key, coin_key, chain_key = jax.random.split(key, 3)
        coins = jax.random.bernoulli(coin_key, self.restart, (self.num_chains,))
        fresh = jax.vmap(drawable_part(posterior).draw)(jax.random.split(fresh_key, self.num_chains))
        spread = coins.reshape((-1,) + (1,) * (fresh.ndim - 1))
        result = sample(
            chain_key,
            posterior,
            sampler=self._kernel(posterior, state.step_size),
            num_chains=self.num_chains,
            num_steps=self.num_steps,
            warmup=0,
            num_kept=1,
            init=jnp.where(spread, fresh, state.positions),
        )
        positions, visits = result.samples[:, -1], jnp.where(coins, 0, state.visits) + 1
        counts = jnp.where(visits >= self.visits_to_settle, 1.0 / self.num_chains, 0.0)
        step_size = state.step_size * jnp.exp(ADAPTATION * (result.acceptance - TARGET_ACCEPTANCE))
        step_size = jnp.minimum(step_size, LONGEST_STEP)
        return Negatives(positions, counts, result.acceptance), LangevinState(positions, visits, step_size)

    def complaints(self, quality: float, virial: float) -> Iterator[str]:
        """Complaints where few steps are accepted, or the chains do not follow their posteriors."""
        if quality < LOW_ACCEPTANCE:
            yield f"The chains accept {quality:.2f} of their steps: bound the witness's curvature."
        yield from _off(virial)

    def _kernel(self, posterior: Posterior, step_size: Array) -> Any:
        if self.sampler != "kinetic":
            return self.sampler
        parts = split(posterior) if isinstance(posterior.decoder, FourierDiagonal) else split_tether(posterior)
        gaussian, remainder = parts
        return "auto" if remainder is None else kinetic(remainder, gaussian, step_size)


@dataclasses.dataclass(frozen=True)
class MonteCarloNegatives(DatumSampler):
    """CryoWGEN-I: new candidates in every iteration, weighted by the Boltzmann factor; no state.

    Parameters
    ----------
    num_candidates
        K, per datum and iteration.
    reference
        "gaussian" or "conditional_prior", as in ``cg.importance_sample``; or (key, center) -> z, a draw of kappa where
        that is not Gaussian, such as a finite library of volumes.
    """

    num_candidates: int = 64
    reference: Literal["gaussian", "conditional_prior"] | Callable[[PRNGKey, Array], Array] = "gaussian"

    def start_one(self, key: PRNGKey, posterior: Posterior) -> tuple[()]:
        """The empty state."""
        del key, posterior
        return ()

    def draw_one(self, key: PRNGKey, posterior: Posterior, state: tuple[()]) -> tuple[Negatives, tuple[()]]:
        """Candidates with normalised weights."""
        if callable(self.reference):
            fit = DataFit(posterior.decoder, posterior.observation, posterior.data_weight)
            draw = bind(_draw_near, jax.tree_util.Partial(self.reference), posterior.center)
            log_weight = SumWitness((posterior.witness, fit))
            family = weigh(key, draw, log_weight, jnp.zeros(()), self.num_candidates, self.num_candidates)
        else:
            family = importance_sample(
                key, posterior, self.num_candidates, reference=self.reference, batch_size=self.num_candidates
            )
        weights = jax.nn.softmax(family.log_weights)
        return Negatives(family.samples, weights, family.ess / self.num_candidates), state

    def complaints(self, quality: float, virial: float) -> Iterator[str]:
        """Complaints where few candidates have most of the weight, or the negatives do not follow their posteriors."""
        if quality < LOW_SHARE:
            yield f"The weights rest on {100 * quality:.1f} % of the candidates: use LangevinNegatives."
        yield from _off(virial)


def _off(virial: float) -> Iterator[str]:
    if abs(virial) > LARGE_VIRIAL:
        yield f"The negatives do not follow their posteriors (virial {virial:+.2f}, should be 0)."


def _draw_near(reference: Callable[[PRNGKey, Array], Array], center: Array, key: PRNGKey) -> Array:
    return reference(key, center)
