"""The solvent witness against dense linear algebra: no transform of the package enters the oracles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.chains import sample
from cryowgen_jax.operators import Wedge, wedge_mask
from cryowgen_jax.potentials import Posterior, QuadraticWitness, SolventWitness, SumWitness, contraction_gap, split
from cryowgen_jax.potentials.witnesses import ShiftedWitness, has_curvature, spectral_curvature_bounds

SMALL, TINY = (6, 6, 6), (4, 5, 4)


def full_spectrum(half, shape):
    """A real, even transfer on the half spectrum, continued to all frequencies by its symmetry."""
    full = np.zeros(shape)
    for index in np.ndindex(*shape):
        mirror = tuple(-i % n for i, n in zip(index, shape, strict=True))
        full[index] = half[index] if index[-1] < half.shape[-1] else half[mirror]
    return full


def dense(half, shape):
    """F^-1 t F as a matrix over voxels, from the transform's definition: a circular convolution, written out."""
    kernel = np.fft.ifftn(full_spectrum(half, shape)).real
    voxels = np.indices(shape).reshape(len(shape), -1)
    apart = tuple((x[:, None] - x[None, :]) % n for x, n in zip(voxels, shape, strict=True))
    return kernel[apart]


def radial(shape, profile):
    """A transfer that depends on |k| only, on the half spectrum."""
    k = np.meshgrid(*[np.fft.fftfreq(n) for n in shape[:-1]], np.fft.rfftfreq(shape[-1]), indexing="ij")
    return profile(np.sqrt(sum(f**2 for f in k)))


def witness_of(shape, rng, level=0.4):
    envelope = rng.random(shape)
    envelope[rng.random(shape) < 0.3] = 1.0
    envelope[rng.random(shape) < 0.3] = 0.0
    whitening = radial(shape, lambda k: 0.5 + 6 * k)
    witness = SolventWitness(
        jnp.asarray(envelope, jnp.float32), jnp.asarray(whitening, jnp.float32), jnp.float32(level)
    )
    return witness, envelope, whitening


@jax.jit
def value_and_slope(witness, position):
    return jax.value_and_grad(witness)(position)


def minus_hessian(envelope, whitening, shape):
    root = dense(whitening, shape)
    return root.T @ np.diag(envelope.ravel()) @ root


def test_value_and_gradient_are_those_of_a_dense_convolution(rng):
    witness, envelope, whitening = witness_of(SMALL, rng)
    position = rng.standard_normal(SMALL)
    root, e = jnp.asarray(dense(whitening, SMALL)), jnp.asarray(envelope.ravel())

    def in_real_space(z):
        return -0.5 * jnp.sum(e * (root @ (z - 0.4)) ** 2)

    value, gradient = jax.jit(jax.value_and_grad(in_real_space))(jnp.asarray(position.ravel()))
    ours, ours_gradient = value_and_slope(witness, jnp.asarray(position, jnp.float32))
    assert ours_gradient.dtype == jnp.float32
    np.testing.assert_allclose(ours, value, rtol=1e-5)
    np.testing.assert_allclose(ours_gradient.ravel(), gradient, atol=2e-5 * np.abs(gradient).max())

    without_level = dataclasses.replace(witness, level=jnp.float32(0.0))
    _, forgot_the_level = value_and_slope(without_level, jnp.asarray(position, jnp.float32))
    assert np.abs(forgot_the_level.ravel() - gradient).max() > 1e-2 * np.abs(gradient).max()


def test_hessian_is_the_dense_one_and_lies_within_the_bounds(rng):
    witness, envelope, whitening = witness_of(SMALL, rng)
    curvature = minus_hessian(envelope, whitening, SMALL)
    at_zero = value_and_slope(witness, jnp.zeros(SMALL))[1]
    units = jnp.eye(20, curvature.shape[0]).reshape(20, *SMALL)
    columns = [value_and_slope(witness, unit)[1] - at_zero for unit in units]
    np.testing.assert_allclose(-np.array(columns).reshape(20, -1), curvature[:20], atol=1e-4)

    eigenvalues = np.linalg.eigvalsh(curvature)
    low, high = witness.curvature_bounds()
    assert float(low) - 1e-6 <= eigenvalues[0]
    assert eigenvalues[-1] <= float(high) * (1 + 1e-6)

    low_k, high_k = (np.asarray(b, np.float64) for b in witness.spectral_curvature_bounds())
    assert np.linalg.eigvalsh(curvature - dense(low_k, SMALL))[0] >= -1e-4
    assert np.linalg.eigvalsh(dense(high_k, SMALL) - curvature)[0] >= -1e-4
    assert np.linalg.eigvalsh(dense(0.8 * high_k, SMALL) - curvature)[0] < -1e-2  # a bound that is too low is seen


