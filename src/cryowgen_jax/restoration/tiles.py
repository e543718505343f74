"""Large tomograms in overlapping tiles whose chains share their noise, so that members meet where tiles do."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.restoration.preparation import smooth_part
from cryowgen_jax.restoration.volume_family import (
    Diagnostics,
    Plan,
    PreparedVolume,
    ProgressFn,
    Volume,
    VolumeFamily,
    by_sampling,
    model_of,
)
from cryowgen_jax.restoration.volume_model import VolumeModel
from cryowgen_jax.types import Array, InputError, PRNGKey

BLOCK = 16  # voxels: noise is drawn in blocks of the whole tomogram, and tiles begin and end at their borders
OVERLAP = 32  # voxels shared by neighbouring tiles, at least


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockNoise:
    """White noise of a tile that depends on its place in the tomogram: ``origin`` (3,) counts blocks."""

    origin: Array

    def __call__(self, key: PRNGKey, shape: tuple[int, ...]) -> Array:
        """Standard normal voxels; block (i, j, k) of the tomogram has a key of its own."""
        counts = tuple(n // BLOCK for n in shape)
        index = jnp.stack(jnp.meshgrid(*(jnp.arange(n) for n in counts), indexing="ij"), axis=-1).reshape(-1, 3)

        def block(place: Array) -> Array:
            own = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, place[0]), place[1]), place[2])
            return jax.random.normal(own, (BLOCK,) * 3)

        blocks = jax.vmap(block)(index + self.origin[None])
        return blocks.reshape(*counts, BLOCK, BLOCK, BLOCK).transpose(0, 3, 1, 4, 2, 5).reshape(shape)


class Tile(NamedTuple):
    """Where a tile lies in the padded tomogram, in voxels, and its share of every voxel (the shares sum to 1)."""

    origin: tuple[int, ...]
    region: tuple[slice, ...]
    share: np.ndarray


def padded_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The next multiples of the block."""
    return tuple(-(-n // BLOCK) * BLOCK for n in shape)


def checked_tile(tile_shape: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The tile as it will be used: multiples of the block, no larger than the tomogram.

    Raises
    ------
    InputError
        Where a tile could not overlap its neighbours.
    """
    if len(tile_shape) != 3 or min(tile_shape) < 1:
        raise InputError(f"tile_shape {tile_shape}: give three numbers of voxels (Z, Y, X)")
    tile = tuple(min(n, m) for n, m in zip(padded_shape(tile_shape), padded_shape(shape), strict=True))
    for length, whole in zip(tile, padded_shape(shape), strict=True):
        if length < whole and length < 2 * OVERLAP:
            raise InputError(f"tile_shape {tile_shape} is too small: give {2 * OVERLAP} voxels or more along each axis")
    return tile


def tiles_of(shape: tuple[int, ...], tile_shape: tuple[int, ...]) -> list[Tile]:
    """Tiles that cover a padded tomogram, overlapping by 32 voxels or more, with linear blending."""
    origins = [_origins(whole, length) for whole, length in zip(shape, tile_shape, strict=True)]
    ramps = [_shares(whole, length, o) for whole, length, o in zip(shape, tile_shape, origins, strict=True)]
    tiles = []
    for place in itertools.product(*(range(len(o)) for o in origins)):
        origin = tuple(origins[axis][i] for axis, i in enumerate(place))
        region = tuple(slice(o, o + n) for o, n in zip(origin, tile_shape, strict=True))
        z, y, x = (ramps[axis][i] for axis, i in enumerate(place))
        tiles.append(Tile(origin, region, (z[:, None, None] * y[None, :, None] * x[None, None, :]).astype(np.float32)))
    return tiles


def restore_tiles(
    key: PRNGKey,
    volume: PreparedVolume,
    tile_shape: tuple[int, ...],
    plan: Plan,
    *,
    checkpoint: str | pathlib.Path | None = None,
    progress: ProgressFn | None = None,
) -> VolumeFamily:
    """Family of a prepared volume tile by tile.

    The tile with the most variance lends its spectra and level to all others. Chain i of every tile uses the same keys,
    and its noise belongs to places in the tomogram: where tiles overlap, their chains get the same noise and contract
    onto each other, so that blending neither blurs a member nor narrows the spread.
    """
    shape = volume.halves[0].shape
    tile_shape = checked_tile(tile_shape, shape)
    padded = _in_blocks(volume)
    tiles = tiles_of(padded.halves[0].shape, tile_shape)
    first = _most_varied(padded, tiles)
    whole = _Whole(padded.halves[0].shape, plan.num_samples)
    diagnostics, model = [], None
    for count, number in enumerate([first, *(i for i in range(len(tiles)) if i != first)]):
        tile = tiles[number]
        told = _told(progress, count, len(tiles))
        piece, smooth = _piece(padded, tile)
        own = model_of(piece, told, model)
        model = own if model is None else model
        noise = BlockNoise(jnp.asarray(tile.origin) // BLOCK)
        folder = None if checkpoint is None else pathlib.Path(checkpoint) / f"tile_{number:04d}"
        family = by_sampling(key, own, piece, plan, draw_noise=noise, checkpoint=folder, progress=told)
        whole.add(tile, family, smooth)
        diagnostics.append(family.diagnostics)
    if model is None:
        raise InputError(f"no tile fits a tomogram of shape {shape}")
    return whole.family(diagnostics, shape, model)


def first_piece(volume: PreparedVolume, tile_shape: tuple[int, ...]) -> PreparedVolume:
    """The tile with the most variance, whose model lends its spectra to all others."""
    padded = _in_blocks(volume)
    tiles = tiles_of(padded.halves[0].shape, checked_tile(tile_shape, volume.halves[0].shape))
    return _piece(padded, tiles[_most_varied(padded, tiles)])[0]


def _in_blocks(volume: PreparedVolume) -> PreparedVolume:
    """The volume padded to whole blocks."""
    center = None if volume.center is None else jnp.asarray(_padded(volume.center))
    halves = tuple(jnp.asarray(_padded(half)) for half in volume.halves)
    return dataclasses.replace(volume, halves=halves, center=center)


def _most_varied(volume: PreparedVolume, tiles: list[Tile]) -> int:
    data = np.mean(np.stack([np.asarray(half) for half in volume.halves]), axis=0)
    return max(range(len(tiles)), key=lambda i: float(data[tiles[i].region].var()))


def _piece(volume: PreparedVolume, tile: Tile) -> tuple[PreparedVolume, np.ndarray]:
    """One tile, ready to be restored, and the smooth part that was taken off its data."""
    parts = [np.asarray(half)[tile.region] for half in volume.halves]
    smooth = [smooth_part(part) for part in parts]
    tether = None
    if volume.center is not None:
        part = np.asarray(volume.center)[tile.region]
        tether = jnp.asarray(part - smooth_part(part))
    halves = tuple(jnp.asarray(part - s) for part, s in zip(parts, smooth, strict=True))
    return dataclasses.replace(volume, halves=halves, center=tether), np.mean(smooth, axis=0)


class _Whole:
    """The tomogram that tiles are blended into."""

    def __init__(self, shape: tuple[int, ...], num_samples: int) -> None:
        self.mean, self.variance, self.firmness = (np.zeros(shape, np.float32) for _ in range(3))
        self.samples = np.zeros((num_samples, *shape), np.float32)

    def add(self, tile: Tile, family: VolumeFamily, smooth: np.ndarray) -> None:
        self.mean[tile.region] += tile.share * (np.asarray(family.mean) + smooth)
        self.variance[tile.region] += tile.share * np.asarray(family.std) ** 2
        self.firmness[tile.region] += tile.share * family.firmness
        # a run that was stopped early has fewer members, and says so
        for member, part in zip(self.samples, itertools.cycle(family.samples), strict=False):
            member[tile.region] += tile.share * (np.asarray(part) + smooth)

    def family(self, tiles: list[Diagnostics], shape: tuple[int, ...], model: VolumeModel) -> VolumeFamily:
        """Blended volumes without the padding; the worst diagnostics of all tiles."""
        inside = tuple(slice(0, n) for n in shape)
        bad = [tile.status for tile in tiles if tile.status != "ok"]
        return VolumeFamily(
            mean=self.mean[inside],
            std=np.sqrt(self.variance[inside]),
            samples=self.samples[(slice(None), *inside)],
            weights=jnp.full((len(self.samples),), 1 / len(self.samples)),
            model=model,
            firmness=self.firmness[inside],
            diagnostics=tiles[0]._replace(
                sampler=f"{tiles[0].sampler}, {len(tiles)} tiles",
                status=bad[0] if bad else "ok",
                ess=min(tile.ess for tile in tiles),
                r_hat=max(tile.r_hat for tile in tiles),
                num_gradients=sum(tile.num_gradients for tile in tiles),
            ),
        )


def _padded(volume: Volume) -> np.ndarray:
    missing = [(0, p - n) for n, p in zip(volume.shape, padded_shape(volume.shape), strict=True)]
    return np.pad(np.asarray(volume, np.float32), missing, mode="symmetric")


def _origins(whole: int, length: int) -> list[int]:
    if length >= whole:
        return [0]
    stride = length - OVERLAP
    return [min(i * stride, whole - length) for i in range(1 + -(-(whole - length) // stride))]


def _shares(whole: int, length: int, origins: list[int]) -> list[np.ndarray]:
    """Share of each tile along one axis: linear ramps over the overlaps, summing to 1 over the tiles."""
    center = np.arange(length) + 0.5
    ramp = np.minimum(np.minimum(center, length - center), OVERLAP / 2)
    total = np.zeros(whole)
    for origin in origins:
        total[origin : origin + length] += ramp
    return [ramp / total[origin : origin + length] for origin in origins]


def _told(progress: ProgressFn | None, number: int, count: int) -> ProgressFn | None:
    if progress is None:
        return None
    return lambda p: progress(p._replace(phase=f"tile {number + 1} of {count}, {p.phase}"))
