"""From one prepared volume to its family: estimate the model, draw from its posterior by one of the four methods."""

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
from cryowgen_jax.restoration import learned_model, solvent_fit
from cryowgen_jax.restoration.checks import METHODS, POINT_METHODS
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.learned_model import LearnedModel
from cryowgen_jax.restoration.prior_weights import PriorWeights
from cryowgen_jax.restoration.solvent_model import SolventModel
from cryowgen_jax.restoration.volume_model import VolumeModel
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, InputError, PRNGKey

MOST_CHAINS = 8  # where a chain may give several members; each gives some five that hardly depend on one another

WitnessChoice = Callable[[Array], Array] | PriorWeights | Literal["auto", "solvent", "learned"]
Volume = Array | np.ndarray
NoiseFn = samplers.NoiseFn
ProgressFn = Callable[[Progress], None]


def default_chains(num_samples: int, num_steps: int) -> int:
    """Chains to take this many members from."""
    return min(num_samples, max(MOST_CHAINS, -(-num_samples // max(num_steps, 1))))


class Plan(NamedTuple):
    """How many members, by which method, of how many chains and steps, and where they run; as in ``restore``."""

    num_samples: int
    num_chains: int
    num_steps: int
    warmup: int
    method: str = METHODS[0]
    sampler: str = "auto"
    num_candidates: int = 64
    devices: Sequence[jax.Device] | None = None
    batch_size: int | None = None

    @property
    def num_kept(self) -> int:
        """Members per chain, evenly spaced."""
        return -(-self.num_samples // self.num_chains)


@dataclasses.dataclass(frozen=True)
class PreparedVolume:
    """What a family is wanted of.

    Attributes
    ----------
    halves
        One standardised volume, or two halves of it.
    geometry
        How it was tilted.
    witness
        What volumes are like; a callable, or what makes a model.
    center
        A standardised volume to tether to, or None.
    widening
        Factor of the variance in the wedge of the learned model's family.
    lost
        Coefficients that count as missing though they lie in the measured region, rfftn layout, or None.
    """

    halves: tuple[Array, ...]
    geometry: Geometry
    witness: Callable[[Array], Array] | PriorWeights | Literal["solvent"] = "solvent"
    center: Array | None = None
    widening: float = 1.0
    lost: np.ndarray | None = None

    @property
    def mask(self) -> np.ndarray:
        """Which coefficients of its box count as measured, in [0, 1], rfftn layout."""
        mask = self.geometry.mask(self.halves[0].shape)
        return mask if self.lost is None else mask * ~self.lost

    @property
    def own_witness(self) -> Callable[[Array], Array] | None:
        """The witness that the caller gave, None where the model says what volumes are like."""
        return self.witness if callable(self.witness) else None

    @property
    def is_of_the_model(self) -> bool:
        """Whether the posterior is the model's own, which is Gaussian: its mean is known and its draws are exact."""
        return self.own_witness is None and self.center is None


class Diagnostics(NamedTuple):
    """How members were drawn, as in ``RestorationReport``."""

    sampler: str
    status: str
    ess: float
    r_hat: float
    acceptance: float
    step_size: float
    num_gradients: int
    prior_precision: float


@dataclasses.dataclass(frozen=True)
class VolumeFamily:
    """Family of a prepared volume, the model behind it, and how the drawing went.

    ``firmness`` is the model's, or that of all tiles where there are several; other fields as in ``Family``.
    """

    mean: Volume
    std: Volume
    samples: Volume
    weights: Array
    model: VolumeModel
    firmness: np.ndarray
    diagnostics: Diagnostics


def family_of(
    key: PRNGKey,
    volume: PreparedVolume,
    plan: Plan,
    *,
    checkpoint: str | pathlib.Path | None = None,
    progress: ProgressFn | None = None,
) -> VolumeFamily:
    """Family of a volume as one Fourier box, by the method of the plan."""
    model = model_of(volume, progress, of_spread=plan.method not in POINT_METHODS)
    if plan.method == "cryowgen_langevin":
        return by_sampling(key, model, volume, plan, checkpoint=checkpoint, progress=progress)
    if plan.method == "cryowgen_mc":
        return by_importance(key, model, volume, plan, progress)
    return by_ascent(key, model, volume, plan)


def model_of(
    volume: PreparedVolume,
    progress: ProgressFn | None = None,
    neighbour: SolventModel | LearnedModel | None = None,
    *,
    of_spread: bool = True,
) -> SolventModel | LearnedModel:
    """The model that the witness asks for.

    A ``neighbour``, the model of another tile, lends its spectra. ``of_spread``: whether the spread is wanted too, for
    which the solvent model is fitted a second time.
    """
    lender = neighbour.solvent if isinstance(neighbour, LearnedModel) else neighbour
    own_spread = of_spread and not isinstance(volume.witness, PriorWeights)
    solvent = solvent_fit.fit(volume.halves, volume.mask, volume.geometry, progress, lender, of_spread=own_spread)
    if not isinstance(volume.witness, PriorWeights):
        return solvent
    started = time.monotonic()
    learned = learned_model.model_of(volume.witness, solvent, volume.mask, volume.geometry)
    model = dataclasses.replace(learned, widening=volume.widening)
    if progress is not None:
        progress(Progress("looking at the tomogram", 1, 1, 1.0, time.monotonic() - started))
    return model


def posterior_of(model: VolumeModel, volume: PreparedVolume) -> Posterior:
    """Posterior under the model's or the given witness.

    Where a centre is given, beta is the inverse of its mean squared misfit to the data, the noise taken off.
    """
    posterior = model.posterior(volume.mask)
    if volume.own_witness is not None:
        posterior = dataclasses.replace(posterior, witness=volume.own_witness)
    if volume.center is None:
        return posterior
    misfit = fourier.power(np.asarray(fourier.rfftn(volume.center)) - model.observation)
    excess = np.average(misfit - model.shells.spread(model.noise), weights=model.shells.weight)
    precision = 1 / max(float(excess), 1e-3 / float(model.data_weight))
    return dataclasses.replace(posterior, center=volume.center, prior_precision=jnp.float32(precision))


def draws_members(volume: PreparedVolume, plan: Plan) -> bool:
    """Whether members are drawn one by one: the posterior is the model's own and no chains were asked for."""
    return plan.method == METHODS[0] and plan.sampler == "auto" and volume.is_of_the_model


def by_sampling(
    key: PRNGKey,
    model: VolumeModel,
    volume: PreparedVolume,
    plan: Plan,
    *,
    draw_noise: NoiseFn | None = None,
    checkpoint: str | pathlib.Path | None = None,
    progress: ProgressFn | None = None,
) -> VolumeFamily:
    """CryoWGEN-II: independent members where the posterior is the model's own and no sampler was named; else chains.

    ``draw_noise`` lets overlapping volumes share their noise.
    """
    if draws_members(volume, plan):
        return by_draws(key, model, volume.mask, plan.num_samples, draw_noise=draw_noise, progress=progress)
    return by_chains(key, model, volume, plan, draw_noise=draw_noise, checkpoint=checkpoint, progress=progress)


def draw(key: PRNGKey, number: int, model: VolumeModel, mask: np.ndarray, draw_noise: NoiseFn | None = None) -> Array:
    """Draw ``number`` of a model's posterior."""
    return model.draw(jax.random.fold_in(key, number), mask, draw_noise or samplers.white_noise)


def by_draws(
    key: PRNGKey,
    model: VolumeModel,
    mask: np.ndarray,
    num_samples: int,
    *,
    draw_noise: NoiseFn | None = None,
    progress: ProgressFn | None = None,
) -> VolumeFamily:
    """Independent draws of a model's posterior, its mean and its standard deviation."""
    started, members = time.monotonic(), []
    for number in range(num_samples):
        members.append(draw(jax.random.fold_in(key, 2), number, model, mask, draw_noise))
        if progress is not None:
            members[-1].block_until_ready()
            progress(Progress("drawing", number + 1, num_samples, 1.0, time.monotonic() - started))
    family = Family(
        mean=jnp.asarray(model.mean),
        std=model.standard_deviation(members),
        samples=jnp.stack(members),
        weights=jnp.full((num_samples,), 1 / num_samples),
    )
    status = "ok" if bool(jnp.all(jnp.isfinite(family.samples))) else "not finite"
    return _without_chains(
        family, model, float(model.prior_precision), model.drawing, status, ess=num_samples, acceptance=1.0
    )


def by_chains(
    key: PRNGKey,
    model: VolumeModel,
    volume: PreparedVolume,
    plan: Plan,
    *,
    draw_noise: NoiseFn | None = None,
    checkpoint: str | pathlib.Path | None = None,
    progress: ProgressFn | None = None,
) -> VolumeFamily:
    """CryoWGEN-II; ``draw_noise`` lets chains of overlapping volumes share their noise.

    The posterior is the model's Gaussian one, at whose draws chains start, unless the caller gave a witness. The mean
    is that of the model, which has no Monte-Carlo error, unless the caller gave a witness or a centre and so another
    posterior.

    Raises
    ------
    InputError
        Where the chains diverge before they give a member.
    """
    posterior, start = posterior_of(model, volume), None
    if volume.own_witness is None:
        own = jax.random.fold_in(key, 2)
        noise, apart = draw_noise or samplers.white_noise, jax.random.split(own, plan.num_chains)
        start = jnp.stack([model.gaussian_draw(one, volume.mask, noise) for one in apart])
    result = sample(
        jax.random.fold_in(key, 1),
        posterior,
        sampler=_sampler(posterior, draw_noise) if plan.sampler == "auto" or draw_noise else plan.sampler,
        num_chains=plan.num_chains,
        num_steps=plan.num_steps,
        warmup=plan.warmup,
        num_kept=plan.num_kept,
        init=start,
        devices=plan.devices,
        batch_size=plan.batch_size,
        checkpoint=checkpoint,
        progress=progress or False,
    )
    if result.samples.shape[1] == 0:
        raise InputError(
            f"the chains diverged before they gave a sample ({result.status}): bound the witness's curvature"
        )
    latest_first = jnp.swapaxes(result.samples[:, ::-1], 0, 1)
    members = latest_first.reshape(-1, *latest_first.shape[2:])[: plan.num_samples]
    return VolumeFamily(
        mean=model.mean if volume.is_of_the_model else result.mean,
        std=jnp.sqrt(result.variance),
        samples=members,
        weights=jnp.full((len(members),), 1 / len(members)),
        model=model,
        firmness=model.firmness,
        diagnostics=Diagnostics(
            sampler=result.sampler,
            status=result.status,
            ess=float(result.ess),
            r_hat=float(result.r_hat),
            acceptance=float(result.acceptance),
            step_size=float(result.step_size),
            num_gradients=result.num_gradients,
            prior_precision=float(posterior.prior_precision),
        ),
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
    key: PRNGKey, model: VolumeModel, volume: PreparedVolume, plan: Plan, progress: ProgressFn | None = None
) -> VolumeFamily:
    """CryoWGEN-I: candidates, of which the heaviest are returned.

    The candidates are exact draws of the Gaussian that the model is or begins at; where the caller gives a witness they
    are draws of the posterior's Gaussian part.
    """
    posterior, number = posterior_of(model, volume), max(plan.num_candidates, plan.num_samples)
    if volume.own_witness is not None:
        weighted = importance_sample(jax.random.fold_in(key, 1), posterior, number, batch_size=1)
    else:
        weighted = _weighted_by(key, posterior, model, volume.mask, number, progress)
    family = heaviest(weighted, plan.num_samples)
    return _without_chains(
        family, model, posterior.prior_precision, "importance", "ok", ess=float(weighted.ess), acceptance=1.0
    )


def _weighted_by(
    key: PRNGKey,
    posterior: Posterior,
    model: VolumeModel,
    mask: np.ndarray,
    num_candidates: int,
    progress: ProgressFn | None,
) -> samplers.WeightedFamily:
    """Draws of a model's Gaussian as candidates; they all weigh the same unless a centre changes the posterior."""
    started, candidates, log_weights = time.monotonic(), [], []
    own = model.posterior(mask)
    for number in range(num_candidates):
        candidate = model.gaussian_draw(jax.random.fold_in(key, number), mask)
        candidates.append(candidate)
        log_weights.append(_excess(posterior, own, candidate))
        if progress is not None:
            seconds = time.monotonic() - started
            progress(Progress("drawing candidates", number + 1, num_candidates, 1.0, seconds))
    return samplers.weighted(jnp.stack(candidates), jnp.stack(log_weights))


@platform.jit
def _excess(target: Posterior, own: Posterior, position: Array) -> Array:
    """Difference of the exponents."""
    return target.log_density(position) - own.log_density(position)


def by_ascent(key: PRNGKey, model: VolumeModel, volume: PreparedVolume, plan: Plan) -> VolumeFamily:
    """CryoGEN-I or II: the one answer of a point estimate."""
    posterior = posterior_of(model, volume)
    estimate = {"cryogen_map": cryogen_map, "cryogen_ot": cryogen_ot}[plan.method]
    family = estimate(jax.random.fold_in(key, 1), posterior)
    status = "ok" if bool(jnp.all(jnp.isfinite(family.mean))) else "not finite"
    return _without_chains(family, model, posterior.prior_precision, "L-BFGS", status, ess=np.nan, acceptance=np.nan)


def _without_chains(
    family: Family,
    model: VolumeModel,
    prior_precision: Array | float,
    sampler: str,
    status: str,
    *,
    ess: float,
    acceptance: float,
) -> VolumeFamily:
    """A family that no chain made."""
    return VolumeFamily(
        mean=family.mean,
        std=family.std,
        samples=family.samples,
        weights=family.weights,
        model=model,
        firmness=model.firmness,
        diagnostics=Diagnostics(
            sampler=sampler,
            status=status,
            ess=ess,
            r_hat=np.nan,
            acceptance=acceptance,
            step_size=np.nan,
            num_gradients=0,
            prior_precision=float(prior_precision),
        ),
    )
