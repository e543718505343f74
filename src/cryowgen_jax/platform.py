"""The one place that chooses per platform and JAX version."""

from __future__ import annotations

import jax

_JAX_VERSION = tuple(int(part) for part in jax.__version__.split(".")[:2])


def compiler_options() -> dict[str, bool]:
    """Options for every ``jax.jit`` around a convolution or a chain.

    On x86 CPUs JAX >= 0.11 hands convolutions to oneDNN when asked to, which is 10 to 35 times faster than the
    convolution that XLA writes itself. Empty elsewhere.
    """
    return {"xla_cpu_experimental_onednn_custom_call": True} if native_convolution_is_fast() and on_cpu() else {}


def on_cpu() -> bool:
    """Whether the default backend is a CPU."""
    return jax.default_backend() == "cpu"


def native_convolution_is_fast() -> bool:
    """Whether XLA's own 3-D convolution reaches a good library here (accelerators, and CPUs from JAX 0.11 on)."""
    return not on_cpu() or _JAX_VERSION >= (0, 11)
