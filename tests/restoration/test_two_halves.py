"""Halves that do not belong together are not restored in silence."""

import numpy as np
import pytest

from cryowgen_jax.operators import wedge_mask
from cryowgen_jax.restoration import restore
from cryowgen_jax.restoration.checks import check_halves
from cryowgen_jax.restoration.spectra import through
from cryowgen_jax.simulation import simulate_tomogram
from cryowgen_jax.types import InputError

SHAPE, TILTS = (32, 48, 40), (-60.0, 60.0)
MASK = np.asarray(wedge_mask(SHAPE, TILTS))


def halves(seed=0, snr=0.1):
    seen = simulate_tomogram(SHAPE, TILTS, snr=snr, seed=seed)
    return seen.half1, seen.half2


@pytest.mark.parametrize("snr", [0.02, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_halves_of_one_specimen(seed, snr):
    first, second = halves(seed, snr)
    slope = np.linspace(-1, 1, SHAPE[2], dtype=np.float32) * first.std()
    for one, other in ((first, second), (5 + first, second), (first + slope, second - slope), (first, 2 * second)):
        assert check_halves(one, other, MASK) is None


def noise(seed):
    return through(np.random.default_rng(seed).normal(size=SHAPE), MASK)


@pytest.mark.parametrize("seed", range(5))
def test_halves_without_anything_in_common(seed):
    """Pure noise; and the same specimen, but shifted by a third of the box."""
    assert "nothing in common" in check_halves(noise(seed), noise(seed + 100), MASK)
    first, second = halves(seed)
    shifted = np.roll(second, (10, 16, 13), (0, 1, 2))
    found = check_halves(first, shifted, MASK)
    assert found is None or "nothing in common" in found, "membranes may happen to overlap"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda half: -half, "contradict each other"),
        (lambda half: 100 * half, "a factor of (99|100)"),
        (lambda half: np.full_like(half, 3), "the second half is constant, every voxel is 3"),
    ],
)
def test_what_is_refused(change, message):
    first, second = halves()
    with pytest.raises(InputError, match=message):
        restore(first, TILTS, half2=change(second))


def test_a_doubt_is_said_before_and_after():
    with pytest.warns(UserWarning, match="nothing in common"):
        result = restore(noise(1), TILTS, half2=noise(2), witness="solvent", method="cryogen_map")
    assert any("nothing in common" in doubt for doubt in result.report.warnings)
