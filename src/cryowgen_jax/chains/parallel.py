"""Many chains: vmap on one device, pmap of vmap on several. Chain i sees only its own key, on any layout."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from cryowgen_jax import platform
from cryowgen_jax.types import PyTree

Mapped = Callable[[PyTree, PyTree], PyTree]


def is_traced(tree: PyTree) -> bool:
    """Whether any leaf is being traced by a transformation."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def usable_devices(num_chains: int, devices: Sequence[jax.Device] | None) -> tuple[jax.Device, ...]:
    """As many of the devices as divide the chains evenly (all local ones by default)."""
    available = tuple(jax.local_devices()) if devices is None else tuple(devices)
    count = max(n for n in range(1, len(available) + 1) if num_chains % n == 0)
    return available[:count]


def spread(tree: PyTree, num_devices: int) -> PyTree:
    """Leading chain axis -> (devices, chains per device), or the tree itself on one device."""
    if num_devices == 1:
        return tree
    return jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), tree)


def gather(tree: PyTree, num_devices: int) -> PyTree:
    """Inverse of :func:`spread`."""
    if num_devices == 1:
        return tree
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


@functools.lru_cache(maxsize=128)
def map_chains(
    function: Callable[..., PyTree], static: tuple[Any, ...], devices: tuple[jax.Device, ...], batch_size: int | None
) -> Mapped:
    """``function(*static, shared, chain)`` over chains that are spread over the devices.

    ``batch_size`` limits how many chains of one device are alive at a time; None vectorises all of them.
    """

    def one(shared: PyTree, chain: PyTree) -> PyTree:
        return function(*static, shared, chain)

    def several(shared: PyTree, chains: PyTree) -> PyTree:
        if batch_size is None:
            return jax.vmap(one, in_axes=(None, 0))(shared, chains)
        return jax.lax.map(lambda chain: one(shared, chain), chains, batch_size=batch_size)

    if len(devices) > 1:
        return _pmap(several, devices)
    compiled = jax.jit(several, compiler_options=platform.compiler_options())

    def call(shared: PyTree, chains: PyTree) -> PyTree:
        # Compiler options belong to the outermost jit: inside a caller's trace this one steps aside.
        return (several if is_traced((shared, chains)) else compiled)(shared, chains)

    return call


def _pmap(function: Mapped, devices: tuple[jax.Device, ...]) -> Mapped:
    """``jax.pmap`` with the platform's compiler options, which pmap itself takes only at compilation."""
    mapped = jax.pmap(function, in_axes=(None, 0), devices=devices)
    compiled: dict[Any, Any] = {}

    def call(shared: PyTree, chains: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten((shared, chains))
        signature = (structure, tuple((jax.numpy.shape(x), jax.numpy.result_type(x)) for x in leaves))
        if signature not in compiled:
            compiled[signature] = mapped.lower(shared, chains).compile(platform.compiler_options())
        return compiled[signature](shared, chains)

    return call
