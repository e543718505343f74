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
from cryowgen_jax.pytrees import as_pytree
from cryowgen_jax.samplers import preconditioned

SMALL = (6, 6, 6)


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
def value_and_gradient(witness, position):
    return jax.value_and_grad(witness)(position)


@jax.jit
def gradients(witness, positions):
    return jax.vmap(jax.grad(witness))(positions)


def minus_hessian(envelope, whitening, shape):
    root = dense(whitening, shape)
    return root.T @ np.diag(envelope.ravel()) @ root


def test_value_and_gradient_are_those_of_a_dense_convolution(rng):
    witness, envelope, whitening = witness_of(SMALL, rng)
    position = rng.standard_normal(SMALL)
    root, e = dense(whitening, SMALL), envelope.ravel()
    filtered = root @ (position.ravel() - 0.4)
    value, gradient = -0.5 * np.sum(e * filtered**2), -root.T @ (e * filtered)
    ours, ours_gradient = value_and_gradient(witness, jnp.asarray(position, jnp.float32))
    assert ours_gradient.dtype == jnp.float32
    np.testing.assert_allclose(ours, value, rtol=1e-5)
    np.testing.assert_allclose(np.ravel(ours_gradient), gradient, atol=2e-5 * np.abs(gradient).max())

    unlevelled = dataclasses.replace(witness, level=jnp.float32(0))
    forgot_the_level = value_and_gradient(unlevelled, jnp.asarray(position, jnp.float32))[1]
    assert np.abs(np.ravel(forgot_the_level) - gradient).max() > 1e-2 * np.abs(gradient).max()


def test_hessian_is_the_dense_one_and_lies_within_the_bounds(rng):
    witness, envelope, whitening = witness_of(SMALL, rng)
    curvature = minus_hessian(envelope, whitening, SMALL)
    at_zero, *columns = np.asarray(gradients(witness, np.eye(21, 216, -1, np.float32).reshape(21, *SMALL)))
    np.testing.assert_allclose((at_zero - columns).reshape(20, -1), curvature[:20], atol=1e-4)

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
    expected = value_and_gradient(stationary, position)[0]
    np.testing.assert_allclose(value_and_gradient(everywhere, position)[0], expected, rtol=1e-5)
    nowhere = SolventWitness(jnp.zeros(SMALL), whitening, 0.0)
    assert float(value_and_gradient(nowhere, position)[0]) == 0.0


def test_it_is_a_pytree_that_vmaps_jits_and_differentiates_in_its_leaves(rng):
    witness, *_ = witness_of(SMALL, rng)
    positions = jnp.asarray(rng.standard_normal((3, *SMALL)), jnp.float32)
    together = jax.jit(jax.vmap(lambda w, z: w(z), in_axes=(None, 0)))(witness, positions)
    np.testing.assert_allclose(together, [value_and_gradient(witness, z)[0] for z in positions], rtol=1e-5)
    slopes = jax.jit(jax.grad(lambda w, z: w(z)))(witness, positions[0])
    step = 0.5  # the witness is quadratic in the level: no step is too large
    raised, lowered = (
        value_and_gradient(dataclasses.replace(witness, level=witness.level + change), positions[0])[0]
        for change in (step, -step)
    )
    np.testing.assert_allclose(slopes.level, (raised - lowered) / (2 * step), rtol=2e-3)
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
    gaussian, rest = jax.jit(split)(posterior)
    assert isinstance(rest, ShiftedWitness)
    assert has_curvature(rest)
    moved = 0.5 * np.asarray(solvent.spectral_curvature_bounds()[1])
    np.testing.assert_allclose(rest.shift, moved, rtol=1e-6)
    transfer, curvature = (np.asarray(x) for x in (posterior.decoder.transfer, posterior.witness.terms[0].curvature))
    np.testing.assert_allclose(gaussian.precision, 3.0 * transfer**2 + 0.2 + curvature + moved, rtol=1e-5)
    low, high = map(np.asarray, jax.jit(spectral_curvature_bounds)(rest))
    np.testing.assert_allclose(low, -high, rtol=1e-5)
    gap = float(jax.jit(contraction_gap)(gaussian, rest))
    assert 0 < gap <= 1


