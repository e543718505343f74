r"""The default model of a tomogram: particles in solvent.

.. math:: w(z) = -\tfrac12 \sum_x e(x)\, [P_s^{-1/2} (z - c)]^2(x) - \tfrac12 (z - c')^T (P_p^{-1} - \beta) (z - c')

with e(x) the probability that voxel x is solvent (the envelope), c the level of solvent, P_s the power spectrum of
solvent and P_p that of particles, both isotropic. c' = c but for what follows. The noise spectrum N weighs the data.
Given these the posterior is Gaussian: conjugate gradients give its mean, and draws of it as the solutions for random
right sides (Papandreou and Yuille, NIPS 2010).

Mean and spread have a P_s each. The mean takes the one that ``solvent_fit`` finds. For the spread it is multiplied,
shell by shell, by a factor >= 1 (the widening), and c' is chosen such that the mean stays where it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax import platform
from cryowgen_jax.potentials import QuadraticWitness, SolventWitness, SumWitness
from cryowgen_jax.restoration import spectra
from cryowgen_jax.restoration.solvent_settings import SETTINGS, SolventSettings
from cryowgen_jax.restoration.volume_model import VolumeModel
from cryowgen_jax.samplers import NoiseFn, white_noise
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, PRNGKey

LEVELS = 33  # of the envelope at which the local variance is computed
LOCAL_WIDTH = 1.0  # voxels: of a blur when the standard deviation is estimated


@dataclasses.dataclass(frozen=True)
class SolventModel(VolumeModel):
    """Spectra per shell, envelope and level.

    Attributes
    ----------
    signal, solvent, particle
        S, P_s and P_p per shell; P_s is the one that makes the ``mean``.
    widening
        Factor per shell that makes the P_s of the spread.
    envelope
        e, (Z, Y, X) in [0, 1]: 1 in solvent.
    level
        c.
    frozen
        Whether all but the envelope stays as it is: spectra lent by a neighbouring tile.
    cleanness
        From 0 to 1: how much this is a map without noise rather than a tomogram.
    settings
        The constants behind it.
    """

    signal: np.ndarray
    solvent: np.ndarray
    particle: np.ndarray
    widening: np.ndarray
    envelope: np.ndarray
    level: float
    frozen: bool = False
    cleanness: float = 0.0
    settings: SolventSettings = SETTINGS

    @property
    def widened(self) -> np.ndarray:
        """P_s per shell that makes the spread."""
        most = self.settings.most_solvent * self.particle
        return np.maximum(self.solvent, np.minimum(self.widening * self.solvent, most))

    @property
    def blur(self) -> float:
        """Standard deviation in voxels of the blur before solvent is told from particle."""
        noisy = np.flatnonzero(self.signal[1:] < self.noise[1:]) + 1
        shortest = self.shells.frequency[noisy[0]] if noisy.size else 0.5
        given = self.settings
        return float(np.clip(given.blur_share / shortest, given.least_blur, given.largest_blur))

    @property
    def firmness(self) -> np.ndarray:
        """The envelope."""
        return self.envelope

    @property
    def center(self) -> np.ndarray:
        """zbar: the level of the solvent everywhere."""
        return np.full(self.shells.shape, self.level, np.float32)

    @property
    def prior_precision(self) -> np.float32:
        """Beta."""
        return np.float32(self.settings.relative_tether / self.particle.max())

    def witness(self) -> SumWitness:
        """w, for the posterior's ``prior_precision``."""
        spread, envelope, level = self.shells.spread, jnp.asarray(self.envelope), jnp.float32(self.level)
        curvature = jnp.asarray(1 / spread(self.particle) - self.prior_precision)
        found, wide = (
            SolventWitness(envelope, jnp.asarray(spread(power**-0.5)), level) for power in (self.solvent, self.widened)
        )
        # at the mean the wide term pulls less than the one that made it: the other term's centre makes up for that
        lost = jax.grad(found)(jnp.asarray(self.mean)) - jax.grad(wide)(jnp.asarray(self.mean))
        return SumWitness((QuadraticWitness(curvature, level + fourier.filter_volume(lost, 1 / curvature)), wide))

    def posterior_mean(self, start: Array, mask: np.ndarray, residual: float | None = None) -> Array:
        """The mean of the posterior, by conjugate gradients from ``start``.

        They stop where this share of the right side is left; ``settings.residual`` by default.
        """
        precisions = self._precisions(mask, self.solvent)
        misfit = precisions[0] * jnp.asarray(self.observation).at[0, 0, 0].add(-self.level * math.sqrt(start.size))
        right, given = fourier.irfftn(misfit, start.shape), self.settings
        residual = given.residual if residual is None else residual
        return self.level + _solve(*precisions, right, start - self.level, residual, given.most_iterations)

    def gaussian_draw(self, key: PRNGKey, mask: np.ndarray, draw_noise: NoiseFn = white_noise) -> Array:
        """The solution for as much noise as there is precision, about the mean."""
        given = self.settings
        noises = jnp.stack([draw_noise(jax.random.fold_in(key, i), self.shells.shape) for i in range(2)])
        precisions = self._precisions(mask, self.widened)
        return jnp.asarray(self.mean) + _perturb(*precisions, noises, given.residual, given.most_iterations)

    def standard_deviation(self, draws: Sequence[Array]) -> Array:
        r"""From draws, with a local approximation as control variate.

        Where the envelope is constant, e(x) = c, the variance is the mean over coefficients of
        :math:`1 / (M/N + 1/P_p + c / P_s)`. With c the blurred envelope that gives the shape of the variance; what the
        draws' squared deviations exceed it by, both blurred more, gives the scale.
        """
        shells, levels = self.shells, np.linspace(0.0, 1.0, LEVELS)
        data = shells.mask / shells.spread(self.noise)
        inside, outside = shells.spread(1 / self.particle), shells.spread(1 / self.widened)
        weight = np.broadcast_to(fourier.multiplicity(shells.shape), data.shape)
        variances = [np.average(1 / (data + inside + level * outside), weights=weight) for level in levels]
        local = np.interp(spectra.blur(self.envelope, LOCAL_WIDTH), levels, variances)
        return self.scaled_to(draws, local)

    def _precisions(self, mask: np.ndarray, solvent: np.ndarray) -> tuple[Array, Array, Array, Array]:
        """M / N, 1 / P_p and 1 / P_s per coefficient, and the envelope."""
        spread, array = self.shells.spread, jnp.asarray
        inside, outside = array(1 / spread(self.particle)), array(1 / spread(solvent))
        return array(mask / spread(self.noise), jnp.float32), inside, outside, array(self.envelope)


