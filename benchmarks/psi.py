"""The effective potential Psi by annealing, against closed forms and next to plain importance sampling.

    python benchmarks/psi.py [--size 24] [--ratio 1e4] [--seeds 2] [--quick]

Four posteriors behind a missing wedge, lambda / beta = ``--ratio``:

    hidden    a quadratic witness of which the library is told no more than bounds of its curvature
    open      the same with all told: then Psi is a formula
    mixture   two Gaussians as the witness, 8^3, so that there are two modes: Psi is a formula that the library does
              not know
    log-cosh  a smooth witness of no closed form: nothing is known but the bracket

Columns: the closed form of Psi in nats; estimate less closed form, root mean square over the seeds; standard error as
estimated; width of the bracket in per cent of |Psi|; rungs of the ladder and gradients; processor seconds of the
fastest seed, so that compilation is left out. Then plain importance sampling from the Gaussian part with as many
candidates as there were gradients: its Psi less the closed form, or less the annealed one where there is none. In
[brackets] how many effective candidates it had. The rows are met where the bracket is narrower than half a per cent of
|Psi| and the estimate within a tenth of a per cent.
"""

from __future__ import annotations

import argparse
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import targets
import timing

import cryowgen_jax as cg
from cryowgen_jax.spatial import fourier

GOAL_WIDTH, GOAL_ERROR = 0.5, 0.1  # per cent of |Psi|
BATCH = 1024  # candidates whose samples are in memory at once
MIXTURE_SIZE = 8


class Case(NamedTuple):
    """A posterior and its Psi where a formula gives it."""

    name: str
    size: int
    posterior: cg.Posterior
    psi: float | None


def cases(size: int, ratio: float) -> list[Case]:
    shape = (size,) * 3
    preferred = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    curvature = (0.2 + 8 * fourier.radial_frequency(shape)).astype(np.float32)
    quadratic = cg.QuadraticWitness(jnp.asarray(curvature), jnp.asarray(preferred))
    hidden, known = (targets.posterior(w, size, ratio) for w in (targets.HiddenWitness(quadratic), quadratic))
    psi = float(gaussian_psi(known, curvature, preferred[None], np.zeros(1))[0])
    small = min(MIXTURE_SIZE, size)
    mixture, mixture_psi = two_peaks(small, ratio)
    smooth = targets.posterior(targets.smooth_witness("log-cosh"), size, ratio)
    return [
        Case("hidden", size, hidden, psi),
        Case("open", size, known, psi),
        Case("mixture", small, mixture, mixture_psi),
        Case("log-cosh", size, smooth, None),
    ]


def two_peaks(size: int, ratio: float) -> tuple[cg.Posterior, float]:
    """Peaks 3 apart along a random volume in the wedge, with weights 0.3 and 0.7 and variance 0.4 in every voxel.

    The tether pulls them together to 2.1, with a standard deviation of 0.53: the posterior has two modes.
    """
    shape, weights, variance = (size,) * 3, np.array([0.3, 0.7]), 0.4
    spectrum = np.fft.rfftn(np.random.default_rng(3).standard_normal(shape))
    direction = np.fft.irfftn(spectrum * (np.asarray(cg.wedge_mask(shape)) == 0), shape, axes=(0, 1, 2))
    direction *= 1.5 / np.linalg.norm(direction)
    means = np.stack([direction, -direction]).astype(np.float32)
    witness = cg.GaussianMixtureWitness(jnp.asarray(weights, jnp.float32), jnp.asarray(means), variance)
    target = targets.posterior(witness, size, ratio)
    log_height = np.log(weights) - 0.5 * size**3 * np.log(2 * np.pi * variance)
    psis = gaussian_psi(target, np.full(fourier.spectrum_shape(shape), 1 / variance), means, log_height)
    return target, float(-np.logaddexp.reduce(-psis))


def gaussian_psi(
    posterior: cg.Posterior, curvature: np.ndarray, means: np.ndarray, log_heights: np.ndarray
) -> np.ndarray:
    r"""Psi_j of the witness h_j - 1/2 (z - m_j)^T S (z - m_j), coefficient by coefficient, in float64.

    .. math:: \Psi = \tfrac12 \Big(\lambda|x|^2 + \beta|\bar z|^2 + m \cdot S m - r \cdot q^{-1} r
              + \sum_k \log \frac{q_k}{2\pi}\Big) - h, \quad
              q = S + \lambda t^2 + \beta, \quad r = S m + \lambda t x + \beta \bar z .
    """
    lam, beta = float(posterior.data_weight), float(posterior.prior_precision)
    transfer, x, center = (
        np.asarray(v, float) for v in (posterior.decoder.transfer, posterior.observation, posterior.center)
    )
    count = fourier.multiplicity(x.shape)
    precision = curvature + lam * transfer**2 + beta
    constant = lam * np.sum(x**2) + beta * np.sum(center**2) + np.sum(count * np.log(precision / (2 * np.pi)))
    data = lam * transfer * np.fft.rfftn(x, norm="ortho") + beta * np.fft.rfftn(center, norm="ortho")
    psis = []
    for mean, log_height in zip(means, log_heights, strict=True):
        preferred = np.fft.rfftn(mean.astype(float), norm="ortho")
        pull = curvature * preferred + data
        varying = np.sum(count * (curvature * np.abs(preferred) ** 2 - np.abs(pull) ** 2 / precision))
        psis.append(0.5 * (constant + varying) - log_height)
    return np.array(psis)


