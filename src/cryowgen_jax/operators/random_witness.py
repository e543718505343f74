"""Witnesses on volumes made from a witness on observations: rotate at random, apply the wedge, add noise, evaluate."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.operators.compose import Composition, Rotation, compose
from cryowgen_jax.potentials.witnesses import curvature_bounds
from cryowgen_jax.spatial import fourier
from cryowgen_jax.spatial.rotation import random_rotations
from cryowgen_jax.types import Array, FourierDiagonal, PRNGKey, Stochastic


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class RotatedWitness:
    r"""The witness on volumes w(v) = E_R D(T_M R v) of a witness D on observations; a ``Stochastic`` pytree.

    .. math:: w(v) = \frac1n \sum_{i=1}^n D(T_M R_i v), \qquad
              \nabla w(v) = \frac1n \sum_{i=1}^n R_i^T T_M^T \nabla D(T_M R_i v),

    with the exact transpose of the interpolation, which differs from a rotation by the transposed matrix.

    Parameters
    ----------
    witness
        D: observation -> scalar, pytree.
    decoder
        T_M: volume -> observation, pytree.
    rotations
        R_1 ... R_n, shape (n, 3, 3). The 24 of :func:`~cryowgen_jax.spatial.rotation.cube_rotations` are exact on a
        cubic box. They turn the wedge of a symmetric tilt range into 6 different ones, which together leave no
        coefficient unmeasured.
    uniform
        What ``at(key)`` draws its rotation from. False: from ``rotations``, so that w is the expectation of the draws.
        True: uniformly from SO(3), of which w is then an average over fixed rotations.

    Notes
    -----
    Rotations are taken one after another and recomputed in the backward pass, so that memory does not grow with n.
    """

    witness: Callable[[Array], Array]
    decoder: Callable[[Array], Array]
    rotations: Array
    uniform: bool = dataclasses.field(default=False, metadata={"static": True})

    def __call__(self, volume: Array) -> Array:
        """Return w(v)."""

        def rotated(matrix: Array) -> Array:
            return self.rotated(matrix)(volume)

        return jnp.mean(jax.lax.map(jax.checkpoint(rotated), self.rotations))

    def at(self, key: PRNGKey) -> Composition:
        """Return v -> D(T_M R v) with a random rotation, and one draw of D where that is random."""
        witness, key = _drawn(self.witness, key)
        if self.uniform:
            return self.rotated(random_rotations(key, 1)[0], witness)
        return self.rotated(self.rotations[jax.random.randint(key, (), 0, self.rotations.shape[0])], witness)

    def rotated(self, matrix: Array, witness: Callable[[Array], Array] | None = None) -> Composition:
        """Return v -> D(T_M R v) with this rotation, and with another D if one is given."""
        return compose(self.witness if witness is None else witness, compose(self.decoder, Rotation(matrix)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NoisyWitness:
    r"""D averaged over added noise: E D(y + eps), eps = F^-1 (a . F xi), with white xi of unit variance.

    The noise of a reconstructed observation is coloured, and there is none inside the wedge. A volume that is compared
    with observations needs the same noise.

    Parameters
    ----------
    witness
        D: observation -> scalar, pytree.
    amplitude
        a, the square root of the noise's power spectrum, rfftn layout; 0 inside the wedge.
    keys
        Of the fixed draws of eps over which a call averages; ``at(key)`` draws a new one.

    Notes
    -----
    Volumes that keep the data (``models.DataConsistent``) have the data's noise already, outside the wedge. For them
    use ``NoisyWitness(RotatedWitness(D, T_M, R), amplitude, keys)`` with an amplitude that is 0 outside the wedge: then
    every coefficient has noise exactly once.
    """

    witness: Callable[[Array], Array]
    amplitude: Array
    keys: PRNGKey

    def __call__(self, observation: Array) -> Array:
        """Return the average over the fixed draws."""
        return jnp.mean(jax.lax.map(lambda key: _with_noise(self.witness, self.amplitude, key, observation), self.keys))

    def at(self, key: PRNGKey) -> jax.tree_util.Partial:
        """Return y -> D(y + eps) with one draw of eps, and one of D where that is random."""
        witness, key = _drawn(self.witness, key)
        return jax.tree_util.Partial(_with_noise, witness, self.amplitude, key)

    def curvature_bounds(self) -> tuple[Array, Array]:
        """The bounds of D, which added noise leaves as they are."""
        return curvature_bounds(self.witness)


def _drawn(witness: Callable[[Array], Array], key: PRNGKey) -> tuple[Callable[[Array], Array], PRNGKey]:
    """The witness, or one draw of it where it is random, and a key that is still unused."""
    if not isinstance(witness, Stochastic):
        return witness, key
    key, witness_key = jax.random.split(key)
    return witness.at(witness_key), key


def _with_noise(witness: Callable[[Array], Array], amplitude: Array, key: PRNGKey, observation: Array) -> Array:
    noise = jax.random.normal(key, observation.shape, observation.dtype)
    return witness(observation + fourier.filter_volume(noise, amplitude))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class BoundedRotatedWitness(RotatedWitness):
    r"""A :class:`RotatedWitness` with bounds of its curvature; D has to have some, and T_M a Fourier transfer.

    With low I <= -Hess D(y) <= high I,

    .. math:: \min(low, 0)\, B \le -\nabla^2 w \le \max(high, 0)\, B, \qquad
              B = \|T_M\|^2\, \frac1n \sum_i \kappa(R_i), \quad
              \kappa(R) = \sum_{p \in \{-1, 0, 1\}^3} \prod_j (1 - |(R^T p)_j|)_+ ,

    since |R|^2 <= kappa(R) in a box of any size. Proof, by Schur's test: the weights of the interpolation are not
    negative. The weights of one sample sum to at most 1. The weights with which one voxel enters all samples sum to at
    most f(s) = sum_p h(R^T p + s) over integer p, with h the trilinear hat. The Fourier transform of h is a square, so
    the Fourier coefficients of the periodic f are not negative and f is largest at s = 0, where it is kappa.

    kappa is 1 for rotations of the cube; over SO(3) its mean is 1.35 and its maximum 1.465, both found numerically.
    """

    def curvature_bounds(self) -> tuple[Array, Array]:
        """Bounds of the average over ``rotations``. 0 is between them: inside the wedge there is no curvature."""
        if not isinstance(self.decoder, FourierDiagonal):
            raise TypeError(f"the norm of {type(self.decoder).__name__} is not known: it has no Fourier transfer")
        low, high = curvature_bounds(self.witness)
        bound = jnp.max(jnp.abs(self.decoder.transfer)) ** 2 * jnp.mean(jax.vmap(largest_gain)(self.rotations))
        return jnp.minimum(low, 0.0) * bound, jnp.maximum(high, 0.0) * bound


def largest_gain(matrix: Array) -> Array:
    """kappa(R) >= |R|^2 of the interpolating rotation in a box of any size; see :class:`BoundedRotatedWitness`."""
    steps = jnp.asarray(np.array(list(itertools.product((-1, 0, 1), repeat=3))), matrix.dtype)
    turned = jnp.sum(steps[:, :, None] * matrix[None], axis=1)
    return jnp.sum(jnp.prod(jnp.maximum(1.0 - jnp.abs(turned), 0.0), axis=-1))
