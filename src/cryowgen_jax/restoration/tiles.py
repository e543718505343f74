"""Large tomograms in overlapping tiles whose chains share their noise, so that members meet where tiles do."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.chains import Progress
from cryowgen_jax.restoration import volume_family
from cryowgen_jax.restoration.preparation import smooth_part
from cryowgen_jax.restoration.volume_family import ChainPlan, Draws
from cryowgen_jax.restoration.volume_model import Geometry, VolumeModel
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


class TiledDraws(NamedTuple):
    """Draws of the whole tomogram, the model whose spectra the tiles share, and the firmness of all of them."""

    draws: Draws
    model: VolumeModel
    firmness: np.ndarray


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
    halves: tuple[volume_family.Volume, ...],
    tile_shape: tuple[int, ...],
    mask_of: Callable[[tuple[int, ...]], np.ndarray],
    geometry: Geometry,
    witness: volume_family.Witness,
    center: volume_family.Volume | None,
    plan: ChainPlan,
    *,
    checkpoint: str | pathlib.Path | None = None,
    report: Callable[[Progress], None] | None = None,
) -> TiledDraws:
    """Restore standardised volumes tile by tile.

    The tile with the most variance lends its spectra and level to all others. Member i of every tile uses the keys of
    chain i and noise that belongs to the place in the tomogram: where tiles overlap their chains are driven alike and
    contract onto each other, so that blending neither blurs a member nor narrows the spread.
    """
    shape = halves[0].shape
    tile_shape = checked_tile(tile_shape, shape)
    volumes = [_padded(volume) for volume in (*halves, *([] if center is None else [center]))]
    tiles = tiles_of(volumes[0].shape, tile_shape)
    mask = mask_of(tile_shape)
    data = np.mean(volumes[: len(halves)], axis=0)
    first = max(range(len(tiles)), key=lambda i: float(data[tiles[i].region].var()))
    whole = _Whole(volumes[0].shape, plan.num_samples)
    outcomes, model = [], None
    for count, number in enumerate([first, *(i for i in range(len(tiles)) if i != first)]):
        tile = tiles[number]
        told = _told(report, count, len(tiles))
        parts = [volume[tile.region] for volume in volumes]
        smooth = [smooth_part(part) for part in parts]
        prepared = [jnp.asarray(part - s) for part, s in zip(parts, smooth, strict=True)]
        data_parts = tuple(prepared[: len(halves)])
        own = volume_family.model_of(witness, data_parts, mask, geometry, told, model)
        model = own if model is None else model
        noise = BlockNoise(jnp.asarray(tile.origin) // BLOCK)
        tether = None if center is None else prepared[-1]
        folder = None if checkpoint is None else pathlib.Path(checkpoint) / f"tile_{number:04d}"
        outcome = volume_family.by_chains(
            key, own, mask, witness, tether, plan, draw_noise=noise, checkpoint=folder, report=told
        )
        whole.add(tile, outcome, own.firmness, np.mean(smooth[: len(halves)], axis=0))
        outcomes.append(outcome._replace(mean=jnp.zeros(()), std=jnp.zeros(()), samples=jnp.zeros(())))
    if model is None:
        raise InputError(f"no tile fits a tomogram of shape {shape}")
    return TiledDraws(whole.draws(outcomes, shape, model), model, whole.firmness_of(shape))


class _Whole:
    """The tomogram that tiles are blended into."""

    def __init__(self, shape: tuple[int, ...], num_samples: int) -> None:
        self.mean, self.variance, self.firmness = (np.zeros(shape, np.float32) for _ in range(3))
        self.samples = np.zeros((num_samples, *shape), np.float32)

    def add(self, tile: Tile, outcome: Draws, firmness: np.ndarray, smooth: np.ndarray) -> None:
        self.mean[tile.region] += tile.share * (np.asarray(outcome.mean) + smooth)
        self.variance[tile.region] += tile.share * np.asarray(outcome.std) ** 2
        self.firmness[tile.region] += tile.share * firmness
        # a run that was stopped early has fewer members, and says so
        for member, drawn in zip(self.samples, itertools.cycle(outcome.samples), strict=False):
            member[tile.region] += tile.share * (np.asarray(drawn) + smooth)

    def draws(self, outcomes: list[Draws], shape: tuple[int, ...], model: VolumeModel) -> Draws:
        """Blended volumes without the padding; the worst diagnostics of all tiles."""
        inside = tuple(slice(0, n) for n in shape)
        bad = [outcome.status for outcome in outcomes if outcome.status != "ok"]
        return Draws(
            self.mean[inside],
            np.sqrt(self.variance[inside]),
            self.samples[(slice(None), *inside)],
            jnp.full((len(self.samples),), 1 / len(self.samples)),
            f"preconditioned, {len(outcomes)} tiles",
            bad[0] if bad else "ok",
            min(outcome.ess for outcome in outcomes),
            max(outcome.r_hat for outcome in outcomes),
            outcomes[0].acceptance,
            outcomes[0].step_size,
            sum(outcome.num_gradients for outcome in outcomes),
            outcomes[0].prior_precision,
        )

    def firmness_of(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.firmness[tuple(slice(0, n) for n in shape)]


def _padded(volume: volume_family.Volume) -> np.ndarray:
    missing = [(0, p - n) for n, p in zip(volume.shape, padded_shape(volume.shape), strict=True)]
    return np.pad(np.asarray(volume, np.float32), missing, mode="symmetric")


def _origins(whole: int, length: int) -> list[int]:
    if length >= whole:
        return [0]
    stride = length - OVERLAP
    return [min(i * stride, whole - length) for i in range(1 + -(-(whole - length) // stride))]


def _shares(whole: int, length: int, origins: list[int]) -> list[np.ndarray]:
    """Share of each tile along one axis: linear ramps over the overlaps, summing to 1 over the tiles."""
    centre = np.arange(length) + 0.5
    ramp = np.minimum(np.minimum(centre, length - centre), OVERLAP / 2)
    total = np.zeros(whole)
    for origin in origins:
        total[origin : origin + length] += ramp
    return [ramp / total[origin : origin + length] for origin in origins]


def _told(report: Callable[[Progress], None] | None, number: int, count: int) -> Callable[[Progress], None] | None:
    if report is None:
        return None
    return lambda progress: report(progress._replace(phase=f"tile {number + 1} of {count}, {progress.phase}"))
