"""An energy and a network that play against each other on wedged, noisy boxes: does that alone fill the wedge?"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

import cryowgen_jax as cg
from cryowgen_jax.models import DataConsistent
from cryowgen_jax.operators import NoisyWitness, RotatedWitness
from cryowgen_jax.report import figure_png, markdown_table
from cryowgen_jax.report.figures import plain_axes, show_slice
from cryowgen_jax.spatial.rotation import axis_permutations
from cryowgen_jax.training import (
    Amortisation,
    AmortisedNegatives,
    Model,
    Reobservation,
    TrainingProgress,
    learn_center,
    learn_map,
    train,
)

HERE = pathlib.Path(__file__).resolve().parent
SHAPE = (8, 8, 8)
BALLS, RADIUS, DENSITY = 3, 1.0, 4.0  # per box; standard deviation in voxels; density in the middle
NOISE = 0.2  # standard deviation of one half, of which observations average two
OBSERVATIONS, UNSEEN = 4096, 64
PRIOR_PRECISION = 0.1
ITERATIONS, QUICK_ITERATIONS = 400, 150
BATCH_SIZE, POSITIVES = 16, 32
ENERGY_PENALTY = 0.01
MASK = np.asarray(cg.wedge_mask(SHAPE, (-50.0, 50.0)))
WEDGE = cg.Wedge(jnp.asarray(MASK))
SHOWN = 4  # boxes of the picture
SEED = 20261127
COLUMNS = ("what learns", "iterations", "in-wedge cc", "wedge energy", "gap", "balance", "minutes")

Network = Callable[[jax.Array], jax.Array]


# What is seen


class Boxes(NamedTuple):
    """Volumes (N, Z, Y, X) and two halves of what the wedge and noise leave of them."""

    truths: jax.Array
    halves: tuple[jax.Array, jax.Array]

    @property
    def observations(self) -> jax.Array:
        """The mean of both halves."""
        return (self.halves[0] + self.halves[1]) / 2


def boxes(key: jax.Array, count: int) -> Boxes:
    """Balls anywhere in periodic boxes: what the wedge smears is round in other orientations."""
    place_key, *noise_keys = jax.random.split(key, 3)
    places = jax.random.uniform(place_key, (count, BALLS, 3), maxval=SHAPE[0])
    apart = (jnp.arange(SHAPE[0]) - places[..., None] + SHAPE[0] / 2) % SHAPE[0] - SHAPE[0] / 2
    profiles = jnp.exp(-0.5 * (apart / RADIUS) ** 2)
    truths = DENSITY * jnp.einsum("nbz,nby,nbx->nzyx", *jnp.moveaxis(profiles, 2, 0))
    truths = truths - jnp.mean(truths)
    noisy = (truths + NOISE * jax.random.normal(k, truths.shape) for k in noise_keys)
    return Boxes(truths, tuple(jax.vmap(WEDGE)(volumes) for volumes in noisy))


# The two players


def network() -> DataConsistent:
    """Where the network starts: it answers its input, with nothing in the wedge."""
    return DataConsistent(cg.from_nnx(cg.CenterNet(channels=8, levels=0, rngs=nnx.Rngs(SEED))), WEDGE)


def start() -> Model:
    """w(v) = E D(T_M R (v + eps)), eps inside the wedge alone: the answers have the noise of the rest already."""
    energy = cg.ConvWitness((16,), curvature=4.0, rngs=nnx.Rngs(SEED + 1))
    seen = RotatedWitness(cg.from_nnx(energy), WEDGE, axis_permutations())
    amplitude = NOISE / 2**0.5 * (1 - MASK).astype(np.float32)
    witness = NoisyWitness(seen, jnp.asarray(amplitude), jax.random.split(jax.random.key(SEED + 2), 1))
    return Model(witness, WEDGE, jnp.zeros_like, jnp.log(2 / NOISE**2), jnp.log(PRIOR_PRECISION))


def value_of_observation(witness: NoisyWitness, observation: jax.Array) -> jax.Array:
    """D alone of an observation."""
    return witness.witness.witness(observation)


def adam(rate: float) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b1=0.0))


# Learning


class Learned(NamedTuple):
    """The network, its in-wedge correlation by iteration, and the last means of what training logs."""

    answer: Network
    progress: dict[int, float]
    gap: float
    balance: float
    seconds: float


class Watch:
    """Follows the in-wedge correlation while a network learns."""

    def __init__(self, name: str, unseen: Boxes, average: Callable[[TrainingProgress], Network]) -> None:
        self.name, self.unseen, self.average = name, unseen, average
        self.started, self.progress = time.monotonic(), {0: in_wedge_correlation(network(), unseen)}

    def __call__(self, told: TrainingProgress) -> None:
        """Validate once."""
        value = self.progress[told.step] = in_wedge_correlation(self.average(told), self.unseen)
        print(f"{self.name}, {told.step} of {told.num_steps}: in-wedge correlation {value:.3f}", flush=True)

    def learned(self, answer: Network, gap: float = np.nan, balance: float = np.nan) -> Learned:
        """What has come of it."""
        return Learned(answer, self.progress, gap, balance, time.monotonic() - self.started)


def energy_fixed(seen: Boxes, unseen: Boxes, iterations: int) -> Learned:
    """The control: CryoGEN-I's network for the energy as it was drawn."""
    watch = Watch("energy fixed", unseen, lambda told: told.average)
    found = learn_map(
        jax.random.key(SEED),
        network(),
        start().posterior,
        seen.observations,
        Amortisation("cryogen_map"),
        optimizer=adam(1e-3),
        num_iterations=iterations,
        batch_size=BATCH_SIZE,
        progress=watch,
    )
    return watch.learned(found.average)


