"""How fast the 3-D convolution and the witness are, next to plain Flax (and PyTorch).

    python benchmarks/convolution.py [--torch] [--only witness] [--size 32] [--chains 8] [--repeats 3] [--wall]

Each cell is the median time of one step of a ``lax.scan``, in milliseconds for all chains together: processor time on
CPUs, which other programs on the machine disturb little, wall time on accelerators or with ``--wall``. "gradient" is
the forward pass and the input gradient of half the squared output, the shape of a Langevin step. "ratio" compares the
gradient with the form that the library chooses. Pin to one core with ``taskset -c 0`` for steady numbers.
"plain" is ``flax.linen.Conv`` as it comes; "chosen" is the library.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import lax

from cryowgen_jax import platform
from cryowgen_jax.models import ConvWitness, convolve3, from_nnx
from cryowgen_jax.models.convolution import halve

Function = Callable[..., Any]
STEPS = 2


def median_ms(run: Callable[[], Any], arguments: argparse.Namespace) -> float:
    clock = time.perf_counter if arguments.wall or not platform.on_cpu() else time.process_time
    run()
    times = []
    for _ in range(arguments.repeats):
        start = clock()
        run()
        times.append(clock() - start)
    return 1e3 * statistics.median(times)


def scan_ms(
    step: Function, chains: jax.Array, weights: Any, options: dict[str, bool], arguments: argparse.Namespace
) -> float:
    """Milliseconds per step of a compiled scan; ``step(chains, weights)`` moves the chains a little."""

    def run(chains: jax.Array, weights: Any) -> jax.Array:
        return lax.scan(lambda state, _: (step(state, weights), None), chains, None, length=STEPS)[0]

    traced = platform.compiled_with_options(run) if options else run
    compiled = jax.jit(traced).lower(chains, weights).compile(compiler_options=options)
    return median_ms(lambda: jax.block_until_ready(compiled(chains, weights)), arguments) / STEPS


def layer_steps(layer: Function) -> tuple[Function, Function]:
    """A forward step and a gradient step of a layer (chains, kernel) -> features."""

    def forward(chains: jax.Array, kernel: jax.Array) -> jax.Array:
        return chains + 1e-6 * layer(chains, kernel).mean(-1, keepdims=True)

    def gradient(chains: jax.Array, kernel: jax.Array) -> jax.Array:
        return chains - 1e-6 * jax.grad(lambda x: 0.5 * jnp.sum(layer(x, kernel) ** 2))(chains)

    return forward, gradient


def plain_layer(chains: jax.Array, kernel: jax.Array) -> jax.Array:
    """What ``flax.linen.Conv`` does by default, channels last and the gradient that JAX derives."""
    size, channels = kernel.shape[:3], kernel.shape[-1]
    return linen.Conv(channels, size, use_bias=False).apply({"params": {"kernel": kernel}}, chains)


def library_layer(form: platform.ConvolutionForm | None) -> Function:
    return jax.vmap(functools.partial(convolve3, form=form), in_axes=(0, None))


def plain_witness(chains: jax.Array, module: ConvWitness) -> jax.Array:
    """The energies of ``ConvWitness`` written with ``flax.linen.Conv`` and reshapes."""
    convex, concave = module._divisors()
    level, energy = chains[..., None], 0.0
    for i, scale in enumerate(module.scales):
        level = level if i == 0 else jax.vmap(halve)(level) * 8**0.5
        response = plain_layer(level, scale.kernel[...][:, :, :, None])
        for sign, divisor, weight, raw_width, offset in (
            (module.curvature, convex, scale.convex_weight, scale.convex_width, scale.convex_offset),
            (-module.concavity, concave, scale.concave_weight, scale.concave_width, scale.concave_offset),
        ):
            width = 1e-3 + jax.nn.softplus(raw_width[...])
            rise = jnp.sqrt(width**2 + (response - offset[...]) ** 2) - jnp.sqrt(width**2 + offset[...] ** 2)
            energy += sign / divisor * jnp.sum(jax.nn.softplus(weight[...]) * width * rise, (1, 2, 3, 4))
    return -energy


def compare_layers(arguments: argparse.Namespace, torch_rows: dict[str, tuple[float, float]]) -> None:
    n, chains = arguments.size, arguments.chains
    settings = [{}] + [platform.compiler_options()] * bool(platform.compiler_options())
    for inputs, outputs in ((1, 8), (8, 8), (16, 16)):
        volumes = jax.random.normal(jax.random.key(0), (chains, n, n, n, inputs))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, inputs, outputs)) / (27 * inputs) ** 0.5
        rows: list[tuple[str, str, float, float]] = []
        for options in settings:
            forms = {"plain": plain_layer, "stacked": library_layer("stacked"), "native": library_layer("native")}
            if not options:
                del forms["native"]
            forms["chosen"] = library_layer(None)
            for name, layer in forms.items():
                forward, gradient = (scan_ms(step, volumes, kernel, options, arguments) for step in layer_steps(layer))
                rows.append((name, "oneDNN" if options else "none", forward, gradient))
        label = f"{inputs} -> {outputs}"
        if label in torch_rows:
            rows.append(("PyTorch", "", *torch_rows[label]))
        print_rows(label, rows)


def compare_witnesses(arguments: argparse.Namespace, torch_rows: dict[str, tuple[float, float]]) -> None:
    n, chains = arguments.size, arguments.chains
    module = ConvWitness(rngs=nnx.Rngs(0))
    function = from_nnx(module)
    volumes = jax.random.normal(jax.random.key(0), (chains, n, n, n))

    def step_of(energies: Function) -> tuple[Function, Function]:
        def forward(state: jax.Array, weights: Any) -> jax.Array:
            return state + 1e-9 * energies(state, weights)[:, None, None, None]

        def gradient(state: jax.Array, weights: Any) -> jax.Array:
            value, slope = jax.value_and_grad(lambda z: jnp.sum(energies(z, weights)))(state)
            return state + 1e-3 * slope + 1e-9 * value

        return forward, gradient

    ours = step_of(lambda z, w: jax.vmap(w)(z))
    plain = step_of(lambda z, w: plain_witness(z, nnx.merge(w.structure, w.variables)))
    rows: list[tuple[str, str, float, float]] = []
    for options in [{}] + [platform.compiler_options()] * bool(platform.compiler_options()):
        for name, steps in (("plain", plain), ("chosen", ours)):
            forward, gradient = (scan_ms(s, volumes, function, options, arguments) for s in steps)
            rows.append((name, "oneDNN" if options else "none", forward, gradient))
    if "witness" in torch_rows:
        rows.append(("PyTorch", "", *torch_rows["witness"]))
    print_rows("witness", rows)


def print_rows(label: str, rows: list[tuple[str, str, float, float]]) -> None:
    """The last row called "chosen" is what the library uses here: ratios are to it."""
    reference = [row for row in rows if row[0] == "chosen"][-1][3]
    for name, options, forward, gradient in rows:
        print(f"{label:10s} {name:10s} {options:8s} {forward:9.1f} {gradient:10.1f} {gradient / reference:8.1f}x")


def torch_times(arguments: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """PyTorch on the same shapes, the faster of its two memory layouts; empty where it is not installed."""
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed: its rows are left out")
        return {}
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    n, chains = arguments.size, arguments.chains
    rows = {}
    layouts = (torch.contiguous_format, torch.channels_last_3d)

    def timed(function: Function, volumes: Any) -> tuple[float, float]:
        def forward() -> None:
            with torch.no_grad():
                function(volumes)

        def gradient() -> None:
            torch.autograd.grad(function(volumes.requires_grad_()), volumes)

        return median_ms(forward, arguments), median_ms(gradient, arguments)

    def layer(volumes: Any, kernel: Any) -> Any:
        return 0.5 * (torch.nn.functional.conv3d(volumes, kernel, padding=1) ** 2).sum()

    def witness(volumes: Any, kernels: list[Any]) -> Any:
        level, energy = volumes, 0.0
        for i, kernel in enumerate(kernels):
            level = level if i == 0 else torch.nn.functional.avg_pool3d(level, 2) * 8**0.5
            response = torch.nn.functional.conv3d(level, kernel, padding=2)
            for sign, width in ((1.0, 0.5), (-0.1, 1.0)):
                energy = energy + sign * width * (torch.sqrt(width**2 + response**2) - width).sum()
        return energy

    for inputs, outputs in ((1, 8), (8, 8), (16, 16)):
        results = []
        for layout in layouts:
            volumes = torch.randn(chains, inputs, n, n, n).to(memory_format=layout)
            kernel = torch.randn(outputs, inputs, 3, 3, 3).to(memory_format=layout)
            results.append(timed(functools.partial(layer, kernel=kernel), volumes))
        rows[f"{inputs} -> {outputs}"] = min(results, key=lambda row: row[1])
    results = []
    for layout in layouts:
        kernels = [torch.randn(c, 1, 5, 5, 5).to(memory_format=layout) for c in (8, 16, 16)]
        volumes = torch.randn(chains, 1, n, n, n).to(memory_format=layout)
        results.append(timed(functools.partial(witness, kernels=kernels), volumes))
    rows["witness"] = min(results, key=lambda row: row[1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", action="store_true", help="add rows for PyTorch where it is installed")
    parser.add_argument("--size", type=int, default=32, help="edge of the volumes (32)")
    parser.add_argument("--chains", type=int, default=8, help="volumes at a time (8)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs per cell (3)")
    parser.add_argument("--wall", action="store_true", help="wall time instead of processor time")
    parser.add_argument("--only", choices=("layers", "witness"), help="one half of the table")
    arguments = parser.parse_args()
    print(f"JAX {jax.__version__}, {jax.default_backend()}, {arguments.chains} x {arguments.size}^3, float32")
    torch_rows = torch_times(arguments) if arguments.torch else {}
    print(f"{'layer':10s} {'form':10s} {'options':8s} {'forward':>9s} {'gradient':>10s} {'ratio':>9s}")
    if arguments.only != "witness":
        compare_layers(arguments, torch_rows)
    if arguments.only != "layers":
        compare_witnesses(arguments, torch_rows)


if __name__ == "__main__":
    main()
