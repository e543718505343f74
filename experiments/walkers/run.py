"""Walkers that settle in a double well, and what the step size does to the law they settle on."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

import cryowgen_jax as cg
from cryowgen_jax.potentials import gaussian_part
from cryowgen_jax.pytrees import bind
from cryowgen_jax.report import markdown_table
from cryowgen_jax.report.figures import plain_axes
from cryowgen_jax.samplers import algorithm

HEIGHT, TILT, PRIOR_PRECISION = 6.0, 0.12, 1.0  # of F(z) = -HEIGHT exp(-z^2 / 2) + TILT z - PRIOR_PRECISION / 2 z^2
START = 4.0  # walkers start uniform on [-START, START]
WALKERS = 512
SNAPSHOT_STEP, SNAPSHOTS = 0.02, (0, 10, 50, 500, 8000)  # the step size and the steps that are shown
STEP_SIZES = (0.02, 0.1, 0.25, 0.6, 2.2)
WARMUP, STEPS, KEPT = 4096, 8192, 256
QUICK_SNAPSHOTS, QUICK_STEP_SIZES, QUICK_WARMUP, QUICK_STEPS = (0, 10, 50, 2000), (0.1, 0.25, 2.2), 512, 2048
SEED = 20261127
EDGES = np.linspace(-4.5, 4.5, 76)
COARSE = EDGES[::3]  # for the few walkers of a snapshot
GRID = np.linspace(-8.0, 8.0, 1601)
RUNGS = 4  # of the tempered ladder, each of which takes a gradient per step
BLACK, BLUE, SKY, ORANGE, GREEN = "#000000", "#0072B2", "#56B4E9", "#D55E00", "#009E73"
PURPLE, BROWN = "#CC79A7", "#7A3E00"
_OWN_LAW = {"color": BROWN, "linewidth": 1.2, "linestyle": (0, (3, 2))}
COLUMNS = (
    "step size",
    "kernel",
    "TV to exact",
    "right well",
    "variance / exact",
    "closed form",
    "own law",
    "TV to own law",
    "acceptance",
    "status",
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bump:
    """w(z) = -height exp(-z^2 / 2) + tilt z: between its sides the conditional prior becomes a double well."""

    height: jax.Array
    tilt: jax.Array

    def __call__(self, position: jax.Array) -> jax.Array:
        """Return w(z), z of shape (1,)."""
        return jnp.sum(self.tilt * position - self.height * jnp.exp(-0.5 * position**2))

    def curvature_bounds(self) -> tuple[jax.Array, jax.Array]:
        """-w'' = height (z^2 - 1) exp(-z^2 / 2), smallest at z = 0 and largest at z^2 = 3."""
        return -self.height, 2 * jnp.exp(-1.5) * self.height


def double_well() -> cg.Posterior:
    """The target: one coefficient of which nothing was measured, so that witness and conditional prior are all."""
    nothing = jnp.zeros(1)
    witness = Bump(jnp.float32(HEIGHT), jnp.float32(TILT))
    return cg.Posterior(witness, cg.Wedge(nothing), nothing, nothing, jnp.float32(1.0), jnp.float32(PRIOR_PRECISION))


# Kernels: (posterior, step size) -> BlackJAX algorithm


def langevin(posterior: cg.Posterior, step_size: jax.Array) -> object:
    return cg.langevin(posterior.log_density, step_size)


def leimkuhler_matthews(posterior: cg.Posterior, step_size: jax.Array) -> object:
    return cg.leimkuhler_matthews(posterior.log_density, step_size)


def mala(posterior: cg.Posterior, step_size: jax.Array) -> object:
    """BlackJAX's kernel with its step size as an argument, so that a new one does not compile again."""
    log_density = posterior.log_density
    return algorithm(bind(_mala_init, log_density), bind(_mala_step, log_density, step_size))


def _mala_init(log_density: Callable[[jax.Array], jax.Array], position: jax.Array, rng_key: jax.Array) -> object:
    del rng_key
    return blackjax.mala.init(position, log_density)


def _mala_step(
    log_density: Callable[[jax.Array], jax.Array], step_size: jax.Array, rng_key: jax.Array, state: object
) -> object:
    return blackjax.mala.build_kernel()(rng_key, state, log_density, step_size)


