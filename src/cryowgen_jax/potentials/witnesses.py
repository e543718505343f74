"""Witnesses with closed forms, and how witnesses combine.

Each knows its curvature: ``curvature_bounds()`` returns (low, high) with low I <= -Hess w(z) <= high I everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, HasCurvature, HasSpectralCurvature, PRNGKey, Stochastic


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuadraticWitness:
    """w(z) = -1/2 (z - m)^T S (z - m), S diagonal in Fourier space.

    Parameters
    ----------
    curvature
        S_k, real, in rfftn layout; 1 / S_k is the variance that the witness alone gives coefficient k.
    mean
        m, a volume.

    Examples
    --------
    >>> import jax.numpy as jnp, cryowgen_jax as cg
    >>> witness = cg.QuadraticWitness(curvature=jnp.full((4, 4, 3), 2.0), mean=jnp.zeros((4, 4, 4)))
    >>> round(float(witness(jnp.ones((4, 4, 4)))), 3)
    -64.0
    """

    curvature: Array
    mean: Array

    def __call__(self, position: Array) -> Array:
        """Return w(z)."""
        return -fourier.quadratic_form(position - self.mean, self.curvature)

    def curvature_bounds(self) -> tuple[Array, Array]:
        """Smallest and largest S_k."""
        return jnp.min(self.curvature), jnp.max(self.curvature)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussianMixtureWitness:
    """w(z) = log sum_j pi_j N(z; m_j, v I), normalised densities, positions of any shape.

    Parameters
    ----------
    weights
        pi_j, (J,), positive; normalised here.
    means
        m_j, (J, ...).
    variance
        v, scalar.

    Examples
    --------
    >>> import jax.numpy as jnp, cryowgen_jax as cg
    >>> witness = cg.GaussianMixtureWitness(jnp.array([0.5, 0.5]), jnp.array([[-1.0], [1.0]]), 0.25)
    >>> low, high = witness.curvature_bounds()
    >>> float(low), float(high)  # not log-concave between the means
    (-12.0, 4.0)
    """

    weights: Array
    means: Array
    variance: Array | float

    def __call__(self, position: Array) -> Array:
        """Return w(z)."""
        difference = (position[None] - self.means).reshape(self.means.shape[0], -1)
        size = difference.shape[1]
        log_weights = jnp.log(self.weights) - jnp.log(jnp.sum(self.weights))
        squares = jnp.sum(difference**2, axis=1) / self.variance
        return jax.nn.logsumexp(log_weights - 0.5 * squares) - 0.5 * size * jnp.log(2 * jnp.pi * self.variance)

    def curvature_bounds(self) -> tuple[Array, Array]:
        """1/v - g^2 / (4 v^2) and 1/v, with g the largest distance between two means.

        -Hess w = I/v - Cov/v^2, with Cov the covariance of the means under their responsibilities: at most g^2 / 4.
        """
        flat = self.means.reshape(self.means.shape[0], -1)
        gap = jnp.max(jnp.sum((flat[:, None] - flat[None]) ** 2, axis=-1))
        high = 1.0 / jnp.asarray(self.variance, jnp.float32)
        return high - 0.25 * gap * high**2, high


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaledWitness:
    """scale * w(z), scale >= 0."""

    scale: Array
    witness: Callable[[Array], Array]

    def __call__(self, position: Array) -> Array:
        """Return scale * w(z)."""
        return self.scale * self.witness(position)

    def at(self, key: PRNGKey) -> ScaledWitness:
        """The same with one draw of the witness, where that is random."""
        return ScaledWitness(self.scale, _drawn(self.witness, key))

    def curvature_bounds(self) -> tuple[Array, Array]:
        """Bounds of the witness, scaled."""
        low, high = curvature_bounds(self.witness)
        return self.scale * low, self.scale * high

    def spectral_curvature_bounds(self) -> tuple[Array, Array]:
        """Bounds of the witness, scaled."""
        low, high = spectral_curvature_bounds(self.witness)
        return self.scale * low, self.scale * high


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SumWitness:
    """Sum of witnesses."""

    terms: tuple[Callable[[Array], Array], ...]

    def __call__(self, position: Array) -> Array:
        """Return sum_i w_i(z)."""
        total = jnp.zeros((), position.dtype)
        for term in self.terms:
            total = total + term(position)
        return total

    def at(self, key: PRNGKey) -> SumWitness:
        """The same with one draw of every term that is random."""
        keys = jax.random.split(key, len(self.terms))
        return SumWitness(tuple(_drawn(term, k) for term, k in zip(self.terms, keys, strict=True)))

    def curvature_bounds(self) -> tuple[Array, Array]:
        """Sum of the bounds."""
        bounds = [curvature_bounds(term) for term in self.terms]
        return sum((low for low, _ in bounds), jnp.zeros(())), sum((high for _, high in bounds), jnp.zeros(()))

    def spectral_curvature_bounds(self) -> tuple[Array, Array]:
        """Sum of the bounds."""
        bounds = [spectral_curvature_bounds(term) for term in self.terms]
        return sum((low for low, _ in bounds), jnp.zeros(())), sum((high for _, high in bounds), jnp.zeros(()))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShiftedWitness:
    """w(z) + 1/2 z^T s z - b^T z: what remains of a witness after curvature s and slope b moved to the Gaussian part.

    Parameters
    ----------
    witness
        w.
    shift
        s, a scalar or one value per coefficient in rfftn layout.
    slope
        b, a half spectrum; None for zero.
    """

    witness: Callable[[Array], Array]
    shift: Array
    slope: Array | None = None

    def __call__(self, position: Array) -> Array:
        """Return w(z) + 1/2 z^T s z - b^T z."""
        value = self.witness(position)
        if self.slope is not None:
            value = value - jnp.sum(fourier.irfftn(self.slope, position.shape) * position)
        if jnp.ndim(self.shift) == 0:
            return value + 0.5 * self.shift * jnp.sum(position**2)
        return value + fourier.quadratic_form(position, self.shift)

    def value_and_spectral_gradient(self, position: Array, spectrum: Array) -> tuple[Array, Array]:
        """Value, and half spectrum of the gradient, with one transform: that of the witness's own gradient."""
        value, gradient = jax.value_and_grad(self.witness)(position)
        slope = 0.0 if self.slope is None else self.slope
        value = value + fourier.inner(spectrum, 0.5 * self.shift * spectrum - slope, position.shape)
        return value, fourier.rfftn(gradient) + self.shift * spectrum - slope

    def at(self, key: PRNGKey) -> ShiftedWitness:
        """The same with one draw of the witness, where that is random."""
        return ShiftedWitness(_drawn(self.witness, key), self.shift, self.slope)

    def curvature_bounds(self) -> tuple[Array, Array]:
        """Smallest and largest of the spectral bounds, or the witness's own bounds lowered by s."""
        low, high = spectral_curvature_bounds(self.witness)
        return jnp.min(low - self.shift), jnp.max(high - self.shift)

    def spectral_curvature_bounds(self) -> tuple[Array, Array]:
        """Bounds of the witness, lowered by s."""
        low, high = spectral_curvature_bounds(self.witness)
        return low - self.shift, high - self.shift


