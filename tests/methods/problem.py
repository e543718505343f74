"""Small posteriors whose laws are known."""

import jax.numpy as jnp
import numpy as np

import cryowgen_jax as cg
from cryowgen_jax.operators import Wedge
from tests import oracles

SHAPE = (2, 1, 3)
LAM, BETA = 1.5, 1.2


def volume(flat, shape=SHAPE):
    return jnp.asarray(np.reshape(flat, (*np.shape(flat)[:-1], *shape)), jnp.float32)


class Problem:
    """A low-dimensional posterior with a mixture or a centred quadratic witness, and its law."""

    def __init__(self, witness):
        rng = np.random.default_rng(11)
        transfer = oracles.symmetric_half(rng, SHAPE, 0.3, 1.2)
        self.h = oracles.dense_filter(transfer, SHAPE)
        self.x, self.center = rng.normal(size=(2, 6))
        linear = (self.h, self.x, LAM, self.center, BETA)
        reference = oracles.gaussian_posterior(*linear)
        if witness == "mixture":
            pi, means, v = np.array([0.5, 0.3, 0.2]), 0.7 * rng.normal(size=(3, 6)), 0.9
            self.law = oracles.mixture_posterior(*linear, pi, means, v)
            term = cg.GaussianMixtureWitness(jnp.asarray(pi, jnp.float32), volume(means), v)
        else:
            curvature = oracles.symmetric_half(rng, SHAPE, 0.3, 2.0)
            s = oracles.dense_filter(curvature, SHAPE)
            self.law = oracles.gaussian_posterior(*linear, s, reference.mean)
            term = cg.QuadraticWitness(jnp.asarray(curvature), volume(reference.mean))
            g = np.linalg.eigvals(reference.covariances[0] @ s).real
            self.ess_per_candidate = np.prod(np.sqrt(1 + 2 * g) / (1 + g))
        self.posterior = cg.Posterior(
            term, Wedge(jnp.asarray(transfer)), volume(self.x), volume(self.center), LAM, BETA
        )
