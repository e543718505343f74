"""The networks of the learned model, and the file that they come in."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax import io
from cryowgen_jax.models import NnxFunction, denoising_network, prior_network
from cryowgen_jax.types import InputError

PathLike = str | os.PathLike[str]

LARGEST_SIZE = 4096  # channels or levels of a network that a file may ask for
LARGE, STEPS, SCALE = 4096, 127, ".scale"  # entries of an array that is stored in 8 bits; its largest; of its scales


@dataclasses.dataclass(frozen=True)
class PriorWeights:
    """Trained networks that say what is likely, given a tomogram: ``models.PriorNet``, then ``models.Denoiser`` twice.

    ``settings`` say how they were trained and how large they are. Without a ``third`` one the family is Gaussian.
    """

    first: NnxFunction
    second: NnxFunction
    settings: dict[str, object] = dataclasses.field(default_factory=dict)
    third: NnxFunction | None = None


def save_witness(path: PathLike, weights: PriorWeights) -> None:
    """Write weights and their settings: large arrays in 8 bits with a scale per output, others in half precision."""
    arrays = {}
    for part in ("first", "second", "third"):
        network = getattr(weights, part)
        for name, leaf in ({} if network is None else _named(network)).items():
            value = np.asarray(leaf, np.float32)
            if value.size < LARGE or value.ndim < 2:
                arrays[f"{part}.{name}"] = value.astype(np.float16)
                continue
            scale = np.maximum(np.abs(value).max(tuple(range(value.ndim - 1))), 1e-30) / STEPS
            arrays[f"{part}.{name}"] = np.rint(value / scale).astype(np.int8)
            arrays[f"{part}.{name}{SCALE}"] = scale.astype(np.float32)
    io.save_weights(path, arrays, weights.settings)


def load_witness(path: PathLike) -> PriorWeights:
    """Read weights that :func:`save_witness` wrote.

    Raises
    ------
    InputError
        Where the file is missing, holds no weights, or those of other networks.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from cryowgen_jax.restoration import save_witness
    >>> from cryowgen_jax.restoration.prior_weights import shipped_weights
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.safetensors"
    >>> save_witness(path, shipped_weights())
    >>> cg.load_witness(path).settings == shipped_weights().settings
    True
    """
    arrays, settings = io.load_weights(path)
    try:
        channels, levels = _sizes([json.loads(str(settings[name])) for name in ("channels", "levels")])
        _sizes([channels << levels])
        # shapes alone: drawing weights that are then replaced would take most of a minute to compile
        shapes = {"first": jax.eval_shape(lambda: prior_network(channels=channels, levels=levels))}
        for part, prefix in (("second", ""), ("third", "third_")):
            if part == "third" and "third_widths" not in settings:
                continue
            sizes = [_sizes(json.loads(str(settings[prefix + name]))) for name in ("widths", "pairs")]
            shapes[part] = jax.eval_shape(functools.partial(denoising_network, *sizes))
        networks = {part: _filled(path, like, arrays, part) for part, like in shapes.items()}
        return PriorWeights(settings=dict(settings), **networks)
    except (KeyError, RecursionError, ValueError) as error:
        raise InputError(f"'{path}' lacks {error}: give weights that save_witness wrote") from error


def _sizes(values: object) -> list[int]:
    """Numbers that can be sizes of a network."""
    if not isinstance(values, list) or not all(type(n) is int and 0 <= n <= LARGEST_SIZE for n in values):
        raise ValueError(f"sizes of a network (it has {values})")
    return values


def _filled(path: PathLike, like: NnxFunction, arrays: Mapping[str, np.ndarray], part: str) -> NnxFunction:
    """A network of these shapes with the arrays of a file."""
    leaves = []
    for name, expected in _named(like).items():
        leaf = arrays[f"{part}.{name}"]
        if leaf.shape != expected.shape:
            raise InputError(
                f"'{path}' has {name} of shape {leaf.shape}, not {expected.shape}: give weights that save_witness wrote"
            )
        scale = arrays.get(f"{part}.{name}{SCALE}", np.float32(1))
        leaves.append(jnp.asarray(leaf.astype(np.float32) * scale))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


@functools.cache
def shipped_weights() -> PriorWeights:
    """The one that the package ships (``experiments/learned_witness``)."""
    return load_witness(pathlib.Path(__file__).with_name("learned.safetensors"))


def _named(network: NnxFunction) -> dict[str, Any]:
    """The leaves, arrays or their shapes, by name and in order."""
    leaves = jax.tree_util.tree_leaves_with_path(network.variables)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
