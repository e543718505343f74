"""The methods by name: assembly only."""

from cryowgen_jax.methods.family import Family
from cryowgen_jax.methods.importance import cryowgen_mc, importance_sample
from cryowgen_jax.methods.langevin import cryowgen_langevin

__all__ = ["Family", "cryowgen_langevin", "cryowgen_mc", "importance_sample"]
