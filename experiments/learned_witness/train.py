"""Learn the first network of the learned witness; see README.md.

python experiments/learned_witness/train.py --volumes volumes.npz --output learned.safetensors [--hold-out ribosomes]
"""

from __future__ import annotations

import argparse
import csv
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from specimens import GROUPS

from cryowgen_jax import restoration
from cryowgen_jax.models import NnxFunction, denoising_network, prior_network
from cryowgen_jax.models.denoiser import PAIRS, WIDTHS
from cryowgen_jax.restoration.prior_weights import PriorWeights
from cryowgen_jax.spatial import fourier
from cryowgen_jax.training import Specimens, learn_prior, prior_loss, warmed_adam
from cryowgen_jax.training.conditional_prior import example
from cryowgen_jax.training.specimens import textured

SNR = 0.1  # per half, of the validation
TEXTURE, TEXTURE_WIDTH = 0.15, 1.2  # share of the variance; voxels
VALIDATIONS = 16


def main() -> None:
    arguments = parse()
    started = time.monotonic()
    kinds = dict(np.load(arguments.volumes))
    held_out = [arguments.hold_out, "mixed"] if arguments.hold_out else []
    volumes = np.concatenate([kinds[kind] for kind in kinds if kind not in held_out])
    unseen = kinds[arguments.hold_out or "mixed"][:VALIDATIONS]
    print(f"{len(volumes)} volumes of {volumes.shape[1:]}, without {held_out or 'none'}")
    box = tuple(arguments.box)
    network = prior_network(channels=arguments.channels, levels=arguments.levels, seed=arguments.seed)
    if arguments.start:
        network = restoration.load_witness(arguments.start).first
    result = learn_prior(
        jax.random.key(arguments.seed),
        network,
        Specimens(jnp.asarray(volumes), box),
        optimizer=warmed_adam(arguments.rate, arguments.iterations),
        num_iterations=arguments.iterations,
        batch_size=arguments.batch,
        progress=lambda p: print(p.step, {k: round(v, 3) for k, v in p.log.items()}, f"{p.seconds:.0f} s", flush=True),
    )
    print(result.status)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("volumes", "output", "start")}
    settings |= {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    settings |= {"widths": json.dumps(WIDTHS), "pairs": json.dumps(PAIRS)}
    restoration.save_witness(arguments.output, PriorWeights(result.average, denoising_network(), settings))
    with arguments.output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["iteration", *result.log])
        every = 50
        for i in range(0, len(next(iter(result.log.values()))), every):
            writer.writerow([i, *(f"{np.mean(values[i : i + every]):.4f}" for values in result.log.values())])
    for tilt in ((-60.0, 60.0), (-40.0, 60.0)):
        found = validate(result.average, unseen, box, tilt)
        print(json.dumps({"tilt_range": tilt, "seconds": round(time.monotonic() - started)} | found))


def validate(
    network: NnxFunction, volumes: np.ndarray, box: tuple[int, int, int], tilt_range: tuple[float, float]
) -> dict[str, float]:
    """Mean logs over volumes that were never seen, as the mean of two halves shows them."""

    @jax.jit
    def one(volume, key):
        texture_key, key = jax.random.split(key)
        corner = [(n - m) // 2 for n, m in zip(volume.shape, box, strict=True)]
        truth = jax.lax.dynamic_slice(volume.astype(jnp.float32), corner, box)
        truth = textured(texture_key, truth, TEXTURE, TEXTURE_WIDTH)
        noise = jnp.full(fourier.spectrum_shape(box), 0.5 * jnp.var(truth) / SNR)
        return prior_loss(network, example(truth, noise, jnp.asarray(tilt_range), key))[1]

    rows = [one(jnp.asarray(v), jax.random.key(i)) for i, v in enumerate(volumes)]
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=pathlib.Path, required=True, help="what specimens.py wrote")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--hold-out", choices=tuple(GROUPS), help="never seen; validation")
    parser.add_argument("--start", type=pathlib.Path, help="weights whose first network to go on from")
    parser.add_argument("--box", type=int, nargs=3, default=(64, 88, 88))
    parser.add_argument("--channels", type=int, default=20)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=5400)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
