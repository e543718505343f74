"""Effective samples per gradient and per second: this library's samplers next to BlackJAX's, numpyro's and PyTorch.

    python benchmarks/samplers.py [--one-core] [--samplers auto sgld nuts ...] [--torch-python PATH] [--independence]
                                    [--quick]

One posterior for all: a volume behind a missing wedge (tilts +-60 degrees), lambda / beta = ``--ratio``, and a smooth
witness with curvature within -0.5 and 10 beta. All start from the same exact draws of the Gaussian part. Nothing of
the warm-up is counted but in the column of that name. Gradients are those of the exponent: all leapfrog steps of NUTS,
two for a step of MCLMC.

Columns: draws (chains x records); gradients in warm-up and after; effective samples of the slowest Fourier shell,
chains pooled (wedge and measured region apart, of a linear functional and of the energy of each); largest split R-hat;
effective samples per 1000 gradients and per processor second; milliseconds of a processor per gradient, all else that a
step does included. A number behind "<" is an upper bound: with R-hat above 1.2 the chains have not even mixed once, and
the estimate of the effective sample size, which is never far below the number of chains, says more about the length of
the run than about the sampler.

Bias: variance per shell against a long run of the adjusted ``kinetic``, in per cent: root mean square over the shells
of the wedge and of the measured region, weighted by their coefficients, and the same of the Monte-Carlo error that both
runs have there ("+-", meaningless for runs with "<"). The variance is about the long run's mean, so that a mean that is
off counts as well.

The last table is the cost of a step of ``kinetic`` next to its ingredients, chains one by one, median of the rounds,
processor time. ``--independence`` prints instead how the gradients per effective sample of "auto" change with
lambda / beta and with the size of the volume.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sampler_peers as peers
import targets
import timing

import cryowgen_jax as cg
from cryowgen_jax import platform, potentials, samplers
from cryowgen_jax.chains import diagnostics
from cryowgen_jax.chains.assembly import Assembly, assemble
from cryowgen_jax.chains.summaries import ShellSummary
from cryowgen_jax.spatial import fourier

OURS = ("auto", "kinetic", "pcnl", "preconditioned")
OTHERS = ("sgld", "mala", "nuts", "mclmc", "numpyro nuts")
TORCH = "PyTorch ULA"
MIXED = 1.2  # largest R-hat at which an effective sample size is believed
FRACTION = 0.5  # of the stability limit, for sgld
RECORDS = 512  # as many as cg.sample keeps of a chain
GOALS = {"others": 10.0, "sgld": 300.0, "bias": 2.0, "step": 1.3, "independence": 1.3}


class Reference(NamedTuple):
    """A long run's mean spectrum, variance per shell, standard errors relative to it, and coefficients per shell."""

    mean: jax.Array
    variance: np.ndarray
    errors: np.ndarray
    freedom: np.ndarray


class Row(NamedTuple):
    """One line of the table."""

    name: str
    draws: str
    warmup: int
    gradients: int
    ess: float
    r_hat: float
    milliseconds: float
    bias: tuple[float, float]
    error: tuple[float, float]
    label: str

    @property
    def mixed(self) -> bool:
        """Whether the effective sample size is an estimate and not an upper bound."""
        return self.r_hat <= MIXED

    @property
    def per_gradient(self) -> float:
        """Effective samples per gradient."""
        return self.ess / self.gradients

    @property
    def per_second(self) -> float:
        """Effective samples per processor second."""
        return 1e3 * self.per_gradient / self.milliseconds


def make_target(witness: str, size: int, ratio: float) -> tuple[peers.Target, Assembly]:
    posterior = targets.posterior(targets.smooth_witness(witness), size, ratio)
    assembly = assemble(jax.random.key(0), posterior, "kinetic", None)
    _, high = posterior.witness.curvature_bounds()
    stiffest = posterior.data_weight + posterior.prior_precision + high
    return peers.Target(posterior, assembly.summary, stiffest), assembly


