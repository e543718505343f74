r"""The 3-D convolution, which dominates the cost of a step, and resampling by reshape.

One layer computes

.. math:: y(x)_o = \sum_{t \in \{-1,0,1\}^3} \sum_i K(t)_{i,o}\, v(x + t)_i

on the voxels of the box, with zeros outside it (stride 1, "SAME"). Two forms give the same numbers: ``native`` is XLA's
3-D convolution; ``stacked`` puts the three depth taps side by side as channels and runs one 2-D convolution, which is
fast on CPUs where XLA's 3-D convolution is slow. :func:`cryowgen_jax.platform.convolution_form` chooses.

Both have a gradient written by hand. The transpose that JAX derives is a convolution with permuted kernel axes, which
inside ``lax.scan`` on CPUs misses every fast implementation of XLA (10 to 30 times slower). The same transpose as an
ordinary convolution, with the kernel flipped and its inputs and outputs swapped, is fast. The gradient in the kernel is
three matrix products on CPUs, several hundred times faster than the derived one. Reverse mode only; nest it for
second derivatives.

No convolution here has a stride: the input gradient of a strided one is slower still. Halve a grid with
:func:`halve` (mean of 2^3) or :func:`space_to_depth`, double it with :func:`double`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from cryowgen_jax import platform
from cryowgen_jax.types import Array, InputError

_VOLUME_LAYOUT = ("NDHWC", "DHWIO", "NDHWC")
_PLANE_LAYOUT = ("NHWC", "HWIO", "NHWC")
_SLAB = 4700  # voxels of the volume that are taken at a time for the gradient in the kernel


def convolve3(volume: Array, kernel: Array, form: platform.ConvolutionForm | None = None) -> Array:
    """3^3 convolution with zeros outside the box: (D, H, W, Cin) with (3, 3, 3, Cin, Cout) -> (D, H, W, Cout).

    Unbatched; ``jax.vmap`` over volumes stays fast, over kernels it does not. Both float32, or both bfloat16, which
    sums in float32 and rounds the result.

    Parameters
    ----------
    volume, kernel
        The arrays.
    form
        ``"native"`` or ``"stacked"``; None takes the one that is fast in the program being traced.

    Raises
    ------
    InputError
        Where shapes do not fit.
    """
    if volume.ndim != 4 or kernel.ndim != 5 or kernel.shape[:4] != (3, 3, 3, volume.shape[-1]):
        raise InputError(
            f"shapes {volume.shape} and {kernel.shape} do not fit: give (D, H, W, Cin) and (3, 3, 3, Cin, Cout)"
        )
    return _convolve(volume, kernel, platform.convolution_form() if form is None else form)


def _native(volume: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(volume[None], kernel, (1, 1, 1), "SAME", dimension_numbers=_VOLUME_LAYOUT)[0]


def _stacked(volume: Array, kernel: Array) -> Array:
    padded = jnp.pad(volume, ((1, 1), (0, 0), (0, 0), (0, 0)))
    taps = jnp.concatenate([padded[:-2], padded[1:-1], padded[2:]], axis=-1)
    plane_kernel = jnp.moveaxis(kernel, 0, 2).reshape(3, 3, -1, kernel.shape[-1])
    return lax.conv_general_dilated(taps, plane_kernel, (1, 1), "SAME", dimension_numbers=_PLANE_LAYOUT)


_FORMS = {"native": _native, "stacked": _stacked}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(volume: Array, kernel: Array, form: platform.ConvolutionForm) -> Array:
    return _FORMS[form](volume, kernel)


def _forward(volume: Array, kernel: Array, form: platform.ConvolutionForm) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(volume, kernel, form), (volume, kernel)


def _backward(form: platform.ConvolutionForm, residual: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    volume, kernel = residual
    adjoint_kernel = jnp.swapaxes(kernel[::-1, ::-1, ::-1], 3, 4)
    if platform.on_cpu():
        to_kernel = _kernel_gradient(volume, cotangent)
    else:
        (to_kernel,) = jax.linear_transpose(lambda k: _FORMS[form](volume, k), kernel)(cotangent)
    return _convolve(cotangent, adjoint_kernel, form), to_kernel


def _kernel_gradient(volume: Array, cotangent: Array) -> Array:
    """Matrix products with the taps along W side by side with Cin and those along D with Cout, one per tap along H.

    Slabs of planes, so that the shifted copies stay in cache.
    """
    depth, height, width, inputs = volume.shape
    outputs = cotangent.shape[-1]
    thickness = max(1, min(depth, _SLAB // (height * width)))
    number = -(-depth // thickness)
    missing = number * thickness - depth
    padded = jnp.pad(volume, ((0, missing), (1, 1), (1, 1), (0, 0)))
    planes = jnp.pad(cotangent, ((1, 1 + missing), (0, 0), (0, 0), (0, 0)))

    def add(total: Array, slab: Array) -> tuple[Array, None]:
        seen = lax.dynamic_slice_in_dim(padded, slab * thickness, thickness)
        near = lax.dynamic_slice_in_dim(planes, slab * thickness, thickness + 2)
        moved = jnp.concatenate([near[2 - z : 2 - z + thickness] for z in range(3)], axis=-1)
        moved = moved.reshape(-1, 3 * outputs)
        rows = []
        for y in range(3):
            taps = jnp.concatenate([seen[:, y : y + height, x : x + width] for x in range(3)], axis=-1)
            rows.append(taps.reshape(-1, 3 * inputs).T @ moved)
        return total + jnp.stack(rows).astype(jnp.float32), None

    total, _ = lax.scan(add, jnp.zeros((3, 3 * inputs, 3 * outputs), jnp.float32), jnp.arange(number))
    taps = total.reshape(3, 3, inputs, 3, outputs)  # y, x, in, z, out
    return taps.transpose(3, 0, 1, 2, 4).astype(volume.dtype)


_convolve.defvjp(_forward, _backward)


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: lax.ConvGeneralDilatedDimensionNumbers = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: jax.typing.DTypeLike | None = None,
    out_sharding: NamedSharding | PartitionSpec | None = None,
) -> Array:
    """A replacement for ``lax.conv_general_dilated`` in any Flax network.

    Use it as ``nnx.Conv(..., conv_general_dilated=conv_general_dilated)``, and likewise with ``linen.Conv``. 3^3
    convolutions with stride 1, zero padding, channels last, no groups and no dilation are done by :func:`convolve3`,
    all others by ``lax``.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    same = padding == "SAME" if isinstance(padding, str) else [tuple(p) for p in padding] == [(1, 1)] * 3
    plain = (
        (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec) == ((0, 4, 1, 2, 3), (4, 3, 0, 1, 2), (0, 4, 1, 2, 3))
        and rhs.shape[:3] == (3, 3, 3)
        and same
        and all(n == 1 for n in (*window_strides, *(lhs_dilation or ()), *(rhs_dilation or ())))
        and feature_group_count == batch_group_count == 1
        and precision is None
        and out_sharding is None
        and preferred_element_type in (None, lhs.dtype)
        and lhs.dtype == rhs.dtype
    )
    if plain:
        return jax.vmap(convolve3, in_axes=(0, None))(lhs, rhs)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        precision,
        preferred_element_type,
        out_sharding,
    )


