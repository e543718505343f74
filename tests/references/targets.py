"""Targets that no one here wrote: models of the Inference Gym, with the moments that it states.

The Inference Gym (P. Sountsov, A. Radul and others; spinoffs of https://github.com/tensorflow/probability) gives closed
forms where there are some, else means and standard deviations of long Stan runs with the standard errors of the means.

Of its models with stated moments these are left out. Brownian motion with unknown scales: its stated moments are not
those of its density (integrated over both scales it has a mean observation scale of 0.1129, stated is 0.1011 +-
0.0009). The Lorenz bridge with unknown scales and the stock series of ten years: minutes of HMC. German credit and
radon: their data must be downloaded. Of Neal's funnel only the first coordinate is judged: a squared draw of the others
has a relative variance of 3 e^9, so that no number of draws is enough.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax import platform

BUILD: dict[str, Callable[[Any], Any]] = {
    "banana": lambda models: models.Banana(),
    "gaussian": lambda models: models.IllConditionedGaussian(ndims=50, gamma_shape_parameter=2.0),
    "ill-conditioned gaussian": lambda models: models.IllConditionedGaussian(ndims=10),
    "quartic": lambda models: models.NonIdentifiableQuarticMeasurementModel(noise_scale=0.5),
    "eight schools": lambda models: models.EightSchools(),
    "brownian motion": lambda models: models.BrownianMotionMissingMiddleObservations(use_markov_chain=True),
    "lorenz bridge": lambda models: models.ConvectionLorenzBridge(use_markov_chain=True),
    "stock volatility": lambda models: models.VectorizedStochasticVolatilitySP500Small(),
    "stock volatility, logarithms": lambda models: models.VectorizedStochasticVolatilityLogSP500Small(),
    "funnel": lambda models: models.NealsFunnel(ndims=5),
    "item response": lambda models: models.SyntheticItemResponseTheory(),
    "cox process": lambda models: models.SyntheticLogGaussianCoxProcess(),
}
JUDGED = {"funnel": 1}  # so many quantities, where not all
LEAST_CURVATURE = {"lorenz bridge": 0.3, "item response": 0.02}


class Target(NamedTuple):
    """A density of one unconstrained position (size,), and what is stated of it.

    Attributes
    ----------
    log_density
        Position -> scalar.
    quantities
        Positions (..., size) -> what the moments are of (..., count).
    size
        Of a position.
    mean, variance
        As stated, (count,). Where no variance is stated it is integrated over a grid, in two dimensions.
    mean_error
        Stated standard error of the mean, 0 where the mean is exact.
    draws
        Independent draws that the errors speak of, inf where the moments are exact.
    """

    log_density: Callable[[jax.Array], jax.Array]
    quantities: Callable[[jax.Array], jax.Array]
    size: int
    mean: np.ndarray
    variance: np.ndarray
    mean_error: np.ndarray
    draws: float


@functools.cache
def load(name: str) -> Target:
    """One of ``BUILD``, flattened and unconstrained by the collection's own adapter and bijector.

    Where the quantities are the model's parameters, one by one, the position is measured from their stated means in
    stated standard deviations, which lets one step size do for all coordinates. Where ``LEAST_CURVATURE`` has the name
    it is measured along the axes of the curvature there, in units of its inverse root.
    """
    models = _collection().targets
    with _as_the_collection_likes_it():
        model = models.VectorModel(BUILD[name](models), flatten_sample_transformations=True)
        bijector, stated = model.default_event_space_bijector, model.sample_transformations["identity"]
        size = int(bijector.inverse_event_shape(model.event_shape)[0])
    mean, deviation, error = (
        None if x is None else np.asarray(x, float).reshape(-1)[: JUDGED.get(name)]
        for x in (
            stated.ground_truth_mean,
            stated.ground_truth_standard_deviation,
            stated.ground_truth_mean_standard_error,
        )
    )

    def plain_quantities(position: jax.Array) -> jax.Array:
        return stated(bijector(position)).reshape(*position.shape[:-1], -1)[..., : JUDGED.get(name)]

    zero, unit = jnp.zeros(size), jnp.ones(size)
    some = jax.random.normal(jax.random.key(0), (size,))
    with _as_the_collection_likes_it():
        if deviation is not None and np.array_equal(plain_quantities(some), bijector(some)):
            there = jnp.asarray(mean, jnp.float32)
            slope = jax.grad(lambda x: jnp.sum(bijector.inverse(x)))(there)
            zero, unit = bijector.inverse(there), jnp.asarray(deviation, jnp.float32) * slope

    def quantities(position: jax.Array) -> jax.Array:
        with _as_the_collection_likes_it():
            return plain_quantities(zero + unit * position)

    def log_density(position: jax.Array) -> jax.Array:
        with _as_the_collection_likes_it():
            position = zero + unit * position
            return model.unnormalized_log_prob(bijector(position)) + bijector.forward_log_det_jacobian(position)

    target = Target(
        log_density,
        quantities,
        size,
        mean,
        _variance_on_a_grid(log_density) if deviation is None else deviation**2,
        np.zeros_like(mean) if error is None else error,
        np.inf if error is None else float(np.min(deviation / error) ** 2),
    )
    return _turned(target, LEAST_CURVATURE[name]) if name in LEAST_CURVATURE else target


def _turned(target: Target, least: float) -> Target:
    """In units of the curvature at zero, its absolute value and at least ``least``, along its axes."""
    hessian = platform.jit(jax.hessian(target.log_density))(jnp.zeros(target.size))
    curvature, axes = np.linalg.eigh(-np.asarray(hessian, float))
    root = jnp.asarray(axes / np.sqrt(np.maximum(np.abs(curvature), least)), jnp.float32)
    return target._replace(
        log_density=lambda position: target.log_density(root @ position),
        quantities=lambda position: target.quantities(position @ root.T),
    )


def _variance_on_a_grid(log_density: Callable[[jax.Array], jax.Array]) -> np.ndarray:
    """Of a density of zero mean in two dimensions."""
    axis = np.linspace(-5, 5, 401)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    logs = np.asarray(jax.vmap(log_density)(jnp.asarray(grid, jnp.float32)), float)
    mass = np.exp(logs - logs.max())
    return mass @ grid**2 / mass.sum()


def _collection() -> ModuleType:
    with _as_the_collection_likes_it():
        return pytest.importorskip(
            "inference_gym.using_jax", reason="targets of the Inference Gym: pip install inference-gym tfp-nightly"
        )


@contextlib.contextmanager
def _as_the_collection_likes_it() -> Iterator[None]:
    """Ranks may promote, float64 may be asked for, deprecated names may be touched."""
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
