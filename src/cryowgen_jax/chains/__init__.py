"""Many chains, one loop: vmap, scan, pmap; streamed moments, diagnostics, step-size adaptation."""

from cryowgen_jax.chains.calibration import CalibrationResult, simulation_based_calibration
from cryowgen_jax.chains.effective_potential import PsiEstimate, effective_potential
from cryowgen_jax.chains.record import Progress
from cryowgen_jax.chains.sample import ChainResult, sample

__all__ = [
    "CalibrationResult",
    "ChainResult",
    "Progress",
    "PsiEstimate",
    "effective_potential",
    "sample",
    "simulation_based_calibration",
]
