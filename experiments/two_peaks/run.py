"""One curve or a family? The four methods on two peaks behind a missing band, against the exact posterior."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Mapping, Sequence

import approaches
import figures
import jax
import numpy as np
import signals
import trained
from figures import Evaluation, band

from cryowgen_jax.report import markdown_table

WIDTHS = (0, 5, 7, 11)  # missing frequencies, in units of 1 / signals.LENGTH cycles per sample
BUDGET = 65536  # witness evaluations or gradients of every family, warm-up included
REPEATS = 3  # runs of every family, each with its own key
DRAWS = 4096  # draws that a band is made of
BATCH = 400  # observations of which the aggregate is looked at
QUICK_WIDTHS, QUICK_BUDGET, QUICK_REPEATS, QUICK_BATCH, QUICK_ITERATIONS = (0, 11), 16384, 1, 100, 50
SEED = 20261127
SHOWN = (approaches.PUBLISHED_I, approaches.GAUSSIAN_I, approaches.PUBLISHED_II, approaches.PCNL)
MODES = ("two peaks", "one peak", "shifted")
FAMILY_COLUMNS = ("missing", "family", "mean error / sd", "coverage", "width / exact", *MODES, "TV", "ESS", "R-hat")
ANSWER_COLUMNS = ("missing", "one answer each", *MODES, "TV to prior", "wrong", "rms error")


def evaluate(family: approaches.Family, law: signals.Exact, exact_draws: np.ndarray) -> Evaluation:
    low, high = band(family.draws)
    modes = signals.responsibilities(family.draws).mean(axis=0)
    return Evaluation(
        mean_error=float(np.sqrt(np.mean(((family.mean - law.mean) / law.std) ** 2))),
        coverage=float(np.mean((exact_draws >= low) & (exact_draws <= high))),
        width=float(np.mean(high - low) / np.mean(np.diff(band(exact_draws), axis=0))),
        modes=modes,
        distance=float(0.5 * np.sum(np.abs(modes - law.weights))),
        ess=family.ess,
        r_hat=family.r_hat,
    )


def averaged(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Over repeats: root mean square of the error, means of everything else."""
    error, *others = (np.stack(values) for values in zip(*evaluations, strict=True))
    return Evaluation(float(np.sqrt(np.mean(error**2))), *(np.mean(values, axis=0) for values in others))


def families(width: int, observation: np.ndarray, budget: int, repeat: int) -> dict[str, approaches.Family]:
    """Every family of one observation, independent draws of the exact posterior first."""
    rng = np.random.default_rng([SEED, width, repeat])
    draws = signals.exact(observation, width).draw(rng, DRAWS)
    found = {"exact draws": approaches.Family(draws, draws.mean(axis=0), float(DRAWS), np.nan)}
    posterior = signals.posterior(observation, width)
    for index, (name, method) in enumerate(approaches.FAMILIES.items()):
        key = jax.random.fold_in(jax.random.key(SEED + repeat), index)
        found[name] = method(key, posterior, budget, DRAWS)
    return found


def answers(width: int, batch: signals.Batch, iterations: int) -> dict[str, np.ndarray]:
    """One curve per observation of the batch, by method."""
    rng = np.random.default_rng(SEED)
    law = signals.exact(batch.observations, width)
    return {
        approaches.MAP: approaches.maximum_a_posteriori(batch.observations, width),
        approaches.OT: approaches.optimal_transport(rng, law, batch.labels),
        approaches.TRAINED_MAP: trained.answers("cryogen_map", batch.observations, width, iterations),
        approaches.TRAINED_OT: trained.answers("cryogen_ot", batch.observations, width, iterations),
        "CryoWGEN-II, a draw by pcnl": approaches.one_draw_each(jax.random.key(SEED), batch.observations, width),
        "exact posterior, highest mode": law.means[np.arange(len(batch.labels)), law.weights.argmax(axis=1)],
        "exact posterior, a draw": law.draw(rng, 1)[0],
        "exact posterior, mean": law.mean,
    }


