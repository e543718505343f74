"""The one place that chooses per platform and JAX version: compiler options, forms of convolution, and batching.

XLA's own 3-D convolution for CPUs is 10 to 35 times slower than the hardware allows. JAX >= 0.11 on x86 can hand it to
oneDNN, but only in programs that are compiled with :func:`compiler_options`. Everywhere else on the CPU the 2-D
convolution over stacked depth taps is the fast form. What cannot be seen from inside a function is whether the program
around it will be compiled with the options, so whoever compiles with them says so with :func:`compiled_with_options`.
"""

from __future__ import annotations

import contextvars
import functools
import os
import pathlib
import platform as machine
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp

ConvolutionForm = Literal["native", "stacked"]
Function = TypeVar("Function", bound=Callable[..., Any])

CPU_ELEMENTS = 512  # of one item, that fill a CPU's vector units: more gain nothing from being batched

_ONEDNN = "xla_cpu_experimental_onednn_custom_call"
_JAX_VERSION = tuple(int(part) for part in jax.__version__.split(".")[:2])
_options_in_force: contextvars.ContextVar[bool] = contextvars.ContextVar("options_in_force", default=False)


def on_cpu() -> bool:
    """Whether the default backend is a CPU."""
    return jax.default_backend() == "cpu"


def native_convolution_is_fast() -> bool:
    """Whether XLA's own 3-D convolution can reach a good library here.

    True on accelerators, and on x86 CPUs from JAX 0.11 on for programs compiled with :func:`compiler_options`.
    """
    return not on_cpu() or (_JAX_VERSION >= (0, 11) and machine.machine().lower() in ("x86_64", "amd64"))


def compiler_options() -> dict[str, bool]:
    """Options for every ``jax.jit`` around a convolution or a chain.

    On x86 CPUs with JAX >= 0.11 they hand convolutions to oneDNN. Empty elsewhere. JAX takes them only in the outermost
    ``jax.jit``. Wrap the jitted function in :func:`compiled_with_options`, or use :func:`jit`, which does both.
    """
    return {_ONEDNN: True} if native_convolution_is_fast() and on_cpu() else {}


def compiled_with_options(function: Function) -> Function:
    """The same function, which promises while it runs or is traced that :func:`compiler_options` are in force.

    Without the promise the convolutions inside are traced in the stacked form, which needs no options and costs about
    twice as much on CPUs where the options exist. A false promise costs a factor of ten there. It never changes a
    result beyond rounding.
    """

    @functools.wraps(function)
    def promised(*args: Any) -> Any:
        token = _options_in_force.set(True)
        try:
            return function(*args)
        finally:
            _options_in_force.reset(token)

    return promised  # type: ignore[return-value]


def jit(function: Function) -> Function:
    """``jax.jit`` with :func:`compiler_options` and the promise; inside another ``jax.jit`` it steps aside.

    Positional arguments only.
    """
    compiled = jax.jit(compiled_with_options(function), compiler_options=compiler_options())

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args) if _inside_a_jit() else compiled(*args)

    return call  # type: ignore[return-value]


def convolution_form() -> ConvolutionForm:
    """The fast form of a 3-D convolution for the program that is being traced."""
    if not on_cpu():
        return "native"
    in_force = _options_in_force.get() or f"{_ONEDNN}=true" in os.environ.get("XLA_FLAGS", "").lower()
    return "native" if in_force and native_convolution_is_fast() else "stacked"


@functools.cache
def _multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 (AMX, from Sapphire Rapids on), as Linux says."""
    try:
        return "amx_bf16" in pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def half_is_fast() -> bool:
    """Whether convolutions of bfloat16 are faster here, in the program that is being traced: eight times with AMX."""
    return not on_cpu() or (convolution_form() == "native" and _multiplies_bfloat16())


def map_items(function: Callable[[Any], Any], items: Any) -> Any:
    """``function`` of every item of a batch (leading axis): one by one where one item fills a CPU, else vectorised."""
    return jax.lax.map(function, items) if one_by_one(function, items) else jax.vmap(function)(items)


def one_by_one(function: Callable[[Any], Any], items: Any) -> bool:
    """Whether one item, or what is made of it, fills a CPU's vector units and caches."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), items)
    sizes = [leaf.size for leaf in jax.tree.leaves((one, jax.eval_shape(function, one)))]
    return on_cpu() and max(sizes) > CPU_ELEMENTS


def _inside_a_jit() -> bool:
    """Whether a trace is under way that turns even constants into tracers (jit and scan do, grad and vmap do not)."""
    return isinstance(jnp.zeros(()), jax.core.Tracer)
