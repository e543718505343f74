"""The only code that touches disk: tomograms, tilt angles, checkpoints, output folders. See ARCHITECTURE.md."""

from cryowgen_jax.io.checkpoint import load_checkpoint, save_checkpoint
from cryowgen_jax.io.mrc import Tomogram, check_volume, new_volume, read_tomogram, write_volume
from cryowgen_jax.io.output import (
    prepare_output_file,
    prepare_output_folder,
    require_free_space,
    write_bytes_atomic,
    write_text_atomic,
)
from cryowgen_jax.io.tilts import read_tilt_angles
from cryowgen_jax.io.weights import load_weights, save_weights

__all__ = [
    "Tomogram",
    "check_volume",
    "load_checkpoint",
    "load_weights",
    "new_volume",
    "prepare_output_file",
    "prepare_output_folder",
    "read_tilt_angles",
    "read_tomogram",
    "require_free_space",
    "save_checkpoint",
    "save_weights",
    "write_bytes_atomic",
    "write_text_atomic",
    "write_volume",
]
