"""Two halves whose faces do not fit: what is restored is their mean, whichever comes first."""

import jax
import numpy as np
import pytest

from cryowgen_jax.operators import wedge_mask
from cryowgen_jax.restoration import restore
from cryowgen_jax.simulation import simulate_tomogram

TILTS = (-60.0, 60.0)
QUICK = {"num_samples": 4, "num_steps": 7, "warmup": 6, "devices": jax.devices()[:1]}


def crops():
    """Halves that differ in level and slope as well, as halves of real tilt series do."""
    sim = simulate_tomogram((36, 54, 44), TILTS, snr=0.2, seed=6)
    slope = np.linspace(-1, 1, 40, dtype=np.float32)
    half1, half2 = (half[2:-2, 3:-3, 2:-2] for half in (sim.half1, sim.half2))
    return half1 + slope + 3, half2 - slope - 3, sim.noise_sd


@pytest.mark.slow
def test_the_restoration_lies_about_the_mean_of_the_halves():
    half1, half2, noise_sd = crops()
    result = restore(half1, TILTS, half2=half2, **QUICK)
    swapped = restore(half2, TILTS, half2=half1, **QUICK)
    assert np.std(result.mean - swapped.mean) < 0.1 * result.mean.std()

    measured = np.asarray(wedge_mask(half1.shape, TILTS)) > 0

    def misfit(data):
        """Mean |difference|^2 in units of the mean's noise, lowest frequencies along x, where the slopes are."""
        difference = np.fft.rfftn(result.mean - data, norm="ortho")
        line = np.abs(difference[0, 0, 1:4]) ** 2
        return line.mean() / (noise_sd**2 / 2), np.mean(np.abs(difference[measured]) ** 2) / (noise_sd**2 / 2)

    of_mean, of_first = misfit((half1 + half2) / 2), misfit(half1)
    assert of_mean[0] < 5
    assert of_mean[1] < 1.1
    assert of_first[0] > 50