def energy_learned(seen: Boxes, unseen: Boxes, iterations: int) -> Learned:
    """CryoGEN-I: energy and network, from observations alone."""
    watch = Watch("energy learned", unseen, lambda told: told.state.average)
    found = train(
        jax.random.key(SEED),
        start(),
        seen.observations,
        seen.observations,
        learn=("witness.witness.witness",),
        negatives=AmortisedNegatives(network(), Amortisation("cryogen_map"), adam(1e-3), decay=0.98),
        optimizer=adam(1e-2),
        num_iterations=iterations,
        batch_size=BATCH_SIZE,
        num_positives=POSITIVES,
        energy_penalty=ENERGY_PENALTY,
        witness_value=value_of_observation,
        progress=watch,
    )
    for words in found.warnings:
        print(words)
    return watch.learned(found.state.average, *(float(np.mean(found.log[name][-100:])) for name in ("gap", "quality")))


def consistency(seen: Boxes, unseen: Boxes, iterations: int) -> Learned:
    """The same network, taught by its own answers seen again from another side."""
    watch = Watch("consistency", unseen, lambda told: told.average)
    found = learn_center(
        jax.random.key(SEED),
        network(),
        seen.halves,
        Reobservation(WEDGE, jnp.asarray(NOISE * MASK)),
        num_iterations=iterations,
        batch_size=BATCH_SIZE,
        progress=watch,
    )
    return watch.learned(found.average)


# What came of it


def hidden(volumes: jax.Array) -> np.ndarray:
    """What of the volumes lies in the wedge."""
    return np.asarray(volumes - jax.vmap(WEDGE)(volumes))


@jax.jit
def answers(answer: Network, observations: jax.Array) -> jax.Array:
    return jax.vmap(answer)(observations)


def in_wedge_correlation(answer: Network, unseen: Boxes) -> float:
    a, b = hidden(answers(answer, unseen.observations)), hidden(unseen.truths)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.vdot(a, b) / norms) if norms > 0 else 0.0


def row(name: str, learned: Learned, unseen: Boxes) -> list[str]:
    filled, truth = hidden(answers(learned.answer, unseen.observations)), hidden(unseen.truths)
    energy = float(np.sum(filled**2) / np.sum(truth**2))
    last = max(learned.progress)
    numbers = (learned.progress[last], energy, learned.gap, learned.balance)
    texts = [f"{number:.2f}" if np.isfinite(number) else "-" for number in numbers]
    return [name, str(last), *texts, f"{learned.seconds / 60:.1f}"]


def figure(found: dict[str, Learned], unseen: Boxes) -> Figure:
    """Slices (xz) of boxes never seen, and in-wedge correlation over iterations."""
    columns = {"truth": unseen.truths, "observation": unseen.observations}
    columns |= {name: answers(learned.answer, unseen.observations) for name, learned in found.items()}
    drawn = Figure(figsize=(2.1 * len(columns) + 4.2, 6.4), layout="constrained")
    grid = drawn.add_gridspec(SHOWN, len(columns) + 2)
    limits = (-0.4 * DENSITY, 1.1 * DENSITY)
    for j, (name, volumes) in enumerate(columns.items()):
        for i in range(SHOWN):
            axis = drawn.add_subplot(grid[i, j])
            show_slice(axis, np.asarray(volumes[i, :, SHAPE[1] // 2]), *limits, "gray")
            if i == 0:
                axis.set_title(name, fontsize=9)
    curves = drawn.add_subplot(grid[:, len(columns) :])
    for (name, learned), colour in zip(found.items(), ("#D55E00", "#0072B2", "#009E73"), strict=True):
        curves.plot(list(learned.progress), list(learned.progress.values()), color=colour, label=name)
    curves.set_xlabel("iteration")
    curves.set_ylabel("correlation with the truth in the wedge")
    curves.set_ylim(-0.2, 1.0)
    curves.legend(frameon=False, fontsize=9, loc="lower right")
    plain_axes(curves)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer iterations")
    parser.add_argument("--output", type=pathlib.Path, default=HERE / "results")
    arguments = parser.parse_args()
    iterations = QUICK_ITERATIONS if arguments.quick else ITERATIONS
    seen, unseen = (boxes(jax.random.key(SEED + 3 + i), count) for i, count in enumerate((OBSERVATIONS, UNSEEN)))
    found = {
        learn.__name__.replace("_", " "): learn(seen, unseen, iterations)
        for learn in (energy_fixed, energy_learned, consistency)
    }
    table = markdown_table(COLUMNS, [row(name, learned, unseen) for name, learned in found.items()])
    print(table)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "table.md").write_text(table)
    (arguments.output / "adversarial.png").write_bytes(figure_png(figure(found, unseen)))


if __name__ == "__main__":
    main()
