r"""Semi-dual training of the witness (EVIA; CryoWGEN-I and II at open-cryo.org).

.. math:: \max_w \min_{A, \bar z, \lambda, \beta}\; J = E_{z \sim P_Z}[w(z)] + E_x[\Psi(x)] ,

where P_Z is the law of clean volumes and Psi is normalised. Since :math:`\nabla \Psi = -E_\rho[\nabla F]`, the
gradient in the weights of w is

.. math:: \nabla J = E_{z \sim P_Z}[\nabla w(z)] - E_x E_{z \sim \rho(\cdot | x)}[\nabla w(z)] ,

which is followed uphill, with clean samples as positives and posterior draws as negatives. The gradient in all other
parts is that of Psi alone, which is followed downhill. At the optimum in w the draws of all posteriors together are
distributed like the clean samples.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cryowgen_jax import platform
from cryowgen_jax.potentials import Posterior, surrogate
from cryowgen_jax.pytrees import as_pytree
from cryowgen_jax.training.clean_samples import CleanSamples, drawer
from cryowgen_jax.training.descent import Descent, Log, TrainingProgress, descend, require_batch
from cryowgen_jax.training.negatives import LangevinNegatives, Negatives, NegativeSampler
from cryowgen_jax.types import Array, InputError, PRNGKey, PyTree

PARTS = ("witness", "decoder", "center", "log_data_weight", "log_prior_precision")
RUNAWAY = 5.0  # times the witness gap of the second fifth of the run

WitnessValue = Callable[[Callable[[Array], Array], Array], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """What the posteriors of all observations have in common; a pytree whose parts may be learned.

    Parameters
    ----------
    witness, decoder
        As in ``Posterior``.
    center
        Observation -> z-bar, a pytree callable.
    log_data_weight, log_prior_precision
        Logarithms of lambda and beta, so that both stay positive.
    """

    witness: Callable[[Array], Array]
    decoder: Callable[[Array], Array]
    center: Callable[[Array], Array]
    log_data_weight: Array | float
    log_prior_precision: Array | float

    def posterior(self, observation: Array) -> Posterior:
        """The posterior of one observation."""
        lam, beta = jnp.exp(self.log_data_weight), jnp.exp(self.log_prior_precision)
        return Posterior(self.witness, self.decoder, observation, self.center(observation), lam, beta)


@dataclasses.dataclass(frozen=True)
class Training:
    r"""A trained model.

    Attributes
    ----------
    model
        After the last iteration.
    average
        Its running average, which is the one to use.
    log
        By name one value per iteration: ``gap``, mean w of the positives minus that of the negatives, near 0 at the
        optimum; ``slope``, mean \|grad w\| at the negatives; ``quality``, see ``Negatives``; ``virial``,
        E[(z - zbar) . grad F] / D + 1, which is 0 where the negatives follow their posteriors.
    state
        Of the negatives.
    warnings
        Sentences about what looks like trouble.
    status
        "ok", or at which iteration training stopped and why.
    """

    model: Model
    average: Model
    log: dict[str, np.ndarray]
    state: PyTree
    warnings: tuple[str, ...]
    status: str


def objective(
    model: Model,
    positives: Array,
    observations: Array,
    negatives: Negatives,
    witness_value: WitnessValue | None = None,
) -> Array:
    """A scalar whose gradient in the model estimates that of J; its value is not J (see ``surrogate``).

    Parameters
    ----------
    model
        What is differentiated.
    positives
        (P, ...), held fixed.
    observations
        (B, ...).
    negatives
        Draws of the posteriors of these observations, (B, K, ...), held fixed.
    witness_value
        (witness, positive) -> the value that stands for w(z) in the first term of J, where positives are not volumes:
        ``lambda w, y: w.witness(y)`` for observations and a ``RotatedWitness``. By default w(z).
    """
    value = _value if witness_value is None else witness_value
    clean = platform.map_items(lambda z: value(model.witness, z), positives)

    def potential(item: tuple[Array, Array, Array]) -> Array:
        observation, samples, weights = item
        return surrogate(model.posterior(observation), samples, weights, normalised=True)

    shares = _shares(negatives)
    counts = jnp.sum(negatives.weights, axis=1, keepdims=True) > 0
    weights = jnp.where(counts, negatives.weights, 1.0)  # not 0, by whose sum surrogate would divide
    return jnp.mean(clean) + shares @ platform.map_items(potential, (observations, negatives.samples, weights))


def train(
    key: PRNGKey,
    model: Model,
    observations: Array,
    positives: CleanSamples,
    *,
    learn: Sequence[str] = ("witness",),
    negatives: NegativeSampler | None = None,
    optimizer: optax.GradientTransformation | None = None,
    num_iterations: int = 1000,
    batch_size: int = 16,
    num_positives: int | None = None,
    jitter: float = 0.0,
    energy_penalty: float = 0.0,
    witness_value: WitnessValue | None = None,
    decay: float = 0.99,
    checkpoint: str | pathlib.Path | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> Training:
    r"""Semi-dual training: ascent in the witness, descent in the other parts of ``learn``.

    Parameters
    ----------
    key
        Iteration i depends on ``fold_in(key, i)`` and on the iterations before it.
    model
        Where to start. Parts that are not learned stay as they are.
    observations
        (N, ...), of which ``batch_size`` are taken per iteration, without replacement.
    positives
        Clean samples: an array (M, ...) to draw from, or key -> one draw, for example in a random pose. With a
        ``witness_value``, whatever that takes.
    learn
        One or more of "witness", "decoder", "center", "log_data_weight", "log_prior_precision", or fields of these,
        such as "witness.witness" for D of a ``RotatedWitness`` without its mask and rotations.
    negatives
        ``LangevinNegatives()`` by default (CryoWGEN-II); ``MonteCarloNegatives`` for CryoWGEN-I, and
        ``AmortisedNegatives``, a network, for CryoGEN-I and II.
    optimizer
        Optax transformation, Adam with a step of 1e-3 by default. A second run with the same object is not compiled
        again.
    num_iterations
        Steps of the optimiser.
    batch_size
        Observations per iteration.
    num_positives
        Positives per iteration; ``batch_size`` by default.
    jitter
        Standard deviation of noise that is added to the positives. With at least the standard deviation of the noise of
        one sampler step the modes of the witness do not become infinitely narrow.
    energy_penalty
        This times (E w(z+)^2 + E w(z-)^2), over positives z+ and negatives z-, is subtracted from J.
    witness_value
        As in :func:`objective`.
    decay, checkpoint, progress
        As in :func:`~cryowgen_jax.training.descent.descend`. A run that is resumed from its checkpoint gives the same
        result bit for bit as an uninterrupted one.

    Returns
    -------
    Training
        The model, its running average, logs, and warnings.

    Raises
    ------
    InputError
        Where names or sizes do not fit.

    Notes
    -----
    J does not change when a constant is added to the witness, so that constant is not learned. Persistent chains and
    jitter are from energy-guided entropic OT (arXiv 2304.06094), the penalty from JEM, the running average from VarEOT
    (arXiv 2602.02241).
    """
    if not learn or any(name.partition(".")[0] not in PARTS for name in learn):
        raise InputError(f"learn={tuple(learn)}: give one or more of {', '.join(PARTS)}, or fields of them")
    require_batch(batch_size, observations.shape[0], "observations")
    negatives = LangevinNegatives() if negatives is None else negatives
    model = as_pytree(model)
    start_key, key = jax.random.split(key)
    step = _Step(
        model,
        observations,
        drawer(positives),
        jnp.float32(jitter),
        tuple(learn),
        negatives,
        batch_size,
        num_positives or batch_size,
        witness_value,
        energy_penalty,
    )
    found = descend(
        key,
        step,
        {name: _part(model, name) for name in learn},
        negatives.start(start_key, model.posterior, observations),
        optimizer=optimizer,
        num_iterations=num_iterations,
        decay=decay,
        checkpoint=checkpoint,
        progress=progress,
    )
    return Training(
        _with_parts(model, found.parameters),
        _with_parts(model, found.average),
        found.log,
        found.state,
        trouble(found, negatives),
        found.status,
    )


def trouble(found: Descent, negatives: NegativeSampler) -> tuple[str, ...]:
    """Sentences about what in the log looks like divergence."""
    words = [] if found.status == "ok" else [f"Training {found.status}."]
    log, length = found.log, len(next(iter(found.log.values())))
    if length < 20:
        return tuple(words)
    early, late = slice(length // 5, 2 * length // 5), slice(4 * length // 5, None)
    before, after = (float(np.mean(np.abs(log["gap"][part]))) for part in (early, late))
    if after > RUNAWAY * before and abs(np.mean(log["gap"][late])) > 2 * np.std(log["gap"][late]):
        words.append(
            f"The gap between positives and negatives grew from {before:.3g} to {after:.3g}: negatives do not follow "
            "the witness; give them more steps, or lower the learning rate."
        )
    words.extend(negatives.complaints(*(float(np.mean(log[name][late])) for name in ("quality", "virial"))))
    return tuple(words)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Step:
    """(key, learned parts, state of the negatives) -> gradient for descent, state, log."""

    model: Model
    observations: Array
    draw_positive: Callable[[PRNGKey], Array]
    jitter: Array
    learn: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    negatives: NegativeSampler = dataclasses.field(metadata={"static": True})
    batch_size: int = dataclasses.field(metadata={"static": True})
    num_positives: int = dataclasses.field(metadata={"static": True})
    witness_value: WitnessValue | None = dataclasses.field(metadata={"static": True})
    energy_penalty: float = dataclasses.field(metadata={"static": True})

    def __call__(self, key: PRNGKey, parameters: dict[str, PyTree], state: PyTree) -> tuple[PyTree, PyTree, Log]:
        """One estimate of the gradient."""
        batch_key, positive_key, jitter_key, chain_key = jax.random.split(key, 4)
        model = _with_parts(self.model, parameters)
        index = jax.random.choice(batch_key, self.observations.shape[0], (self.batch_size,), replace=False)
        observations = self.observations[index]
        negatives, state = self.negatives.draw(chain_key, model.posterior, self.observations, index, state)

        positives = platform.map_items(self.draw_positive, jax.random.split(positive_key, self.num_positives))
        positives = positives + self.jitter * jax.random.normal(jitter_key, positives.shape, positives.dtype)

        def value(parameters: dict[str, PyTree]) -> Array:
            model = _with_parts(self.model, parameters)
            gain = objective(model, positives, observations, negatives, self.witness_value)
            if not self.energy_penalty:
                return gain
            squares = jnp.mean(self._values(model.witness, positives) ** 2)
            squares = squares + _mean(lambda z: model.witness(z) ** 2, negatives)
            return gain - self.energy_penalty * squares  # depends on the witness alone, so its sign fits

        slope = jax.grad(value)(parameters)
        for name in slope:
            if name.partition(".")[0] == "witness":
                slope[name] = jax.tree.map(jnp.negative, slope[name])
        return slope, state, self._log(model, observations, positives, negatives)

    def _values(self, witness: Callable[[Array], Array], positives: Array) -> Array:
        value = _value if self.witness_value is None else self.witness_value
        return platform.map_items(lambda z: value(witness, z), positives)

    def _log(self, model: Model, observations: Array, positives: Array, negatives: Negatives) -> Log:
        def look(item: tuple[Array, Array, Array]) -> tuple[Array, ...]:
            observation, samples, weights = item
            posterior = model.posterior(observation)
            rest = dataclasses.replace(posterior, witness=_nothing)

            def one(z: Array) -> tuple[Array, ...]:
                value, slope = jax.value_and_grad(model.witness)(z)
                virial = jnp.sum((z - posterior.center) * (slope + rest.drift(z))) / z.size + 1.0
                return value, jnp.sqrt(jnp.sum(slope**2)), virial

            return tuple(jnp.sum(weights * column) for column in jax.vmap(one)(samples))

        sums = platform.map_items(look, (observations, negatives.samples, negatives.weights))
        value, slope, virial = (jnp.sum(column) / _count(negatives) for column in sums)
        gap = jnp.mean(self._values(model.witness, positives)) - value
        return {"gap": gap, "slope": slope, "quality": jnp.mean(negatives.quality), "virial": virial}


def _part(model: Model, path: str) -> PyTree:
    try:
        return functools.reduce(getattr, path.split("."), model)
    except AttributeError as error:
        raise InputError(f"learn={path!r}: {error}") from None


def _with_parts(model: Model, parts: dict[str, PyTree]) -> Model:
    """The model with other parts, each named by its path."""
    for path, value in parts.items():
        owner, _, name = path.rpartition(".")
        changed = dataclasses.replace(_part(model, owner) if owner else model, **{name: value})
        model = _with_parts(model, {owner: changed}) if owner else changed
    return model


def _nothing(position: Array) -> Array:
    return jnp.zeros((), position.dtype)


def _value(witness: Callable[[Array], Array], position: Array) -> Array:
    return witness(position)


def _shares(negatives: Negatives) -> Array:
    """The share of each datum in the negatives, (B,), sum 1: 0 where its draws do not count yet; equal if none does."""
    counts = jnp.sum(negatives.weights, axis=1)
    counts = jnp.where(jnp.sum(counts) > 0, counts, 1.0)
    return counts / jnp.sum(counts)


def _mean(function: Callable[[Array], Array], negatives: Negatives) -> Array:
    """Mean of a function of one position over all negatives."""

    def one(item: tuple[Array, Array]) -> Array:
        return jnp.sum(item[1] * jax.vmap(function)(item[0]))

    sums = platform.map_items(one, (negatives.samples, negatives.weights))
    return jnp.sum(sums) / _count(negatives)


def _count(negatives: Negatives) -> Array:
    return jnp.maximum(jnp.sum(negatives.weights), 1e-6)
