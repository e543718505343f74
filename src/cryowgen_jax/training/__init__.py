"""Learning the witness and the other parts of a posterior; start with ``semidual``. See docs/training.md."""

from cryowgen_jax.training.amortised import Amortisation, AmortisedNegatives, learn_map
from cryowgen_jax.training.conditional_prior import Example, learn_prior, prior_loss, warmed_adam, warmed_muon
from cryowgen_jax.training.consistency import Reobservation, learn_center
from cryowgen_jax.training.denoising import denoising_loss, match_scores
from cryowgen_jax.training.descent import Descent, TrainingProgress, descend
from cryowgen_jax.training.diffusion import correction_loss, diffusion_loss, error_loss, mean_loss
from cryowgen_jax.training.negatives import LangevinNegatives, MonteCarloNegatives, Negatives, NegativeSampler
from cryowgen_jax.training.scenes import CoarseScenes, Scenes
from cryowgen_jax.training.semidual import Model, Training, objective, train
from cryowgen_jax.training.specimens import Specimens

__all__ = [
    "Amortisation",
    "AmortisedNegatives",
    "CoarseScenes",
    "Descent",
    "Example",
    "LangevinNegatives",
    "Model",
    "MonteCarloNegatives",
    "NegativeSampler",
    "Negatives",
    "Reobservation",
    "Scenes",
    "Specimens",
    "Training",
    "TrainingProgress",
    "correction_loss",
    "denoising_loss",
    "descend",
    "diffusion_loss",
    "error_loss",
    "learn_center",
    "learn_map",
    "learn_prior",
    "match_scores",
    "mean_loss",
    "objective",
    "prior_loss",
    "train",
    "warmed_adam",
    "warmed_muon",
]
