"""Time and memory that a restoration will take, estimated before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from cryowgen_jax import platform
from cryowgen_jax.models import convolve3
from cryowgen_jax.restoration.blocks import cuts, extent
from cryowgen_jax.restoration.solvent_settings import SETTINGS
from cryowgen_jax.restoration.tiles import checked_tile, padded_shape, tiles_of
from cryowgen_jax.restoration.volume_family import default_chains
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, InputError

STEPS_PER_SOLVE = 20  # that take as long as one solution by conjugate gradients, measured
FILTERS_PER_STEP = 8.0  # what a step costs in pairs of transforms, measured; arithmetic and noise included
VOLUMES_PER_CHAIN, VOLUMES_PER_LIVE_CHAIN, VOLUMES_SHARED = 9, 14, 24
VOLUMES_PER_DRAW = 3  # beyond one a chain
VOLUMES_TILED = 10  # of the whole tomogram, beside its samples, where it is restored in tiles
LOOK_OPERATIONS, WALK_OPERATIONS = 1.4e6, 2.7e5  # per voxel: of all networks that look, and of a member
PROBE, PROBE_CHANNELS = (24, 48, 48), 24  # the convolution that is timed; networks are about as fast, measured
NETWORK_VOLUMES = {True: 120, False: 300}  # of what is looked at together, by native or stacked convolutions, measured
USABLE = 0.8  # of the memory that is free


class Cost(NamedTuple):
    """Seconds, bytes, and how many chains to keep alive at a time (None: all)."""

    seconds: float
    num_bytes: int
    batch_size: int | None


def estimate_cost(
    shape: tuple[int, ...],
    num_samples: int,
    num_steps: int,
    warmup: int,
    tile_shape: tuple[int, int, int] | None = None,
    *,
    witness: str = "auto",
    with_chains: bool = False,
) -> Cost:
    """Estimate time and memory of ``restore``; good to about a factor of two.

    ``witness`` as in its report, or "auto"; ``with_chains`` where the posterior is not drawn exactly.

    Time is scaled from a pair of transforms of this size, timed here. Chains are run in batches where all at once would
    not fit in memory.

    Raises
    ------
    InputError
        Where not even one chain at a time fits.
    """
    whole_bytes = 4 * int(np.prod(shape))
    box, num_tiles, kept = shape, 1, 0
    if tile_shape is not None:
        box = checked_tile(tile_shape, shape)
        num_tiles, kept = len(tiles_of(padded_shape(shape), box)), (num_samples + VOLUMES_TILED) * whole_bytes
    volume_bytes = 4 * int(np.prod(box))
    network = 0 if witness == "solvent" else NETWORK_VOLUMES[platform.native_convolution_is_fast()]
    seen = [extent(length, number) for length, number in zip(box, cuts(box), strict=True)]
    looked_at = 4 * network * int(np.prod(seen))
    available = int(USABLE * _available_memory())
    num_chains = default_chains(num_samples, num_steps) if with_chains else 0

    def needed(alive: int) -> int:
        volumes = VOLUMES_SHARED + VOLUMES_PER_CHAIN * num_chains + VOLUMES_PER_LIVE_CHAIN * alive
        volumes += VOLUMES_PER_DRAW * (num_samples - num_chains)
        return kept + max(volumes * volume_bytes, VOLUMES_SHARED * volume_bytes + looked_at)

    alive = max(num_chains, 1)
    while alive > 1 and needed(alive) > available:
        alive //= 2
    if needed(alive) > available:
        raise InputError(
            f"restoring {' x '.join(map(str, shape))} voxels with {num_samples} samples needs about "
            f"{needed(alive) / 2**30:.0f} GiB of memory and {available / 2**30:.0f} GiB can be used: give --tile "
            "(a smaller one), bin or crop the tomogram, or ask for fewer samples"
        )
    rounds, looks = SETTINGS.rounds[0] + 1, 0 if witness == "solvent" else num_tiles
    solved = num_tiles * rounds
    if witness == "auto":  # one more of each, without the hidden tilts
        solved, looks = solved + rounds, looks + 1
    if witness == "solvent":
        solved += rounds + SETTINGS.widenings * SETTINGS.blind_draws + num_tiles * (num_chains or num_samples)
    steps = num_tiles * num_chains * (num_steps + warmup) + STEPS_PER_SOLVE * solved
    seconds = FILTERS_PER_STEP * steps * _filter_seconds(box) + 10.0
    if looks:
        walks = 0 if num_chains else num_tiles * num_samples
        again = np.prod(seen, dtype=float) * np.prod(cuts(box)) / np.prod(box)  # where blocks overlap
        operations = np.prod(box, dtype=float) * (looks * again * LOOK_OPERATIONS + walks * WALK_OPERATIONS)
        one = 2 * 27 * PROBE_CHANNELS**2 * np.prod(PROBE, dtype=float)
        seconds += operations / one * convolution_seconds(PROBE, PROBE_CHANNELS)
    return Cost(seconds, needed(alive), None if alive >= num_chains else alive)


def _available_memory() -> int:
    """Bytes left on the default device."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return int(statistics["bytes_limit"] - statistics.get("bytes_in_use", 0))
    return int(psutil.virtual_memory().available)


def convolution_seconds(shape: tuple[int, ...], channels: int) -> float:
    """What one 3^3 convolution of so many channels with as many takes here."""
    volume, kernel = jnp.zeros((*shape, channels), jnp.float32), jnp.zeros((3, 3, 3, channels, channels), jnp.float32)
    return _median_seconds(convolve3, volume, kernel)


def fit_seconds(shape: tuple[int, ...]) -> float:
    """What estimating the solvent model of a box takes here."""
    return FILTERS_PER_STEP * STEPS_PER_SOLVE * (SETTINGS.rounds[0] + 1) * _filter_seconds(shape)


def _filter_seconds(shape: tuple[int, ...]) -> float:
    transfer = jnp.ones(fourier.spectrum_shape(shape), jnp.float32)
    return _median_seconds(fourier.filter_volume, jnp.zeros(shape, jnp.float32), transfer)


def _median_seconds(function: Callable[..., Array], *arguments: Array) -> float:
    run = platform.jit(function)
    run(*arguments).block_until_ready()
    times = []
    for _ in range(3):
        started = time.perf_counter()
        run(*arguments).block_until_ready()
        times.append(time.perf_counter() - started)
    return float(np.median(times))