def test_split_leaves_the_law_as_it_was(rng):
    posterior, *_ = posterior_of(SMALL, rng)
    points = jnp.asarray(rng.standard_normal((4, *SMALL)), jnp.float32)

    @jax.jit
    def evaluate(posterior, points):
        gaussian, rest = split(posterior)
        return gaussian, gaussian.mean, jax.vmap(rest)(points), jax.vmap(posterior.log_density)(points)

    gaussian, mean, remainder, there = jax.tree.map(np.asarray, evaluate(posterior, points))
    precision = full_spectrum(gaussian.precision, SMALL)
    offsets = np.fft.fftn(np.asarray(points, float) - mean, axes=(1, 2, 3), norm="ortho")
    gone = remainder - 0.5 * np.sum(precision * np.abs(offsets) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(gone - gone[0], there - there[0], rtol=1e-4, atol=1e-2)


BOX, CHAINS, STEPS, WARMUP = (8, 8, 8), 24, 300, 30


def agreement(result, precision, mean):
    """Root mean square of the mean's error in standard errors, and mean ratio of variances."""
    covariance = np.linalg.inv(precision)
    error = np.asarray(result.mean).ravel() - mean
    return np.sqrt(np.mean(error**2 / np.diag(covariance))), np.mean(
        np.asarray(result.variance).ravel() / np.diag(covariance)
    )


def run(posterior, key):
    counts = {"num_chains": CHAINS, "num_steps": STEPS, "warmup": WARMUP, "num_kept": 1}
    return sample(key, posterior, sampler="preconditioned", devices=jax.devices()[:1], **counts)


@pytest.mark.slow
def test_preconditioned_chains_reach_the_dense_posterior(rng, key):
    posterior, _, precision, mean = posterior_of(BOX, rng)
    result = run(posterior, key)
    error, ratio = agreement(result, precision, mean)
    # 24 chains of 300 steps; the slowest modes forget in about 10 steps, most in two.
    assert error < 0.05
    assert ratio == pytest.approx(1.0, abs=0.03)
    last = np.asarray(result.samples[:, -1]).reshape(CHAINS, -1) - mean
    distances = np.einsum("ki,ij,kj->k", last, precision, last)
    size = mean.size
    assert distances.mean() == pytest.approx(size, abs=5 * np.sqrt(2 * size / CHAINS))


class Dense:
    """The preconditioned scheme with dense matrices in the place of transforms, and room for a fault."""

    eta = 0.7

    def __init__(self, posterior, shape):
        self.gaussian, self.rest = jax.jit(split)(posterior)
        precision, self.shape = np.asarray(self.gaussian.precision, np.float64), shape
        self.covariance, self.root = dense(1 / precision, shape), dense(1 / np.sqrt(precision), shape)
        self.moved = dense(np.asarray(self.rest.shift, np.float64), shape)
        self.mean = np.asarray(jax.jit(lambda g: g.mean)(self.gaussian), np.float64).ravel()
        self.witness = posterior.witness.terms[1]

    def step(self, position, old, fresh, shift=1.0, noise=1.0):
        """From a position, with the white noise of the step before and that of this one."""
        gradient = np.ravel(value_and_gradient(self.witness, jnp.asarray(position, jnp.float32))[1])
        z, eta = np.ravel(position), self.eta
        drift = (1 - eta) * (z - self.mean) + eta * self.covariance @ (gradient + shift * self.moved @ z)
        kick = noise * np.sqrt(0.5 * eta) * self.root @ np.ravel(old + fresh)
        return (self.mean + drift + kick).reshape(self.shape)


def test_steps_of_the_preconditioned_kernel_are_those_written_out(rng, key):
    """And would not be with another shift, or half the noise."""
    posterior, *_ = posterior_of(SMALL, rng)
    scheme = Dense(posterior, SMALL)
    kernel = as_pytree(preconditioned(scheme.rest, scheme.gaussian, scheme.eta))
    start = jnp.asarray(rng.standard_normal(SMALL), jnp.float32)
    keys = jax.random.split(key, 3)
    white = [np.asarray(jax.random.normal(k, SMALL), np.float64) for k in keys]
    state = jax.jit(lambda kernel, z, k: kernel.init(z, k))(kernel, start, keys[0])
    step = jax.jit(lambda kernel, k, state: kernel.step(k, state)[0])
    for old, fresh, k in zip(white, white[1:], keys[1:], strict=False):
        before, state = np.asarray(state.position, np.float64), step(kernel, k, state)
        np.testing.assert_allclose(state.position, scheme.step(before, old, fresh), atol=2e-4)
        for fault in ({"shift": 0.5}, {"noise": 0.5**0.5}):
            assert np.abs(scheme.step(before, old, fresh, **fault) - state.position).max() > 0.05
