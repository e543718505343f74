"""The choices per platform and JAX version, and the promise that compiler options are in force."""

import jax
import jax.numpy as jnp
import pytest

from cryowgen_jax import platform


@pytest.fixture
def new_x86(monkeypatch):
    monkeypatch.setattr(platform, "_JAX_VERSION", (0, 12))
    monkeypatch.setattr(platform.machine, "machine", lambda: "x86_64")
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def test_native_only_where_the_options_are_promised(new_x86):
    seen = []
    platform.compiled_with_options(lambda: seen.append(platform.convolution_form()))()
    assert seen == ["native"]
    assert platform.convolution_form() == "stacked"


def test_promise_ends_with_an_exception(new_x86):
    with pytest.raises(ZeroDivisionError):
        platform.compiled_with_options(lambda: 1 / 0)()
    assert platform.convolution_form() == "stacked"


def test_flag_in_the_environment_counts_as_a_promise(new_x86, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_onednn_custom_call=true")
    assert platform.convolution_form() == "native"


@pytest.mark.parametrize(("version", "processor"), [((0, 10), "x86_64"), ((0, 12), "aarch64")])
def test_stacked_where_there_is_no_library(monkeypatch, version, processor):
    monkeypatch.setattr(platform, "_JAX_VERSION", version)
    monkeypatch.setattr(platform.machine, "machine", lambda: processor)
    assert platform.compiler_options() == {}
    assert platform.compiled_with_options(platform.convolution_form)() == "stacked"


def test_native_on_accelerators(monkeypatch):
    monkeypatch.setattr(platform, "on_cpu", lambda: False)
    assert platform.convolution_form() == "native"
    assert platform.compiler_options() == {}


def test_jit_traces_once_and_works_inside_other_transformations():
    traces = []

    @platform.jit
    def square(x):
        traces.append(x)
        return x * x

    assert float(square(jnp.float32(3))) == float(square(jnp.float32(3))) == 9
    assert len(traces) == 1
    assert float(jax.grad(square)(jnp.float32(3))) == 6
    assert float(jax.jit(square)(jnp.float32(3))) == 9
    assert jax.vmap(square)(jnp.arange(3.0)).tolist() == [0, 1, 4]
    total, _ = jax.lax.scan(lambda c, _: (c + square(jnp.float32(2)), None), jnp.float32(0), None, length=3)
    assert float(total) == 12
