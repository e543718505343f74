"""Are the intervals of ``cryowgen_langevin`` what they say? Against known truths, and a prior that can be drawn."""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Sequence
from typing import NamedTuple

import figures
import intervals
import jax
import numpy as np
import prior_draws
import tomograms

from cryowgen_jax.report import markdown_table
from cryowgen_jax.simulation import evaluate_family

SAMPLES, SIMULATIONS, CHAINS = 8, 200, 7
QUICK = {"num_samples": 4, "num_steps": 30, "warmup": 10}
QUICK_SIMULATIONS, QUICK_CHAINS = 20, 3
MEASURES = ("50 %", "80 %", "90 %", "95 %", "normal 95 %", "spread / error", "error-spread cc", "cc expected")
BAND_COLUMNS = ("tomograms", "region", "band", *MEASURES, "95 % one by one")
OBJECT_COLUMNS = ("tomograms", "object", "voxels", *MEASURES, "95 % one by one", "mean, std 95 %")
ENVELOPE_COLUMNS = ("tomograms", "object", "model says", "share of voxels", "95 %", "spread / error")
RANK_COLUMNS = ("draws", "statistic", "simulations", "truth outside", "expected", "p", "flagged")
ALL = "all voxels"


class Restored(NamedTuple):
    """A tomogram, its truth and members as half spectra, mean and std of all steps, the mask; gain applied.

    ``envelope`` is 1 where the model sees particles, 0 where solvent.
    """

    tomogram: tomograms.Tomogram
    truth: np.ndarray
    members: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    mask: np.ndarray
    envelope: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        """Voxels with the truth within 1.96 std of the mean, all frequencies together."""
        return np.abs(self.tomogram.truth - self.mean) < 1.96 * self.std

    def component(self, region: str, band: intervals.Band) -> intervals.Part:
        """What the family says of a region's coefficients."""
        shape = self.tomogram.truth.shape
        weights = np.full(len(self.members), 1 / len(self.members))
        chosen = intervals.selection(self.mask, shape, region, band)
        return intervals.component(self.truth, self.members, weights, chosen, shape)


def restored(tomogram: tomograms.Tomogram, witness: str, options: dict[str, int]) -> Restored:
    started = time.monotonic()
    family = tomograms.family(tomogram, witness, **options)
    found = evaluate_family(tomogram.truth, family.mean, family.samples, family.weights, family.wedge)
    print(
        f"{tomogram.group}, seed {tomogram.seed}: in-wedge cc {found.in_wedge_correlation:.3f}, "
        f"{time.monotonic() - started:.0f} s",
        flush=True,
    )
    truth, members = intervals.spectra(tomogram.truth[None])[0], intervals.spectra(found.gain * family.samples)
    return Restored(
        tomogram,
        truth,
        members,
        found.gain * family.mean,
        found.gain * family.std,
        family.wedge,
        family.report.envelope,
    )


# Tables


def measures(part: intervals.Part, each: Sequence[intervals.Part]) -> list[str]:
    found = intervals.coverage(part)
    alone = [intervals.coverage(one, (0.95,))[0] for one in each]
    return [
        *(f"{value:.3f}" for value in found),
        f"{intervals.coverage(part, (0.95,), normal=True)[0]:.3f}",
        f"{intervals.spread_over_error(part):.2f}",
        f"{intervals.correlation(part):.2f}",
        f"{intervals.correlation_expected(part):.2f}",
        " ".join(f"{value:.3f}" for value in alone),
    ]


def expected(members: int) -> list[str]:
    nominal = [f"{value:.3f}" for value in intervals.NOMINAL]
    return [*nominal, f"{intervals.normal_coverage_expected(members):.3f}", "1.00", "-", "-", "-"]


class Tables(NamedTuple):
    """Rows of the tables by band, by object and by envelope, and what the picture shows of them."""

    bands: list[list[str]]
    objects: list[list[str]]
    envelope: list[list[str]]
    ratios: dict[str, dict[str, list[float]]]
    shares: dict[str, np.ndarray]
    parts: dict[str, list[intervals.Part]]


def judge(group: str, members: Sequence[Restored], into: Tables) -> None:
    """Rows of the tomograms of one group, pooled."""
    ratios = into.ratios.setdefault(group, {region: [] for region in intervals.REGIONS})
    for region in intervals.REGIONS:
        for band in intervals.BANDS:
            each = [one.component(region, band) for one in members]
            part = intervals.pooled(each)
            into.bands.append([group, region, f"{band[0]:.2f}-{band[1]:.2f}", *measures(part, each)])
            if band != intervals.WHOLE:
                ratios[region].append(intervals.spread_over_error(part))
            elif region == "wedge":
                into.shares[group] = intervals.ranks(part)
                _judge_objects(group, members, each, into)


