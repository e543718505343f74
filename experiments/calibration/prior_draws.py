r"""Simulation-based calibration of the chains of ``restore``, on a solvent model whose prior can be drawn.

With envelope and spectra fixed the prior is Gaussian with precision A = W e W + 1 / P_p (``docs/model.md``). A truth is
drawn by solving A z = W e^(1/2) n_1 + P_p^(-1/2) n_2 with white n_1, n_2.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import cryowgen_jax as cg
from cryowgen_jax.restoration import spectra, volume_family
from cryowgen_jax.restoration.restore import NUM_STEPS, WARMUP
from cryowgen_jax.restoration.solvent_model import SolventModel
from cryowgen_jax.restoration.volume_model import NoiseRule
from cryowgen_jax.spatial import fourier

SHAPE, TILT_RANGE = (8, 12, 12), (-60.0, 60.0)
STEEPNESS, KNEE, PARTICLE, SOLVENT = 3.0, 0.08, 30.0, 3.0  # of the spectra, in units of the noise
FIRST_STEPS = 60  # of the chain whose mean the others start about, after as many
STATISTICS = ("solvent voxel", "particle voxel", "wave in the wedge", "energy in the wedge", "energy measured")
SCALES = (1.0, 0.7)  # of the spread: as the chains have it, and spoilt
SMALLEST_P = 0.01  # over all statistics: below it a family is flagged


class Ranked(NamedTuple):
    """Ranks (simulations, statistics) of truths among so many draws; p-values by statistic."""

    name: str
    ranks: np.ndarray
    num_draws: int
    p_values: np.ndarray

    @property
    def flagged(self) -> bool:
        """Whether ranks so uneven have a probability below ``SMALLEST_P``, by Bonferroni."""
        return bool(self.p_values.min() * self.p_values.size < SMALLEST_P)


@functools.cache
def model() -> tuple[SolventModel, np.ndarray]:
    """A particle in solvent, and the mask."""
    with jax.ensure_compile_time_eval():
        mask = np.asarray(cg.wedge_mask(SHAPE, TILT_RANGE))
        shells = spectra.shells_of(SHAPE, mask)
    fall = 1 / (1 + (shells.frequency / KNEE) ** STEEPNESS)
    axes = np.meshgrid(*((np.arange(n) - n / 2) / (0.3 * n) for n in SHAPE), indexing="ij")
    envelope = 0.98 / (1 + np.exp(-8 * (sum(a**2 for a in axes) - 1)))
    ones = np.ones_like(fall)
    empty = np.zeros(fourier.spectrum_shape(SHAPE), np.complex64)
    particle, solvent = PARTICLE * fall + 0.1, SOLVENT * fall + 0.05
    known = SolventModel(
        shells=shells,
        halves=(empty,),
        noise_rule=NoiseRule.WHITE,
        noise=ones,
        signal=particle,
        solvent=solvent,
        particle=particle,
        widening=ones,
        envelope=np.asarray(envelope, np.float32),
        level=0.0,
        mean=np.zeros(SHAPE, np.float32),
    )
    return known, mask


@functools.cache
def target() -> cg.Posterior:
    """The posterior, its observation still to be filled in."""
    with jax.ensure_compile_time_eval():
        return model()[0].posterior(model()[1])


def draw_prior(key: jax.Array) -> jax.Array:
    """A truth, once for every scale in ``SCALES``."""
    known, spread = model()[0], model()[0].shells.spread
    first, second = (jax.random.normal(k, SHAPE) for k in jax.random.split(key))
    stiffness = jnp.asarray(1 / spread(known.particle), jnp.float32)
    whitening = jnp.asarray(1 / np.sqrt(spread(known.solvent)), jnp.float32)
    right = fourier.filter_volume(jnp.sqrt(known.envelope) * first, whitening)
    right = right + fourier.filter_volume(second, jnp.sqrt(stiffness))
    about = 1 / (stiffness + float(known.envelope.mean()) * whitening**2)
    truth, _ = jax.scipy.sparse.linalg.cg(
        prior_precision, right, tol=1e-6, maxiter=400, M=lambda v: fourier.filter_volume(v, about)
    )
    return jnp.stack([truth] * len(SCALES))


def prior_precision(volume: jax.Array) -> jax.Array:
    """A z: what the posterior's exponent is without the data."""
    posterior = target()
    blind = dataclasses.replace(
        posterior, decoder=cg.Wedge(jnp.zeros_like(posterior.decoder.transfer)), observation=jnp.zeros(SHAPE)
    )
    return -jax.grad(blind.log_density)(volume)


def observe(key: jax.Array, truths: jax.Array) -> cg.Posterior:
    posterior = target()
    noise = jax.random.normal(key, SHAPE) / jnp.sqrt(posterior.data_weight)
    return dataclasses.replace(posterior, observation=posterior.decoder(truths[0]) + noise)


def chains(key: jax.Array, posterior: cg.Posterior, *, num_chains: int) -> jax.Array:
    """One draw a chain as ``restore`` makes them, (num_chains, scale, ...): the spread about their mean scaled."""
    known, mask = model()
    pilot_key, start_key, key = jax.random.split(key, 3)
    pilot = cg.sample(
        pilot_key, posterior, sampler="preconditioned", num_chains=1, num_steps=FIRST_STEPS, warmup=FIRST_STEPS
    )
    model_here = dataclasses.replace(known, mean=pilot.mean)
    start = jnp.stack([volume_family.draw(start_key, i, model_here, mask) for i in range(num_chains)])
    walked = cg.sample(
        key,
        posterior,
        sampler="preconditioned",
        num_chains=num_chains,
        num_steps=NUM_STEPS,
        warmup=WARMUP,
        num_kept=1,
        init=start,
    ).samples[:, -1]
    middle = jnp.mean(walked, axis=0)
    return jnp.stack([middle + scale * (walked - middle) for scale in SCALES], axis=1)


def statistics(volumes: jax.Array) -> jax.Array:
    """``STATISTICS`` of the volume of each scale, one after the other."""
    return jax.vmap(_statistics)(volumes).ravel()


def _statistics(volume: jax.Array) -> jax.Array:
    mask = model()[1]
    middle = tuple(n // 2 for n in SHAPE)
    height = jnp.arange(SHAPE[0])[:, None, None]
    wave = jnp.sum(volume * jnp.cos(2 * jnp.pi * height / SHAPE[0]))  # one period along the beam
    power = jnp.abs(fourier.rfftn(volume)) ** 2 * fourier.multiplicity(SHAPE)
    wedge = jnp.sum(jnp.where(mask == 0, power, 0))
    return jnp.stack([volume[0, 0, 0], volume[middle], wave, wedge, jnp.sum(power) - wedge])


def ranked(key: jax.Array, num_simulations: int, num_chains: int) -> list[Ranked]:
    """The chains, and the same with their spread spoilt."""
    draw_posterior = functools.partial(chains, num_chains=num_chains)
    found = cg.simulation_based_calibration(key, draw_prior, observe, draw_posterior, statistics, num_simulations)
    count = len(STATISTICS)
    results = []
    for number, scale in enumerate(SCALES):
        own = slice(number * count, (number + 1) * count)
        name = "chains of restore" if scale == 1 else f"the same, spread x {scale:g}"
        results.append(Ranked(name, np.asarray(found.ranks)[:, own], found.num_draws, found.p_values[own]))
    return results