def ours(name: str, target: peers.Target, key: jax.Array, starts: jax.Array, steps: int, warmup: int) -> peers.Outcome:
    """``cg.sample``, timed between its reports after the first and after the last chunk of sampling."""
    times: list[tuple[int, timing.Seconds]] = []

    def report(progress: Any) -> None:
        if progress.phase == "sampling":
            times.append((progress.step, timing.now()))

    chains = starts.shape[0]
    result = cg.sample(
        key,
        target.posterior,
        sampler=name,
        num_chains=chains,
        num_steps=steps,
        warmup=warmup,
        num_kept=1,
        init=starts,
        devices=jax.local_devices()[:1],
        progress=report,
    )
    if result.status != "ok":
        raise SystemExit(f"{name}: {result.status}")
    per_step = result.num_gradients // (chains * (steps + warmup))
    (first, begin), (last, end) = times[0], times[-1]
    seconds = timing.since(begin, end).processor / ((last - first) * chains * per_step)
    records = result.records[..., : summaries(target.summary)]
    gradients = chains * steps * per_step
    label = f"{result.sampler}, step {float(result.step_size):.3g}, acceptance {float(result.acceptance):.2f}"
    return peers.Outcome(records, result.mean, result.num_gradients - gradients, gradients, seconds, label)


