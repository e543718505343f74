"""The methods by name: assembly only."""

from cryowgen_jax.methods.family import Family
from cryowgen_jax.methods.langevin_chains import cryowgen_langevin
from cryowgen_jax.methods.monte_carlo import DefensiveMixture, Reference, cryowgen_mc, heaviest, importance_sample
from cryowgen_jax.methods.point_estimates import cryogen_map, cryogen_ot, untethered
from cryowgen_jax.methods.reverse_diffusion import noise_levels, reverse_diffusion

__all__ = [
    "DefensiveMixture",
    "Family",
    "Reference",
    "cryogen_map",
    "cryogen_ot",
    "cryowgen_langevin",
    "cryowgen_mc",
    "heaviest",
    "importance_sample",
    "noise_levels",
    "reverse_diffusion",
    "untethered",
]
