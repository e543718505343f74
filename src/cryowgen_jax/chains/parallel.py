"""Many chains: vmap on one device, pmap of vmap on several accelerators. Chain i sees only its own key everywhere."""

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
    """How many chains a device vectorises together, and the devices that share the chains evenly."""

    group: int
    devices: tuple[jax.Device, ...]


def layout(num_chains: int, size: int, devices: Sequence[jax.Device] | None, batch_size: int | None) -> Layout:
    """Spread chains of ``size`` elements over as many of the devices as possible (all local ones by default).

    On CPUs the groups depend on the chains alone: rounding depends on how many are vectorised together, so that any
    number of devices gives the same samples bit for bit. Vectorising gains nothing there once one chain fills the
    vector units. Accelerators vectorise all that a device holds, and agree to rounding.
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
    """``function(*static, shared, chain)`` over chains: those of one round on all devices at once, round after round.

    The rounds are a loop on the host, since how the compiler rounds depends on the length of a loop around the chains.
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
    """The program of one device on every device.

    ``jax.pmap`` hands the compiler a partitioned program, whose sums it may order otherwise.
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
    """``jax.pmap`` with the platform's compiler options, which pmap itself takes only at compilation.

    Takes chains from and returns them to the first device, so that sums over chains do not depend on the layout.
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
