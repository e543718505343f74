"""What one Langevin step costs, next to the bare gradient, BlackJAX, plain Flax and PyTorch.

    python benchmarks/step_cost.py [--one-core] [--torch-python PATH] [--network ridge deep] [--quick]

The driver's step is everything that ``cg.sample(sampler="langevin")`` does per step: posterior gradient (witness,
missing wedge, tether), noise, running mean and variance, records for the diagnostics, kept draws. All variants run in
turn, round after round. A cell is the median over the rounds of milliseconds per step and chain; a ratio is the median
of the ratios within a round, with the smallest and the largest. "cpu" is processor time of all threads, which other
programs on the machine disturb little; "wall" is what the clock says.

Two networks, 1 channel in, the grid halved twice: "ridge" is the library's ``ConvWitness`` (5^3 filters, 8, 16 and 16
of them), "deep" has layers of 3^3 filters 1 -> 8 -> 16 -> 16 with SiLU. PyTorch runs in a process of its own, in turn
with the others; ``--torch-python`` names an interpreter that has it.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import statistics
import subprocess
import sys
from typing import NamedTuple

import timing

WORKER = pathlib.Path(__file__).with_name("torch_worker.py")
Times = dict[str, list[timing.Seconds]]  # label -> milliseconds per step and chain, one per round


class Comparison(NamedTuple):
    """A row of the table: ``over`` divided by ``under``, and what is asked of it with new and with old JAX.

    New is 0.11 on, which hands convolutions to oneDNN on x86 CPUs. The row is met where the ratio is at most, or at
    least, the goal.
    """

    label: str
    over: str
    under: str
    sense: str = ""
    new: float = 0.0
    old: float = 0.0

    def verdict(self, ratio: float, version: tuple[int, ...]) -> str:
        """The goal and whether it is met."""
        if not self.sense:
            return ""
        goal = self.new if version >= (0, 11) else self.old
        met = ratio <= goal if self.sense == "at most" else ratio >= goal
        return f"{self.sense} {goal:g}: {'met' if met else 'NOT met'}"


COMPARISONS = (
    Comparison("driver / (value_and_grad + normal)", "driver", "value_and_grad", "at most", 1.10, 1.10),
    Comparison("the same, chains one by one", "driver", "value_and_grad, one by one"),
    Comparison("driver / (grad + normal), one by one", "driver", "grad, one by one"),
    Comparison("driver / blackjax.sgld", "driver", "sgld"),
    Comparison("plain Flax / witness, gradients", "plain Flax", "witness", "at least", 10.0, 5.0),
    Comparison("PyTorch / witness, gradients", "torch gradient", "witness", "at least", 2.0, 1.0),
    Comparison("PyTorch / driver, steps", "torch step", "driver", "at least", 2.0, 1.0),
)


class TorchProcess:
    """PyTorch's worker for one network; ``found`` says whether there is a PyTorch."""

    def __init__(self, python: str, network: str, size: int, chains: int) -> None:
        command = [python, str(WORKER), network, str(size), str(chains)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.greeting = self.process.stdout.readline().strip()
        self.found = self.greeting.startswith("PyTorch")

    def time(self, name: str, repeats: int) -> timing.Seconds:
        """Seconds of ``repeats`` gradients or steps of all chains."""
        self.process.stdin.write(f"{name} {repeats}\n")
        self.process.stdin.flush()
        return timing.Seconds(*map(float, self.process.stdout.readline().split()))

    def close(self) -> None:
        """End the worker."""
        self.process.communicate()


def measure(network: str, arguments: argparse.Namespace) -> Times:
    """All variants of a network, in turn, after one call each to compile."""
    from step_variants import build  # JAX counts its cores when it starts, so after --one-core has been obeyed

    variants = build(network, arguments.size, arguments.chains, arguments.steps, arguments.plain_steps)
    for variant in variants.values():
        variant.time()
    torch = TorchProcess(arguments.torch_python, network, arguments.size, arguments.chains)
    print(torch.greeting if torch.found else "PyTorch is not installed: its rows are left out (--torch-python PATH)")
    runs = {label: (variant.time, variant.steps) for label, variant in variants.items()}
    if torch.found:
        repeats = max(2, arguments.steps // 4)
        for name in ("gradient", "step"):
            runs[f"torch {name}"] = (functools.partial(torch.time, name, repeats), repeats)
    times: Times = {label: [] for label in runs}
    for turn in range(arguments.rounds):
        for label in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            run, steps = runs[label]
            times[label].append(timing.Seconds(*(1e3 * s / steps / arguments.chains for s in run())))
    torch.close()
    return times


def print_table(network: str, times: Times, version: tuple[int, ...]) -> None:
    print(f"\n{network:38s} {'cpu ms':>9s} {'wall ms':>9s}   per step and chain")
    for label, rows in times.items():
        wall, processor = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"  {label:36s} {processor:9.3f} {wall:9.3f}")
    print(f"{'':38s} {'cpu ratio':>22s} {'wall ratio':>22s}   goal (cpu)")
    for row in COMPARISONS:
        if row.over in times and row.under in times:
            ratios = [[o[i] / u[i] for o, u in zip(times[row.over], times[row.under], strict=True)] for i in (1, 0)]
            cells = " ".join(f"{statistics.median(r):8.2f} ({min(r):5.2f}..{max(r):5.2f})" for r in ratios)
            print(f"  {row.label:36s} {cells}   {row.verdict(statistics.median(ratios[0]), version)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one-core", action="store_true", help="pin this process and PyTorch's to one core")
    parser.add_argument("--torch-python", default=sys.executable, help="Python with PyTorch (this one)")
    parser.add_argument("--network", nargs="+", choices=("ridge", "deep"), default=["ridge", "deep"])
    parser.add_argument("--size", type=int, default=32, help="edge of the volumes (32)")
    parser.add_argument("--chains", type=int, default=8, help="chains (8)")
    parser.add_argument("--steps", type=int, default=16, help="steps per timed run, a multiple of 4 (16)")
    parser.add_argument("--plain-steps", type=int, default=1, help="likewise for plain Flax (1)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each variant is timed (5)")
    parser.add_argument("--quick", action="store_true", help="a small run that only shows that all works")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.chains, arguments.steps, arguments.rounds = 16, 2, 4, 2
        arguments.network = ["ridge"]
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import jax

    cores = len(os.sched_getaffinity(0))
    print(f"JAX {jax.__version__}, {jax.default_backend()}, {cores} core(s), {arguments.chains} x {arguments.size}^3")
    version = tuple(int(part) for part in jax.__version__.split(".")[:2])
    tables = {network: measure(network, arguments) for network in arguments.network}
    for network, times in tables.items():
        print_table(network, times, version)


if __name__ == "__main__":
    main()
