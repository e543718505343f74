r"""Unitary half-spectrum Fourier transforms of real volumes, and sums over them.

The one file that calls ``jnp.fft``. Every transform has ``norm="ortho"``, runs over all axes of the array it is given
(batch with ``jax.vmap``), keeps the zero frequency in the corner and half of the last axis. Frequencies are in cycles
per voxel.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.types import Array

Shape = tuple[int, ...]


def rfftn(volume: Array) -> Array:
    """Unitary half-spectrum transform of a real volume: shape (Z, Y, X) -> (Z, Y, X // 2 + 1)."""
    return jnp.fft.rfftn(volume, norm="ortho")


def irfftn(spectrum: Array, shape: Shape) -> Array:
    """Inverse of :func:`rfftn`; ``shape`` tells an odd last axis from an even one."""
    return jnp.fft.irfftn(spectrum, s=shape, axes=tuple(range(len(shape))), norm="ortho")


def spectrum_shape(shape: Shape) -> Shape:
    """Shape of the half spectrum of a volume of this shape."""
    return (*shape[:-1], shape[-1] // 2 + 1)


def frequencies(shape: Shape) -> tuple[np.ndarray, ...]:
    """Frequencies along each axis in cycles per voxel, shaped to broadcast against the half spectrum."""
    axes = [np.fft.fftfreq(n) for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    return tuple(f.reshape([-1 if i == j else 1 for j in range(len(shape))]) for i, f in enumerate(axes))


def radial_frequency(shape: Shape) -> np.ndarray:
    """|k| of every half-spectrum coefficient, in cycles per voxel."""
    return np.sqrt(sum(f**2 for f in frequencies(shape)))


def multiplicity(shape: Shape) -> np.ndarray:
    """How many coefficients of the full spectrum each half-spectrum one stands for (1 or 2), last axis only.

    With it Parseval reads sum_x v(x)^2 = sum_k multiplicity_k |V_k|^2, and the multiplicities sum to the number of
    voxels, which is the number of real degrees of freedom.
    """
    n = shape[-1]
    m = np.full(n // 2 + 1, 2.0, np.float32)
    m[0] = 1.0
    if n % 2 == 0:
        m[-1] = 1.0
    return m.reshape([1] * (len(shape) - 1) + [-1])


def real_product(a: Any, b: Any) -> Any:
    """Re(a conj(b)), coefficient by coefficient; of JAX or NumPy arrays."""
    return a.real * b.real + a.imag * b.imag


def power(spectrum: Any) -> Any:
    """|F|^2, coefficient by coefficient; of JAX or NumPy arrays."""
    return spectrum.real**2 + spectrum.imag**2


def inner(a: Array, b: Array, shape: Shape) -> Array:
    """Real inner product of two volumes of this shape given by their half spectra."""
    return jnp.sum(real_product(a, b) * multiplicity(shape))


@functools.partial(jax.custom_vjp)
def filter_volume(volume: Array, transfer: Array) -> Array:
    r"""F^-1 (t . F v) with a real transfer t in rfftn layout; self-adjoint in v.

    The gradient is written by hand and costs two transforms. The one that JAX derives costs as much as four, because
    it transposes a half-spectrum transform into a full complex one. Reverse mode only; nest it for Hessians.
    """
    return irfftn(transfer * rfftn(volume), volume.shape)


def _filter_forward(volume: Array, transfer: Array) -> tuple[Array, tuple[Array, Array]]:
    return filter_volume(volume, transfer), (volume, transfer)


def _filter_backward(residual: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    volume, transfer = residual
    g = rfftn(cotangent)
    v = rfftn(volume)  # the compiler removes it where the gradient in the transfer is not needed
    to_transfer = real_product(g, v) * multiplicity(volume.shape)
    return filter_volume(cotangent, transfer), to_transfer.astype(transfer.dtype)


filter_volume.defvjp(_filter_forward, _filter_backward)


def halved(shape: Shape) -> Shape:
    """The even shape nearest below half of ``shape``: that of the grid with voxels twice as large."""
    return tuple(2 * (n // 4) for n in shape)


def cropped(spectrum: Array, shape: Shape, smaller: Shape) -> Array:
    """The coefficients of a half spectrum that a ``smaller``, even grid over the same box has too, unscaled.

    Those at its own Nyquist frequency are 0: they stand for two of the larger grid.
    """
    places, kept = _places(shape, smaller)
    return spectrum[np.ix_(*places)] * kept


def shrink(volume: Array, smaller: Shape) -> Array:
    """The volume on a coarser, even grid over the same box: what is too fine for that is left out, levels stay."""
    scale = np.sqrt(np.prod(smaller) / np.prod(volume.shape)).astype(np.float32)
    return irfftn(scale * cropped(rfftn(volume), volume.shape, smaller), smaller)


def enlarge(volume: Array, shape: Shape) -> Array:
    """The same volume on a finer grid over the same box; :func:`shrink` undoes it."""
    places, kept = _places(shape, volume.shape)
    scale = np.sqrt(np.prod(shape) / np.prod(volume.shape)).astype(np.float32)
    spectrum = jnp.zeros(spectrum_shape(shape), jnp.complex64)
    return irfftn(spectrum.at[np.ix_(*places)].add(scale * kept * rfftn(volume)), shape)


def _places(shape: Shape, smaller: Shape) -> tuple[list[np.ndarray], np.ndarray]:
    """Where the coefficients of a smaller grid lie in the half spectrum of a larger one, and 0 at the Nyquist ones."""
    signed = [np.rint(f * n).astype(int) for f, n in zip(frequencies(smaller), smaller, strict=True)]
    kept = np.prod(np.broadcast_arrays(*(2 * np.abs(k) < n for k, n in zip(signed, smaller, strict=True))), axis=0)
    return [k.ravel() % n for k, n in zip(signed, shape, strict=True)], kept.astype(np.float32)


def shell_index(shape: Shape, num_shells: int | None = None) -> np.ndarray:
    """Shell number of every half-spectrum coefficient: shells of equal width up to Nyquist (0.5), corners in the last.

    ``num_shells`` defaults to half of the shortest axis. The zero frequency has shell -1.
    """
    n = num_shells or max(1, min(shape) // 2)
    k = radial_frequency(shape)
    index = np.minimum((k * 2 * n).astype(np.int32), n - 1)
    return np.where(k == 0, -1, index)


def wide_shell_index(shape: Shape) -> tuple[np.ndarray, int]:
    """Shell number of every half-spectrum coefficient, and how many: equally wide, up to 3/2 of Nyquist.

    The zero frequency is in the first shell, and all that lies further out is in the last.
    """
    half = min(shape) // 2
    number = half + half // 2 + 1
    return np.minimum((radial_frequency(shape) * 2 * half).astype(np.int32), number - 1), number


def shell_sums(values: Array, index: np.ndarray, num_shells: int) -> Array:
    """Sum of ``values`` over the coefficients of each shell; coefficients with a negative index are left out.

    A product with a matrix of ones and zeros: accelerators add a scattered sum in no fixed order.
    """
    member = (jnp.arange(num_shells)[:, None] == index.reshape(1, -1)).astype(values.dtype)
    return jnp.matmul(member, values.reshape(-1), precision="highest")


@jax.custom_vjp
def quadratic_form(volume: Array, curvature: Array) -> Array:
    """1/2 <v, F^-1 S F v> with S >= 0 or not, real, in rfftn layout; value and gradient cost one transform each."""
    return _quadratic_forward(volume, curvature)[0]


def _quadratic_forward(volume: Array, curvature: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    spectrum = rfftn(volume)
    energy = power(spectrum) * multiplicity(volume.shape)
    return 0.5 * jnp.sum(curvature * energy), (volume, curvature, spectrum)


def _quadratic_backward(residual: tuple[Array, Array, Array], cotangent: Array) -> tuple[Array, Array]:
    volume, curvature, spectrum = residual
    energy = power(spectrum) * multiplicity(volume.shape)
    to_volume = irfftn(cotangent * curvature * spectrum, volume.shape)
    return to_volume, (0.5 * cotangent * energy).astype(curvature.dtype)


quadratic_form.defvjp(_quadratic_forward, _quadratic_backward)


@jax.custom_vjp
def half_misfit(volume: Array, observation: Array, transfer: Array) -> Array:
    """1/2 |x - F^-1 t F v|^2 by Parseval: one transform for the value and one for the gradient in v.

    The transform of x is constant in a chain, and the compiler moves it out of the loop.
    """
    return _misfit_forward(volume, observation, transfer)[0]


def _misfit_forward(volume: Array, observation: Array, transfer: Array) -> tuple[Array, tuple[Array, ...]]:
    spectrum = rfftn(volume)
    misfit = rfftn(observation) - transfer * spectrum
    energy = power(misfit) * multiplicity(volume.shape)
    return 0.5 * jnp.sum(energy), (volume, transfer, spectrum, misfit)


def _misfit_backward(residual: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array, Array]:
    volume, transfer, spectrum, misfit = residual
    shape = volume.shape
    cross = real_product(misfit, spectrum) * multiplicity(shape)
    return (
        irfftn(-cotangent * transfer * misfit, shape),
        irfftn(cotangent * misfit, shape),
        (-cotangent * cross).astype(transfer.dtype),
    )


half_misfit.defvjp(_misfit_forward, _misfit_backward)


def centered_full_spectrum(half: np.ndarray, shape: Shape) -> np.ndarray:
    """A real, even half spectrum (a mask) as a full one of the volume's shape, zero frequency in the middle."""
    n = shape[-1]
    mirrored = np.asarray(half)[..., 1 : (n + 1) // 2]
    for axis in range(len(shape) - 1):
        mirrored = np.roll(np.flip(mirrored, axis), 1, axis)
    return np.fft.fftshift(np.concatenate([np.asarray(half), np.flip(mirrored, -1)], axis=-1))
