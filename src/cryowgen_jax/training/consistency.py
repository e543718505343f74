r"""Learning from rotated and degraded answers (IsoNet; CryoGEN-I; equivariant imaging, Chen et al., ICCV 2021).

A network g, observation -> volume, is right only if it recovers its own answer after that is rotated and degraded:

.. math:: C(g; v) = \frac1D |g(T_M R v + \epsilon) - R v|^2

with v its answer to a real observation, a random rotation R and noise epsilon like that of the observations. After the
rotation the wedge hides coefficients of v that were measured, and g learns to fill them.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from cryowgen_jax.operators import Rotation
from cryowgen_jax.pytrees import as_pytree
from cryowgen_jax.spatial import fourier
from cryowgen_jax.spatial.rotation import cube_rotations
from cryowgen_jax.training.descent import (
    Descent,
    Log,
    TrainingProgress,
    descend,
    mean_slope,
    require_batch,
)
from cryowgen_jax.types import Array, InputError, PRNGKey, PyTree

Network = Callable[[Array], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Reobservation:
    r"""(key, v) -> (T_M R v + epsilon, R v): a new observation of a volume, and the rotated volume itself.

    Parameters
    ----------
    decoder
        T_M, a pytree callable.
    amplitude
        Square root of the power spectrum of epsilon, rfftn layout; 0 inside the wedge, as in ``NoisyWitness``.
    rotations
        (n, 3, 3) to draw R from; the 24 of the cube by default, which need cubic boxes and do not interpolate.
    """

    decoder: Callable[[Array], Array]
    amplitude: Array
    rotations: Array = dataclasses.field(default_factory=cube_rotations)

    def __call__(self, key: PRNGKey, volume: Array) -> tuple[Array, Array]:
        """One new observation."""
        turn_key, noise_key = jax.random.split(key)
        number = jax.random.randint(turn_key, (), 0, self.rotations.shape[0])
        turned = Rotation(self.rotations[number])(volume)
        noise = jax.random.normal(noise_key, volume.shape, volume.dtype)
        return self.decoder(turned) + fourier.filter_volume(noise, self.amplitude), turned


def consistency(network: Network, reobserve: Reobservation, key: PRNGKey, volume: Array) -> Array:
    """C(g; v), with no gradient through v."""
    observation, turned = reobserve(key, jax.lax.stop_gradient(volume))
    return jnp.mean((network(observation) - turned) ** 2)


def learn_center(
    key: PRNGKey,
    network: Network,
    halves: tuple[Array, Array],
    reobserve: Reobservation,
    *,
    weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
    num_iterations: int = 1000,
    batch_size: int = 4,
    decay: float = 0.99,
    checkpoint: str | pathlib.Path | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> Descent:
    r"""Learn z-bar(y), such as a ``CenterNet``, from pairs of half tomograms by noise2noise and consistency.

    .. math:: \frac1D |T_M g(y_1) - y_2|^2 + \nu\, C(g; g(y_1))

    The noise of the two halves is independent. So the first term is smallest, on average, where T_M g(y_1) is the mean
    of the measured signal given y_1 (Lehtinen et al., ICML 2018). The second term teaches g to fill the wedge.

    For a posterior of y_2 use g(y_1) as the centre. A centre made from the same data that stand in the data term would
    use them twice.

    Parameters
    ----------
    key
        Iteration i depends on ``fold_in(key, i)``.
    network
        Where to start: observation -> volume, a pytree callable such as ``from_nnx(CenterNet(...))``.
    halves
        y_1 and y_2, (N, Z, Y, X) each: boxes cut from the two half tomograms at the same places. Which of the two is
        the input is drawn at random.
    reobserve
        How volumes are observed, with the noise of one half.
    weight
        nu.
    optimizer
        Optax transformation, Adam with a step of 1e-3 by default.
    num_iterations, decay, checkpoint, progress
        As in :func:`~cryowgen_jax.training.descent.descend`.
    batch_size
        Pairs per iteration.

    Returns
    -------
    Descent
        ``average`` is the network to use.

    Raises
    ------
    InputError
        Where halves or sizes do not fit.
    """
    first, second = halves
    if first.shape != second.shape:
        raise InputError(f"halves of shapes {first.shape} and {second.shape}: cut both at the same places")
    require_batch(batch_size, first.shape[0], "pairs")
    return descend(
        key,
        _CenterStep(first, second, as_pytree(reobserve), jnp.float32(weight), batch_size),
        as_pytree(network),
        (),
        optimizer=optimizer,
        num_iterations=num_iterations,
        decay=decay,
        checkpoint=checkpoint,
        progress=progress,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _CenterStep:
    """(key, network, ()) -> gradient of the loss, (), log."""

    first: Array
    second: Array
    reobserve: Reobservation
    weight: Array
    batch_size: int = dataclasses.field(metadata={"static": True})

    def __call__(self, key: PRNGKey, network: PyTree, state: tuple[()]) -> tuple[PyTree, tuple[()], Log]:
        """One estimate of the gradient."""
        pick_key, coin_key, look_key = jax.random.split(key, 3)
        picked = jax.random.choice(pick_key, self.first.shape[0], (self.batch_size,), replace=False)
        coins = jax.random.bernoulli(coin_key, shape=(self.batch_size, 1, 1, 1))
        first, second = self.first[picked], self.second[picked]
        given, other = jnp.where(coins, first, second), jnp.where(coins, second, first)

        def loss(network: PyTree, item: tuple[PRNGKey, Array, Array]) -> tuple[Array, Log]:
            look_key, given, other = item
            volume = network(given)
            misfit = jnp.mean((self.reobserve.decoder(volume) - other) ** 2)
            lost = consistency(network, self.reobserve, look_key, volume)
            total = misfit + self.weight * lost
            return total, {"loss": total, "misfit": misfit, "consistency": lost}

        slope, log = mean_slope(loss, network, (jax.random.split(look_key, self.batch_size), given, other))
        return slope, state, log