@platform.jit
def _perturb(
    data: Array, inside: Array, outside: Array, envelope: Array, noises: Array, residual: float, most_iterations: int
) -> Array:
    """A draw of N(0, L^-1), with L of `_solve`: the solution for a right side whose covariance is L."""
    stationary = fourier.filter_volume(noises[0], jnp.sqrt(data + inside))
    local = fourier.filter_volume(jnp.sqrt(envelope) * noises[1], jnp.sqrt(outside))
    start = fourier.filter_volume(noises[0], jax.lax.rsqrt(data + inside + jnp.mean(envelope) * outside))
    return _solve(data, inside, outside, envelope, stationary + local, start, residual, most_iterations)


@platform.jit
def _solve(
    data: Array,
    inside: Array,
    outside: Array,
    envelope: Array,
    right: Array,
    start: Array,
    residual: float,
    most_iterations: int,
) -> Array:
    r"""Conjugate gradients for L z = right, :math:`L = F^{-1} (D + I) F + F^{-1} O^{1/2} F\, e\, F^{-1} O^{1/2} F`.

    D, I and O are precisions per coefficient. The unknowns are scaled so that the part of L that is diagonal in Fourier
    space becomes 1; what is left is about as badly conditioned as P_p / P_s is large.
    """
    diagonal = data + inside + jnp.mean(envelope) * outside
    stationary, whitening = (data + inside) / diagonal, jnp.sqrt(outside / diagonal)

    def apply(scaled: Array) -> Array:
        spectrum = fourier.rfftn(scaled)
        local = fourier.rfftn(envelope * fourier.irfftn(whitening * spectrum, scaled.shape))
        return fourier.irfftn(stationary * spectrum + whitening * local, scaled.shape)

    found, _ = jax.scipy.sparse.linalg.cg(
        apply,
        fourier.filter_volume(right, jax.lax.rsqrt(diagonal)),
        fourier.filter_volume(start, jnp.sqrt(diagonal)),
        tol=residual,
        maxiter=most_iterations,
    )
    return fourier.filter_volume(found, jax.lax.rsqrt(diagonal))
