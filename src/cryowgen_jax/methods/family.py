"""What every method returns."""

from __future__ import annotations

from typing import NamedTuple

from cryowgen_jax.types import Array


class Family(NamedTuple):
    """Restored volumes with their weights.

    Attributes
    ----------
    samples
        The members, (K, ...); one for point estimates.
    weights
        (K,), sum 1.
    mean, std
        Per voxel; std is 0 for point estimates.
    """

    samples: Array
    weights: Array
    mean: Array
    std: Array
