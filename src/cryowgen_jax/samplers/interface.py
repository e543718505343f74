"""What kernels share: BlackJAX's pair of functions, and what a kernel knows of its target."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import jax

from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, HasSpectralGradient

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm

Witness = Callable[[Array], Array]


class GaussianPart(Protocol):
    """N(mu, C) with C diagonal in Fourier space; both arrays in rfftn layout."""

    @property
    def mean_spectrum(self) -> Array:
        """F mu."""
        ...

    @property
    def precision(self) -> Array:
        """1 / C_k."""
        ...


def algorithm(init: Callable[..., Any], step: Callable[..., Any]) -> SamplingAlgorithm:
    """BlackJAX's pair of ``init(position, rng_key=None)`` and ``step(rng_key, state)``; its import takes seconds."""
    from blackjax.base import SamplingAlgorithm

    return SamplingAlgorithm(init, step)


def value_and_spectral_gradient(witness: Witness, position: Array, spectrum: Array) -> tuple[Array, Array]:
    """The witness at a position of known half spectrum, and the half spectrum of its gradient there."""
    if isinstance(witness, HasSpectralGradient):
        return witness.value_and_spectral_gradient(position, spectrum)
    value, gradient = jax.value_and_grad(witness)(position)
    return value, fourier.rfftn(gradient)