def family_row(width: int, name: str, found: Evaluation) -> list[str]:
    cells = [f"{found.mean_error:.2f}", f"{found.coverage:.3f}", f"{found.width:.2f}"]
    modes = [f"{mode:.2f}" for mode in found.modes]
    sizes = [f"{found.ess:.0f}", f"{found.r_hat:.2f}"]
    return [str(width), name, *cells, *modes, f"{found.distance:.2f}", *(s.replace("nan", "-") for s in sizes)]


def answer_row(width: int, name: str, curves: np.ndarray, batch: signals.Batch) -> list[str]:
    rms = f"{np.sqrt(np.mean((curves - batch.truths) ** 2)):.3f}"
    if name.endswith("mean"):  # a mixture of components, itself none of them
        return [str(width), name, *"-----", rms]
    modes = signals.responsibilities(curves).argmax(axis=1)
    shares = np.bincount(modes, minlength=len(signals.PRIOR)) / len(curves)
    distance, wrong = 0.5 * np.sum(np.abs(shares - signals.PRIOR)), np.mean(modes != batch.labels)
    return [str(width), name, *(f"{share:.2f}" for share in shares), f"{distance:.2f}", f"{wrong:.2f}", rms]


def panel(
    width: int,
    batch: signals.Batch,
    exact_draws: np.ndarray,
    found: Mapping[str, approaches.Family],
    first: Mapping[str, Evaluation],
    curves: Mapping[str, np.ndarray],
) -> figures.Panel:
    """What the picture shows of one width: the first observation, the first repeat."""
    single = {name: curves[name][0] for name in (approaches.MAP, approaches.OT)}
    shown = {name: figures.Shown(band(found[name].draws), found[name].mean, first[name]) for name in SHOWN}
    return figures.Panel(width, batch.truths[0], band(exact_draws), single, shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    results = pathlib.Path(__file__).parent / "results"
    parser.add_argument("--output", type=pathlib.Path, default=results, help="folder of pictures and tables")
    parser.add_argument("--quick", action="store_true", help="two widths, half the budget, fewer repeats")
    arguments = parser.parse_args()
    widths, budget, repeats, size, iterations = WIDTHS, BUDGET, REPEATS, BATCH, trained.ITERATIONS
    if arguments.quick:
        widths, budget, repeats, size = QUICK_WIDTHS, QUICK_BUDGET, QUICK_REPEATS, QUICK_BATCH
        iterations = QUICK_ITERATIONS
    panels, calibration, family_rows, answer_rows = [], {}, [], []
    for width in widths:
        batch = signals.draw_batch(np.random.default_rng(SEED), width, size)
        law = signals.exact(batch.observations[0], width)
        exact_draws = law.draw(np.random.default_rng(SEED), DRAWS)
        runs = [families(width, batch.observations[0], budget, repeat) for repeat in range(repeats)]
        compared = [{name: evaluate(family, law, exact_draws) for name, family in run.items()} for run in runs]
        calibration[width] = {name: averaged([each[name] for each in compared]) for name in compared[0]}
        curves = answers(width, batch, iterations)
        family_rows.append([str(width), "closed form", *"---", *(f"{w:.2f}" for w in law.weights), *"---"])
        family_rows += [family_row(width, name, found) for name, found in calibration[width].items()]
        answer_rows += [answer_row(width, name, each, batch) for name, each in curves.items()]
        panels.append(panel(width, batch, exact_draws, runs[0], compared[0], curves))
    text = markdown_table(FAMILY_COLUMNS, family_rows) + "\n" + markdown_table(ANSWER_COLUMNS, answer_rows)
    arguments.output.mkdir(parents=True, exist_ok=True)
    figures.curves_figure(panels).savefig(arguments.output / "two_peaks.png")
    figures.calibration_figure(calibration).savefig(arguments.output / "calibration.png")
    (arguments.output / "tables.md").write_text(text)
    print(text)
    print(f"{budget} evaluations or gradients per family, {repeats} repeats, {size} observations")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
