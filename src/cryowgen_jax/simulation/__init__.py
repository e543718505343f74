"""Tomograms with known truth, made from nothing but a seed, and scores against them."""

from cryowgen_jax.simulation.crowding import Phantom, crowded_maps, crowded_phantom
from cryowgen_jax.simulation.evaluation import Score, WedgeErrors, coverage_curve, score_family, wedge_errors
from cryowgen_jax.simulation.tomogram import SimulatedTomogram, simulate_tomogram

__all__ = [
    "Phantom",
    "Score",
    "SimulatedTomogram",
    "WedgeErrors",
    "coverage_curve",
    "crowded_maps",
    "crowded_phantom",
    "score_family",
    "simulate_tomogram",
    "wedge_errors",
]
