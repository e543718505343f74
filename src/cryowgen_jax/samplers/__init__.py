"""Markov kernels with BlackJAX's (init, step), and importance sampling. They know densities, not tomograms."""

from cryowgen_jax.samplers.importance import WeightedFamily, weigh, weighted
from cryowgen_jax.samplers.independent import build as independent
from cryowgen_jax.samplers.interface import GaussianPart, Recipe, algorithm, score
from cryowgen_jax.samplers.kinetic import (
    LONGEST_STEP,
    METROPOLIS_SIZE,
    Regressors,
    acceptance_of_a_part,
    regression,
    regressors,
)
from cryowgen_jax.samplers.kinetic import build as kinetic
from cryowgen_jax.samplers.langevin import build as langevin
from cryowgen_jax.samplers.leimkuhler_matthews import build as leimkuhler_matthews
from cryowgen_jax.samplers.mala import build as mala
from cryowgen_jax.samplers.pcnl import build as pcnl
from cryowgen_jax.samplers.preconditioned import NoiseFn, largest_step, white_noise
from cryowgen_jax.samplers.preconditioned import build as preconditioned
from cryowgen_jax.samplers.sk_rock import build as sk_rock
from cryowgen_jax.samplers.sk_rock import largest_step as largest_sk_rock_step
from cryowgen_jax.samplers.stochastic import build as stochastic
from cryowgen_jax.samplers.tempered import build as tempered

__all__ = [
    "LONGEST_STEP",
    "METROPOLIS_SIZE",
    "GaussianPart",
    "NoiseFn",
    "Recipe",
    "Regressors",
    "WeightedFamily",
    "acceptance_of_a_part",
    "algorithm",
    "independent",
    "kinetic",
    "langevin",
    "largest_sk_rock_step",
    "largest_step",
    "leimkuhler_matthews",
    "mala",
    "pcnl",
    "preconditioned",
    "regression",
    "regressors",
    "score",
    "sk_rock",
    "stochastic",
    "tempered",
    "weigh",
    "weighted",
    "white_noise",
]
