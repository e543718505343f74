r"""The Gaussian part of a posterior whose decoder is diagonal in Fourier space, and what is left of the witness.

.. math:: \rho(z) \propto e^{w_r(z)} N(z; \mu_0, C), \qquad
          \mu_{0,k} = \frac{\lambda t_k x_k + \beta \bar z_k + s_k}{q_k}, \quad
          C_k = 1/q_k, \quad q_k = \lambda t_k^2 + \beta + S_k ,

where S and s are the curvature and the slope of what was moved here from the witness: none in :func:`gaussian_part`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cryowgen_jax.potentials.posterior import DataFit, Posterior
from cryowgen_jax.potentials.witnesses import (
    QuadraticWitness,
    ScaledWitness,
    ShiftedWitness,
    SumWitness,
    has_curvature,
    spectral_curvature_bounds,
)
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, FourierDiagonal


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FourierGaussian:
    """The unnormalised measure exp(log_integral) N(z; mu, C) with C diagonal in Fourier space; a pytree.

    Parameters
    ----------
    mean_spectrum
        Half spectrum of mu.
    precision
        1 / C_k, rfftn layout.
    log_integral
        Log of the total mass; minus the effective potential where the measure is the Gaussian part of a posterior.
    shape
        Of a volume.
    """

    mean_spectrum: Array
    precision: Array
    log_integral: Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def mean(self) -> Array:
        """The mean as a volume."""
        return fourier.irfftn(self.mean_spectrum, self.shape)

    def draw(self, key: Array) -> Array:
        """One exact draw. White noise is drawn in real space, so that its half spectrum is that of a real volume."""
        noise = fourier.rfftn(jax.random.normal(key, self.shape, self.precision.dtype))
        return fourier.irfftn(self.mean_spectrum + noise * jax.lax.rsqrt(self.precision), self.shape)

    def log_density(self, position: Array) -> Array:
        """Log N(z; mu, C), normalised."""
        squared = self.precision * fourier.power(fourier.rfftn(position) - self.mean_spectrum)
        return -0.5 * jnp.sum((squared - jnp.log(self.precision / (2 * jnp.pi))) * fourier.multiplicity(self.shape))


def gaussian_part(posterior: Posterior) -> FourierGaussian:
    """-lambda/2 |x - A z|^2 - beta/2 |z - zbar|^2 as a Gaussian measure: the posterior without its witness.

    Raises
    ------
    TypeError
        Where the decoder is not diagonal in Fourier space, so that the Gaussian part cannot be drawn exactly.
    """
    return _with_quadratics(posterior, ())


def informed_part(posterior: Posterior, center: Array, variance: Array) -> FourierGaussian:
    r"""The Gaussian part with another conditional prior, N(center, P), in place of N(zbar, I / beta).

    .. math:: C_k = (\lambda t_k^2 + 1 / P_k)^{-1}, \qquad \mu_k = C_k (\lambda t_k x_k + \hat z_k / P_k)

    With a centre and a P that a network predicts (``models.prior_net``) it is the reference of an amortised CryoWGEN-I.

    Parameters
    ----------
    posterior
        Its decoder has to be diagonal in Fourier space.
    center
        A volume.
    variance
        P_k > 0 in rfftn layout.
    """
    return _with_quadratics(
        dataclasses.replace(posterior, prior_precision=0.0), (QuadraticWitness(1 / jnp.asarray(variance), center),)
    )


def drawable_part(posterior: Posterior) -> FourierGaussian:
    """The Gaussian part where the decoder is diagonal in Fourier space, else the conditional prior alone."""
    return _with_quadratics(posterior if isinstance(posterior.decoder, FourierDiagonal) else _blinded(posterior), ())


def split(posterior: Posterior) -> tuple[FourierGaussian, Callable[[Array], Array] | None]:
    """Move curvature of the witness into the Gaussian part.

    Quadratic witnesses move as a whole. Of the other terms, with low <= -Hess w <= high, the curvature
    max(0, (low + high) / 2) moves, coefficient by coefficient where the bounds are. A log-concave term with
    0 <= -Hess w <= L then leaves a remainder with |Hess| <= L/2, beside a Gaussian part that is stiffer by L/2, so that
    explicit steps contract whatever L is.

    Returns
    -------
    tuple
        The Gaussian part, and the witness that remains: None where the posterior is Gaussian.

    Raises
    ------
    TypeError
        Where the decoder is not diagonal in Fourier space.
    """
    quadratics, others = _sort_terms(posterior.witness, jnp.ones((), jnp.float32))
    if not others:
        return _with_quadratics(posterior, quadratics), None
    rest = others[0] if len(others) == 1 else SumWitness(tuple(others))
    if not has_curvature(rest):
        return _with_quadratics(posterior, quadratics), rest
    low, high = spectral_curvature_bounds(rest)
    shift = jnp.maximum(0.5 * (low + high), 0.0)
    return _with_quadratics(posterior, quadratics, shift), ShiftedWitness(rest, shift)


def split_tether(posterior: Posterior) -> tuple[FourierGaussian, Callable[[Array], Array]]:
    """Tether and quadratic witnesses as a Gaussian measure, and the rest, for decoders not diagonal in Fourier space.

    The rest is the sum of the other witnesses and the data fit; its curvature grows with lambda.
    """
    quadratics, others = _sort_terms(posterior.witness, jnp.ones((), jnp.float32))
    fit = DataFit(posterior.decoder, posterior.observation, posterior.data_weight)
    return _with_quadratics(_blinded(posterior), quadratics), SumWitness((*others, fit)) if others else fit


def absorb(
    gaussian: FourierGaussian, witness: Callable[[Array], Array], curvature: Array, slope: Array
) -> tuple[FourierGaussian, ShiftedWitness]:
    r"""Move -1/2 z^T S z + b^T z from a witness into a Gaussian measure, with the product of both unchanged.

    .. math:: q' = q + S, \qquad \mu' = (q \mu + b) / q', \qquad w_r(z) = w(z) + \tfrac12 z^T S z - b^T z .

    Parameters
    ----------
    gaussian, witness
        exp(w) times the measure is the target.
    curvature
        S in rfftn layout, above -q.
    slope
        b as a half spectrum.

    Returns
    -------
    tuple
        The new measure, and the witness that remains.
    """
    shape, old = gaussian.shape, gaussian.precision
    precision = old + curvature
    mean = (old * gaussian.mean_spectrum + slope) / precision
    linear = fourier.real_product(slope, mean)
    moved = old * fourier.power(mean - gaussian.mean_spectrum) + curvature * fourier.power(mean)
    quadratic = moved + jnp.log(precision / old)
    log_integral = gaussian.log_integral + jnp.sum((linear - 0.5 * quadratic) * fourier.multiplicity(shape))
    absorbed = FourierGaussian(mean, precision, log_integral, shape)
    if isinstance(witness, ShiftedWitness):  # one shift, since every further one costs two transforms a step
        curvature = witness.shift + curvature
        slope = slope if witness.slope is None else witness.slope + slope
        witness = witness.witness
    return absorbed, ShiftedWitness(witness, curvature, slope)


def contraction_gap(gaussian: FourierGaussian, remainder: Callable[[Array], Array]) -> Array:
    """G = max_k |Hess w_r|_k / q_k: the largest curvature of the remainder in units of the Gaussian part's.

    The eigenvalues of C^{1/2} Hess w_r C^{1/2} lie in [-G, G]. Where the bounds are scalars, the smallest q_k decides.
    """
    low, high = spectral_curvature_bounds(remainder)
    return jnp.max(jnp.maximum(jnp.abs(low), jnp.abs(high)) / gaussian.precision)


def _sort_terms(
    witness: Callable[[Array], Array], scale: Array
) -> tuple[list[QuadraticWitness], list[Callable[[Array], Array]]]:
    if isinstance(witness, QuadraticWitness):
        return [QuadraticWitness(scale * witness.curvature, witness.mean)], []
    if isinstance(witness, ScaledWitness):
        return _sort_terms(witness.witness, scale * witness.scale)
    if isinstance(witness, SumWitness):
        sorted_terms = [_sort_terms(term, scale) for term in witness.terms]
        return [q for quadratics, _ in sorted_terms for q in quadratics], [o for _, rest in sorted_terms for o in rest]
    return [], [ScaledWitness(scale, witness)]


def _with_quadratics(
    posterior: Posterior, quadratics: tuple[QuadraticWitness, ...] | list[QuadraticWitness], shift: Array | float = 0.0
) -> FourierGaussian:
    decoder = posterior.decoder
    if not isinstance(decoder, FourierDiagonal):
        raise TypeError(
            f"the Gaussian part of a posterior with decoder {type(decoder).__name__} cannot be drawn exactly: "
            "it needs an operator with a Fourier transfer, such as Wedge(mask)"
        )
    shape = posterior.center.shape
    transfer, lam, beta = decoder.transfer, posterior.data_weight, posterior.prior_precision
    observation, center = fourier.rfftn(posterior.observation), fourier.rfftn(posterior.center)
    means = [fourier.rfftn(q.mean) for q in quadratics]
    precision = lam * transfer**2 + beta + shift
    linear = lam * transfer * observation + beta * center
    for quadratic, mean in zip(quadratics, means, strict=True):
        precision = precision + quadratic.curvature
        linear = linear + quadratic.curvature * mean
    mu = linear / precision
    at_mean = (
        lam * fourier.power(observation - transfer * mu) + beta * fourier.power(mu - center) + shift * fourier.power(mu)
    )
    for quadratic, mean in zip(quadratics, means, strict=True):
        at_mean = at_mean + quadratic.curvature * fourier.power(mu - mean)
    log_integral = -0.5 * jnp.sum((at_mean + jnp.log(precision / (2 * jnp.pi))) * fourier.multiplicity(shape))
    return FourierGaussian(mu, precision, log_integral, shape)


def _blinded(posterior: Posterior) -> Posterior:
    """The posterior without its data."""
    blind = _Blind(jnp.zeros(fourier.spectrum_shape(posterior.center.shape)))
    return dataclasses.replace(posterior, decoder=blind, observation=posterior.center)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Blind:
    """The operator that sees nothing."""

    transfer: Array

    def __call__(self, volume: Array) -> Array:
        return jnp.zeros_like(volume)