def pcnl(posterior: cg.Posterior, step_size: jax.Array) -> object:
    """The same drift as Langevin's: h = beta eta, at most 1."""
    own_step = jnp.minimum(posterior.prior_precision * step_size, 1.0)
    return cg.pcnl(posterior.witness, gaussian_part(posterior), own_step)


def tempered(posterior: cg.Posterior, step_size: jax.Array) -> object:
    """The ladder's moves turn by sqrt(2 eta), which covers about the distance of a Langevin step of eta."""
    powers = jnp.linspace(0.0, 1.0, RUNGS)
    return cg.tempered(posterior.witness, gaussian_part(posterior), powers, jnp.minimum(jnp.sqrt(2 * step_size), 1.5))


KERNELS: dict[str, tuple[Callable[[cg.Posterior, jax.Array], object], str]] = {  # and the colour it is drawn in
    "langevin": (langevin, ORANGE),
    "leimkuhler_matthews": (leimkuhler_matthews, BLUE),
    "mala": (mala, GREEN),
    "pcnl": (pcnl, PURPLE),
    "tempered": (tempered, SKY),
}
UNADJUSTED = ("langevin", "leimkuhler_matthews")  # stable in a well of curvature q up to a step of 2 / q


# What is true


class Exact(NamedTuple):
    """The density on the grid, the top of the barrier, and of the right well mode, weight, variance and curvature."""

    density: np.ndarray
    saddle: float
    mode: float
    weight: float
    variance: float
    curvature: float


def drift(position: np.ndarray) -> np.ndarray:
    """F'(z) in float64, written out by hand."""
    return HEIGHT * position * np.exp(-0.5 * position**2) + TILT - PRIOR_PRECISION * position


def exact() -> Exact:
    """By quadrature."""
    log_density = -HEIGHT * np.exp(-0.5 * GRID**2) + TILT * GRID - 0.5 * PRIOR_PRECISION * GRID**2
    density = np.exp(log_density - log_density.max())
    density /= np.trapezoid(density, GRID)
    middle = np.abs(GRID) < 1
    saddle = float(GRID[middle][np.argmin(density[middle])])
    right = saddle < GRID
    mode = float(GRID[right][np.argmax(density[right])])
    curvature = PRIOR_PRECISION + HEIGHT * (mode**2 - 1) * np.exp(-0.5 * mode**2)
    share = float(density[right].sum() / density.sum())
    return Exact(density, saddle, mode, share, well_variance(density, saddle), float(curvature))


def well_variance(density: np.ndarray, saddle: float) -> float:
    """Variance within the right well."""
    positions, weight = GRID[saddle < GRID], density[saddle < GRID]
    mean = np.average(positions, weights=weight)
    return float(np.average((positions - mean) ** 2, weights=weight))


@functools.cache
def own_law(step_size: float) -> tuple[np.ndarray, float]:
    """Density that the Langevin update at this step size leaves invariant, and its slowest relaxation in steps.

    The two leading eigenvectors of the update's transition matrix on the grid.
    """
    points = GRID[::2]
    away = points[None] - (points + step_size * drift(points))[:, None]
    transition = np.exp(-(away**2) / (4 * step_size))
    transition /= transition.sum(axis=1, keepdims=True)
    values, vectors = scipy.sparse.linalg.eigs(transition.T, k=2, v0=np.ones(points.size))
    first, second = np.argsort(-np.abs(values))
    density = np.abs(np.real(vectors[:, first]))
    density = np.interp(GRID, points, density / np.trapezoid(density, points))
    return density, float(-1 / np.log(np.abs(values[second])))


def binned(density: np.ndarray) -> np.ndarray:
    """Probability of every bin, and of what lies outside as the last."""
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(GRID))])
    inside = np.diff(np.interp(EDGES, GRID, cumulative))
    return np.append(inside, 1.0 - inside.sum())


def histogram(positions: np.ndarray, edges: np.ndarray = EDGES) -> np.ndarray:
    """Shares of the walkers in every bin, and outside."""
    inside = np.histogram(positions, edges)[0] / positions.size
    return np.append(inside, 1.0 - inside.sum())