def theirs(name: str, target: peers.Target, key: jax.Array, starts: jax.Array, steps: int) -> peers.Outcome | None:
    """A peer, with about ``steps`` gradients a chain after warm-up; NUTS up to twice as many, and more in warm-up."""
    stride = max(1, steps // RECORDS)
    if "nuts" in name:
        draws = max(peers.CHUNKS, steps // 128 // peers.CHUNKS * peers.CHUNKS)
        lengths = peers.Lengths(max(20, min(400, steps // 8)), 1, draws, 1)
    elif name == "mclmc":
        lengths = peers.Lengths(steps // 4, steps // 8, steps // stride, max(1, stride // 2))
    else:
        lengths = peers.Lengths(steps // 8, steps // 8, steps // stride, stride)
    make = {"sgld": functools.partial(peers.sgld, FRACTION), "mala": peers.mala, "nuts": peers.nuts}
    make |= {"mclmc": peers.mclmc, "numpyro nuts": functools.partial(peers.numpyro_nuts, target, lengths.tuning)}
    peer = make[name]()
    return None if peer is None else peers.run(peer, target, key, starts, lengths)


def summaries(summary: ShellSummary) -> int:
    return summary.size * summary.kinds


def shell_variances(
    outcome: peers.Outcome, summary: ShellSummary, freedom: np.ndarray, about: jax.Array
) -> tuple[np.ndarray, np.ndarray]:
    """Mean square per coefficient about ``about``, by shell, and its relative standard error.

    The records hold it about the summary's reference; the run's mean shifts it.
    """
    energies = np.asarray(outcome.records[..., summary.size :], float)
    mean = np.asarray(fourier.rfftn(outcome.mean) - summary.reference, complex)
    shift = np.asarray(about - summary.reference, complex)
    weight = np.broadcast_to(fourier.multiplicity(outcome.mean.shape), mean.shape)
    change = by_shell(weight * (np.abs(shift) ** 2 - 2 * np.real(mean * np.conj(shift))), summary)
    ess = np.asarray(diagnostics.effective_sample_size(outcome.records[..., summary.size :]), float)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (energies.mean((0, 1)) + change) / freedom
        return variance, energies.std((0, 1)) / np.sqrt(ess) / (variance * freedom)


def by_shell(values: np.ndarray, summary: ShellSummary) -> np.ndarray:
    return np.bincount(np.asarray(summary.label).ravel(), values.ravel(), minlength=summary.size)


def long_run(outcome: peers.Outcome, summary: ShellSummary) -> Reference:
    mean = fourier.rfftn(outcome.mean)
    weight = np.broadcast_to(fourier.multiplicity(outcome.mean.shape), mean.shape)
    freedom = by_shell(weight, summary)
    return Reference(mean, *shell_variances(outcome, summary, freedom, mean), freedom)


def row(name: str, outcome: peers.Outcome, summary: ShellSummary, reference: Reference) -> Row:
    ess, r_hat = worst(outcome.records)
    variance, errors = shell_variances(outcome, summary, reference.freedom, reference.mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        bias = np.square(variance / reference.variance - 1)
    noise = np.square(errors) + np.square(reference.errors)
    halves = (slice(0, summary.num_shells), slice(summary.num_shells, None))  # the wedge comes first
    bias, noise = (tuple(percent(x[half], reference.freedom[half]) for half in halves) for x in (bias, noise))
    draws = f"{outcome.records.shape[0]} x {outcome.records.shape[1]}"
    milliseconds = 1e3 * outcome.seconds_per_gradient
    counts = (outcome.warmup_gradients, outcome.gradients)
    return Row(name, draws, *counts, ess, r_hat, milliseconds, bias, noise, outcome.label)


def percent(squares: np.ndarray, weights: np.ndarray) -> float:
    """Root of the weighted mean over the shells that have coefficients."""
    there = weights > 0
    return 100 * float(np.sqrt(np.average(squares[there], weights=weights[there])))


def worst(records: jax.Array) -> tuple[float, float]:
    """Smallest effective sample size and largest R-hat."""
    ess = jnp.nanmin(diagnostics.effective_sample_size(records))
    return float(ess), float(jnp.nanmax(diagnostics.split_r_hat(records)))


def compare(arguments: argparse.Namespace) -> tuple[list[Row], Reference]:
    target, assembly = make_target(arguments.witness, arguments.size, arguments.ratio)
    low, high = (float(x) for x in target.posterior.witness.curvature_bounds())
    print(f"curvature of the witness between {low:.2f} and {high:.2f} beta", flush=True)
    starts = jax.lax.map(assembly.start, jax.random.split(jax.random.key(1), arguments.chains))
    key, steps, warmup = jax.random.key(2), arguments.steps, arguments.warmup
    outcome = ours("kinetic", target, jax.random.fold_in(key, 0), starts, arguments.reference, warmup)
    reference = long_run(outcome, target.summary)
    if not worst(outcome.records)[1] <= MIXED:
        print("the long run has not mixed: do not rely on the columns of the bias (--reference)")
    print_row(row("long run", outcome, target.summary, reference))
    rows = []
    few = starts[: max(2, arguments.chains // 2)]
    for number, name in enumerate(arguments.samplers, 1):
        here = jax.random.fold_in(key, number)
        if name in OURS:
            found = ours(name, target, here, starts, steps, warmup)
        else:
            found = theirs(name, target, here, few, arguments.long * steps)
        if found is None:
            print(f"{name}: not installed, its row is left out")
            continue
        rows.append(row(name, found, target.summary, reference))
        print_row(rows[-1])
    return rows, reference


def torch_row(arguments: argparse.Namespace, rows: list[Row]) -> Row | None:
    """PyTorch's Langevin step is sgld's, so only its time is measured, in a process of its own."""
    from step_cost import TorchProcess

    known = [r for r in rows if r.name == "sgld"]
    if not known or arguments.witness != "conv":
        return None
    torch = TorchProcess(arguments.torch_python, "ridge", arguments.size, few := max(2, arguments.chains // 2))
    print(torch.greeting if torch.found else "PyTorch is not installed: its row is left out (--torch-python PATH)")
    found = None
    if torch.found:
        repeats = 2 if arguments.quick else 16
        seconds = statistics.median(torch.time("step", repeats).processor for _ in range(3)) / repeats / few
        found = known[0]._replace(
            name=TORCH, milliseconds=1e3 * seconds, label="efficiency and bias of sgld; only its time is measured"
        )
    torch.close()
    return found


def print_row(line: Row) -> None:
    mark = " " if line.mixed else "<"
    bias = " ".join(f"{b:8.2f} +- {e:5.2f}" for b, e in zip(line.bias, line.error, strict=True))
    print(
        f"{line.name:14s} {line.draws:>10s} {line.warmup:8d} {line.gradients:9d}"
        f" {mark}{line.ess:8.1f} {line.r_hat:6.2f} {mark}{1e3 * line.per_gradient:9.3f}"
        f" {mark}{line.per_second:9.3f} {line.milliseconds:7.2f}  {bias}"
        f"  {line.label}",
        flush=True,
    )


def print_table(rows: list[Row]) -> None:
    print(
        f"\n{'':14s} {'':>10s} {'gradients':>18s} {'':>9s} {'':>6s} {'ESS per':>10s} {'ESS per':>10s} {'ms per':>7s}"
        f"  {'bias of variance, per cent':>34s}"
    )
    print(
        f"{'sampler':14s} {'draws':>10s} {'warm-up':>8s} {'counted':>9s} {'ESS':>9s} {'R-hat':>6s} {'1000 grad':>10s}"
        f" {'cpu s':>10s} {'grad':>7s}  {'wedge':>17s} {'measured':>17s}"
    )
    for line in rows:
        print_row(line)


def print_verdicts(rows: list[Row]) -> None:
    found = {line.name: line for line in rows}
    if "auto" not in found:
        return
    auto = found["auto"]
    others = [line for line in rows if line.name in OTHERS]
    print()
    if others:
        best = max(others, key=lambda line: line.per_gradient)
        verdict(f"auto / best of the others ({best.name}), per gradient", auto, best, GOALS["others"])
        fast = max((line for line in rows if line.name not in OURS), key=lambda line: line.per_second)
        ratio = auto.per_second / fast.per_second
        print(f"auto / best of the others ({fast.name}), per second: {bound(fast)}{ratio:.1f}")
    if "sgld" in found:
        verdict("auto / blackjax sgld, per gradient", auto, found["sgld"], GOALS["sgld"])
    for name in OURS:
        if name in found:
            pairs = zip(found[name].bias, found[name].error, strict=True)
            bias = max(max(0.0, b**2 - e**2) ** 0.5 for b, e in pairs)
            verdict_on_it = met(bias <= GOALS["bias"])
            print(
                f"bias of {name} less its Monte-Carlo error: {bias:.2f} %, at most {GOALS['bias']:g} %: {verdict_on_it}"
            )


def verdict(label: str, line: Row, other: Row, goal: float) -> None:
    ratio = line.per_gradient / other.per_gradient
    print(f"{label}: {bound(other)}{ratio:.1f}, at least {goal:g}: {met(ratio >= goal)}")


def bound(other: Row) -> str:
    return "" if other.mixed else "more than "


def met(condition: bool) -> str:
    return "met" if condition else "NOT met"


def step_costs(arguments: argparse.Namespace) -> None:
    """Steps of ``kinetic`` as ``cg.sample`` takes them, after it has learnt and before, next to their ingredients."""
    target, _ = make_target(arguments.witness, arguments.size, arguments.ratio)
    gaussian, remainder = potentials.split(target.posterior)
    curvature = 0.1 * gaussian.precision
    absorbed, rest = potentials.absorb(gaussian, remainder, curvature, jnp.zeros_like(gaussian.mean_spectrum))
    keys = jax.random.split(jax.random.key(3), max(2, arguments.chains // 2))
    starts = jax.lax.map(gaussian.draw, keys)
    steps, shape = (4 if arguments.quick else 8), starts.shape[1:]

    kernel = functools.partial(samplers.kinetic, step_size=0.3)

    def settled(witness: Any, gaussian: Any) -> Any:
        """States to step from, so that the gradient that starts a chain is not charged to its steps."""
        init = kernel(witness, gaussian).init
        return platform.jit(lambda z, k: jax.lax.map(lambda pair: init(*pair), (z, k)))(starts, keys)

    def kinetic(witness: Any, gaussian: Any, key: jax.Array, state: Any) -> Any:
        step = kernel(witness, gaussian).step

        def body(state: Any, i: jax.Array) -> tuple[Any, jax.Array]:
            state, info = step(jax.random.fold_in(key, i), state)
            return state, info.acceptance_rate

        return jax.lax.scan(body, state, jnp.arange(steps))

    def ingredients(with_noise: bool, witness: Any, gaussian: Any, key: jax.Array, start: jax.Array) -> Any:
        """One value and gradient, a transform to and fro, and what it takes that the compiler drops nothing."""

        def body(spectrum: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
            position = fourier.irfftn(spectrum, shape)
            value, slope = jax.value_and_grad(witness)(position)
            if with_noise:
                slope = slope + jax.random.normal(jax.random.fold_in(key, i), shape)
            return spectrum + 1e-6 * fourier.rfftn(slope), value

        return jax.lax.scan(body, fourier.rfftn(start), jnp.arange(steps))

    def program(function: Callable[..., Any], witness: Any, gaussian: Any, states: Any) -> Callable[[], timing.Seconds]:
        run = platform.jit(lambda w, g, k, z: jax.lax.map(lambda pair: function(w, g, *pair), (k, z)))
        return lambda: timing.seconds(lambda: jax.block_until_ready(run(witness, gaussian, keys, states)))

    bare = target.posterior.witness
    programs = {
        "kinetic, learnt": program(kinetic, rest, absorbed, settled(rest, absorbed)),
        "kinetic": program(kinetic, remainder, gaussian, settled(remainder, gaussian)),
        "value_and_grad + 2 transforms": program(functools.partial(ingredients, False), bare, gaussian, starts),
        "value_and_grad + 2 transforms + normal": program(functools.partial(ingredients, True), bare, gaussian, starts),
    }
    for run in programs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(2 if arguments.quick else 21):
        for name in list(programs)[:: 1 if turn % 2 == 0 else -1]:
            times[name].append(1e3 * programs[name]().processor / steps / len(keys))
    print("\nmilliseconds of a processor per step and chain")
    for name, values in times.items():
        print(f"  {name:40s} {statistics.median(values):8.3f}")
    names = list(programs)
    for over in names[:2]:
        for under in names[2:]:
            ratios = [o / u for o, u in zip(times[over], times[under], strict=True)]
            middle = statistics.median(ratios)
            spread = f"({min(ratios):.2f}..{max(ratios):.2f})"
            goal = f"at most {GOALS['step']:g}: {met(middle <= GOALS['step'])}"
            print(f"  {f'{over} / ({under})':62s} {middle:5.2f} {spread}   {goal}")


def independence(arguments: argparse.Namespace) -> None:
    """Gradients per effective sample of "auto": averaged over ``--pool`` runs, then the slowest shell."""
    small, large = (16, (16, 32, 48)) if not arguments.quick else (6, (6, 8))
    ratios = (1e4, 1e6) if arguments.quick else (1e2, 1e4, 1e6)
    places = {"lambda / beta": [(small, ratio) for ratio in ratios], "size": [(n, 1e4) for n in large]}
    known: dict[tuple[int, float], tuple[float, float, str]] = {}
    for size, ratio in dict.fromkeys(place for line in places.values() for place in line):
        target, assembly = make_target(arguments.witness, size, ratio)
        costs, times = [], []
        for seed in range(arguments.pool):
            start_key, key = jax.random.split(jax.random.key(seed))
            starts = jax.lax.map(assembly.start, jax.random.split(start_key, arguments.chains))
            found = ours("auto", target, key, starts, arguments.steps, arguments.warmup)
            costs.append(found.gradients / np.asarray(diagnostics.effective_sample_size(found.records)))
            times.append(found.seconds_per_gradient)
        known[size, ratio] = float(np.nanmax(np.mean(costs, 0))), 1e3 * min(times), found.label
        print(f"{size}^3, lambda / beta {ratio:g}: {known[size, ratio][0]:.2f} gradients, {found.label}", flush=True)
    print("\ngradients per effective sample of the slowest shell, auto")
    for what, line in places.items():
        for size, ratio in line:
            cost, milliseconds, label = known[size, ratio]
            print(f"  {size:3d}^3  {ratio:8g}  {cost:8.2f}   {milliseconds:7.2f} ms per gradient   {label}")
        costs = [known[place][0] for place in line]
        spread = max(costs) / min(costs)
        print(
            f"  over {what}: largest / smallest {spread:.2f}, at most {GOALS['independence']:g}:"
            f" {met(spread <= GOALS['independence'])}"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", nargs="+", choices=OURS + OTHERS, default=list(OURS + OTHERS), help="which (all)")
    parser.add_argument("--witness", choices=("conv", "log-cosh"), default="conv", help="smooth witness (conv)")
    parser.add_argument("--size", type=int, default=32, help="edge of the volume (32)")
    parser.add_argument("--ratio", type=float, default=1e4, help="lambda / beta (1e4)")
    parser.add_argument("--chains", type=int, default=8, help="chains of ours; half as many of the others (8)")
    parser.add_argument("--steps", type=int, default=512, help="steps of ours after warm-up (512)")
    parser.add_argument("--warmup", type=int, default=300, help="warm-up of ours (300)")
    parser.add_argument("--long", type=int, default=8, help="times as many gradients for each chain of the others (8)")
    parser.add_argument("--reference", type=int, default=2048, help="steps of the long run (2048)")
    parser.add_argument("--pool", type=int, default=2, help="runs that --independence averages over (2)")
    parser.add_argument("--one-core", action="store_true", help="pin this process and PyTorch's to one core")
    parser.add_argument("--torch-python", default=sys.executable, help="Python with PyTorch (this one)")
    parser.add_argument("--independence", action="store_true", help="only the dependence on size and lambda / beta")
    parser.add_argument("--quick", action="store_true", help="a small run that only shows that all works")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.chains, arguments.steps, arguments.warmup = 8, 4, 64, 40
        arguments.long, arguments.reference, arguments.pool = 2, 64, 1
    return arguments


def main() -> None:
    arguments = parse()
    cores = os.sched_getaffinity(0)
    if arguments.one_core and len(cores) > 1:
        os.sched_setaffinity(0, {min(cores)})
        os.execv(sys.executable, [sys.executable, *sys.argv])  # anew, since JAX has started its threads by now
    print(f"JAX {jax.__version__}, {jax.default_backend()}, {arguments.size}^3, lambda / beta = {arguments.ratio:g}")
    if arguments.independence:
        independence(arguments)
        return
    rows, _ = compare(arguments)
    torch = torch_row(arguments, rows)
    step_costs(arguments)
    print_table(rows if torch is None else [*rows, torch])
    print_verdicts(rows if torch is None else [*rows, torch])


if __name__ == "__main__":
    main()
