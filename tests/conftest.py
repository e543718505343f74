"""Strict JAX settings for every test: virtual CPU devices for those that ask for them, no silent rank promotion."""

import os

from tests import QUICK_TO_COMPILE

os.environ["XLA_FLAGS"] = " ".join(  # of two that contradict each other the last one counts
    [QUICK_TO_COMPILE, os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=4"]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from cryowgen_jax import platform

jax.config.update("jax_numpy_rank_promotion", "warn")

LONGEST = ("test_experiments", "test_benchmarks")
SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: at the end no worker of several is left alone with one of them."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def _one_device() -> Iterator[None]:
    """Chains stay on one device unless a test names more: every device compiles every program anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        yield


@pytest.fixture(autouse=True)
def _optimised(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests marked ``computes`` compile the library's programs to run as fast as users'; a level more only compiles."""
    if request.node.get_closest_marker("computes"):
        options = platform.compiler_options() | {"xla_backend_optimization_level": 2}
        monkeypatch.setattr(platform, "compiler_options", lambda: options)


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
