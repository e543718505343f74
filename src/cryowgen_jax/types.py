"""Aliases and small contracts shared by every room. Imports only JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax

Array = jax.Array
PRNGKey = jax.Array
PyTree = Any
LogDensityFn = Callable[[Array], Array]


class InputError(ValueError):
    """Input that cannot be used. The message is one line: what is wrong, the value received, what to do.

    Examples
    --------
    >>> try:
    ...     cg.wedge_mask((16, 16, 16), (60, -60))
    ... except cg.InputError as error:
    ...     print(len(str(error).splitlines()), "line")
    1 line
    """


@runtime_checkable
class FourierDiagonal(Protocol):
    """An operator F^-1 (t . F v) with a real transfer t >= 0 in rfftn layout."""

    transfer: Array

    def __call__(self, volume: Array) -> Array:
        """Apply the operator to one volume."""
        ...


@runtime_checkable
class HasCurvature(Protocol):
    """A witness that bounds its own curvature."""

    def curvature_bounds(self) -> tuple[Array, Array]:
        """Return (low, high) such that low I <= -Hess w(z) <= high I for every z."""
        ...


@runtime_checkable
class HasSpectralCurvature(HasCurvature, Protocol):
    """A witness on volumes that bounds its curvature frequency by frequency."""

    def spectral_curvature_bounds(self) -> tuple[Array, Array]:
        """Return (low_k, high_k) in rfftn layout with F^-1 low F <= -Hess w(z) <= F^-1 high F for every z."""
        ...


@runtime_checkable
class HasSpectralGradient(Protocol):
    """A witness on volumes part of which is cheaper in Fourier space."""

    def value_and_spectral_gradient(self, position: Array, spectrum: Array) -> tuple[Array, Array]:
        """Return w and the half spectrum of its gradient, given a position and its half spectrum."""
        ...


@runtime_checkable
class Stochastic(Protocol):
    """A witness that can be drawn; called itself, it is the expectation of its draws, or an average that is fixed."""

    def at(self, key: PRNGKey) -> LogDensityFn:
        """Return the deterministic witness, position -> scalar, of one random draw."""
        ...

    def __call__(self, position: Array) -> Array:
        """Return the expected witness."""
        ...