def _judge_objects(group: str, members: Sequence[Restored], each: Sequence[intervals.Part], into: Tables) -> None:
    into.parts.setdefault(ALL, []).append(intervals.pooled(each))
    if any(one.tomogram.labels is None for one in members):
        return
    voxels = [tomograms.kinds(one.tomogram.labels) for one in members]
    for name in dict.fromkeys(name for found in voxels for name in found):
        chosen = [(*pair, found[name]) for *pair, found in zip(each, members, voxels, strict=True) if name in found]
        alone = [intervals.pooled([part], [where]) for part, _, where in chosen]
        part = intervals.pooled(alone)
        inside = np.concatenate([one.inside[where] for _, one, where in chosen])
        into.objects.append([group, name, str(part.truth.size), *measures(part, alone), f"{inside.mean():.3f}"])
        into.parts.setdefault(name, []).append(part)
        for says in ("solvent", "particle"):
            own = [where & ((one.envelope < 0.5) == (says == "solvent")) for _, one, where in chosen]
            half = intervals.pooled([part for part, _, _ in chosen], own)
            share = half.truth.size / part.truth.size
            judged = ["-", "-"]
            if share:
                judged = [f"{intervals.coverage(half, (0.95,))[0]:.3f}", f"{intervals.spread_over_error(half):.2f}"]
            into.envelope.append([group, name, says, f"{share:.2f}", *judged])


def rank_rows(each: prior_draws.Ranked) -> list[list[str]]:
    rows = []
    for number, name in enumerate(prior_draws.STATISTICS):
        ranks = each.ranks[:, number]
        outside = np.mean((ranks == 0) | (ranks == each.num_draws))
        share, chance = f"{outside:.3f}", f"{2 / (each.num_draws + 1):.3f}"
        flagged = "yes" if each.flagged else "no"
        rows.append([each.name, name, str(len(ranks)), share, chance, f"{each.p_values[number]:.2g}", flagged])
    return rows


def example(of: Restored) -> figures.Example:
    """The xz slice with most error in the wedge."""
    error, spread = intervals.errors(of.component("wedge", intervals.WHOLE))
    y = int(np.argmax(np.sum(error**2, axis=(0, 2))))
    return figures.Example(
        "slice with most error", of.tomogram.truth[:, y], of.mean[:, y], np.abs(error[:, y]), spread[:, y]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    results = pathlib.Path(__file__).parent / "results"
    tomograms.add_arguments(parser, (48, 64, 64), tomograms.TILT_RANGES, (0, 1))
    parser.add_argument("--witness", default="auto", help="auto, solvent, learned, or a file of weights")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="members of each family, 3 or more")
    parser.add_argument("--output", type=pathlib.Path, default=results, help="folder of picture and tables")
    parser.add_argument("--quick", action="store_true", help="one small tomogram, short chains")
    arguments = parser.parse_args()
    options = QUICK if arguments.quick else {"num_samples": arguments.samples}

    groups: dict[str, list[Restored]] = {}
    for tomogram in tomograms.chosen(arguments):
        groups.setdefault(tomogram.group, []).append(restored(tomogram, arguments.witness, options))
    simulations, chains = (QUICK_SIMULATIONS, QUICK_CHAINS) if arguments.quick else (SIMULATIONS, CHAINS)
    calibrated = prior_draws.ranked(jax.random.key(0), simulations, chains)

    reference = expected(options["num_samples"])
    made = Tables([["expected", "-", "-", *reference]], [["expected", "-", "-", *reference, "0.950"]], [], {}, {}, {})
    for group, members in groups.items():
        judge(group, members, made)
    parts = {name: intervals.pooled(pieces) for name, pieces in made.parts.items()}
    shown = example(next(iter(groups.values()))[0])
    arguments.output.mkdir(parents=True, exist_ok=True)
    drawn = figures.figure(parts, made.ratios, made.shares, calibrated, shown)
    drawn.savefig(arguments.output / "calibration.png")
    ranks = markdown_table(RANK_COLUMNS, [row for each in calibrated for row in rank_rows(each)])
    tables = [markdown_table(BAND_COLUMNS, made.bands), markdown_table(OBJECT_COLUMNS, made.objects)]
    text = "\n".join([*tables, markdown_table(ENVELOPE_COLUMNS, made.envelope), ranks])
    (arguments.output / "tables.md").write_text(text)
    print(text)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
