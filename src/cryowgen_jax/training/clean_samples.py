"""Clean samples: an array of them, or a function that draws one."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cryowgen_jax.pytrees import as_pytree, bind
from cryowgen_jax.types import Array, PRNGKey

CleanSamples = Array | Callable[[PRNGKey], Array]


def drawer(samples: CleanSamples) -> Callable[[PRNGKey], Array]:
    """Key -> one sample, as a pytree: a random entry of an array (M, ...), or the function that was given."""
    return as_pytree(samples) if callable(samples) else bind(_pick, jnp.asarray(samples))


def _pick(library: Array, key: PRNGKey) -> Array:
    return library[jax.random.randint(key, (), 0, library.shape[0])]
