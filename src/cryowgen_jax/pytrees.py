"""Functions bound to their arrays so that the result is a pytree: new arrays, no new trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def bind(function: Callable[..., Any], *arguments: Any, **options: Any) -> jax.tree_util.Partial:
    """``jax.tree_util.Partial`` of the same arguments, plain callables among them made pytrees too.

    All arguments become leaves, numbers and flags as well: one that a ``jit`` must not trace belongs into the function.
    """
    positional = [as_pytree(argument) for argument in arguments]
    return jax.tree_util.Partial(function, *positional, **{name: as_pytree(value) for name, value in options.items()})


def as_pytree(argument: Any) -> Any:
    """The argument with every bare function, also inside a pytree such as a ``Posterior``, made a ``Partial``.

    Pytrees of arrays stay as they are. The method of a pytree (``posterior.log_density``) becomes a ``Partial`` of the
    plain function and the pytree.
    """
    owner, function = getattr(argument, "__self__", None), getattr(argument, "__func__", None)
    if owner is not None and function is not None and not jax.tree_util.all_leaves([owner]):
        return jax.tree_util.Partial(function, as_pytree(owner))
    if jax.tree_util.all_leaves([argument]):
        return jax.tree_util.Partial(argument) if callable(argument) else argument
    return jax.tree.map(as_pytree, argument)
