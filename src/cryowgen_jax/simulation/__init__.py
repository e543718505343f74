"""Tomograms with known truth, made from a seed alone, and comparisons of restorations with that truth."""

from cryowgen_jax.simulation.crowding import Phantom, crowded_maps, crowded_phantom, surroundings
from cryowgen_jax.simulation.evaluation import Evaluation, WedgeErrors, coverage_curve, evaluate_family, wedge_errors
from cryowgen_jax.simulation.tomogram import SimulatedTomogram, simulate_tomogram

__all__ = [
    "Evaluation",
    "Phantom",
    "SimulatedTomogram",
    "WedgeErrors",
    "coverage_curve",
    "crowded_maps",
    "crowded_phantom",
    "evaluate_family",
    "simulate_tomogram",
    "surroundings",
    "wedge_errors",
]
