"""Tiles: geometry, shared noise, and no seam where they meet."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.restoration import restore, tiles
from cryowgen_jax.simulation import simulate_tomogram
from cryowgen_jax.types import InputError

WIDE = (24, 24, 112)


@pytest.mark.parametrize("shape", [(16, 64, 64), (64, 160, 208), (48, 112, 64), (320, 80, 96)])
def test_shares_sum_to_one_and_neighbours_overlap(shape):
    laid = tiles.tiles_of(shape, tiles.checked_tile((64, 64, 64), shape))
    total = np.zeros(shape)
    for tile in laid:
        assert all(origin % tiles.BLOCK == 0 for origin in tile.origin)
        total[tile.region] += tile.share
    np.testing.assert_allclose(total, 1, atol=1e-6)
    for axis in range(3):
        origins = sorted({tile.origin[axis] for tile in laid})
        length = laid[0].share.shape[axis]
        assert all(b - a <= length - tiles.OVERLAP for a, b in itertools.pairwise(origins))


def test_noise_belongs_to_the_place(key):
    left = tiles.BlockNoise(jnp.array([0, 0, 0]))(key, (16, 32, 64))
    right = tiles.BlockNoise(jnp.array([0, 1, 2]))(key, (16, 32, 64))
    np.testing.assert_array_equal(left[:, 16:, 32:], right[:, :16, :32])
    assert abs(np.corrcoef(left[:, :16].ravel(), left[:, 16:].ravel())[0, 1]) < 0.03
    assert float(jnp.std(left)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("shape", [(1, 2), (0, 64, 64), (64, 32, 64)])
def test_unusable_tiles(shape):
    with pytest.raises(InputError, match="tile_shape"):
        tiles.checked_tile(shape, (64, 64, 128))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OwnNoise(tiles.BlockNoise):
    """Noise that tiles do not share."""

    def __call__(self, key, shape):
        return super().__call__(jax.random.fold_in(key, jnp.sum(self.origin)), shape)


def _members(monkeypatch, *, shared):
    """Member spread along x, tiles of 64 voxels over 112, relative to that in one box."""
    tomogram = simulate_tomogram(WIDE, snr=0.3, seed=2)
    if not shared:
        monkeypatch.setattr(tiles, "BlockNoise", OwnNoise)
    family = restore(
        tomogram.half1,
        tomogram.tilt_range,
        half2=tomogram.half2,
        num_samples=8,
        num_steps=12,
        warmup=12,
        tile_shape=(32, 32, 64),
    )
    assert family.report.status == "ok"
    spread = family.samples.std(axis=0).mean(axis=(0, 1))
    return spread[36:60].mean() / np.concatenate([spread[:16], spread[96:]]).mean()


@pytest.mark.computes
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_members_are_not_blurred_where_tiles_meet(monkeypatch):
    assert _members(monkeypatch, shared=True) > 0.93


@pytest.mark.computes
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_independent_tiles_would_blur_them(monkeypatch):
    assert _members(monkeypatch, shared=False) < 0.85
