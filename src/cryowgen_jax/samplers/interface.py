"""What kernels share: BlackJAX's pair of functions, what they know of their target, and how chains are made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax

from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, HasSpectralGradient, PyTree

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


class HasGradient(Protocol):
    """The state of a kernel that knows the Gaussian part; both arrays are half spectra."""

    @property
    def offset(self) -> Array:
        """Of the position less the Gaussian mean."""
        ...

    @property
    def gradient(self) -> Array:
        """Of grad w at the position."""
        ...


class Recipe(NamedTuple):
    """How a driver of chains makes a kernel, and chooses and adapts its step size.

    Attributes
    ----------
    build
        (what it has to know of its target, step size) -> SamplingAlgorithm.
    first_step
        Curvature -> step size to start from, or to keep. The curvature is a bound in the kernel's own coordinates: of
        the exponent, or of w in units of the Gaussian part's precision where the kernel knows that; None where the
        kernel asks for no bound.
    target
        Mean acceptance that warm-up steers to; None keeps the first step size.
    max_step_size
        Largest step size that makes sense.
    score
        State -> gradient of the log-density there, as an array of the position's shape or its half spectrum. Kernels
        that know the Gaussian part get it as first argument. None where states do not hold the gradient.
    quality
        Number of elements of a position -> (info -> number in [0, 1]), to steer by in place of the acceptance.
    observe
        State -> arrays. Their averages over the middle of warm-up are what :func:`kinetic.regression` takes, so that
        the kernel goes on with another Gaussian part. None where it learns nothing.
    ramps
        Whether ``build`` takes a ``power`` t of rho_t ~ exp(t w) N(mu, C), which the start of warm-up raises to 1.
    """

    build: Callable[..., SamplingAlgorithm]
    first_step: Callable[[Any], Array]
    target: float | None = None
    max_step_size: float = float("inf")
    score: Callable[..., Array] | None = None
    quality: Callable[[int], Callable[[Any], Array]] | None = None
    observe: Callable[[Any], PyTree] | None = None
    ramps: bool = False


def algorithm(init: Callable[..., Any], step: Callable[..., Any]) -> SamplingAlgorithm:
    """BlackJAX's pair of ``init(position, rng_key=None)`` and ``step(rng_key, state)``; its import takes seconds."""
    from blackjax.base import SamplingAlgorithm

    return SamplingAlgorithm(init, step)


def score(gaussian: GaussianPart, state: HasGradient) -> Array:
    """Half spectrum of grad log rho at the state: that of grad w, which the state holds, less (z - mu) / C."""
    return state.gradient - gaussian.precision * state.offset


def value_and_spectral_gradient(witness: Witness, position: Array, spectrum: Array) -> tuple[Array, Array]:
    """The witness at a position of known half spectrum, and the half spectrum of its gradient there."""
    if isinstance(witness, HasSpectralGradient):
        return witness.value_and_spectral_gradient(position, spectrum)
    value, gradient = jax.value_and_grad(witness)(position)
    return value, fourier.rfftn(gradient)
