"""Learn a denoiser from scenes; see README.md.

python experiments/learned_witness/train_denoiser.py --scenes train.npz --validation val.npz --output next.safetensors
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

from cryowgen_jax import io, restoration
from cryowgen_jax.models import NnxFunction, denoising_network
from cryowgen_jax.training import Scenes, TrainingProgress, correction_loss, diffusion_loss, learn_prior, warmed_adam

LOSSES = {"diffusion": diffusion_loss, "correction": correction_loss}
EVERY = 50  # iterations between lines of the log


def main() -> None:
    arguments = parse()
    scenes, unseen = load(arguments.scenes, arguments.targets), load([arguments.validation])
    box = tuple(arguments.box) if arguments.loss == "diffusion" else None
    print(f"{len(scenes.truth)} scenes of {scenes.truth.shape[1:]}, {len(unseen.truth)} to validate with", flush=True)
    network = denoising_network(arguments.widths, arguments.pairs, seed=arguments.seed)
    if arguments.start:
        arrays, _ = io.load_weights(arguments.start)
        paths, structure = jax.tree_util.tree_flatten_with_path(network.variables)
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
        leaves = [jnp.asarray(arrays[name], jnp.float32) for name in names]
        network = dataclasses.replace(network, variables=jax.tree.unflatten(structure, leaves))
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
        dataclasses.replace(scenes, box=box),
        loss=LOSSES[arguments.loss],
        optimizer=warmed_adam(arguments.rate, arguments.iterations),
        num_iterations=arguments.iterations,
        batch_size=arguments.batch,
        chunk=EVERY,
        checkpoint=arguments.checkpoint,
        progress=told,
    )
    print(result.status)
    settings = {
        name: str(value) if isinstance(value, pathlib.Path) else value
        for name, value in vars(arguments).items()
        if name not in ("scenes", "targets", "validation", "output", "start", "checkpoint")
    }
    settings |= {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    restoration.save_witness(arguments.output, result.average, settings)
    with arguments.output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(
            file, sorted({name for row in rows for name in row}, key=lambda n: (n != "iteration", n))
        )
        writer.writeheader()
        writer.writerows(rows)
    print(json.dumps(validate(result.average, unseen)))


def load(paths: Sequence[pathlib.Path], targets: Sequence[pathlib.Path] = ()) -> Scenes:
    """Scenes that ``scenes.py`` wrote; ``targets`` hold volumes to learn from in place of the truth."""
    names = [field.name for field in dataclasses.fields(Scenes) if field.name != "box"]
    files = [np.load(path) for path in paths]
    columns = {name: np.concatenate([file[name] for file in files]) for name in names}
    if targets:
        columns["truth"] = np.concatenate([np.load(path)["truth"] for path in targets])
    good = [all(np.isfinite(columns[name][i]).all() for name in names) for i in range(len(columns["truth"]))]
    return Scenes(**{name: jnp.asarray(values[good]) for name, values in columns.items()})


def validate(network: NnxFunction, unseen: Scenes) -> dict[str, float]:
    """Mean logs of ``correction_loss`` over whole scenes."""
    rows = [judge(network, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], unseen)) for i in range(len(unseen.truth))]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


@jax.jit
def judge(network: NnxFunction, scene: Scenes) -> dict[str, jax.Array]:
    return correction_loss(network, scene(jax.random.key(0)))[1]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=pathlib.Path, nargs="+", required=True, help="what scenes.py wrote")
    parser.add_argument("--targets", type=pathlib.Path, nargs="+", default=(), help="volumes in place of the truth")
    parser.add_argument("--validation", type=pathlib.Path, required=True, help="scenes that are not learned from")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--start", type=pathlib.Path, help="weights to go on from")
    parser.add_argument("--checkpoint", type=pathlib.Path, help="folder to go on from after an interruption")
    parser.add_argument("--loss", choices=LOSSES, default="diffusion")
    parser.add_argument("--box", type=int, nargs=3, default=(32, 32, 32), help="of diffusion")
    parser.add_argument("--widths", type=int, nargs="+", default=(32, 64, 96))
    parser.add_argument("--pairs", type=int, nargs="+", default=(1, 2, 2))
    parser.add_argument("--iterations", type=int, default=8000)
    parser.add_argument("--validate", type=int, default=500, help="iterations between validations, a multiple of 50")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
