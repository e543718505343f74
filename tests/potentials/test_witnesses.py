"""Closed-form witnesses against dense algebra: values, and bounds that hold every Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax.potentials import (
    ScaledWitness,
    ShiftedWitness,
    SumWitness,
    curvature_bounds,
    has_curvature,
)
from cryowgen_jax.potentials.witnesses import spectral_curvature_bounds
from tests import oracles

SHAPE = (3, 2, 4)
SIZE = 24


def quadratic(rng, low=-0.5, high=3.0):
    curvature = oracles.symmetric_half(rng, SHAPE, low, high)
    return cg.QuadraticWitness(jnp.asarray(curvature), volume(rng.normal(size=SIZE)))


def mixture(rng, variance=0.6, spread=0.5, count=3):
    means = spread * rng.normal(size=(count, SIZE))
    weights = jnp.asarray(rng.uniform(0.3, 2.0, count), jnp.float32)
    return cg.GaussianMixtureWitness(weights, volume(means), variance)


def volume(flat):
    return jnp.asarray(np.asarray(flat).reshape(*np.shape(flat)[:-1], *SHAPE), jnp.float32)


WITNESSES = {
    "quadratic": quadratic,
    "mixture": mixture,
    "scaled": lambda rng: ScaledWitness(jnp.float32(2.5), mixture(rng)),
    "sum": lambda rng: SumWitness((quadratic(rng), mixture(rng))),
    "shifted": lambda rng: ShiftedWitness(mixture(rng), jnp.float32(0.8)),
    "shifted by frequency": lambda rng: ShiftedWitness(
        quadratic(rng), jnp.asarray(oracles.symmetric_half(rng, SHAPE, 0.0, 2.0))
    ),
    "scaled sum": lambda rng: ScaledWitness(jnp.float32(0.3), SumWitness((mixture(rng), quadratic(rng)))),
}


@jax.jit
def curvatures(witness, positions):
    """-Hess w at several positions, reverse mode twice: the transforms have no forward mode."""
    hessian = jax.jacrev(jax.jacrev(lambda z: -witness(z.reshape(SHAPE))))
    return jax.vmap(hessian)(positions.reshape(-1, SIZE))


@jax.jit
def value(witness, position):
    return witness(position)


def symmetric(matrices):
    matrices = np.asarray(matrices, float)
    return 0.5 * (matrices + np.swapaxes(matrices, -1, -2))


def test_quadratic_value(rng):
    witness = quadratic(rng)
    s, m = oracles.dense_filter(witness.curvature, SHAPE), np.asarray(witness.mean, float).reshape(-1)
    z = rng.normal(size=SIZE)
    np.testing.assert_allclose(value(witness, volume(z)), -0.5 * (z - m) @ s @ (z - m), rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)], ids=str)
def test_mixture_value_for_positions_of_any_shape(rng, shape):
    size = int(np.prod(shape))
    means, weights, v = rng.normal(size=(4, size)), np.array([0.1, 2.0, 0.7, 0.4]), 0.35
    witness = cg.GaussianMixtureWitness(
        jnp.asarray(weights, jnp.float32), jnp.asarray(means.reshape(4, *shape), jnp.float32), v
    )
    z = rng.normal(size=size)
    density = sum(
        p * np.exp(oracles.log_normal(z, m, v * np.eye(size)))
        for p, m in zip(weights / weights.sum(), means, strict=True)
    )
    np.testing.assert_allclose(value(witness, jnp.asarray(z.reshape(shape), jnp.float32)), np.log(density), rtol=1e-5)


def test_mixture_far_from_every_mean_stays_finite(rng):
    witness = mixture(rng)
    value, gradient = jax.jit(jax.value_and_grad(witness))(jnp.full(SHAPE, 300.0))
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


def test_sum_scaled_and_shifted_values(rng):
    one, two, z = mixture(rng), quadratic(rng), volume(rng.normal(size=SIZE))
    of_one, of_two = (float(value(witness, z)) for witness in (one, two))
    np.testing.assert_allclose(value(SumWitness((one, two)), z), of_one + of_two, rtol=1e-6)
    np.testing.assert_allclose(value(ScaledWitness(jnp.float32(0.3), one), z), 0.3 * of_one, rtol=1e-6)
    shifted = value(ShiftedWitness(one, jnp.float32(0.8)), z)
    np.testing.assert_allclose(shifted, of_one + 0.4 * np.sum(np.asarray(z) ** 2), rtol=1e-5)
    shift = oracles.symmetric_half(rng, SHAPE, 0.0, 2.0)
    flat = np.asarray(z, float).reshape(-1)
    by_frequency = value(ShiftedWitness(one, jnp.asarray(shift)), z)
    np.testing.assert_allclose(by_frequency, of_one + 0.5 * flat @ oracles.dense_filter(shift, SHAPE) @ flat, rtol=1e-5)


@pytest.mark.parametrize("slope", [False, True])
@pytest.mark.parametrize("by_frequency", [False, True])
def test_gradient_of_a_shifted_witness_in_fourier_space(rng, by_frequency, slope):
    one, flat = mixture(rng), rng.normal(size=SIZE).astype(np.float32)
    shift = oracles.symmetric_half(rng, SHAPE, -0.5, 2.0) if by_frequency else 0.8
    b = rng.normal(size=SHAPE)
    of_b, of_z = (jnp.asarray(np.fft.rfftn(v.reshape(SHAPE), norm="ortho"), jnp.complex64) for v in (b, flat))
    shifted, z = ShiftedWitness(one, jnp.asarray(shift, jnp.float32), of_b if slope else None), volume(flat)
    found, gradient = jax.jit(lambda witness, *at: witness.value_and_spectral_gradient(*at))(shifted, z, of_z)
    flat, b = flat.astype(float), b.ravel() * slope
    form = oracles.dense_filter(shift, SHAPE) if by_frequency else 0.8 * np.eye(SIZE)
    of_one, slope_of_one = jax.jit(jax.value_and_grad(lambda z, witness: witness(z)))(z, one)
    expected = np.asarray(slope_of_one, float).ravel() + form @ flat - b
    np.testing.assert_allclose(found, float(of_one) + 0.5 * flat @ form @ flat - b @ flat, rtol=1e-5)
    np.testing.assert_allclose(value(shifted, z), found, rtol=1e-5)
    got = np.fft.irfftn(gradient, SHAPE, axes=(0, 1, 2), norm="ortho").ravel()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WITNESSES)
def test_curvature_bounds_hold_every_hessian(rng, name):
    """As scalars against the eigenvalues, and frequency by frequency as quadratic forms."""
    witness = WITNESSES[name](rng)
    points = np.array([0.0, 0.3, 1.0, 3.0])[:, None] * rng.normal(size=(4, SIZE))
    found = symmetric(curvatures(witness, volume(points)))
    bounds, by_frequency = jax.jit(lambda w: (curvature_bounds(w), spectral_curvature_bounds(w)))(witness)
    low, high = map(float, bounds)
    slack = 1e-4 * (abs(low) + abs(high))
    eigenvalues = np.linalg.eigvalsh(found)
    assert low - slack <= eigenvalues.min()
    assert eigenvalues.max() <= high + slack
    half = (SHAPE[0], SHAPE[1], SHAPE[2] // 2 + 1)
    low, high = (oracles.dense_filter(np.broadcast_to(b, half), SHAPE) for b in by_frequency)
    assert np.linalg.eigvalsh(found - low).min() > -slack
    assert np.linalg.eigvalsh(high - found).min() > -slack


def test_quadratic_bounds_are_attained(rng):
    witness = quadratic(rng)
    eigenvalues = np.linalg.eigvalsh(oracles.dense_filter(witness.curvature, SHAPE))
    np.testing.assert_allclose(witness.curvature_bounds(), [eigenvalues[0], eigenvalues[-1]], atol=1e-5)


def test_mixture_bounds_are_attained_half_way_between_two_means(rng):
    """There the responsibilities are even, and Cov(m) is the square of half the gap: nothing tighter would hold."""
    witness = mixture(rng, count=2)
    witness = cg.GaussianMixtureWitness(jnp.ones(2), witness.means, witness.variance)
    middle = np.broadcast_to(np.mean(witness.means, axis=0), (4, *SHAPE))
    eigenvalues = np.linalg.eigvalsh(symmetric(curvatures(witness, middle)))[0]
    low, high = (float(b) for b in jax.jit(lambda w: w.curvature_bounds())(witness))
    np.testing.assert_allclose([eigenvalues[0], eigenvalues[-1]], [low, high], rtol=1e-3)
    too_tight = 1 / witness.variance - 0.5 * (1 / witness.variance - low)
    assert eigenvalues[0] < too_tight - 0.1  # the check above would see a bound that forgets half of the gap


def test_has_curvature_looks_inside(rng):
    def unknown(position):
        return -jnp.sum(position**4)

    assert has_curvature(mixture(rng))
    assert has_curvature(ScaledWitness(jnp.float32(2.0), SumWitness((mixture(rng), quadratic(rng)))))
    assert not has_curvature(unknown)
    assert not has_curvature(ScaledWitness(jnp.float32(2.0), SumWitness((mixture(rng), unknown))))
    assert not has_curvature(ShiftedWitness(unknown, jnp.float32(1.0)))
    with pytest.raises(TypeError, match="no curvature bound"):
        curvature_bounds(unknown)


@pytest.mark.parametrize("name", WITNESSES)
def test_witnesses_are_pytrees_of_float32(rng, name):
    witness = WITNESSES[name](rng)
    z = volume(rng.normal(size=(2, SIZE)))
    values = jax.jit(lambda w, z: jax.vmap(w)(z))(witness, z)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, [value(witness, one) for one in np.asarray(z)], rtol=1e-5)
    assert jax.eval_shape(jax.vmap(jax.grad(witness)), z).dtype == jnp.float32
