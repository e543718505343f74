"""Strict JAX settings for every test: four virtual CPU devices, no silent rank promotion."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pathlib

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "warn")

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def shared_data() -> pathlib.Path:
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED / "data"


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(20261123)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261123)
