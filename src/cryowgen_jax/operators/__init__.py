"""The forward operators A (missing wedge, rotation, composition), and witnesses made with them. See ARCHITECTURE.md."""

from cryowgen_jax.operators.compose import Composition, Rotation, compose
from cryowgen_jax.operators.random_witness import BoundedRotatedWitness, NoisyWitness, RotatedWitness
from cryowgen_jax.operators.wedge import Wedge, tilt_slope, traced_wedge_mask, wedge_mask, wedge_mask_from_tilts

__all__ = [
    "BoundedRotatedWitness",
    "Composition",
    "NoisyWitness",
    "RotatedWitness",
    "Rotation",
    "Wedge",
    "compose",
    "tilt_slope",
    "traced_wedge_mask",
    "wedge_mask",
    "wedge_mask_from_tilts",
]
