"""Tomogram in, family out: preparation, the models, wedge inspection. See ARCHITECTURE.md."""

from cryowgen_jax.restoration.adapt import Adaptation, AdaptationProgress, adapt_witness, estimate_adaptation
from cryowgen_jax.restoration.cost import Cost, estimate_cost
from cryowgen_jax.restoration.prior_weights import load_witness, save_witness
from cryowgen_jax.restoration.restore import Restoration, RestorationReport, restore
from cryowgen_jax.restoration.wedge_inspection import WedgeReport, inspect_wedge

__all__ = [
    "Adaptation",
    "AdaptationProgress",
    "Cost",
    "Restoration",
    "RestorationReport",
    "WedgeReport",
    "adapt_witness",
    "estimate_adaptation",
    "estimate_cost",
    "inspect_wedge",
    "load_witness",
    "restore",
    "save_witness",
]
