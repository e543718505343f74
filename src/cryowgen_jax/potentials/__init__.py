"""The posterior term by term, its Gaussian part, and witnesses with closed forms."""

from cryowgen_jax.potentials.gaussian import (
    FourierGaussian,
    absorb,
    contraction_gap,
    drawable_part,
    gaussian_part,
    informed_part,
    split,
    split_tether,
)
from cryowgen_jax.potentials.posterior import (
    DataFit,
    Posterior,
    conditional_prior,
    data_fit,
    draw_conditional_prior,
    log_normaliser,
    surrogate,
    temper,
)
from cryowgen_jax.potentials.solvent_witness import SolventWitness
from cryowgen_jax.potentials.stiffness import largest_curvature
from cryowgen_jax.potentials.witnesses import (
    GaussianMixtureWitness,
    QuadraticWitness,
    ScaledWitness,
    ShiftedWitness,
    SumWitness,
    curvature_bounds,
    has_curvature,
    is_stochastic,
)

__all__ = [
    "DataFit",
    "FourierGaussian",
    "GaussianMixtureWitness",
    "Posterior",
    "QuadraticWitness",
    "ScaledWitness",
    "ShiftedWitness",
    "SolventWitness",
    "SumWitness",
    "absorb",
    "conditional_prior",
    "contraction_gap",
    "curvature_bounds",
    "data_fit",
    "draw_conditional_prior",
    "drawable_part",
    "gaussian_part",
    "has_curvature",
    "informed_part",
    "is_stochastic",
    "largest_curvature",
    "log_normaliser",
    "split",
    "split_tether",
    "surrogate",
    "temper",
]
