r"""One pass of a network in place of an ascent: CryoGEN-I's prediction and CryoGEN-II's c-transform, amortised.

A network g, observation -> volume, descends

.. math:: L(g; x) = -\frac1D F_x(g(x + s \xi)) + \nu\, C(g; g(x)) ,

F_x the exponent of the posterior of x, xi white noise that opens one-to-many maps, C the consistency of
``training.consistency``. Where g can follow, it ends at the maximum of F_x for every x. For CryoGEN-I that is the
posterior's mode; for CryoGEN-II, whose exponent has no tether, the minimiser of the c-transform

.. math:: w^c(x) = \min_z \{ \tfrac\lambda2 |x - A(z)|^2 - w(z) \}, \qquad
          J_0 = \sup_w E_{z \sim P_Z}[w(z)] + E_x[w^c(x)]

being the limit of semi-dual training as the temperature falls: :class:`AmortisedNegatives` makes g the negatives of
``training.train``, which then is the game of a generator and an energy. Unlike a critic of Wasserstein-1, w needs no
Lipschitz bound.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cryowgen_jax import platform
from cryowgen_jax.methods import untethered
from cryowgen_jax.optimisation import Iterate, debiased_average, follow_gradient, start_average
from cryowgen_jax.potentials import Posterior
from cryowgen_jax.pytrees import as_pytree
from cryowgen_jax.training.consistency import Network, Reobservation, consistency
from cryowgen_jax.training.descent import (
    DEFAULT_OPTIMIZER,
    Descent,
    Log,
    TrainingProgress,
    descend,
    mean_slope,
    require_batch,
)
from cryowgen_jax.training.negatives import Negatives, Posteriors
from cryowgen_jax.types import Array, InputError, PRNGKey, PyTree, Stochastic

Method = Literal["cryogen_map", "cryogen_ot"]
LEAST_BALANCE = 0.5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Amortisation:
    """L, but for network and observation.

    Parameters
    ----------
    method
        "cryogen_map", or "cryogen_ot": the same without the tether.
    input_noise
        s, in units of the observation.
    weight, reobserve
        nu and how volumes are seen again; 0 and None for no consistency.
    """

    method: Method = dataclasses.field(default="cryogen_ot", metadata={"static": True})
    input_noise: float = dataclasses.field(default=0.0, metadata={"static": True})
    weight: float = dataclasses.field(default=0.0, metadata={"static": True})
    reobserve: Reobservation | None = None

    def __post_init__(self) -> None:
        if self.method not in ("cryogen_map", "cryogen_ot"):
            raise InputError(f"method={self.method!r}: give 'cryogen_map' or 'cryogen_ot'")
        if self.weight and self.reobserve is None:
            raise InputError(f"weight={self.weight}: say how volumes are seen again (reobserve)")

    def target(self, posterior: Posterior) -> Posterior:
        """What has F for its exponent."""
        return untethered(posterior) if self.method == "cryogen_ot" else posterior

    def loss(self, network: Network, posterior: Posterior, key: PRNGKey) -> tuple[Array, Log]:
        """L of one observation; of a random witness, with one draw of it."""
        noise_key, look_key, witness_key = jax.random.split(key, 3)
        if isinstance(posterior.witness, Stochastic):
            posterior = dataclasses.replace(posterior, witness=posterior.witness.at(witness_key))
        given = posterior.observation
        if self.input_noise:
            given = given + self.input_noise * jax.random.normal(noise_key, given.shape, given.dtype)
        volume = network(given)
        total = -self.target(posterior).log_density(volume) / volume.size
        log = {"exponent": -total}
        if self.reobserve is not None:
            log["consistency"] = consistency(network, self.reobserve, look_key, volume)
            total = total + self.weight * log["consistency"]
        return total, {"loss": total} | log


def learn_map(
    key: PRNGKey,
    network: Network,
    posteriors: Posteriors,
    observations: Array,
    amortisation: Amortisation | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_iterations: int = 1000,
    batch_size: int = 16,
    decay: float = 0.99,
    checkpoint: str | pathlib.Path | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> Descent:
    """Amortise the maxima of posteriors that are given.

    Parameters
    ----------
    key
        Iteration i depends on ``fold_in(key, i)``.
    network
        Where to start: observation -> volume, a pytree callable such as ``from_nnx(CenterNet(...))``.
    posteriors
        Observation -> its posterior, such as ``Model(...).posterior``.
    observations
        (N, ...), of which ``batch_size`` are taken per iteration, without replacement.
    amortisation
        The loss; that of CryoGEN-II by default.
    optimizer
        Optax transformation, Adam with a step of 1e-3 by default.
    num_iterations, decay, checkpoint, progress
        As in :func:`~cryowgen_jax.training.descent.descend`; ``average`` of the result is the network to use.

    Raises
    ------
    InputError
        Where sizes do not fit.
    """
    require_batch(batch_size, observations.shape[0], "observations")
    return descend(
        key,
        _Step(as_pytree(posteriors), observations, amortisation or Amortisation(), batch_size),
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
class _Step:
    """(key, network, nothing) -> gradient of L, nothing, log."""

    posteriors: Posteriors
    observations: Array
    amortisation: Amortisation
    batch_size: int = dataclasses.field(metadata={"static": True})

    def __call__(self, key: PRNGKey, network: PyTree, state: tuple[()]) -> tuple[PyTree, tuple[()], Log]:
        """One estimate of the gradient."""
        pick_key, loss_key = jax.random.split(key)
        picked = jax.random.choice(pick_key, self.observations.shape[0], (self.batch_size,), replace=False)

        def loss(network: PyTree, item: tuple[PRNGKey, Array]) -> tuple[Array, Log]:
            return self.amortisation.loss(network, self.posteriors(item[1]), item[0])

        items = (jax.random.split(loss_key, self.batch_size), self.observations[picked])
        slope, log = mean_slope(loss, network, items)
        return slope, state, log


class AmortisedState(NamedTuple):
    """The network, its running average, which is the one to use, and the states of optimiser and average."""

    network: PyTree
    average: PyTree
    optimizer: PyTree
    ema: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class AmortisedNegatives:
    """CryoGEN-I and II: the answers of a network learned beside the witness; ``Training.state.average`` has it.

    Parameters
    ----------
    network
        Where to start, as in :func:`learn_map`.
    amortisation
        The loss; that of CryoGEN-II by default.
    optimizer
        Of the network, Adam with a step of 1e-3 by default.
    num_steps
        Steps of it per iteration, each on observations of its own: the network has to keep up with the witness.
    decay
        Of the running average over iterations (Yazici et al., ICLR 2019: generators circle their optimum).

    Notes
    -----
    Point estimates are no draws, so that ``virial`` says nothing here, and a witness learned in this way is no
    log-density: posteriors under it are relative to what g makes (Che et al., NeurIPS 2020). ``quality`` is
    1 - |grad F| / (|grad w| + |grad (F - w)|), 1 where the two sides balance.
    """

    network: Network
    amortisation: Amortisation = dataclasses.field(default_factory=Amortisation)
    optimizer: optax.GradientTransformation = DEFAULT_OPTIMIZER
    num_steps: int = 4
    decay: float = 0.99

    def start(self, key: PRNGKey, posteriors: Posteriors, observations: Array) -> AmortisedState:
        """The network as it is given."""
        del key, posteriors, observations
        network = jax.tree.map(jnp.asarray, as_pytree(self.network))
        return AmortisedState(network, network, self.optimizer.init(network), start_average(network))

    def draw(
        self, key: PRNGKey, posteriors: Posteriors, observations: Array, index: Array, state: AmortisedState
    ) -> tuple[Negatives, AmortisedState]:
        """The network's answers after ``num_steps`` more steps."""
        step = _Step(posteriors, observations, self.amortisation, index.size)

        def slope_at(key: PRNGKey, network: PyTree, nothing: tuple[()]) -> tuple[PyTree, tuple[()], None]:
            slope, nothing, _ = step(key, network, nothing)
            return slope, nothing, None

        start = Iterate(state.network, average=(), optimizer=state.optimizer, state=())
        end, _ = follow_gradient(slope_at, self.optimizer, start, jax.random.split(key, self.num_steps))
        network = end.parameters

        def answer(observation: Array) -> tuple[Array, Array]:
            volume = network(observation)
            return volume, _balance(self.amortisation.target(posteriors(observation)), volume)

        volumes, balances = platform.map_items(answer, observations[index])
        average, ema = debiased_average(self.decay, network, state.ema)
        negatives = Negatives(volumes[:, None], jnp.ones((index.size, 1)), balances)
        return negatives, AmortisedState(network, average, end.optimizer, ema)

    def complaints(self, quality: float, virial: float) -> Iterator[str]:
        """Where the network is far from its maxima."""
        del virial
        if quality < LEAST_BALANCE:
            yield f"The network is far from the maxima (balance {quality:.2f}, should be 1): give it more steps."


def _balance(posterior: Posterior, volume: Array) -> Array:
    pull = jax.grad(posterior.witness)(volume)
    whole = posterior.drift(volume)

    def norm(vector: Array) -> Array:
        return jnp.sqrt(jnp.sum(vector**2))

    return 1 - norm(whole) / jnp.maximum(norm(pull) + norm(whole - pull), 1e-12)
