"""Arguments bound to pure functions so that the result is a pytree: new arrays, no new trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm


def bind(function: Callable[..., Any], *arguments: Any) -> jax.tree_util.Partial:
    """``Partial(function, *arguments)`` with plain callables among the arguments made pytrees too."""
    return jax.tree_util.Partial(function, *(as_pytree(argument) for argument in arguments))


def as_pytree(argument: Any) -> Any:
    """The argument itself where it is a pytree of arrays; bare functions, inside a pytree too, as a ``Partial``.

    The method of a pytree (``posterior.log_density``) becomes a ``Partial`` of the plain function and the pytree.
    """
    owner, function = getattr(argument, "__self__", None), getattr(argument, "__func__", None)
    if owner is not None and function is not None and not jax.tree_util.all_leaves([owner]):
        return jax.tree_util.Partial(function, as_pytree(owner))
    if jax.tree_util.all_leaves([argument]):
        return jax.tree_util.Partial(argument) if callable(argument) else argument
    return jax.tree.map(as_pytree, argument)


def algorithm(init: Callable[..., Any], step: Callable[..., Any]) -> SamplingAlgorithm:
    """BlackJAX's pair of ``init(position, rng_key=None)`` and ``step(rng_key, state)``; its import takes seconds."""
    from blackjax.base import SamplingAlgorithm

    return SamplingAlgorithm(init, step)
