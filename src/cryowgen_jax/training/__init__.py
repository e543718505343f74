"""Learning the witness, and what else a posterior is made of: see ``semidual``."""

from cryowgen_jax.training.denoising import denoising_loss, match_scores
from cryowgen_jax.training.descent import Descent, TrainingProgress, descend
from cryowgen_jax.training.negatives import LangevinNegatives, MonteCarloNegatives, Negatives, NegativeSampler
from cryowgen_jax.training.semidual import Model, Training, objective, train

__all__ = [
    "Descent",
    "LangevinNegatives",
    "Model",
    "MonteCarloNegatives",
    "NegativeSampler",
    "Negatives",
    "Training",
    "TrainingProgress",
    "denoising_loss",
    "descend",
    "match_scores",
    "objective",
    "train",
]
