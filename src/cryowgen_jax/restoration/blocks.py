"""A network's look at a volume in overlapping blocks: memory for its features does not grow with the volume."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from cryowgen_jax.types import Array

MOST_VOXELS = 12_000_000  # that are looked at together: 7 GB of features
HALO = 32  # voxels that a block sees beyond what is taken from it
MULTIPLE = 8  # voxels: networks halve their grid
MOST_PIECES = 64  # along an axis


class Piece(NamedTuple):
    """Along one axis: what a block sees, and what is taken from it, within the block and within the volume."""

    seen: slice
    taken: slice
    placed: slice


def by_blocks(look: Callable[[Array], Sequence[Array]], channels: Array, number: int) -> tuple[np.ndarray, ...]:
    """The volumes that a ``look`` at (Z, Y, X, inputs) returns first, as many as ``number``, in blocks of one shape.

    What is taken from a block lies ``HALO`` voxels or more from where it was cut. A network that hardly looks further
    says what it would of the whole.
    """
    shape = channels.shape[:3]
    whole = tuple(np.empty(shape, np.float32) for _ in range(number))
    for pieces in itertools.product(*(pieces_of(*plan) for plan in zip(shape, cuts(shape), strict=True))):
        seen, taken, placed = (tuple(ways) for ways in zip(*pieces, strict=True))
        for volume, part in zip(whole, look(channels[seen]), strict=False):
            volume[placed] = np.asarray(part)[taken]
    return whole


def cuts(shape: tuple[int, ...]) -> tuple[int, ...]:
    """In how many pieces to look along each axis: the fewest voxels altogether, of blocks that are small enough."""

    def seen(numbers: tuple[int, ...]) -> int:
        return math.prod(n * extent(length, n) for length, n in zip(shape, numbers, strict=True))

    def fits(numbers: tuple[int, ...]) -> bool:
        return math.prod(map(extent, shape, numbers)) <= MOST_VOXELS

    most = [max(1, min(MOST_PIECES, length // (2 * HALO))) for length in shape]
    return min(filter(fits, itertools.product(*(range(1, n + 1) for n in most))), key=seen, default=tuple(most))


def extent(length: int, number: int) -> int:
    """Of each of as many blocks along an axis: a multiple of 8 where it is cut."""
    if number == 1:
        return length
    shared = 2 * HALO + MULTIPLE - 1  # with the next one; all but the last begin at multiples of 8
    return min(length, MULTIPLE * math.ceil((length + shared * (number - 1)) / (number * MULTIPLE)))


def pieces_of(length: int, number: int) -> list[Piece]:
    """The blocks along one axis, equally long."""
    block = extent(length, number)
    starts = [i * (length - block) // max(number - 1, 1) // MULTIPLE * MULTIPLE for i in range(number - 1)]
    starts.append(length - block)
    borders = [0, *(start + block - HALO for start in starts[:-1]), length]
    return [
        Piece(slice(start, start + block), slice(first - start, last - start), slice(first, last))
        for start, (first, last) in zip(starts, itertools.pairwise(borders), strict=True)
    ]
