r"""A network that finds the maximum of a posterior in one pass: CryoGEN-I and CryoGEN-II, amortised.

The network g, observation -> volume, minimises

.. math:: L(g; x) = -\frac1D F_x(g(x + s \xi)) + \nu\, C(g; g(x))

with F_x the exponent of the posterior of x, white noise xi, which lets g give several answers to one x, and C the
consistency of ``training.consistency``. Without noise and consistency, and with a g that is flexible enough, g(x) is
the maximum of F_x for every x. In CryoGEN-I that is the mode of the posterior. In CryoGEN-II, whose exponent has no
tether, it is the minimiser in the c-transform

.. math:: w^c(x) = \min_z \{ \tfrac\lambda2 |x - A(z)|^2 - w(z) \}, \qquad
          J_0 = \sup_w E_{z \sim P_Z}[w(z)] + E_x[w^c(x)] ,

where J_0 is the limit of the objective of semi-dual training as the temperature falls. :class:`AmortisedNegatives`
makes the answers of g the negatives of ``training.train``, which then is a game of a generator and an energy. Unlike
the critic of the Wasserstein-1 distance, w needs no Lipschitz bound.
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
    """The settings of the loss L.

    Parameters
    ----------
    method
        "cryogen_map", or "cryogen_ot", which has no tether.
    input_noise
        s, in units of the observation.
    weight
        nu.
    reobserve
        How volumes are observed again, for the consistency; None, with a weight of 0, for none.

    Raises
    ------
    InputError
        Where the method is unknown, or a weight is given without ``reobserve``.
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
        """The posterior whose exponent is F."""
        return untethered(posterior) if self.method == "cryogen_ot" else posterior

    def loss(self, network: Network, posterior: Posterior, key: PRNGKey) -> tuple[Array, Log]:
        """L of one observation, and its parts; where the witness is random, with one draw of it."""
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
    """Learn a network that finds the maxima of given posteriors.

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
        As in :func:`~cryowgen_jax.training.descent.descend`.

    Returns
    -------
    Descent
        ``average`` is the network to use.

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
    """(key, network, ()) -> gradient of L, (), log."""

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
    """The network, its running average (the one to use), and the states of the optimiser and of the average."""

    network: PyTree
    average: PyTree
    optimizer: PyTree
    ema: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class AmortisedNegatives:
    """CryoGEN-I and II: the answers of a network that is learned together with the witness.

    After training the network is ``Training.state.average``.

    Parameters
    ----------
    network
        Where to start, as in :func:`learn_map`.
    amortisation
        The loss; that of CryoGEN-II by default.
    optimizer
        Of the network, Adam with a step of 1e-3 by default.
    num_steps
        Steps of the network per iteration, each on other observations: it has to keep up with the witness.
    decay
        Of the running average over iterations. Generators circle around their optimum (Yazici et al., ICLR 2019).

    Notes
    -----
    The answers are point estimates, not draws, so that ``virial`` means nothing here. A witness learned from them is
    not a log-density: its posteriors are relative to the distribution of the answers (Che et al., NeurIPS 2020).
    ``quality`` is 1 - |grad F| / (|grad w| + |grad (F - w)|): 1 at a maximum, where the two gradients cancel.
    """

    network: Network
    amortisation: Amortisation = dataclasses.field(default_factory=Amortisation)
    optimizer: optax.GradientTransformation = DEFAULT_OPTIMIZER
    num_steps: int = 4
    decay: float = 0.99

    def start(self, key: PRNGKey, posteriors: Posteriors, observations: Array) -> AmortisedState:
        """The state before training: the network as it was given."""
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
        """A complaint where the network is far from the maxima."""
        del virial
        if quality < LEAST_BALANCE:
            yield f"The network is far from the maxima (balance {quality:.2f}, should be 1): give it more steps."


def _balance(posterior: Posterior, volume: Array) -> Array:
    pull = jax.grad(posterior.witness)(volume)
    whole = posterior.drift(volume)

    def norm(vector: Array) -> Array:
        return jnp.sqrt(jnp.sum(vector**2))

    return 1 - norm(whole) / jnp.maximum(norm(pull) + norm(whole - pull), 1e-12)
