"""Markov kernels with BlackJAX's (init, step), and importance sampling. They know densities, not tomograms."""

from cryowgen_jax.samplers.binding import algorithm, as_pytree, bind
from cryowgen_jax.samplers.importance import WeightedFamily, weigh
from cryowgen_jax.samplers.independent import build as independent
from cryowgen_jax.samplers.langevin import build as langevin
from cryowgen_jax.samplers.leimkuhler_matthews import build as leimkuhler_matthews
from cryowgen_jax.samplers.pcnl import build as pcnl
from cryowgen_jax.samplers.preconditioned import NoiseFn, largest_step, white_noise
from cryowgen_jax.samplers.preconditioned import build as preconditioned

__all__ = [
    "NoiseFn",
    "WeightedFamily",
    "algorithm",
    "as_pytree",
    "bind",
    "independent",
    "langevin",
    "largest_step",
    "leimkuhler_matthews",
    "pcnl",
    "preconditioned",
    "weigh",
    "white_noise",
]
