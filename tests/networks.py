"""Networks for tests."""

import jax
import numpy as np


def shaken(network, size, seed):
    """The same with noise of this size on all weights, so that none is zero."""
    leaves, structure = jax.tree.flatten(network)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(structure, [leaf + np.float32(size * rng.normal(size=leaf.shape)) for leaf in leaves])
