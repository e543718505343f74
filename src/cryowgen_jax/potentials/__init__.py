"""The posterior term by term, its Gaussian part, and witnesses with closed forms."""

from cryowgen_jax.potentials.gaussian import FourierGaussian, contraction_gap, gaussian_part, split
from cryowgen_jax.potentials.posterior import (
    Posterior,
    conditional_prior,
    data_fit,
    draw_conditional_prior,
    surrogate,
    temper,
)
from cryowgen_jax.potentials.solvent import SolventWitness
from cryowgen_jax.potentials.witnesses import (
    GaussianMixtureWitness,
    QuadraticWitness,
    ScaledWitness,
    ShiftedWitness,
    SumWitness,
    curvature_bounds,
    has_curvature,
)

__all__ = [
    "FourierGaussian",
    "GaussianMixtureWitness",
    "Posterior",
    "QuadraticWitness",
    "ScaledWitness",
    "ShiftedWitness",
    "SolventWitness",
    "SumWitness",
    "conditional_prior",
    "contraction_gap",
    "curvature_bounds",
    "data_fit",
    "draw_conditional_prior",
    "gaussian_part",
    "has_curvature",
    "split",
    "surrogate",
    "temper",
]
