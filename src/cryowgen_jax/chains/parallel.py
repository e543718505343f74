"""A function of one chain over many: vmapped on one device, pmapped over several accelerators."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax import platform
from cryowgen_jax.types import Array, InputError, PyTree

Mapped = Callable[[PyTree, PyTree], PyTree]


def is_traced(tree: PyTree) -> bool:
    """Whether any leaf is being traced by a transformation."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


class Layout(NamedTuple):
    """How many chains a device vectorises at a time, and the devices, which share all chains evenly."""

    group: int
    devices: tuple[jax.Device, ...]


def layout(num_chains: int, size: int, devices: Sequence[jax.Device] | None, batch_size: int | None) -> Layout:
    """Share chains of ``size`` elements between as many of the devices as possible.

    Rounding depends on how many chains are vectorised together. On CPUs that number depends on the chains alone, so
    that any number of devices gives the same samples bit for bit; it is 1 for chains that fill a CPU's vector units by
    themselves. Accelerators vectorise all chains that a device holds, so that different numbers of them agree to
    rounding only.

    Parameters
    ----------
    num_chains, size
        Number of chains, and of elements of a position.
    devices
        All local ones by default.
    batch_size
        Most chains to vectorise at a time.

    Raises
    ------
    InputError
        Where there are no devices, or the batch is empty.
    """
    available = tuple(jax.local_devices()) if devices is None else tuple(devices)
    if not available:
        raise InputError("devices is empty: give at least one, or None for all local ones")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size={batch_size}: give at least 1, or None")
    limit = num_chains if batch_size is None else batch_size
    if available[0].platform == "cpu":
        group = largest_divisor(num_chains, min(limit, max(1, platform.CPU_ELEMENTS // size)))
        return Layout(group, available[: largest_divisor(num_chains // group, len(available))])
    count = largest_divisor(num_chains, len(available))
    return Layout(largest_divisor(num_chains // count, limit), available[:count])


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is not above ``limit``."""
    return max(d for d in range(1, min(number, limit) + 1) if number % d == 0)


@functools.lru_cache(maxsize=128)
def map_chains(function: Callable[..., PyTree], static: tuple[Any, ...], layout: Layout) -> Mapped:
    """(shared, chains) -> ``function(*static, shared, chain)`` of every chain; chains lead all arrays.

    All devices work on one group of chains each, then on the next. That loop is on the host: were it compiled, rounding
    would depend on its length. Inside another trace it is a ``lax.map`` over all chains.
    """
    group, devices = layout

    @platform.compiled_with_options
    def together(shared: PyTree, chains: PyTree) -> PyTree:
        def one(chain: PyTree) -> PyTree:
            return function(*static, shared, chain)

        if group > 1:
            return jax.vmap(one)(chains)
        return jax.tree.map(lambda x: jnp.asarray(x)[None], one(jax.tree.map(lambda x: x[0], chains)))

    program: Mapped
    if len(devices) == 1:
        program = jax.jit(together, compiler_options=platform.compiler_options())
    else:
        program = (_each if devices[0].platform == "cpu" else _pmap)(together, devices)

    def call(shared: PyTree, chains: PyTree) -> PyTree:
        if is_traced((shared, chains)):
            return jax.lax.map(lambda chain: function(*static, shared, chain), chains, batch_size=group)
        count = jax.tree.leaves(chains)[0].shape[0]
        width = group * len(devices)
        starts = range(0, count, width)
        rounds = [program(shared, jax.tree.map(lambda x, i=i: x[i : i + width], chains)) for i in starts]
        return rounds[0] if len(rounds) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *rounds)

    return call


def _each(function: Mapped, devices: tuple[jax.Device, ...]) -> Mapped:
    """The program of one device, compiled for and run on each of several.

    ``jax.pmap`` would compile one program for all of them, in which sums may be ordered otherwise.
    """
    traced = jax.jit(function)
    compiled: dict[Any, list[Any]] = {}

    def call(shared: PyTree, chains: PyTree) -> PyTree:
        size = jax.tree.leaves(chains)[0].shape[0] // len(devices)
        pieces = [
            jax.device_put((shared, jax.tree.map(lambda x, i=i: x[i * size : (i + 1) * size], chains)), device)
            for i, device in enumerate(devices)
        ]
        signature = _signature((shared, chains))
        if signature not in compiled:
            lowered = [traced.lower(*piece) for piece in pieces]
            with concurrent.futures.ThreadPoolExecutor() as pool:
                programs = pool.map(lambda program: program.compile(platform.compiler_options()), lowered)
                compiled[signature] = list(programs)
        outcomes = [program(*piece) for program, piece in zip(compiled[signature], pieces, strict=True)]
        return jax.tree.map(lambda *x: jnp.concatenate(x), *jax.device_put(outcomes, devices[0]))

    return call


def _pmap(function: Mapped, devices: tuple[jax.Device, ...]) -> Mapped:
    """``jax.pmap`` compiled with the platform's options.

    Chains come from and return to the first device, so that sums over chains do not depend on the layout.
    """
    mapped = jax.pmap(function, in_axes=(None, 0), devices=devices)
    over_devices = jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.asarray(devices), ("devices",)), jax.sharding.PartitionSpec("devices")
    )
    compiled: dict[Any, Any] = {}

    def spread(x: Array) -> Array:
        return x.reshape(len(devices), x.shape[0] // len(devices), *x.shape[1:])

    def call(shared: PyTree, chains: PyTree) -> PyTree:
        chains = jax.device_put(jax.tree.map(spread, chains), over_devices)
        signature = _signature((shared, chains))
        if signature not in compiled:
            compiled[signature] = mapped.lower(shared, chains).compile(platform.compiler_options())
        outcome = compiled[signature](shared, chains)
        gathered = jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), outcome)
        return jax.device_put(gathered, devices[0])

    return call


def _signature(arguments: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