def total_variation(first: np.ndarray, second: np.ndarray) -> float:
    return float(0.5 * np.sum(np.abs(first - second)))


# Walks


def starts(key: jax.Array) -> jax.Array:
    return jax.random.uniform(key, (WALKERS, 1), minval=-START, maxval=START)


def snapshots(steps: Sequence[int]) -> dict[int, np.ndarray]:
    """Where the walkers are after each of ``steps`` Langevin updates, by step."""
    key, target = jax.random.key(SEED), double_well()
    init = starts(key)
    stride = int(np.gcd.reduce(steps))
    kernel = langevin(target, jnp.float32(SNAPSHOT_STEP))
    last = max(steps)
    result = cg.sample(
        key,
        target,
        sampler=kernel,
        num_chains=WALKERS,
        num_steps=last,
        warmup=0,
        num_kept=last // stride,
        init=init,
    )
    path = np.concatenate([np.asarray(init)[:, None], np.asarray(result.samples)], axis=1)[..., 0]
    return {step: path[:, step // stride] for step in steps}


def settle(name: str, step_size: float, warmup: int, steps: int) -> cg.ChainResult:
    """Walk long enough to forget the start, then keep draws."""
    key, target = jax.random.key(SEED + 1), double_well()
    return cg.sample(
        key,
        target,
        sampler=KERNELS[name][0](target, jnp.float32(step_size)),
        num_chains=WALKERS,
        num_steps=steps,
        warmup=warmup,
        num_kept=KEPT,
        init=starts(key),
    )


# Output


class Settled(NamedTuple):
    """The binned law of one kernel at one step size, None where it left all bounds; and its line of the table."""

    law: np.ndarray | None
    row: list[str]


def judge(name: str, step_size: float, result: cg.ChainResult, truth: Exact) -> Settled:
    closed_form = "1.00"
    if name in UNADJUSTED and step_size * truth.curvature >= 2:
        closed_form = "none"
    elif name == "langevin":
        closed_form = f"{1 / (1 - 0.5 * step_size * truth.curvature):.2f}"
    if result.status != "ok":
        return Settled(None, [f"{step_size:g}", name, *"---", closed_form, *"---", result.status])
    positions = np.asarray(result.samples)[..., 0]
    law = histogram(positions)
    right = positions[positions > truth.saddle]
    own = ["-", "-"]
    if name == "langevin":
        density, _ = own_law(step_size)
        spread = well_variance(density, truth.saddle) / truth.variance
        own = [f"{spread:.2f}", f"{total_variation(law, binned(density)):.3f}"]
    cells = [
        f"{total_variation(law, binned(truth.density)):.3f}",
        f"{right.size / positions.size:.3f}",
        f"{right.var() / truth.variance:.2f}",
        closed_form,
        *own,
        f"{float(result.acceptance):.2f}",
        result.status,
    ]
    return Settled(law, [f"{step_size:g}", name, *cells])


def reference_row(truth: Exact) -> list[str]:
    """As many independent draws of the truth: the distance that chance alone leaves."""
    rng = np.random.default_rng(SEED)
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (truth.density[1:] + truth.density[:-1]) * np.diff(GRID))])
    positions = np.interp(rng.random(WALKERS * KEPT), cumulative / cumulative[-1], GRID)
    right = positions[positions > truth.saddle]
    distance = total_variation(histogram(positions), binned(truth.density))
    share, variance = right.size / positions.size, right.var() / truth.variance
    return ["-", "exact draws", f"{distance:.3f}", f"{share:.3f}", f"{variance:.2f}", "1.00", *"----"]


