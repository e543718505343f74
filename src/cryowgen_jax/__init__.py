"""A family of restored cryo-electron tomograms by Langevin sampling of the missing-wedge posterior.

``import cryowgen_jax as cg``. Volumes are (Z, Y, X) float32, Fourier arrays have the layout of ``jnp.fft.rfftn``.
"""

from cryowgen_jax.chains import ChainResult, sample
from cryowgen_jax.methods import Family, cryowgen_langevin, cryowgen_mc, importance_sample
from cryowgen_jax.potentials import GaussianMixtureWitness, Posterior, QuadraticWitness, surrogate, temper
from cryowgen_jax.samplers import WeightedFamily, langevin, leimkuhler_matthews, pcnl

__version__ = "0.1.0"

__all__ = [
    "ChainResult",
    "Family",
    "GaussianMixtureWitness",
    "Posterior",
    "QuadraticWitness",
    "WeightedFamily",
    "cryowgen_langevin",
    "cryowgen_mc",
    "importance_sample",
    "langevin",
    "leimkuhler_matthews",
    "pcnl",
    "sample",
    "surrogate",
    "temper",
]
