r"""The Boltzmann posterior, term by term.

.. math:: \rho(z) = e^{F(z)} / Z, \qquad
          F(z) = w(z) - \tfrac{\lambda}{2} |x - A(z)|^2 - \tfrac{\beta}{2} |z - \bar z|^2 .
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cryowgen_jax.potentials.witnesses import ScaledWitness
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, FourierDiagonal, PRNGKey


def data_fit(
    position: Array, decoder: Callable[[Array], Array], observation: Array, data_weight: Array | float
) -> Array:
    """-lambda/2 |x - A(z)|^2, in nats. Where A is diagonal in Fourier space, value and gradient cost two transforms."""
    if isinstance(decoder, FourierDiagonal):
        return -data_weight * fourier.half_misfit(position, observation, decoder.transfer)
    return -0.5 * data_weight * jnp.sum((observation - decoder(position)) ** 2)


def conditional_prior(position: Array, center: Array, prior_precision: Array | float) -> Array:
    """-beta/2 |z - zbar|^2, in nats: the exponent of the conditional prior kappa(z | x) = N(zbar, I / beta)."""
    return -0.5 * prior_precision * jnp.sum((position - center) ** 2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DataFit:
    """The data fit as a function of the position alone."""

    decoder: Callable[[Array], Array]
    observation: Array
    data_weight: Array | float

    def __call__(self, position: Array) -> Array:
        """-lambda/2 |x - A(z)|^2."""
        return data_fit(position, self.decoder, self.observation, self.data_weight)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Posterior:
    """Boltzmann posterior of a clean volume (or latent) z given one observation; a pytree in every field.

    Parameters
    ----------
    witness
        w: position -> scalar, in nats. A pytree callable: one of the closed forms of this package, ``from_nnx`` or
        ``from_linen`` of a Flax module, or a function bound to its arrays with ``jax.tree_util.Partial``.
    decoder
        A: position -> observation, likewise a pytree callable.
    observation
        x, of the shape that the decoder returns.
    center
        z-bar, the centre of the conditional prior, of the position's shape.
    data_weight
        lambda = 1 / (noise variance), scalar.
    prior_precision
        beta, scalar.

    Examples
    --------
    >>> import jax.numpy as jnp, cryowgen_jax as cg
    >>> wedge, zeros = cg.Wedge(cg.wedge_mask((8, 8, 8))), jnp.zeros((8, 8, 8))
    >>> witness = cg.QuadraticWitness(curvature=jnp.ones((8, 8, 5)), mean=zeros)
    >>> posterior = cg.Posterior(witness, wedge, wedge(zeros + 1), zeros, data_weight=10.0, prior_precision=1.0)
    >>> round(float(posterior.log_density(zeros)))
    -2560
    """

    witness: Callable[[Array], Array]
    decoder: Callable[[Array], Array]
    observation: Array
    center: Array
    data_weight: Array | float
    prior_precision: Array | float

    def log_density(self, position: Array) -> Array:
        """F(z), without the normaliser, in nats."""
        return (
            self.witness(position)
            + data_fit(position, self.decoder, self.observation, self.data_weight)
            + conditional_prior(position, self.center, self.prior_precision)
        )

    def drift(self, position: Array) -> Array:
        """Gradient of F at z, of the shape of z."""
        return jax.grad(self.log_density)(position)


def draw_conditional_prior(posterior: Posterior, key: PRNGKey) -> Array:
    """One draw of kappa(z | x) = N(zbar, I / beta)."""
    noise = jax.random.normal(key, posterior.center.shape, posterior.center.dtype)
    return posterior.center + noise * jax.lax.rsqrt(jnp.asarray(posterior.prior_precision, noise.dtype))


def log_normaliser(posterior: Posterior) -> Array:
    r"""-D/2 log(beta / 2 pi) - n_M/2 log(lambda / 2 pi), to be added to Psi where lambda and beta are learned.

    Psi alone has no minimum in them: it falls without bound as they go to 0. At stationary points of the sum
    1/beta = E|z - zbar|^2 / D and 1/lambda = E|x - A z|^2 / n_M. D is the number of elements of z. n_M is the number
    of measured coefficients: the rank of the mask where the decoder is diagonal in Fourier space, else the number of
    elements of x.
    """
    lam, beta = (jnp.asarray(v, jnp.float32) for v in (posterior.data_weight, posterior.prior_precision))
    measured: Array | int = jnp.size(posterior.observation)
    if isinstance(posterior.decoder, FourierDiagonal):
        seen = (posterior.decoder.transfer > 0) * fourier.multiplicity(jnp.shape(posterior.observation))
        measured = jax.lax.stop_gradient(jnp.sum(seen))
    half = 0.5 * jnp.log(2 * jnp.pi)
    size = jnp.size(posterior.center)
    return size * (half - 0.5 * jnp.log(beta)) + measured * (half - 0.5 * jnp.log(lam))


def surrogate(posterior: Posterior, samples: Array, weights: Array | None = None, *, normalised: bool = False) -> Array:
    r"""Scalar whose gradient in the posterior estimates the gradient of the effective potential Psi.

    .. math:: \nabla \Psi = -E_\rho[\nabla F], \qquad \Psi = -\log \int e^{F(z)} dz

    in every leaf: observation, center, data_weight, prior_precision, and the arrays of witness and decoder. The value
    itself is not Psi; see ``effective_potential`` for that.

    Parameters
    ----------
    posterior
        The posterior whose leaves are differentiated.
    samples
        K draws from it, (K, ...), treated as constants.
    weights
        Non-negative weights (K,); normalised here. Equal by default.
    normalised
        Add :func:`log_normaliser`, for descent in lambda and beta.

    Returns
    -------
    Array
        Scalar, to be differentiated.

    Examples
    --------
    The gradient in the data weight estimates 1/2 E|x - A(z)|^2:

    >>> import jax, jax.numpy as jnp, cryowgen_jax as cg
    >>> zeros = jnp.zeros(4)
    >>> witness = cg.QuadraticWitness(curvature=jnp.ones(3), mean=zeros)
    >>> posterior = cg.Posterior(witness, cg.Wedge(jnp.ones(3)), zeros, zeros, 2.0, 1.0)
    >>> gradient = jax.grad(cg.surrogate)(posterior, samples=zeros[None] + 1.0)
    >>> round(float(gradient.data_weight), 3)
    2.0
    """
    samples = jax.lax.stop_gradient(samples)
    values = jax.vmap(posterior.log_density)(samples)
    offset = log_normaliser(posterior) if normalised else 0.0
    if weights is None:
        return offset - jnp.mean(values)
    weights = jax.lax.stop_gradient(weights)
    return offset - jnp.sum(weights * values) / jnp.sum(weights)


def temper(posterior: Posterior, temperature: Array | float) -> Posterior:
    r"""Posterior at temperature gamma.

    .. math:: \rho_\gamma(z) \propto \kappa(z | x)
              \exp\Big\{\frac{1}{\gamma} \big[w(z) - \tfrac\lambda2 |x - A(z)|^2\big]\Big\}

    The conditional prior kappa = N(zbar, I / beta) is the reference measure and is not tempered.

    Parameters
    ----------
    posterior
        The posterior at temperature 1.
    temperature
        gamma > 0, scalar.

    Returns
    -------
    Posterior
        With w / gamma, lambda / gamma and beta as it was.

    Examples
    --------
    >>> import jax.numpy as jnp, cryowgen_jax as cg
    >>> posterior = cg.Posterior(jnp.sum, cg.Wedge(jnp.ones(3)), jnp.zeros(4), jnp.zeros(4), 2.0, 1.0)
    >>> cold = cg.temper(posterior, 0.5)
    >>> float(cold.data_weight), float(cold.prior_precision), float(cold.witness(jnp.ones(4)))
    (4.0, 1.0, 8.0)
    """
    return dataclasses.replace(
        posterior,
        witness=ScaledWitness(1.0 / jnp.asarray(temperature, jnp.float32), posterior.witness),
        data_weight=posterior.data_weight / temperature,
    )