def figure(
    truth: Exact,
    walkers: Mapping[int, np.ndarray],
    settled: Mapping[float, Mapping[str, Settled]],
) -> Figure:
    """Above, the walkers over time; below, the laws that they settle on, by step size."""
    columns = max(len(walkers), len(settled))
    drawn = Figure(figsize=(2.6 * columns + 0.4, 5.6), dpi=150, layout="constrained")
    above, below = drawn.subplots(2, columns, sharex=True, sharey=True, squeeze=False)
    for axis, (step, positions) in zip(above, walkers.items(), strict=False):
        _target(axis, truth)
        axis.stairs(_density(histogram(positions, COARSE), COARSE), COARSE, fill=True, color=ORANGE, alpha=0.55)
        share = np.mean(positions > truth.saddle)
        axis.set_title(f"step {step}, {100 * share:.0f} % right", fontsize=10)
    for axis, (step_size, kernels) in zip(below, settled.items(), strict=False):
        _target(axis, truth)
        if step_size * PRIOR_PRECISION < 2:
            axis.plot(GRID, own_law(step_size)[0], **_OWN_LAW, zorder=5)
        lost = [name for name, each in kernels.items() if each.law is None]
        for name, each in kernels.items():
            if each.law is not None:
                axis.stairs(_density(each.law, EDGES), EDGES, color=KERNELS[name][1], linewidth=1.3)
        axis.set_title(f"step size {step_size:g}", fontsize=10)
        if lost:
            words = "diverged:\n" + "\n".join(lost)
            axis.text(0.5, 0.97, words, transform=axis.transAxes, ha="center", va="top", fontsize=9)
    for axis in (*above[len(walkers) :], *below[len(settled) :]):
        axis.set_axis_off()
    above[0].set(xlim=(EDGES[0], EDGES[-1]), ylim=(0, 1.45 * truth.density.max()))
    above[0].set_ylabel(f"density of {WALKERS} walkers\n(step size {SNAPSHOT_STEP:g})", fontsize=10)
    below[0].set_ylabel("density they settle on", fontsize=10)
    for axis in below:
        axis.set_xlabel("z (a.u.)", fontsize=10)
    handles = {
        "exact": Line2D([], [], color=BLACK, linewidth=1.2),
        "walkers": Patch(facecolor=ORANGE, alpha=0.55),
        **{name: Line2D([], [], color=colour, linewidth=1.3) for name, (_, colour) in KERNELS.items()},
        "langevin, by quadrature": Line2D([], [], **_OWN_LAW),
    }
    place = {"loc": "outside lower center", "ncols": len(handles), "frameon": False, "fontsize": 10}
    drawn.legend(list(handles.values()), list(handles), **place)
    return drawn


def _density(law: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return law[:-1] / np.diff(edges)


def _target(axis: Axes, truth: Exact) -> None:
    axis.plot(GRID, truth.density, color=BLACK, linewidth=1.2)
    plain_axes(axis)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    results = pathlib.Path(__file__).parent / "results"
    parser.add_argument("--output", type=pathlib.Path, default=results, help="folder of picture and table")
    parser.add_argument("--quick", action="store_true", help="fewer steps and step sizes")
    arguments = parser.parse_args()
    steps, sizes, warmup, length = SNAPSHOTS, STEP_SIZES, WARMUP, STEPS
    if arguments.quick:
        steps, sizes, warmup, length = QUICK_SNAPSHOTS, QUICK_STEP_SIZES, QUICK_WARMUP, QUICK_STEPS
    truth = exact()
    walkers = snapshots(steps)
    settled = {
        size: {name: judge(name, size, settle(name, size, warmup, length), truth) for name in KERNELS} for size in sizes
    }
    rows = [["-", "exact", "0", f"{truth.weight:.3f}", "1", "1.00", *"----"], reference_row(truth)]
    text = markdown_table(COLUMNS, rows + [each.row for kernels in settled.values() for each in kernels.values()])
    arguments.output.mkdir(parents=True, exist_ok=True)
    figure(truth, walkers, settled).savefig(arguments.output / "walkers.png")
    (arguments.output / "table.md").write_text(text)
    print(text)
    print(
        f"right mode {truth.mode:.2f}, curvature {truth.curvature:.2f}: unstable there from a step size of "
        f"{2 / truth.curvature:.3f}, everywhere from {2 / PRIOR_PRECISION:g}; a walker forgets its well in "
        f"{own_law(SNAPSHOT_STEP)[1]:.0f} steps of {SNAPSHOT_STEP:g}; written to {arguments.output}"
    )


if __name__ == "__main__":
    main()