def test_bounds_are_reached_where_everything_is_solvent_and_where_nothing_is():
    whitening = jnp.asarray(radial(SMALL, lambda k: 0.5 + 6 * k), jnp.float32)
    position = jax.random.normal(jax.random.key(0), SMALL)
    everywhere = SolventWitness(jnp.ones(SMALL), whitening, 0.0)
    stationary = QuadraticWitness(whitening**2, jnp.zeros(SMALL))
    np.testing.assert_allclose(everywhere(position), stationary(position), rtol=1e-5)
    assert float(SolventWitness(jnp.zeros(SMALL), whitening, 0.0)(position)) == 0.0


def test_it_is_a_pytree_that_vmaps_jits_and_differentiates_in_its_leaves(rng):
    witness, *_ = witness_of(SMALL, rng)
    positions = jnp.asarray(rng.standard_normal((3, *SMALL)), jnp.float32)
    together = jax.jit(jax.vmap(lambda w, z: w(z), in_axes=(None, 0)))(witness, positions)
    np.testing.assert_allclose(together, [witness(z) for z in positions], rtol=1e-5)
    slopes = jax.jit(jax.grad(lambda w: w(positions[0])))(witness)
    step = 0.5  # the witness is quadratic in the level: no step is too large
    raised = dataclasses.replace(witness, level=witness.level + step)
    lowered = dataclasses.replace(witness, level=witness.level - step)
    np.testing.assert_allclose(slopes.level, (raised(positions[0]) - lowered(positions[0])) / (2 * step), rtol=2e-3)
    assert slopes.envelope.shape == SMALL


def posterior_of(shape, rng):
    """The default model's form: a quadratic witness for particles, the solvent witness, a wedge and a tether."""
    solvent, envelope, whitening = witness_of(shape, rng)
    curvature = radial(shape, lambda k: 0.3 + k)
    inside = QuadraticWitness(jnp.asarray(curvature, jnp.float32), jnp.full(shape, 0.2))
    mask = np.asarray(wedge_mask(shape, (-50.0, 40.0)), np.float64)
    observation = rng.standard_normal(shape)
    posterior = Posterior(
        SumWitness((inside, solvent)),
        Wedge(jnp.asarray(mask, jnp.float32)),
        jnp.asarray(observation, jnp.float32),
        jnp.full(shape, -0.1),
        jnp.float32(3.0),
        jnp.float32(0.2),
    )
    wedge, particle = (dense(t, shape) for t in (mask, curvature))
    ones = np.ones(observation.size)
    stiff = minus_hessian(envelope, whitening, shape)
    precision = stiff + particle + 3.0 * wedge.T @ wedge + 0.2 * np.eye(ones.size)
    linear = 0.4 * stiff @ ones + 0.2 * particle @ ones + 3.0 * wedge.T @ observation.ravel() - 0.1 * 0.2 * ones
    return posterior, solvent, precision, np.linalg.solve(precision, linear)


def test_split_moves_the_quadratic_and_half_of_the_spectral_bound(rng):
    posterior, solvent, *_ = posterior_of(SMALL, rng)
    gaussian, rest = split(posterior)
    assert isinstance(rest, ShiftedWitness)
    assert has_curvature(rest)
    moved = 0.5 * solvent.spectral_curvature_bounds()[1]
    np.testing.assert_allclose(rest.shift, moved, rtol=1e-6)
    expected = 3.0 * posterior.decoder.transfer**2 + 0.2 + posterior.witness.terms[0].curvature + moved
    np.testing.assert_allclose(gaussian.precision, expected, rtol=1e-5)
    low, high = spectral_curvature_bounds(rest)
    np.testing.assert_allclose(low, -high, rtol=1e-5)
    gap = float(contraction_gap(gaussian, rest))
    assert 0 < gap <= 1