def is_stochastic(witness: Callable[[Array], Array]) -> bool:
    """Whether the witness, or one that it wraps, can be drawn at random."""
    if isinstance(witness, (ScaledWitness, ShiftedWitness)):
        return is_stochastic(witness.witness)
    if isinstance(witness, SumWitness):
        return any(is_stochastic(term) for term in witness.terms)
    return isinstance(witness, Stochastic)


def _drawn(witness: Callable[[Array], Array], key: PRNGKey) -> Callable[[Array], Array]:
    return witness.at(key) if isinstance(witness, Stochastic) else witness


def has_curvature(witness: Callable[[Array], Array]) -> bool:
    """Whether the witness, with all that it wraps, bounds its own curvature."""
    if isinstance(witness, SumWitness):
        return all(has_curvature(term) for term in witness.terms)
    wrapped = getattr(witness, "witness", None)
    return isinstance(witness, HasCurvature) and (wrapped is None or has_curvature(wrapped))


def curvature_bounds(witness: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Return (low, high) with low I <= -Hess w <= high I; ``TypeError`` where the witness has no bounds."""
    if not isinstance(witness, HasCurvature):
        raise TypeError(f"{type(witness).__name__} carries no curvature bound: give it a curvature_bounds() method")
    return witness.curvature_bounds()


def spectral_curvature_bounds(witness: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Bounds coefficient by coefficient where the witness has them, else its two scalars."""
    if isinstance(witness, HasSpectralCurvature):
        return witness.spectral_curvature_bounds()
    return curvature_bounds(witness)
