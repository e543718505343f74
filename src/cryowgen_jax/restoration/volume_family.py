"""From one prepared volume to draws of its posterior: estimate the model, start chains, run them."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax import platform, potentials, samplers
from cryowgen_jax.chains import Progress, sample
from cryowgen_jax.methods import Family, cryogen_map, cryogen_ot, heaviest, importance_sample
from cryowgen_jax.potentials import Posterior
from cryowgen_jax.restoration import learned_model, solvent_model
from cryowgen_jax.restoration.learned_model import LearnedModel, LearnedWitness
from cryowgen_jax.restoration.volume_model import Geometry, VolumeModel
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, InputError, PRNGKey

Witness = Callable[[Array], Array] | LearnedWitness | Literal["default", "learned"]
Volume = Array | np.ndarray
NoiseFn = samplers.NoiseFn
MOST_CHAINS = 8  # where a chain may give several draws; each gives some five that hardly depend on one another


def default_chains(num_samples: int, num_steps: int) -> int:
    """Chains to take this many draws from."""
    return min(num_samples, max(MOST_CHAINS, -(-num_samples // max(num_steps, 1))))


class ChainPlan(NamedTuple):
    """How many draws of how many chains and steps, and where they run; as in ``sample``."""

    num_samples: int
    num_chains: int
    num_steps: int
    warmup: int
    devices: Sequence[jax.Device] | None = None
    batch_size: int | None = None

    @property
    def num_kept(self) -> int:
        """Draws per chain, evenly spaced."""
        return -(-self.num_samples // self.num_chains)


class Draws(NamedTuple):
    """Family of the prepared volume with its diagnostics."""

    mean: Volume
    std: Volume
    samples: Volume
    weights: Array
    sampler: str
    status: str
    ess: float
    r_hat: float
    acceptance: float
    step_size: float
    num_gradients: int
    prior_precision: float


def model_of(
    witness: Witness,
    halves: tuple[Array, ...],
    mask: np.ndarray,
    geometry: Geometry,
    report: Callable[[Progress], None] | None,
    neighbour: VolumeModel | None = None,
    *,
    of_spread: bool = True,
) -> VolumeModel:
    """The model that the witness asks for; a ``neighbour`` lends spectra.

    Without ``of_spread`` a solvent model is left as it makes its mean.
    """
    if isinstance(witness, LearnedWitness):
        started = time.monotonic()
        of_its_kind = neighbour if isinstance(neighbour, LearnedModel) else None
        model = learned_model.model_of(witness, halves, mask, geometry, of_its_kind)
        if report is not None:
            report(Progress("looking at the tomogram", 1, 1, 1.0, time.monotonic() - started))
        return model
    lender = neighbour if isinstance(neighbour, solvent_model.SolventModel) else None
    return fit(halves, mask, geometry, report, lender, of_spread=of_spread)


def fit(
    halves: tuple[Array, ...],
    mask: np.ndarray,
    geometry: Geometry,
    report: Callable[[Progress], None] | None,
    neighbour: solvent_model.SolventModel | None = None,
    *,
    of_spread: bool = True,
) -> solvent_model.SolventModel:
    """Estimate a solvent model, or only its envelope and mean where a ``neighbour`` lends the rest."""
    alone = of_spread and neighbour is None
    seen = solvent_model.without_middle(mask, halves[0].shape, geometry) if alone else mask
    widened = bool(np.any(seen != mask))
    started = time.monotonic()
    first = solvent_model.first_model(halves, mask) if neighbour is None else solvent_model.like(neighbour, halves)
    rounds = len(solvent_model.tightening(first))

    def told(step: int) -> None:
        if report is not None:
            seconds = time.monotonic() - started
            report(Progress("estimating the model", step, 2 * rounds + 1 if widened else rounds, 1.0, seconds))

    model = _settle(first, mask, told)
    if widened:
        blind = _settle(solvent_model.first_model(halves, seen), seen, lambda step: told(rounds + min(step, rounds)))
        model = solvent_model.widen(model, mask, blind, seen)
        told(2 * rounds + 1)
    return model


def _settle(
    model: solvent_model.SolventModel, mask: np.ndarray, told: Callable[[int], None]
) -> solvent_model.SolventModel:
    """Alternate between the mean under the model and the model given the mean."""
    mean = jnp.full(model.shells.shape, model.level)
    for number, tightness in enumerate(solvent_model.tightening(model)):
        mean = model.posterior_mean(mean, mask)
        if not bool(jnp.isfinite(mean).all()):
            raise InputError("no model fits this tomogram (its mean is not finite): check tilt_range and the axes")
        model = solvent_model.update(model, np.asarray(mean), tightness)
        told(number + 1)
    return dataclasses.replace(model, mean=np.asarray(model.posterior_mean(mean, mask, solvent_model.EXACTLY)))


def starts(
    key: PRNGKey,
    model: VolumeModel,
    mask: np.ndarray,
    num_chains: int,
    draw_noise: NoiseFn = samplers.white_noise,
) -> Array:
    """One start a chain, drawn from the posterior."""

    def noise(number: int) -> Array:
        return draw_noise(jax.random.fold_in(key, number), model.shells.shape)

    pairs = (jnp.stack([noise(2 * i), noise(2 * i + 1)]) for i in range(num_chains))
    return jnp.stack([model.draw(pair, mask) for pair in pairs])


def posterior_of(model: VolumeModel, mask: np.ndarray, witness: Witness, center: Array | None) -> Posterior:
    """Posterior under the model's or the given witness; a centre's precision is what its misfit to the data says."""
    posterior = model.posterior(mask)
    if callable(witness):
        posterior = dataclasses.replace(posterior, witness=witness)
    if center is None:
        return posterior
    misfit = fourier.power(np.asarray(fourier.rfftn(center)) - model.observation)
    excess = np.average(misfit - model.shells.spread(model.noise), weights=model.shells.weight)
    precision = 1 / max(float(excess), 1e-3 / float(model.data_weight))
    return dataclasses.replace(posterior, center=center, prior_precision=jnp.float32(precision))


def by_chains(
    key: PRNGKey,
    model: VolumeModel,
    mask: np.ndarray,
    witness: Witness,
    center: Array | None,
    plan: ChainPlan,
    *,
    draw_noise: NoiseFn | None = None,
    checkpoint: str | pathlib.Path | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Draws:
    """Draws by chains; ``draw_noise`` lets chains of overlapping volumes share their noise.

    Chains of a model's own witness start at draws of the model. Where nothing else pulls at them the mean is that of
    the model, which was solved for: that of the chains has their Monte-Carlo error besides.

    Raises
    ------
    InputError
        Where the chains diverge before they give a sample.
    """
    posterior, start = posterior_of(model, mask, witness, center), None
    if not callable(witness):
        start = starts(jax.random.fold_in(key, 2), model, mask, plan.num_chains, draw_noise or samplers.white_noise)
    result = sample(
        jax.random.fold_in(key, 1),
        posterior,
        sampler=_sampler(posterior, draw_noise),
        num_chains=plan.num_chains,
        num_steps=plan.num_steps,
        warmup=plan.warmup,
        num_kept=plan.num_kept,
        init=start,
        devices=plan.devices,
        batch_size=plan.batch_size,
        checkpoint=checkpoint,
        progress=report or False,
    )
    if result.samples.shape[1] == 0:
        raise InputError(
            f"the chains diverged before they gave a sample ({result.status}): bound the witness's curvature"
        )
    latest_first = jnp.swapaxes(result.samples[:, ::-1], 0, 1)
    members = latest_first.reshape(-1, *latest_first.shape[2:])[: plan.num_samples]
    return Draws(
        result.mean if callable(witness) or center is not None else model.mean,
        jnp.sqrt(result.variance),
        members,
        jnp.full((len(members),), 1 / len(members)),
        result.sampler,
        result.status,
        float(result.ess),
        float(result.r_hat),
        float(result.acceptance),
        float(result.step_size),
        result.num_gradients,
        float(posterior.prior_precision),
    )


def _sampler(posterior: Posterior, draw_noise: NoiseFn | None) -> Any:
    """The kernel of these chains; one that shares noise is the preconditioned one with the same step."""
    if draw_noise is None:
        return "preconditioned" if potentials.has_curvature(posterior.witness) else "pcnl"
    gaussian, remainder = potentials.split(posterior)
    if remainder is None or not potentials.has_curvature(remainder):
        raise InputError("tiles need a witness that bounds its curvature and is not quadratic: restore in one box")
    step_size = samplers.largest_step(potentials.contraction_gap(gaussian, remainder))
    return samplers.preconditioned(remainder, gaussian, step_size, draw_noise)


def by_importance(
    key: PRNGKey,
    model: VolumeModel,
    mask: np.ndarray,
    witness: Witness,
    center: Array | None,
    num_candidates: int,
    num_samples: int,
    report: Callable[[Progress], None] | None = None,
) -> Draws:
    """Weighted draws, of which the heaviest are returned.

    The reference is what the model draws by itself, the solvent model or what a network says of the tomogram; a
    caller's own witness meets draws of the posterior's Gaussian part.
    """
    posterior = posterior_of(model, mask, witness, center)
    if callable(witness):
        family = importance_sample(jax.random.fold_in(key, 1), posterior, num_candidates, batch_size=1)
    else:
        family = _weighted_by(key, posterior, model, mask, num_candidates, report)
    return _of_family(heaviest(family, num_samples), posterior, "importance", "ok", float(family.ess), 1.0)


def _weighted_by(
    key: PRNGKey,
    posterior: Posterior,
    model: VolumeModel,
    mask: np.ndarray,
    num_candidates: int,
    report: Callable[[Progress], None] | None,
) -> samplers.WeightedFamily:
    """Draws of a model weighted by the posterior over the model's own: all alike unless a centre pulls at them."""
    started, candidates, log_weights = time.monotonic(), [], []
    own = model.posterior(mask)
    for number in range(num_candidates):
        (candidate,) = starts(jax.random.fold_in(key, number), model, mask, 1)
        candidates.append(candidate)
        log_weights.append(_excess(posterior, own, candidate))
        if report is not None:
            seconds = time.monotonic() - started
            report(Progress("drawing candidates", number + 1, num_candidates, 1.0, seconds))
    return samplers.weighted(jnp.stack(candidates), jnp.stack(log_weights))


@platform.jit
def _excess(target: Posterior, own: Posterior, position: Array) -> Array:
    """Difference of the exponents."""
    return target.log_density(position) - own.log_density(position)


def by_ascent(
    key: PRNGKey, model: VolumeModel, mask: np.ndarray, witness: Witness, center: Array | None, method: str
) -> Draws:
    """The one answer of a point estimate."""
    posterior = posterior_of(model, mask, witness, center)
    family = {"cryogen_map": cryogen_map, "cryogen_ot": cryogen_ot}[method](jax.random.fold_in(key, 1), posterior)
    status = "ok" if bool(jnp.all(jnp.isfinite(family.mean))) else "not finite"
    return _of_family(family, posterior, "L-BFGS", status, np.nan, np.nan)


def _of_family(family: Family, posterior: Posterior, sampler: str, status: str, ess: float, acceptance: float) -> Draws:
    """Draws that no chain made."""
    beta, shown = float(posterior.prior_precision), (family.mean, family.std, family.samples, family.weights)
    return Draws(*shown, sampler, status, ess, np.nan, acceptance, np.nan, 0, beta)
