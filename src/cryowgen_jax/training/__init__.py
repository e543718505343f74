"""Learning the witness, and what else a posterior is made of: see ``semidual``."""

from cryowgen_jax.training.conditional import Example, learn_prior, prior_loss
from cryowgen_jax.training.denoising import denoising_loss, match_scores
from cryowgen_jax.training.descent import Descent, TrainingProgress, descend
from cryowgen_jax.training.negatives import LangevinNegatives, MonteCarloNegatives, Negatives, NegativeSampler
from cryowgen_jax.training.semidual import Model, Training, objective, train
from cryowgen_jax.training.specimens import Specimens

__all__ = [
    "Descent",
    "Example",
    "LangevinNegatives",
    "Model",
    "MonteCarloNegatives",
    "NegativeSampler",
    "Negatives",
    "Specimens",
    "Training",
    "TrainingProgress",
    "denoising_loss",
    "descend",
    "learn_prior",
    "match_scores",
    "objective",
    "prior_loss",
    "train",
]