def pad_to_multiple(volume: Array, factor: int) -> Array:
    """Pad the three axes of (D, H, W, ...) with zeros at their end, to the next multiple of ``factor``."""
    widths = [(0, -n % factor) for n in volume.shape[:3]] + [(0, 0)] * (volume.ndim - 3)
    return jnp.pad(volume, widths)


def halve(volume: Array) -> Array:
    """Mean of each 2^3 block: even (D, H, W, C) -> (D/2, H/2, W/2, C)."""
    d, h, w, c = volume.shape
    return volume.reshape(d // 2, 2, h // 2, 2, w // 2, 2, c).mean((1, 3, 5))


def double(volume: Array) -> Array:
    """Each voxel repeated 2^3 times: (D, H, W, C) -> (2D, 2H, 2W, C)."""
    d, h, w, c = volume.shape
    repeated = jnp.broadcast_to(volume[:, None, :, None, :, None], (d, 2, h, 2, w, 2, c))
    return repeated.reshape(2 * d, 2 * h, 2 * w, c)


def space_to_depth(volume: Array) -> Array:
    """The voxels of each 2^3 block as channels, (z, y, x, c) in C order: even (D, H, W, C) -> (D/2, H/2, W/2, 8 C)."""
    d, h, w, c = volume.shape
    blocks = volume.reshape(d // 2, 2, h // 2, 2, w // 2, 2, c).transpose(0, 2, 4, 1, 3, 5, 6)
    return blocks.reshape(d // 2, h // 2, w // 2, 8 * c)


def depth_to_space(volume: Array) -> Array:
    """Inverse of :func:`space_to_depth`."""
    d, h, w, c = volume.shape
    blocks = volume.reshape(d, h, w, 2, 2, 2, c // 8).transpose(0, 3, 1, 4, 2, 5, 6)
    return blocks.reshape(2 * d, 2 * h, 2 * w, c // 8)
