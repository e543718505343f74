r"""Losses of a denoiser that has seen the tomogram (``models.denoiser``), for ``learn_prior`` on ``Scenes``.

``diffusion_loss`` teaches D(z, sigma) at any noise sigma, infinity included, relative to the D_0 that it begins at:

.. math:: |D(v + \sigma \xi, \sigma) - v|^2 \,/\, (|D_0(v + \sigma \xi, \sigma) - v|^2 + n \epsilon r^2 / s^2),
          \qquad \xi \sim N(0, I)

with r the error that D_0 expects (s at infinity). Its minimum is the conditional mean, so that (D - z) / sigma^2 is the
score of the posterior of v + sigma xi (Tweedie). ``mean_loss`` is the same at sigma = infinity only, where D_0 is m.
Scenes and levels of all noise count alike.

The first works on ``CoarseScenes``, the second on boxes cut from ``Scenes``. ``correction_loss`` is that of whole
scenes, with the likelihood terms of ``conditional_prior`` for what the network says of its error, m being D and V being
P. ``error_loss`` has those terms only, and does not move D.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.models.adapters import NnxFunction
from cryowgen_jax.models.denoiser import SPREAD, Denoised, Sight, with_errors_alone
from cryowgen_jax.training.conditional_prior import posterior_loss
from cryowgen_jax.training.descent import Log
from cryowgen_jax.training.scenes import CoarseExample, Example
from cryowgen_jax.types import Array, PRNGKey

SIGMAS, UNKNOWN_SHARE = (0.05, 3.0), 0.15  # uniform in the logarithm; how often sigma is infinite
FLOOR, LIKELIHOOD_SHARE = 0.02, 0.1  # epsilon, of the signal's variance; of the likelihood terms

Network = Callable[[Sight, Array, Array], Denoised]


def diffusion_loss(
    network: Network, seen: CoarseExample, key: PRNGKey, sigma: Array | None = None
) -> tuple[Array, Log]:
    """The loss of one example at one ``sigma``, 0 for infinity; drawn at random by default."""
    level_key, unknown_key, noise_key = jax.random.split(key, 3)
    low, high = np.log(SIGMAS)
    if sigma is None:
        unknown = jax.random.bernoulli(unknown_key, UNKNOWN_SHARE)
        sigma = jnp.where(unknown, 0.0, jnp.exp(jax.random.uniform(level_key, minval=low, maxval=high)))
    noisy = seen.truth + sigma * jax.random.normal(noise_key, seen.truth.shape)
    said = network(seen.sight, noisy, sigma)
    error = jnp.mean((said.volume - seen.truth) ** 2) / _before(said, seen.truth)
    return error, {"loss": error}


def mean_loss(network: Network, seen: Example, key: PRNGKey | None = None) -> tuple[Array, Log]:
    """The relative squared error of D at sigma = infinity; it needs no ``key``."""
    said = network(seen.sight, seen.sight.mean, jnp.zeros(()))
    error = jnp.mean((said.volume - seen.truth) ** 2)
    relative = error / _before(said, seen.truth)
    return relative, {"loss": relative, "error": error}


def correction_loss(network: Network, seen: Example, key: PRNGKey | None = None) -> tuple[Array, Log]:
    """The loss of one whole example, and its parts by name as in ``prior_loss``; it needs no ``key``."""
    said = network(seen.sight, seen.sight.mean, jnp.zeros(()))
    _, parts = posterior_loss(seen, said.volume, said.log_variance, said.log_gain, blended=False)
    total = parts["distance"] / _before(said, seen.truth) + LIKELIHOOD_SHARE * (parts["likelihood"] + parts["local"])
    return total, parts | {"loss": total}


def error_loss(network: NnxFunction, seen: Example, key: PRNGKey | None = None) -> tuple[Array, Log]:
    """The likelihood terms of one whole example, whose gradient leaves D as it is; it needs no ``key``."""
    said = with_errors_alone(network)(seen.sight, seen.sight.mean, jnp.zeros(()))
    _, parts = posterior_loss(seen, said.volume, said.log_variance, said.log_gain, blended=False)
    total = parts["likelihood"] + parts["local"]
    return total, parts | {"loss": total}


def _before(said: Denoised, truth: Array) -> Array:
    """Mean squared error of the D that the network begins at, and the floor."""
    return jnp.mean((said.begun - truth) ** 2) + FLOOR * (said.reach / SPREAD) ** 2
