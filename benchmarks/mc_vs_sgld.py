"""CryoWGEN-I against CryoWGEN-II: importance sampling and Langevin chains on posteriors whose truth is known.

    python benchmarks/mc_vs_sgld.py [--ratio 1000] [--output PICTURE.png] [--quick]

The target is a volume behind a missing wedge (tilts +-60 degrees) with a quadratic witness of which the library is told
no more than bounds of its curvature. Mean and variance are then known in closed form, coefficient by coefficient. The
witness pulls at every coefficient, more so at high frequencies. How far importance sampling can follow depends on that
pull times the number of coefficients, so there are a mild witness and a strong one.

Methods: importance sampling from the conditional prior N(zbar, I/beta), as published, and from the exact Gaussian part;
unadjusted Langevin as published, started at zbar and from the Gaussian part; preconditioned Leimkuhler-Matthews; pCNL
with Metropolis test. "exact" are independent draws of the truth: the best that so many draws can do. Chains: 8, a
quarter of the budget for warm-up.

Columns: witness evaluations or gradients, all chains, warm-up included; processor seconds of the fastest repeat, so
that compilation is left out; error of the mean in posterior standard deviations (root mean square over coefficients);
error of the spread (root mean square over Fourier shells of variance / truth - 1; 1 where it is all lost); wedge and
measured region apart; effective sample size (of the weights, or the chains' smallest). Averaged over the seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import timing

import cryowgen_jax as cg
from cryowgen_jax import platform
from cryowgen_jax.potentials import FourierGaussian
from cryowgen_jax.spatial import fourier

CHAINS = 8
STRENGTHS = {"mild": 0.03, "strong": 3.0}
MEASURES = ("mean, wedge", "mean, measured", "spread, wedge", "spread, measured")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HiddenQuadratic:
    """A quadratic witness that only tells the bounds of its curvature."""

    quadratic: cg.QuadraticWitness

    def __call__(self, volume: jax.Array) -> jax.Array:
        """Energy of one volume."""
        return self.quadratic(volume)

    def curvature_bounds(self) -> tuple[jax.Array, jax.Array]:
        """Smallest and largest curvature over all frequencies."""
        return self.quadratic.curvature_bounds()


class Problem(NamedTuple):
    """A posterior and its truth: mean spectrum and precision, rfftn layout."""

    posterior: cg.Posterior
    mean: np.ndarray
    precision: np.ndarray


class Estimate(NamedTuple):
    """What a method returns: mean, weighted draws, effective sample size, evaluations spent."""

    mean: jax.Array
    samples: jax.Array
    weights: jax.Array
    ess: float
    evaluations: int


def problem(strength: float, size: int, ratio: float) -> Problem:
    """Tether beta = 1, data weight ``ratio``, witness curvature ``strength`` at the highest frequencies."""
    shape = (size,) * 3
    rng = np.random.default_rng(7)
    truth, preferred = rng.standard_normal((2, *shape)).astype(np.float32)
    mask = np.asarray(cg.wedge_mask(shape))
    curvature = (strength * np.minimum(1.0, 2 * fourier.radial_frequency(shape)) ** 2).astype(np.float32)
    decoder = cg.Wedge(jnp.asarray(mask))
    observation = decoder(jnp.asarray(truth + rng.standard_normal(shape).astype(np.float32) / ratio**0.5))
    witness = HiddenQuadratic(cg.QuadraticWitness(jnp.asarray(curvature), jnp.asarray(preferred)))
    posterior = cg.Posterior(witness, decoder, observation, jnp.zeros(shape), ratio, 1.0)
    precision = curvature.astype(float) + ratio * mask.astype(float) ** 2 + 1.0
    pulls = curvature * np.fft.rfftn(preferred, norm="ortho") + ratio * mask * np.fft.rfftn(observation, norm="ortho")
    return Problem(posterior, pulls / precision, precision)


def importance(target: Problem, key: jax.Array, budget: int, reference: str) -> Estimate:
    family = _importance_program(budget, reference)(key, target.posterior)
    weights = jax.nn.softmax(family.log_weights)
    return Estimate(family.mean, family.samples, weights, float(family.ess), budget)


@functools.cache
def _importance_program(budget: int, reference: str) -> Callable[..., cg.WeightedFamily]:
    """Jitted, so that a second call does not compile again."""
    return platform.jit(lambda key, posterior: cg.importance_sample(key, posterior, budget, reference=reference))


def chains(target: Problem, key: jax.Array, budget: int, sampler: str, from_center: bool = False) -> Estimate:
    warmup = budget // CHAINS // 4
    steps = budget // CHAINS - warmup
    start = target.posterior.center if from_center else None
    result = cg.sample(
        key,
        target.posterior,
        sampler=sampler,
        num_chains=CHAINS,
        num_steps=steps,
        warmup=warmup,
        num_kept=steps,
        init=start,
        devices=jax.local_devices()[:1],
    )
    samples = result.samples.reshape(-1, *result.mean.shape)
    equal = jnp.full(samples.shape[0], 1.0 / samples.shape[0])
    return Estimate(result.mean, samples, equal, float(result.ess), result.num_gradients)


def exact(target: Problem, key: jax.Array, budget: int) -> Estimate:
    shape = target.posterior.center.shape
    law = FourierGaussian(
        jnp.asarray(target.mean, jnp.complex64), jnp.asarray(target.precision, jnp.float32), jnp.zeros(()), shape
    )
    samples = _draws(law, jax.random.split(key, budget))
    return Estimate(samples.mean(0), samples, jnp.full(budget, 1.0 / budget), float(budget), 0)


@jax.jit
def _draws(law: FourierGaussian, keys: jax.Array) -> jax.Array:
    return jax.lax.map(law.draw, keys, batch_size=16)


METHODS: dict[str, Callable[[Problem, jax.Array, int], Estimate]] = {
    "I conditional_prior": functools.partial(importance, reference="conditional_prior"),
    "I gaussian": functools.partial(importance, reference="gaussian"),
    "II langevin from zbar": functools.partial(chains, sampler="langevin", from_center=True),
    "II langevin": functools.partial(chains, sampler="langevin"),
    "II preconditioned": functools.partial(chains, sampler="preconditioned"),
    "II pcnl": functools.partial(chains, sampler="pcnl"),
    "exact": exact,
}


@jax.jit
def spectral_moments(samples: jax.Array, weights: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Spectrum of the mean, and per coefficient the weighted mean square about it."""

    def add(total: jax.Array, draw: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        sample, weight = draw
        return total + weight * jnp.abs(fourier.rfftn(sample - mean)) ** 2, None

    empty = jnp.zeros(fourier.spectrum_shape(mean.shape))
    return fourier.rfftn(mean), jax.lax.scan(add, empty, (samples, weights))[0]


def errors(target: Problem, estimate: Estimate) -> dict[str, float]:
    """The four measures of the table; nan where a region has no coefficient."""
    mean, variance = (np.asarray(x) for x in spectral_moments(estimate.samples, estimate.weights, estimate.mean))
    shape = target.posterior.center.shape
    shells = np.maximum(fourier.shell_index(shape), 1)  # a shell of the zero frequency alone says little
    count = np.broadcast_to(fourier.multiplicity(shape), shells.shape)
    measured = np.asarray(target.posterior.decoder.transfer) > 0
    deviation = np.abs(mean - target.mean) ** 2 * target.precision
    found = {}
    for name, region in (("wedge", ~measured), ("measured", measured)):
        found[f"mean, {name}"] = float(np.sqrt(np.average(deviation[region], weights=count[region])))
        ratios = []
        for shell in np.unique(shells[region]):
            here = region & (shells == shell)
            truth = np.average(1 / target.precision[here], weights=count[here])
            ratios.append(np.average(variance[here], weights=count[here]) / truth)
        found[f"spread, {name}"] = float(np.sqrt(np.mean((np.array(ratios) - 1) ** 2)))
    return found


class Row(NamedTuple):
    """One line of the table, averaged over the seeds."""

    witness: str
    method: str
    budget: int
    evaluations: int
    seconds: float
    errors: dict[str, float]
    ess: float


def measure(witness: str, target: Problem, method: str, budget: int, seeds: int) -> Row:
    times, found, sizes, evaluations = [], [], [], 0
    for seed in range(seeds):
        start = timing.now()
        estimate = jax.block_until_ready(METHODS[method](target, jax.random.key(seed), budget))
        times.append(timing.since(start).processor)
        found.append(errors(target, estimate))
        sizes.append(estimate.ess)
        evaluations = estimate.evaluations
    averaged = {name: float(np.sqrt(np.mean([row[name] ** 2 for row in found]))) for name in MEASURES}
    return Row(witness, method, budget, evaluations, min(times), averaged, statistics.mean(sizes))


def print_table(rows: list[Row]) -> None:
    print(f"\n{'':30s} {'':>11s} {'':>8s} {'error of mean':>17s} {'error of spread':>17s}")
    print(
        f"{'witness':7s} {'method':22s} {'evaluations':>11s} {'cpu s':>8s}"
        f" {'wedge':>8s} {'measured':>8s} {'wedge':>8s} {'measured':>8s} {'ESS':>9s}"
    )
    for row in rows:
        cells = " ".join(f"{row.errors[name]:8.3f}" for name in MEASURES)
        count = row.evaluations if row.method != "exact" else f"({row.budget} draws)"
        print(f"{row.witness:7s} {row.method:22s} {count:>11} {row.seconds:8.2f} {cells} {row.ess:9.1f}")


def draw(rows: list[Row], title: str, path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row.witness for row in rows))
    figure, axes = pyplot.subplots(len(names), 4, figsize=(15, 3.6 * len(names)), sharex=True, squeeze=False)
    for line, witness in zip(axes, names, strict=True):
        for axis, name in zip(line, MEASURES, strict=True):
            for i, method in enumerate(METHODS):
                points = [row for row in rows if (row.witness, row.method) == (witness, method)]
                style = {"color": "black", "linestyle": "--"} if method == "exact" else {"marker": "o^vsDP"[i]}
                axis.plot([row.budget for row in points], [row.errors[name] for row in points], label=method, **style)
            axis.set(xscale="log", yscale="log", title=f"{witness} witness: {name}")
            axis.grid(alpha=0.3)
        line[0].set_ylabel("error")
    for axis in axes[-1]:
        axis.set_xlabel("witness evaluations or gradients")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.suptitle(title)
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=1000.0, help="lambda / beta (1000)")
    parser.add_argument("--size", type=int, default=16, help="edge of the volume (16)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 320, 1600, 8000], help="witness evaluations")
    parser.add_argument("--seeds", type=int, default=3, help="repeats of everything (3)")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results" / "mc_vs_sgld.png"
    )
    parser.add_argument("--quick", action="store_true", help="a small run that only shows that all works")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.budgets, arguments.seeds = 8, [64], 1
    rows = []
    for witness, strength in STRENGTHS.items():
        target = problem(strength, arguments.size, arguments.ratio)
        for method in METHODS:
            rows += [measure(witness, target, method, budget, arguments.seeds) for budget in arguments.budgets]
    title = f"{arguments.size}^3 voxels, lambda / beta = {arguments.ratio:g}, {arguments.seeds} seeds"
    draw(rows, title, arguments.output)
    print(f"JAX {jax.__version__}, {title}; picture: {arguments.output}")
    print_table(rows)


if __name__ == "__main__":
    main()
