"""What every method returns."""

from __future__ import annotations

from typing import NamedTuple

from cryowgen_jax.types import Array


class Family(NamedTuple):
    """Restored volumes with their weights.

    ``samples`` (K, ...), ``weights`` (K,) that sum to 1, ``mean`` and ``std`` per voxel. Point estimates have K = 1 and
    std = 0.
    """

    samples: Array
    weights: Array
    mean: Array
    std: Array
