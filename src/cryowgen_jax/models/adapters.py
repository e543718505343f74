"""Flax modules as callables that are pytrees, ready to be the witness or the decoder of a posterior."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen, nnx

from cryowgen_jax.types import Array, InputError, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NnxFunction:
    """An NNX module as a pytree: ``variables`` are its leaves, the structure is static.

    Same structure and new variables do not retrace, and stacked variables can be vmapped over.
    """

    variables: PyTree
    structure: Any = dataclasses.field(metadata={"static": True})

    def __call__(self, *arguments: Any) -> Any:
        """The module's answer."""
        return nnx.merge(self.structure, self.variables)(*arguments)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CurvedNnxFunction(NnxFunction):
    """The same for a module that bounds its curvature."""

    def curvature_bounds(self) -> tuple[Array, Array]:
        """The module's own bounds, for the present variables."""
        return nnx.merge(self.structure, self.variables).curvature_bounds()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinenFunction:
    """A Linen module bound to its variables, which are the leaves of this pytree; the module is static."""

    variables: PyTree
    module: Any = dataclasses.field(metadata={"static": True})

    def __call__(self, position: Array) -> Array:
        """The module's answer to one argument."""
        return self.module.apply(self.variables, position)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CurvedLinenFunction(LinenFunction):
    """The same for a module that bounds its curvature."""

    def curvature_bounds(self) -> tuple[Array, Array]:
        """The module's own bounds, for the present variables."""
        return self.module.apply(self.variables, method="curvature_bounds")


def from_nnx(module: nnx.Module) -> NnxFunction:
    """An NNX module of one array as a pytree callable, in evaluation mode.

    Parameters
    ----------
    module
        Not changed: the callable holds a copy.

    Returns
    -------
    NnxFunction
        Position -> answer of the module. Where the module has ``curvature_bounds()``, the callable has it too.

    Raises
    ------
    InputError
        Where the argument is no NNX module, or holds random-number state: it would not be a function of its input.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, cryowgen_jax as cg
    >>> from flax import nnx
    >>> double = cg.from_nnx(nnx.Linear(1, 1, kernel_init=lambda *_: jnp.full((1, 1), 2.0), rngs=nnx.Rngs(0)))
    >>> float(double(jnp.ones(1))[0]), len(jax.tree.leaves(double))
    (2.0, 2)
    """
    if not isinstance(module, nnx.Module):
        raise InputError(f"{type(module).__name__} is no flax.nnx module: use from_linen or jax.tree_util.Partial")
    copy = nnx.clone(module)
    copy.eval()
    structure, random_state, variables = nnx.split(copy, nnx.RngState, ...)
    if jax.tree.leaves(random_state):
        raise InputError(
            f"{type(module).__name__} holds random-number state (dropout?): build it without, so that it is a function"
        )
    return _bind(module, NnxFunction, CurvedNnxFunction)(variables, structure)


def from_linen(module: linen.Module, variables: Mapping[str, PyTree]) -> LinenFunction:
    """A Linen module of one array, and its variables, as a pytree callable.

    Parameters
    ----------
    module
        Static: it does not become a leaf.
    variables
        What ``module.init`` returned, with ``"params"``: the leaves.

    Returns
    -------
    LinenFunction
        Position -> ``module.apply(variables, position)``. Where the module has a method ``curvature_bounds``, the
        callable has it too.

    Raises
    ------
    InputError
        Where the arguments are no Linen module and its variables.

    Examples
    --------
    >>> import jax.numpy as jnp, cryowgen_jax as cg
    >>> from flax import linen
    >>> double = cg.from_linen(linen.Dense(1), {"params": {"kernel": jnp.full((1, 1), 2.0), "bias": jnp.zeros(1)}})
    >>> float(double(jnp.ones(1))[0])
    2.0
    """
    if not isinstance(module, linen.Module):
        raise InputError(f"{type(module).__name__} is no flax.linen module: use from_nnx or jax.tree_util.Partial")
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise InputError(f'variables of {type(module).__name__} lack "params": give what module.init(...) returned')
    return _bind(module, LinenFunction, CurvedLinenFunction)(variables, module)


def _bind(module: Any, plain: Callable[..., Any], curved: Callable[..., Any]) -> Callable[..., Any]:
    return curved if callable(getattr(module, "curvature_bounds", None)) else plain
