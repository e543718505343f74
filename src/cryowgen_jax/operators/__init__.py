"""The forward operators A: missing wedge, rotation, composition. See ARCHITECTURE.md."""

from cryowgen_jax.operators.compose import Composition, Rotation, compose
from cryowgen_jax.operators.wedge import Wedge, wedge_mask, wedge_mask_from_tilts

__all__ = ["Composition", "Rotation", "Wedge", "compose", "wedge_mask", "wedge_mask_from_tilts"]
