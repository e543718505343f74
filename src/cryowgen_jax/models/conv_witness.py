r"""The learned witness: a multi-scale ridge energy whose curvature is bounded by construction.

.. math:: w(z) = -\sum_{s} \sum_{x} \sum_{c} \psi_{sc}\big((K_{sc} * P^s z)(x)\big)

P halves the grid (sum of each 2^3 block over sqrt 8, so that |P| = 1 and white noise stays white), K are learned 5^3
filters with zeros outside the box, and the learned potentials are a convex minus another convex function

.. math:: \psi(t) = a\,[\phi_\delta(t - m) - \phi_\delta(m)] - b\,[\phi_\epsilon(t - n) - \phi_\epsilon(n)], \qquad
          \phi_\delta(t) = \delta \sqrt{\delta^2 + t^2} - \delta^2, \qquad 0 < \phi'' \le 1.

Ridge energies as image priors: Roth and Black, "Fields of Experts" (2009); Goujon, Neumayer and Unser, "Learning
weakly convex regularizers" (SIAM J. Imaging Sci., 2024), where the curvature is bounded as here.

The bound
---------
-Hess w = sum_s A_s^T diag(psi'') A_s with A_s = K_s P^s, and -b <= psi'' <= a. A convolution with zeros outside the box
is a compression of the one on the infinite grid, hence

.. math:: -\Big(\sum_s \sup_\omega \sum_c b_{sc} |\hat K_{sc}(\omega)|^2\Big) I \;\le\; -\mathrm{Hess}\,w
          \;\le\; \Big(\sum_s \sup_\omega \sum_c a_{sc} |\hat K_{sc}(\omega)|^2\Big) I .

Along each axis and direction v, Re<v, K-hat> is a real trigonometric polynomial of degree 2; by M. Riesz its supremum
is at most its maximum over N equispaced points divided by cos(2 pi / N) (see also Pfister and Bresler, "Bounding
multivariate trigonometric polynomials", IEEE Trans. Signal Process. 2019). Three axes and the square make cos^-6. All a
(all b) are then divided by one number wherever the bound would pass the stated curvature (concavity).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cryowgen_jax.models.convolution import convolve3, halve, pad_to_multiple, space_to_depth
from cryowgen_jax.spatial.fourier import rfftn
from cryowgen_jax.types import Array, InputError

_GRID = 32
_GRID_MARGIN = math.cos(2 * math.pi / _GRID) ** -6 * 1.0001  # the last factor covers float32 rounding
_SMALLEST_WIDTH = 1e-3


class ConvWitness(nnx.Module):
    """Volume (Z, Y, X) of any shape -> scalar w(z), in nats, with ``-concavity <= -Hess w <= curvature`` for every z.

    w is extensive: it sums energies over positions, w(0) = 0, and the energies of objects further apart than the
    filters reach add. Odd grids are padded with one plane of zeros at their end, at every scale. Meant for volumes
    standardised to a standard deviation of about one.

    Parameters
    ----------
    channels
        Filters per scale, the finest first. The first number sets the cost: a value and gradient of the default on
        one core takes about 2.5 ms per volume of 32^3 (5 ms with JAX 0.10).
    curvature
        Upper bound of the curvature of -w, in 1 / (unit of z)^2, whatever the weights become.
    concavity
        The bound on the other side, -Hess w >= -concavity I, as a positive number; None takes ``curvature``. A value
        below beta keeps the posterior log-concave.
    rngs
        Streams for the initial weights.

    Raises
    ------
    InputError
        Where the numbers cannot be used, or it is called with an array that is no volume.

    Examples
    --------
    >>> import jax.numpy as jnp, cryowgen_jax as cg
    >>> from flax import nnx
    >>> witness = cg.from_nnx(cg.ConvWitness((4, 4), curvature=0.5, rngs=nnx.Rngs(0)))
    >>> low, high = witness.curvature_bounds()
    >>> -0.5 <= float(low) < float(high) <= 0.5, witness(jnp.zeros((8, 8, 8))).shape
    (True, ())
    """

    def __init__(
        self,
        channels: Sequence[int] = (8, 16, 16),
        *,
        curvature: float = 1.0,
        concavity: float | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        concavity = curvature if concavity is None else concavity
        if not (curvature > 0 and math.isfinite(curvature) and concavity >= 0 and math.isfinite(concavity)):
            raise InputError(f"curvature {curvature} or concavity {concavity} is no bound: give positive numbers")
        if not channels or any(c < 1 for c in channels):
            raise InputError(f"channels {tuple(channels)} are no filter counts: give one positive number per scale")
        self.curvature = float(curvature)
        self.concavity = float(concavity)
        self.scales = nnx.List([_RidgeScale(c, 1.0 / len(channels), rngs.params()) for c in channels])

    def __call__(self, volume: Array) -> Array:
        """w(z) of one volume (Z, Y, X)."""
        if volume.ndim != 3:
            raise InputError(f"shape {volume.shape} is no volume: give (Z, Y, X) and use jax.vmap for many")
        convex, concave = self._divisors()
        level = volume[..., None]
        energy = jnp.zeros((), volume.dtype)
        for i, scale in enumerate(self.scales):
            if i > 0:
                level = halve(level) * math.sqrt(8.0)
            level = pad_to_multiple(level, 2)
            energy += scale.energy(level, self.curvature / convex, self.concavity / concave)
        return -energy

    def curvature_bounds(self) -> tuple[Array, Array]:
        """(low, high) with low I <= -Hess w(z) <= high I for every z; high <= curvature and low >= -concavity."""
        convex, concave = self._raw_bounds()
        return -self.concavity * jnp.minimum(concave, 1.0), self.curvature * jnp.minimum(convex, 1.0)

    def _raw_bounds(self) -> tuple[Array, Array]:
        """The two sums of suprema, in units of the stated curvature and concavity."""
        convex = sum(squared_gain(s.kernel[...], jax.nn.softplus(s.convex_weight[...])) for s in self.scales)
        concave = sum(squared_gain(s.kernel[...], jax.nn.softplus(s.concave_weight[...])) for s in self.scales)
        return jnp.asarray(convex), jnp.asarray(concave)

    def _divisors(self) -> tuple[Array, Array]:
        convex, concave = self._raw_bounds()
        return jnp.maximum(convex, 1.0), jnp.maximum(concave, 1.0)


class _RidgeScale(nnx.Module):
    """The filters and potentials of one scale. ``share`` is roughly its part of the curvature at the start."""

    def __init__(self, channels: int, share: float, key: Array) -> None:
        kernel = jax.random.normal(key, (5, 5, 5, channels))
        kernel -= kernel.mean((0, 1, 2), keepdims=True)
        self.kernel = nnx.Param(kernel / jnp.sqrt(jnp.sum(kernel**2, (0, 1, 2), keepdims=True)))
        self.convex_weight = nnx.Param(jnp.full((channels,), _inverse_softplus(0.3 * share / channels)))
        self.concave_weight = nnx.Param(jnp.full((channels,), _inverse_softplus(0.03 * share / channels)))
        self.convex_width = nnx.Param(jnp.full((channels,), _inverse_softplus(0.5)))
        self.concave_width = nnx.Param(jnp.full((channels,), _inverse_softplus(1.0)))
        self.convex_offset = nnx.Param(jnp.zeros((channels,)))
        self.concave_offset = nnx.Param(jnp.zeros((channels,)))

    def energy(self, level: Array, convex: Array, concave: Array) -> Array:
        """Sum of psi over positions and filters; ``convex`` and ``concave`` multiply the two weights."""
        response = convolve3(space_to_depth(level), blocked_kernel(self.kernel[...]))
        return ridge_energy(
            response,
            _tiled(convex, self.convex_weight[...], self.convex_width[...], self.convex_offset[...]),
            _tiled(concave, self.concave_weight[...], self.concave_width[...], self.concave_offset[...]),
        )


Potential = tuple[Array, Array, Array]  # weight, width and offset of a convex function, one number per channel each


def _tiled(factor: Array, weight: Array, width: Array, offset: Array) -> Potential:
    """The free parameters made positive where they must be, for a last axis of (8 positions, channels)."""
    per_channel = (factor * jax.nn.softplus(weight), _SMALLEST_WIDTH + jax.nn.softplus(width), offset)
    # The barrier makes XLA read the repeated numbers from memory. Otherwise it finds each by a division, unvectorised.
    return tuple(jax.lax.optimization_barrier([jnp.tile(p, 8).reshape((1, 1, 1, -1)) for p in per_channel]))


def _sum_of_potentials(response: Array, convex: Potential, concave: Potential) -> Array:
    def rise(weight: Array, width: Array, offset: Array) -> Array:
        values = soft_absolute(response - offset, width) - soft_absolute(offset, width)
        return jnp.dot(values.reshape(-1, values.shape[-1]), weight.reshape(-1), precision="highest")

    return jnp.sum(rise(*convex) - rise(*concave))


@jax.custom_vjp
def ridge_energy(response: Array, convex: Potential, concave: Potential) -> Array:
    """Sum of psi over responses (D, H, W, C), the potentials' numbers being (1, 1, 1, C).

    The gradient is written by hand and computed from the responses alone. The one that JAX derives shares intermediate
    arrays with the value, and on CPUs XLA then writes them all to memory, which takes longer than the convolutions.
    """
    return _sum_of_potentials(response, convex, concave)


def _ridge_forward(
    response: Array, convex: Potential, concave: Potential
) -> tuple[Array, tuple[Array, Potential, Potential]]:
    return ridge_energy(response, convex, concave), (response, convex, concave)


def _ridge_backward(
    residual: tuple[Array, Potential, Potential], cotangent: Array
) -> tuple[Array, Potential, Potential]:
    convex, concave = residual[1:]
    response = residual[0]

    def slope(weight: Array, width: Array, offset: Array) -> Array:
        t = response - offset
        return weight * width * t * jax.lax.rsqrt(width * width + t * t)

    _, pull = jax.vjp(lambda a, b: _sum_of_potentials(response, a, b), convex, concave)
    return (cotangent * (slope(*convex) - slope(*concave)), *pull(cotangent))


ridge_energy.defvjp(_ridge_forward, _ridge_backward)


def soft_absolute(t: Array, width: Array) -> Array:
    """phi(t) = width sqrt(width^2 + t^2) - width^2, without cancellation; quadratic within the width, linear beyond."""
    return width * t * t / (width + jnp.sqrt(width * width + t * t))


def blocked_kernel(kernel: Array) -> Array:
    """The same 5^3 filters for a grid whose 2^3 blocks lie in channels: (5, 5, 5, C) -> (3, 3, 3, 8, 8 C).

    After ``space_to_depth`` a filter at any of the 8 positions of a block reaches only the neighbouring blocks, so that
    one 3^3 convolution from 8 to 8 C channels computes all responses. It needs 1.7 times the multiplications, but its
    shapes run several times faster than those with one input channel.
    """
    block, source, target = np.meshgrid(range(3), range(2), range(2), indexing="ij")
    tap = (2 * (block - 1) + source - target + 2) % 6  # tap 5 is the zero behind the filter's end
    padded = jnp.pad(kernel, [(0, 1)] * 3 + [(0, 0)])
    for axis in (0, 3, 6):
        padded = jnp.take(padded, tap, axis=axis)
    return padded.transpose(0, 3, 6, 1, 4, 7, 2, 5, 8, 9).reshape(3, 3, 3, 8, -1)


def squared_gain(kernel: Array, weights: Array) -> Array:
    """Upper bound, 13 % above the truth at most, of sup over frequencies of sum_c weights_c |K-hat_c|^2.

    ``kernel`` is (5, 5, 5, C) and the weights are not negative. The sum is the transform of the weighted
    autocorrelation, taken on a grid; the module's docstring says why the margin is enough.
    """
    flat = kernel.reshape(-1, kernel.shape[-1])
    products = (flat * weights[None, :]) @ flat.T
    index = np.stack(np.meshgrid(*[np.arange(5)] * 3, indexing="ij"), -1).reshape(-1, 3)
    lag = (index[:, None] - index[None, :]) % _GRID
    cell = np.ravel_multi_index(tuple(np.moveaxis(lag, -1, 0)), (_GRID,) * 3)
    autocorrelation = jnp.zeros(_GRID**3, kernel.dtype).at[cell].add(products).reshape((_GRID,) * 3)
    return _GRID_MARGIN * _GRID**1.5 * jnp.max(jnp.real(rfftn(autocorrelation)))


def _inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))
