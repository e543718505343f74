"""Learn the second or third network of the learned witness from scenes; see README.md.

python experiments/learned_witness/train_denoiser.py --scenes train.npz --validation val.npz --output next.safetensors
python experiments/learned_witness/train_denoiser.py --scenes coarse.npz --validation val.npz --loss diffusion \
    --start next.safetensors --widths 64 96 --pairs 1 2 --output last.safetensors

``--loss diffusion`` is for the third network and takes what ``scenes.py --third`` wrote.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax import platform, restoration
from cryowgen_jax.models import NnxFunction, denoising_network
from cryowgen_jax.models.denoiser import PAIRS, WIDTHS
from cryowgen_jax.restoration.prior_weights import shipped_weights
from cryowgen_jax.training import (
    CoarseScenes,
    Scenes,
    TrainingProgress,
    correction_loss,
    diffusion_loss,
    error_loss,
    learn_prior,
    mean_loss,
    warmed_adam,
    warmed_muon,
)

LOSSES = {"mean": mean_loss, "errors": error_loss, "correction": correction_loss, "diffusion": diffusion_loss}
EVERY = 50  # iterations between lines of the log
LEVELS = (0.0, 0.1, 0.3, 1.0, 2.0)  # of sigma, 0 for infinity: where the third network is judged


def main() -> None:
    arguments = parse()
    third = arguments.loss == "diffusion"
    scenes = load(arguments.scenes, arguments.targets, arguments.share)
    unseen = load([arguments.validation])
    if isinstance(scenes, Scenes) and arguments.loss == "mean":  # the others learn from whole scenes
        scenes = dataclasses.replace(scenes, box=tuple(arguments.box))
    print(f"{len(scenes.truth)} scenes of {scenes.truth.shape[1:]}, {len(unseen.truth)} to validate with", flush=True)
    start = restoration.load_witness(arguments.start) if arguments.start else shipped_weights()
    found = start.third if third else start.second
    anew = found is None or not (arguments.start or third)
    network = denoising_network(arguments.widths, arguments.pairs, seed=arguments.seed) if anew else found
    started, rows = time.monotonic(), []

    def told(progress: TrainingProgress) -> None:
        row = {"iteration": progress.step, **progress.log}
        if progress.step % arguments.validate == 0 or progress.step == arguments.iterations:
            row |= {f"unseen {name}": value for name, value in validate(progress.average, unseen).items()}
        rows.append(row)
        line = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
        print(f"{line}, {time.monotonic() - started:.0f} s", flush=True)

    result = learn_prior(
        jax.random.key(arguments.seed),
        network,
        scenes,
        loss=LOSSES[arguments.loss],
        optimizer=(warmed_adam if arguments.loss == "errors" else warmed_muon)(arguments.rate, arguments.iterations),
        num_iterations=arguments.iterations,
        batch_size=arguments.batch,
        chunk=EVERY,
        checkpoint=arguments.checkpoint,
        progress=told,
    )
    print(result.status)
    stage = {name: value for name, value in vars(arguments).items() if isinstance(value, int | float | str)}
    stage |= {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    prefix = "third_" if third else ""
    sizes = {f"{prefix}{name}": json.dumps(getattr(arguments, name)) for name in ("widths", "pairs")} if anew else {}
    kind = "third" if third else f"second_{arguments.loss}"
    settings = start.settings | sizes | {kind: json.dumps(stage)}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    learned = {"third" if third else "second": result.average, "settings": settings}
    restoration.save_witness(arguments.output, dataclasses.replace(start, **learned))
    with arguments.output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(
            file, sorted({name for row in rows for name in row}, key=lambda n: (n != "iteration", n))
        )
        writer.writeheader()
        writer.writerows(rows)
    print(json.dumps(validate(result.average, unseen)))


def load(
    paths: Sequence[pathlib.Path], targets: Sequence[pathlib.Path] = (), share: float = 0.0
) -> Scenes | CoarseScenes:
    """Scenes that ``scenes.py`` wrote; this share of the truth is replaced by what ``targets.py`` wrote."""
    files = [np.load(path) for path in paths]
    kind = CoarseScenes if "channels" in files[0] else Scenes
    names = [field.name for field in dataclasses.fields(kind) if field.name != "box"]
    columns = {name: np.concatenate([file[name] for file in files]) for name in names}
    if targets:
        mixed = np.concatenate([np.load(path)["target"] for path in targets]).astype(np.float32)
        columns["truth"] = (1 - share) * columns["truth"].astype(np.float32) + share * mixed
    good = [all(np.isfinite(columns[name][i]).all() for name in names) for i in range(len(columns["truth"]))]
    return kind(**{name: jnp.asarray(values[good]) for name, values in columns.items()})


def validate(network: NnxFunction, unseen: Scenes | CoarseScenes) -> dict[str, float]:
    """Means over scenes: logs of ``correction_loss``, or those of ``diffusion_loss`` at each level."""
    judge = judge_levels if isinstance(unseen, CoarseScenes) else judge_mean
    rows = [judge(network, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], unseen)) for i in range(len(unseen.truth))]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


@platform.jit
def judge_mean(network: NnxFunction, scene: Scenes) -> dict[str, jax.Array]:
    return correction_loss(network, scene(jax.random.key(0)))[1]


@platform.jit
def judge_levels(network: NnxFunction, scene: CoarseScenes) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(0))
    seen = scene(keys[0])
    return {f"sigma {level:g}": diffusion_loss(network, seen, keys[1], jnp.float32(level))[0] for level in LEVELS}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=pathlib.Path, nargs="+", required=True, help="what scenes.py wrote")
    parser.add_argument("--targets", type=pathlib.Path, nargs="+", default=(), help="what targets.py wrote")
    parser.add_argument("--share", type=float, default=0.2, help="of the targets in what is learned")
    parser.add_argument("--validation", type=pathlib.Path, required=True, help="scenes that are not learned from")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--start", type=pathlib.Path, help="weights whose second network to go on from")
    parser.add_argument("--checkpoint", type=pathlib.Path, help="folder to go on from after an interruption")
    parser.add_argument("--loss", choices=LOSSES, default="mean")
    parser.add_argument("--box", type=int, nargs=3, default=(40, 48, 48), help="of examples of boxes")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS)
    parser.add_argument("--iterations", type=int, default=4000)
    parser.add_argument("--validate", type=int, default=500, help="iterations between validations, a multiple of 50")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
