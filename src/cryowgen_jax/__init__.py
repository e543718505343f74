"""A family of restored cryo-electron tomograms by Langevin sampling of the missing-wedge posterior.

``import cryowgen_jax as cg``. Volumes are (Z, Y, X) float32, Fourier arrays have the layout of ``jnp.fft.rfftn``.
"""

from cryowgen_jax.chains import ChainResult, sample
from cryowgen_jax.methods import Family, cryowgen_langevin, cryowgen_mc, importance_sample
from cryowgen_jax.models import CenterNet, ConvWitness, Decoder, from_linen, from_nnx
from cryowgen_jax.operators import Rotation, Wedge, compose, wedge_mask, wedge_mask_from_tilts
from cryowgen_jax.potentials import GaussianMixtureWitness, Posterior, QuadraticWitness, surrogate, temper
from cryowgen_jax.restoration import Restoration, WedgeReport, inspect_wedge, restore
from cryowgen_jax.samplers import WeightedFamily, langevin, leimkuhler_matthews, pcnl
from cryowgen_jax.spatial.rotation import cube_rotations, random_rotations, rotate

__version__ = "0.1.0"

__all__ = [
    "CenterNet",
    "ChainResult",
    "ConvWitness",
    "Decoder",
    "Family",
    "GaussianMixtureWitness",
    "Posterior",
    "QuadraticWitness",
    "Restoration",
    "Rotation",
    "Wedge",
    "WedgeReport",
    "WeightedFamily",
    "compose",
    "cryowgen_langevin",
    "cryowgen_mc",
    "cube_rotations",
    "from_linen",
    "from_nnx",
    "importance_sample",
    "inspect_wedge",
    "langevin",
    "leimkuhler_matthews",
    "pcnl",
    "random_rotations",
    "restore",
    "rotate",
    "sample",
    "surrogate",
    "temper",
    "wedge_mask",
    "wedge_mask_from_tilts",
]
