"""Operators that are not diagonal in Fourier space: rotation, and one operator after another."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from cryowgen_jax.pytrees import as_pytree
from cryowgen_jax.spatial.rotation import rotate
from cryowgen_jax.types import Array, InputError, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Rotation:
    """The operator v -> :func:`~cryowgen_jax.spatial.rotation.rotate` (v, matrix).

    Parameters
    ----------
    matrix
        Shape (3, 3), acting on offsets (z, y, x) from the box centre; stack matrices and ``jax.vmap`` for many.

    Examples
    --------
    >>> import jax.numpy as jnp, cryowgen_jax as cg
    >>> volume = jnp.zeros((5, 5, 5)).at[0, 2, 2].set(1.0)  # at offset (-2, 0, 0) from the centre
    >>> swap = jnp.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # z -> -y
    >>> float(cg.Rotation(swap)(volume)[2, 4, 2])
    1.0
    """

    matrix: Array

    def __call__(self, volume: Array) -> Array:
        """Rotate one volume."""
        return rotate(volume, self.matrix)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Composition:
    """The operator v -> outer(inner(v)); made by :func:`compose`."""

    outer: PyTree
    inner: PyTree

    def __call__(self, volume: Array) -> Array:
        """Apply the inner operator, then the outer one."""
        return self.outer(self.inner(volume))


def compose(outer: Any, inner: Any) -> Composition:
    r"""Return the operator :math:`v \mapsto` outer(inner(v)), such as T_M o R = ``compose(Wedge(mask), Rotation(R))``.

    Parameters
    ----------
    outer, inner
        Callables volume -> volume. Pytrees keep their arrays as leaves of the result, so that it can be jitted,
        differentiated in them and vmapped over stacks of them; a plain function becomes a constant of it.

    Returns
    -------
    Composition
        A pytree callable.

    Raises
    ------
    InputError
        If one of them cannot be called.

    Examples
    --------
    >>> import jax.numpy as jnp, cryowgen_jax as cg
    >>> seen = cg.compose(cg.Wedge(cg.wedge_mask((8, 8, 8))), cg.Rotation(cg.cube_rotations()[5]))
    >>> seen(jnp.ones((8, 8, 8))).shape
    (8, 8, 8)
    """
    for operator in (outer, inner):
        if not callable(operator):
            raise InputError(f"compose needs two callables volume -> volume, got {type(operator).__name__}")
    return Composition(as_pytree(outer), as_pytree(inner))