def test_split_leaves_the_law_as_it_was(rng):
    posterior, *_ = posterior_of(SMALL, rng)
    gaussian, rest = split(posterior)
    points = jnp.asarray(rng.standard_normal((4, *SMALL)), jnp.float32)

    def log_gaussian(z):
        offset = jnp.fft.fftn(z, norm="ortho") - jnp.fft.fftn(gaussian.mean, norm="ortho")
        return -0.5 * jnp.sum(full_spectrum(np.asarray(gaussian.precision), SMALL) * jnp.abs(offset) ** 2)

    gone = np.array([float(rest(z) + log_gaussian(z)) for z in points])
    there = np.array([float(posterior.log_density(z)) for z in points])
    np.testing.assert_allclose(gone - gone[0], there - there[0], rtol=1e-4, atol=1e-2)


BOX, CHAINS, STEPS, WARMUP = (8, 8, 8), 24, 300, 30


def agreement(found_mean, found_variance, precision, mean):
    """Root mean square of the mean's error in standard errors, and mean ratio of variances."""
    variance = np.diag(np.linalg.inv(precision))
    error = np.asarray(found_mean).ravel() - mean
    return np.sqrt(np.mean(error**2 / variance)), np.mean(np.asarray(found_variance).ravel() / variance)


@pytest.mark.slow
def test_preconditioned_chains_reach_the_dense_posterior(rng, key):
    posterior, _, precision, mean = posterior_of(BOX, rng)
    counts = {"num_chains": CHAINS, "num_steps": STEPS, "warmup": WARMUP, "num_kept": 1}
    result = sample(key, posterior, sampler="preconditioned", devices=jax.devices()[:1], **counts)
    error, ratio = agreement(result.mean, result.variance, precision, mean)
    # 24 chains of 300 steps; the slowest modes forget in about 10 steps, most in two.
    assert error < 0.05
    assert ratio == pytest.approx(1.0, abs=0.03)
    last = np.asarray(result.samples[:, -1]).reshape(CHAINS, -1) - mean
    distances = np.einsum("ki,ij,kj->k", last, precision, last)
    size = mean.size
    assert distances.mean() == pytest.approx(size, abs=5 * np.sqrt(2 * size / CHAINS))


def written_out(rng, shift=1.0, noise=1.0):
    """The same scheme on a smaller box with matrices in the place of transforms, and room for a fault."""
    posterior, solvent, precision, mean = posterior_of(TINY, rng)
    gaussian, rest = split(posterior)
    covariance, root = (dense(np.asarray(gaussian.precision, np.float64) ** power, TINY) for power in (-1, -0.5))
    moved = dense(shift * np.asarray(rest.shift, np.float64), TINY)
    stiff = minus_hessian(np.asarray(solvent.envelope), np.asarray(solvent.whitening, np.float64), TINY)
    center, eta = np.asarray(gaussian.mean, np.float64).ravel(), 0.7
    # every step is linear: z <- center + (1 - eta) (z - center) + eta C (gradient of the rest) + noise
    onward = (1 - eta) * np.eye(mean.size) + eta * (moved - stiff) @ covariance
    offset = eta * (center + np.full(mean.size, float(solvent.level)) @ stiff @ covariance)
    white = rng.standard_normal((WARMUP + STEPS + 1, CHAINS, mean.size))
    kicks = (
        noise * np.sqrt(0.5 * eta) * ((white[:-1] + white[1:]).reshape(-1, mean.size) @ root).reshape(white[1:].shape)
    )
    z, kept = center + rng.standard_normal((CHAINS, mean.size)) @ root, []
    for kick in kicks:
        z = z @ onward + offset + kick
        kept.append(z)
    draws = np.concatenate(kept[WARMUP:])
    return agreement(draws.mean(axis=0), draws.var(axis=0), precision, mean)


def test_the_scheme_written_out_agrees_too(rng):
    error, ratio = written_out(rng)
    assert error < 0.05
    assert ratio == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("fault", [{"shift": 0.5}, {"noise": 0.5**0.5}])
def test_a_wrong_shift_or_half_the_noise_is_seen(rng, fault):
    error, ratio = written_out(rng, **fault)
    assert error > 0.1 or abs(ratio - 1) > 0.1