class Row(NamedTuple):
    """One line of the table."""

    case: Case
    value: float
    error: float | None
    standard_error: float
    width: float
    rungs: int
    gradients: int
    seconds: float
    importance: float | None
    candidates: float

    @property
    def verdict(self) -> str:
        """Goals and whether they are met."""
        scale = abs(self.value) / 100
        met = abs(self.width) <= GOAL_WIDTH * scale and (self.error is None or self.error <= GOAL_ERROR * scale)
        return "met" if met else "NOT met"


def measure(case: Case, seeds: int, budget: dict[str, int]) -> Row:
    """Average over the seeds."""
    found, times = [], []
    for seed in range(seeds):
        start = timing.now()
        found.append(jax.block_until_ready(cg.effective_potential(jax.random.key(seed), case.posterior, **budget)))
        times.append(timing.since(start).processor)
        print(f"{case.name}, seed {seed}: {float(found[-1].value):.3f}, {times[-1]:.1f} cpu s", flush=True)
    value = statistics.mean(float(estimate.value) for estimate in found)
    truth = value if case.psi is None else case.psi
    error = float(np.sqrt(np.mean([(float(e.value) - truth) ** 2 for e in found])))
    gradients = int(np.mean([int(e.num_gradients) for e in found]))
    plain, candidates = importance(case.posterior, gradients) if gradients else (None, 0.0)
    return Row(
        case,
        value,
        None if case.psi is None else error,
        statistics.mean(float(e.standard_error) for e in found),
        statistics.mean(float(e.upper) - float(e.lower) for e in found),
        int(np.mean([int(e.num_rungs) for e in found])),
        gradients,
        min(times),
        None if plain is None else plain - truth,
        candidates,
    )


def importance(posterior: cg.Posterior, count: int) -> tuple[float, float]:
    """Psi and effective sample size by importance sampling from the Gaussian part, ``count`` candidates or a bit more.

    In batches whose weights are pooled, since a call keeps its candidates.
    """
    logs = []
    for i in range(-(-count // BATCH)):
        logs.append(np.asarray(cg.importance_sample(jax.random.key(i), posterior, BATCH).log_weights, float))
    weights = np.concatenate(logs)
    total = np.logaddexp.reduce(weights)
    return float(np.log(weights.size) - total), float(np.exp(2 * total - np.logaddexp.reduce(2 * weights)))


def print_table(rows: list[Row]) -> None:
    print(
        f"\n{'posterior':9s} {'size':>5s} {'Psi':>12s} {'error':>8s} {'std err':>8s} {'width':>8s} {'width %':>8s}"
        f" {'rungs':>6s} {'gradients':>9s} {'cpu s':>7s}   {'importance sampling':>22s}   goals"
    )
    for row in rows:
        psi = row.value if row.case.psi is None else row.case.psi
        error = "-" if row.error is None else f"{row.error:.3f}"
        plain = "-" if row.importance is None else f"{row.importance:+.3f} [{row.candidates:.1f}]"
        percent = 100 * row.width / abs(row.value)
        print(
            f"{row.case.name:9s} {row.case.size:3d}^3 {psi:12.3f} {error:>8s} {row.standard_error:8.3f}"
            f" {row.width:8.3f} {percent:8.4f} {row.rungs:6d} {row.gradients:9d} {row.seconds:7.1f}"
            f"   {plain:>22s}   {row.verdict}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=24, help="edge of the volume (24)")
    parser.add_argument("--ratio", type=float, default=1e4, help="lambda / beta (1e4)")
    parser.add_argument("--seeds", type=int, default=2, help="repeats of everything (2)")
    parser.add_argument("--cases", nargs="+", default=["hidden", "open", "mixture", "log-cosh"], help="which (all)")
    parser.add_argument("--quick", action="store_true", help="a small run that only shows that all works")
    arguments = parser.parse_args()
    budget = {}
    if arguments.quick:
        arguments.size, arguments.seeds = 6, 1
        budget = {"num_particles": 4, "num_moves": 1, "num_equilibration": 16}
    chosen = [case for case in cases(arguments.size, arguments.ratio) if case.name in arguments.cases]
    rows = [measure(case, arguments.seeds, budget) for case in chosen]
    print(
        f"JAX {jax.__version__}, {jax.default_backend()}, lambda / beta = {arguments.ratio:g}, {arguments.seeds} seeds"
    )
    print_table(rows)


if __name__ == "__main__":
    main()
