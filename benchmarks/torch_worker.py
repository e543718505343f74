"""PyTorch's side of ``step_cost.py``: the same networks, timed on request in a process of its own, without JAX.

    python torch_worker.py NETWORK SIZE CHAINS

For every line "gradient N" or "step N" on standard input it answers with wall and processor seconds of N gradients or
Langevin steps (posterior gradient, noise, running mean and variance) of all chains, in the faster of PyTorch's two
memory layouts. Answers "no torch" where PyTorch is not installed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any


def ridge(torch: Any, volumes: Any, kernels: list[Any]) -> Any:
    level, energy = volumes, 0.0
    for i, kernel in enumerate(kernels):
        level = level if i == 0 else torch.nn.functional.avg_pool3d(level, 2) * 8**0.5
        response = torch.nn.functional.conv3d(level, kernel, padding=2)
        for sign, width in ((-1.0, 0.5), (0.1, 1.0)):
            energy = energy + sign * width * (torch.sqrt(width**2 + response**2) - width).sum()
    return energy


def deep(torch: Any, volumes: Any, kernels: list[Any]) -> Any:
    level = volumes
    for i, kernel in enumerate(kernels):
        level = level if i == 0 else torch.nn.functional.avg_pool3d(level, 2)
        level = torch.nn.functional.silu(torch.nn.functional.conv3d(level, kernel, padding=1))
    return level.sum()


NETWORKS = {"ridge": (ridge, ((8, 1, 5), (16, 1, 5), (16, 1, 5))), "deep": (deep, ((8, 1, 3), (16, 8, 3), (16, 16, 3)))}


class Variants:
    """The two things to time, for one memory layout."""

    def __init__(self, torch: Any, network: str, size: int, chains: int, layout: Any) -> None:
        function, shapes = NETWORKS[network]
        kernels = [(torch.randn(o, i, k, k, k) / (i * k**3) ** 0.5).to(memory_format=layout) for o, i, k in shapes]
        self.torch, self.witness = torch, lambda z: function(torch, z, kernels)
        self.start = torch.randn(chains, 1, size, size, size).to(memory_format=layout)
        frequency = torch.fft.fftfreq(size)
        outside = frequency.abs()[:, None, None] * 3**-0.5 > torch.fft.rfftfreq(size)[None, None, :]
        self.mask = (~outside).float().expand(size, size, size // 2 + 1)
        self.observation = torch.randn(size, size, size)

    def exponent(self, position: Any) -> Any:
        """Log-density summed over the chains."""
        fft = self.torch.fft
        spectrum = self.mask * fft.rfftn(position, dim=(2, 3, 4), norm="ortho")
        misfit = self.observation - fft.irfftn(spectrum, s=position.shape[2:], dim=(2, 3, 4), norm="ortho")
        return self.witness(position) - 5.0 * (misfit**2).sum() - 0.5 * (position**2).sum()

    def gradient(self, repeats: int) -> None:
        """Gradients of the witness alone."""
        for _ in range(repeats):
            self._gradient(self.witness, self.start)

    def step(self, repeats: int) -> None:
        """Langevin steps with running mean and variance."""
        torch, position, eta = self.torch, self.start, 1e-3
        mean, squares = torch.zeros_like(position), torch.zeros_like(position)
        for count in range(1, repeats + 1):
            slope = self._gradient(self.exponent, position)
            with torch.no_grad():
                position = position + eta * slope + (2 * eta) ** 0.5 * torch.randn_like(position)
                difference = position - mean
                mean += difference / count
                squares += difference * (position - mean)

    def _gradient(self, function: Callable[[Any], Any], position: Any) -> Any:
        position = position.detach().requires_grad_()
        return self.torch.autograd.grad(function(position), position)[0]


def seconds(function: Callable[[int], None], repeats: int) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    function(repeats)
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    try:
        import torch
    except ImportError:
        print("no torch", flush=True)
        return
    network, size, chains = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    found = []
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        variants = Variants(torch, network, size, chains, layout)
        variants.step(1)
        found.append((min(seconds(variants.step, 1)[1] for _ in range(3)), layout, variants))
    _, layout, variants = min(found, key=lambda row: row[0])
    print(f"PyTorch {torch.__version__}, {layout}", flush=True)
    for line in sys.stdin:
        name, repeats = line.split()
        print(*seconds(getattr(variants, name), int(repeats)), flush=True)


if __name__ == "__main__":
    main()
