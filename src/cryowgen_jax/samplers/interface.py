"""What samplers share: BlackJAX's pair of functions, the target in two parts, and the recipe that chains follow."""

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
    """The Gaussian N(mu, C), C diagonal in Fourier space; both arrays in rfftn layout."""

    @property
    def mean_spectrum(self) -> Array:
        """F mu."""
        ...

    @property
    def precision(self) -> Array:
        """1 / C_k."""
        ...


class HasGradient(Protocol):
    """State of a kernel that knows the Gaussian part; both arrays are half spectra."""

    @property
    def offset(self) -> Array:
        """F (z - mu)."""
        ...

    @property
    def gradient(self) -> Array:
        """F grad w(z)."""
        ...


class Recipe(NamedTuple):
    """How ``cg.sample`` runs a sampler: what builds the kernel, and how its step size is chosen and adapted.

    Attributes
    ----------
    build
        (log-density, step size) or (witness, Gaussian part, step size) -> SamplingAlgorithm; further arguments where
        the sampler's row in ``chains.sampler_table`` has them.
    first_step
        Curvature -> step size to start from. The curvature is an upper bound: of -Hess F for kernels of a log-density,
        of |Hess w| in units of the Gaussian part's precision for the others; None for kernels that ask for none.
    target
        Mean acceptance rate that warm-up steers the step size to; None keeps the first step size.
    max_step_size
        Largest step size that warm-up may take.
    score
        State -> grad F there, as an array of the position's shape or as its half spectrum. Kernels that know the
        Gaussian part are given it as first argument. None where states do not hold the gradient.
    quality
        Number of elements of a position -> (info -> number in [0, 1]) to steer by in place of the acceptance rate.
    observe
        State -> regressors of :func:`kinetic.regression`. Their means over the middle of warm-up say which part of the
        witness to move into the Gaussian part. None for kernels that do not learn.
    ramps
        Whether ``build`` takes a ``power`` t, of exp(t w) N(mu, C), that the start of warm-up raises from 0 to 1.
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
    """BlackJAX's pair of ``init(position, rng_key=None)`` and ``step(rng_key, state)``.

    BlackJAX takes seconds to import, so it is imported here and not with this module.
    """
    from blackjax.base import SamplingAlgorithm

    return SamplingAlgorithm(init, step)


def score(gaussian: GaussianPart, state: HasGradient) -> Array:
    """Half spectrum of grad F = grad w - C^-1 (z - mu) at the state, which holds grad w: no gradient is taken."""
    return state.gradient - gaussian.precision * state.offset


def value_and_spectral_gradient(witness: Witness, position: Array, spectrum: Array) -> tuple[Array, Array]:
    """The witness and the half spectrum of its gradient, at a position whose half spectrum is known."""
    if isinstance(witness, HasSpectralGradient):
        return witness.value_and_spectral_gradient(position, spectrum)
    value, gradient = jax.value_and_grad(witness)(position)
    return value, fourier.rfftn(gradient)
