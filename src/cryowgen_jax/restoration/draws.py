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

from cryowgen_jax import potentials, samplers
from cryowgen_jax.chains import Progress, sample
from cryowgen_jax.methods import cryogen_map, cryogen_ot, cryowgen_mc
from cryowgen_jax.potentials import Posterior
from cryowgen_jax.restoration import learned, solvent, spectra
from cryowgen_jax.restoration.learned import Geometry, LearnedModel, LearnedWitness
from cryowgen_jax.restoration.model import VolumeModel
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, InputError, PRNGKey

Witness = Callable[[Array], Array] | LearnedWitness | Literal["default", "learned"]
Volume = Array | np.ndarray
NoiseFn = samplers.NoiseFn


class ChainPlan(NamedTuple):
    """How many chains and steps, and where they run; as in ``sample``."""

    num_samples: int
    num_steps: int
    warmup: int
    devices: Sequence[jax.Device] | None = None
    batch_size: int | None = None


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


def model_of(
    key: PRNGKey,
    witness: Witness,
    halves: tuple[Array, ...],
    mask: np.ndarray,
    geometry: Geometry,
    report: Callable[[Progress], None] | None,
    neighbour: VolumeModel | None = None,
) -> tuple[VolumeModel, Array]:
    """The model that the witness asks for, and where its posterior's mean is about; a ``neighbour`` lends spectra."""
    if isinstance(witness, LearnedWitness):
        started = time.monotonic()
        lender = neighbour if isinstance(neighbour, LearnedModel) else None
        model = learned.model_of(witness, halves, mask, geometry, lender)
        if report is not None:
            report(Progress("looking at the tomogram", 1, 1, 1.0, time.monotonic() - started))
        return model, jnp.asarray(model.center)
    return fit(key, halves, mask, report, neighbour if isinstance(neighbour, solvent.SolventModel) else None)


def fit(
    key: PRNGKey,
    halves: tuple[Array, ...],
    mask: np.ndarray,
    report: Callable[[Progress], None] | None,
    neighbour: solvent.SolventModel | None = None,
) -> tuple[solvent.SolventModel, Array]:
    """Estimate a solvent model, or only its envelope where a ``neighbour`` lends the rest; and its chain's mean."""
    started = time.monotonic()
    model = solvent.first_model(halves, mask) if neighbour is None else solvent.like(neighbour, halves)
    position: Array | None = None
    for number, threshold in enumerate(solvent.THRESHOLDS[1:]):
        result = sample(
            jax.random.fold_in(key, number),
            model.posterior(mask),
            sampler="preconditioned",
            num_chains=1,
            num_steps=solvent.ROUND_STEPS,
            warmup=0,
            num_kept=1,
            init=position,
        )
        if result.status != "ok":
            raise InputError(f"no model fits this tomogram ({result.status}): check tilt_range and the axes")
        position = result.samples[0, -1]
        model = solvent.update(model, np.asarray(result.mean), threshold)
        if report is not None:
            done = (number + 1) * solvent.ROUND_STEPS
            report(Progress("estimating the model", done, model.num_fit_steps, 1.0, time.monotonic() - started))
    return model, result.mean


def starts(
    key: PRNGKey,
    model: VolumeModel,
    estimate: Array,
    mask: np.ndarray,
    num_samples: int,
    draw_noise: NoiseFn = samplers.white_noise,
) -> Array:
    """One start a chain, spread out about as the posterior is."""
    noises = (draw_noise(jax.random.fold_in(key, i), estimate.shape) for i in range(num_samples))
    return jnp.stack([model.draw_near(noise, estimate, mask) for noise in noises])


def posterior_of(model: VolumeModel, mask: np.ndarray, witness: Witness, center: Array | None) -> Posterior:
    """Posterior under the model's or the given witness; a centre's precision is what its misfit to the data says."""
    posterior = model.posterior(mask)
    if callable(witness):
        posterior = dataclasses.replace(posterior, witness=witness)
    if center is None:
        return posterior
    misfit = spectra.power(np.asarray(fourier.rfftn(center)) - model.observation)
    excess = np.average(misfit - model.shells.spread(model.noise), weights=model.shells.weight)
    precision = 1 / max(float(excess), 1e-3 / float(model.data_weight))
    return dataclasses.replace(posterior, center=center, prior_precision=jnp.float32(precision))


def by_chains(
    key: PRNGKey,
    posterior: Posterior,
    start: Array | None,
    plan: ChainPlan,
    *,
    draw_noise: NoiseFn | None = None,
    checkpoint: str | pathlib.Path | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Draws:
    """Draws by chains; ``draw_noise`` lets chains of overlapping volumes share their noise.

    Raises
    ------
    InputError
        Where the chains diverge before they give a sample.
    """
    result = sample(
        key,
        posterior,
        sampler=_sampler(posterior, draw_noise),
        num_chains=plan.num_samples,
        num_steps=plan.num_steps,
        warmup=plan.warmup,
        num_kept=1,
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
    return Draws(
        result.mean,
        jnp.sqrt(result.variance),
        result.samples[:, -1],
        jnp.full((plan.num_samples,), 1 / plan.num_samples),
        result.sampler,
        result.status,
        float(result.ess),
        float(result.r_hat),
        float(result.acceptance),
        float(result.step_size),
        result.num_gradients,
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


def by_importance(key: PRNGKey, posterior: Posterior, num_candidates: int, num_samples: int) -> Draws:
    """Weighted draws of the Gaussian part, the heaviest of them."""
    family = cryowgen_mc(key, posterior, num_candidates=num_candidates, num_samples=num_samples, batch_size=1)
    ess = float(1 / jnp.sum(family.weights**2))
    return Draws(
        family.mean, family.std, family.samples, family.weights, "importance", "ok", ess, np.nan, 1.0, np.nan, 0
    )


def by_ascent(key: PRNGKey, posterior: Posterior, method: str) -> Draws:
    """The one answer of a point estimate."""
    family = {"cryogen_map": cryogen_map, "cryogen_ot": cryogen_ot}[method](key, posterior)
    status = "ok" if bool(jnp.all(jnp.isfinite(family.mean))) else "not finite"
    return Draws(
        family.mean, family.std, family.samples, family.weights, "L-BFGS", status, np.nan, np.nan, np.nan, np.nan, 0
    )
