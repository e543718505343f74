"""Looking in blocks: they cover the volume once, are small enough, and say what a look at the whole would say."""

import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax import platform
from cryowgen_jax.models import denoising_network
from cryowgen_jax.models.denoiser import Sight
from cryowgen_jax.restoration import blocks
from tests.networks import shaken


@pytest.mark.parametrize(
    "shape", [(64, 128, 128), (300, 928, 960), (1024, 1024, 1024), (64, 4000, 4000), (301, 517, 33)]
)
def test_pieces_cover_each_axis_once_and_lie_away_from_cuts(shape):
    cuts = blocks.cuts(shape)
    extents = [blocks.extent(length, number) for length, number in zip(shape, cuts, strict=True)]
    assert np.prod(extents, dtype=float) <= blocks.MOST_VOXELS
    assert np.prod(extents, dtype=float) * np.prod(cuts) < 3 * np.prod(shape, dtype=float)
    for length, number in zip(shape, cuts, strict=True):
        covered = np.zeros(length, int)
        for seen, taken, placed in blocks.pieces_of(length, number):
            covered[placed] += 1
            assert seen.stop - seen.start == blocks.extent(length, number)
            assert (placed.start - seen.start, placed.stop - seen.start) == (taken.start, taken.stop)
            assert seen.start == 0 or taken.start >= blocks.HALO
            assert seen.stop == length or seen.stop - placed.stop >= blocks.HALO
        np.testing.assert_array_equal(covered, 1)


def test_any_number_of_pieces_of_any_axis_covers_it():
    for length in range(130, 700, 37):
        for number in range(1, 1 + length // (2 * blocks.HALO)):
            pieces = blocks.pieces_of(length, number)
            assert [piece.placed.start for piece in pieces[1:]] == [piece.placed.stop for piece in pieces[:-1]]
            assert all(piece.seen.start == 0 or piece.taken.start >= blocks.HALO for piece in pieces)


def test_a_volume_that_is_small_enough_is_one_block():
    assert blocks.cuts((128, 256, 256)) == (1, 1, 1)


@pytest.mark.parametrize("halo", [12, 2])
def test_blocks_say_what_the_whole_says(monkeypatch, rng, halo):
    """A network that sees 7 voxels far; with a narrower halo (the negative control) the cuts show."""
    monkeypatch.setattr(blocks, "HALO", halo)
    monkeypatch.setattr(blocks, "MOST_VOXELS", 24 * 48 * 48)
    network = shaken(denoising_network((3,), (1,)), 0.2, 0)
    shape = (24, 96, 80)
    channels = jnp.asarray(rng.normal(size=(*shape, 5)), jnp.float32)
    assert blocks.cuts(shape) != (1, 1, 1)

    @platform.jit
    def look(channels):
        sight = Sight(channels, jnp.zeros(14), jnp.ones(()))
        said = network(sight, sight.mean, jnp.zeros(()))
        return said.volume, said.log_variance

    found, expected = blocks.by_blocks(look, channels, 2), look(channels)
    off = [float(np.abs(a - np.asarray(b)).max()) for a, b in zip(found, expected, strict=True)]
    if halo == 12:
        assert max(off) < 1e-4
    else:
        assert min(off) > 1e-2
