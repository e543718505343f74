"""Independent draws in the form of a Markov kernel, for posteriors that can be drawn exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp

from cryowgen_jax.pytrees import bind
from cryowgen_jax.samplers.interface import algorithm
from cryowgen_jax.types import Array, PRNGKey

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm


class IndependentState(NamedTuple):
    """The last draw."""

    position: Array


class IndependentInfo(NamedTuple):
    """Acceptance rate: 1, as nothing is rejected."""

    acceptance_rate: Array


def build(draw: Callable[[PRNGKey], Array]) -> SamplingAlgorithm:
    """The kernel whose every step is ``draw(rng_key)``, whatever the state."""
    return algorithm(init, bind(step, draw))


def init(position: Array, rng_key: PRNGKey | None = None) -> IndependentState:
    """Start anywhere; ``rng_key`` is not used."""
    del rng_key
    return IndependentState(position)


def step(
    draw: Callable[[PRNGKey], Array], rng_key: PRNGKey, state: IndependentState
) -> tuple[IndependentState, IndependentInfo]:
    """One draw."""
    del state
    return IndependentState(draw(rng_key)), IndependentInfo(jnp.ones(()))
