"""Draws by a denoiser: their law is the closed form of the recursion, and that of the prior in the limit."""

import doctest
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.methods import noise_levels, reverse_diffusion
from cryowgen_jax.operators import wedge_mask
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import InputError

TOLERANCE = 4.5  # standard errors
SHAPE = (6, 6, 6)


def variance_after(power, levels):
    """Of the linear recursion for a Gaussian v of one power, in float64: covariance of z and of the D before."""
    covariance, length = np.diag([power + levels[0] ** 2, 0.0]), None
    for before, after in itertools.pairwise(levels):
        kept, share = (after / before) ** 2, power / (power + before**2)
        now = np.log(before / after)
        more = 0.0 if length is None else 0.5 * now / length
        step = np.array([[kept + (1 - kept) * (1 + more) * share, -(1 - kept) * more], [share, 0.0]])
        covariance, length = step @ covariance @ step.T, now
        covariance[0, 0] += after**2 * (1 - kept)
    return covariance[0, 0]


def draws(denoise, spread, levels, number):
    """Many draws whose start is exact where v has this standard deviation per coefficient."""

    def one(key):
        start_key, key = jax.random.split(key)
        start = jnp.fft.irfftn(
            jnp.fft.rfftn(jax.random.normal(start_key, SHAPE)) * jnp.sqrt(spread**2 + levels[0] ** 2), SHAPE
        )
        return reverse_diffusion(key, denoise, start, levels)

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), number)))


def test_law_of_a_gaussian_field_is_that_of_the_recursion():
    radius = fourier.radial_frequency(SHAPE)
    power = jnp.asarray(4 * np.exp(-((radius / 0.2) ** 2)) + 0.05, jnp.float32)
    levels = noise_levels(3.0, 0.1, 6)

    def wiener(position, sigma):
        return fourier.filter_volume(position, power / (power + sigma**2))

    found = draws(wiener, jnp.sqrt(power), levels, 4000)
    spectra = np.abs(np.fft.rfftn(found, axes=(1, 2, 3), norm="ortho")) ** 2
    expected = np.vectorize(lambda p: variance_after(p, levels.astype(float)))(np.asarray(power, float))
    error = spectra.std(0, ddof=1) / np.sqrt(len(found))
    assert np.max(np.abs(spectra.mean(0) - expected) / error) < TOLERANCE
    exact = np.asarray(power) + levels[-1] ** 2
    assert np.max(np.abs(spectra.mean(0) - exact) / error) > 2 * TOLERANCE, "few levels are biased"


@pytest.mark.parametrize(("number", "most"), [(16, 0.062), (48, 0.01)])
def test_the_bias_of_a_gaussian_is_what_the_docstring_says(number, most):
    levels = noise_levels(3.0, 0.03, number).astype(float)
    for power in (1e-3, 0.01, 0.05, 0.25, 1.0):
        assert abs(variance_after(power, levels) / (power + levels[-1] ** 2) - 1) < most


class Templates:
    """Three volumes that differ in the wedge only, and Gaussian texture, seen through the wedge with noise."""

    def __init__(self):
        rng = np.random.default_rng(6)
        self.mask = np.asarray(wedge_mask(SHAPE, (-50.0, 50.0)))
        common, *apart = (np.fft.rfftn(rng.normal(size=SHAPE)) for _ in range(4))
        self.templates = np.stack(
            [np.fft.irfftn(self.mask * common + 2.5 * (1 - self.mask) * a, SHAPE, axes=(0, 1, 2)) for a in apart]
        )
        self.weights = np.array([0.5, 0.3, 0.2])
        self.texture, self.noise = 0.09, 0.25
        truth = self.templates[1] + 0.3 * rng.normal(size=SHAPE)
        seen = np.fft.rfftn(truth + 0.5 * rng.normal(size=SHAPE), norm="ortho") * self.mask
        gain = self.mask * self.texture / (self.texture + self.noise)
        spectra = np.fft.rfftn(self.templates, axes=(1, 2, 3), norm="ortho")
        self.means = np.fft.irfftn(spectra + gain * (seen - spectra), SHAPE, axes=(1, 2, 3), norm="ortho")
        self.variance = self.texture * (1 - gain)
        weight = np.broadcast_to(fourier.multiplicity(SHAPE), self.mask.shape)
        misfit = np.sum(weight * self.mask * np.abs(seen - spectra) ** 2, axis=(1, 2, 3)) / (self.texture + self.noise)
        logs = np.log(self.weights) - 0.5 * misfit
        self.weights_after = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()

    def denoise(self, position, sigma):
        """E[v | position] under the posterior: responsibilities and Wiener filters."""
        means, weight = jnp.asarray(self.means, jnp.float32), jnp.asarray(self.weights_after, jnp.float32)
        total = jnp.asarray(self.variance, jnp.float32) + sigma**2
        off = jax.vmap(fourier.rfftn)(position[None] - means)
        multiplicity = np.broadcast_to(fourier.multiplicity(SHAPE), self.mask.shape)
        misfit = jnp.sum(multiplicity[None] * jnp.abs(off) ** 2 / total[None], axis=(1, 2, 3))
        share = jax.nn.softmax(jnp.log(weight) - 0.5 * misfit)
        filtered = jax.vmap(lambda o, m: m + fourier.irfftn((total - sigma**2) / total * o, SHAPE))(off, means)
        return jnp.tensordot(share, filtered, 1)


@pytest.mark.slow
def test_modes_that_differ_in_the_wedge_have_their_weights():
    """The wedge cannot tell the templates apart, so their weights stay those of the prior; within 0.03."""
    problem = Templates()
    np.testing.assert_allclose(problem.weights_after, problem.weights, atol=1e-6)
    spread = jnp.full(problem.mask.shape, jnp.float32(problem.templates.std()))
    found = draws(problem.denoise, spread, noise_levels(20.0, 0.05, 40), 4000)
    distance = np.sum((found[:, None] - problem.means[None]) ** 2, axis=(2, 3, 4))
    assert np.min(np.sort(distance, axis=1)[:, 1] / np.sort(distance, axis=1)[:, 0]) > 1.5, "draws belong to one mode"
    share = np.bincount(distance.argmin(1), minlength=3) / len(found)
    np.testing.assert_allclose(share, problem.weights_after, atol=0.03)
    inside = found - problem.means[distance.argmin(1)]
    power = np.mean(np.abs(np.fft.rfftn(inside, axes=(1, 2, 3), norm="ortho")) ** 2, axis=0)
    np.testing.assert_allclose(power.mean(), np.mean(problem.variance) + 0.05**2, rtol=0.08)
    rushed = draws(problem.denoise, spread, noise_levels(1.0, 0.05, 60), 1000)
    nearest = np.sum((rushed[:, None] - problem.means[None]) ** 2, axis=(2, 3, 4)).argmin(1)
    shares = np.bincount(nearest, minlength=3) / len(rushed)
    assert np.max(np.abs(shares - problem.weights_after)) > 0.06, "started too low, it cannot weigh the modes"


class LaplaceIncrements:
    """A closed curve of 12 points whose increments are Laplace, of which the low frequencies were measured with noise.

    Given its scales an increment is Gaussian, and given the increment the inverse of its scale is inverse Gaussian
    (Park and Casella, 2008): Gibbs sampling is exact. Many chains run side by side.
    """

    SIZE, NOISE, LEVEL = 12, 0.3, 0.2

    def __init__(self):
        points = np.arange(self.SIZE)
        differences = np.roll(np.eye(self.SIZE), -1, axis=1) - np.eye(self.SIZE)
        self.differences = np.vstack([differences, np.ones(self.SIZE) / np.sqrt(self.SIZE)])  # and the level
        waves = [np.cos(2 * np.pi * points / self.SIZE), np.sin(2 * np.pi * points / self.SIZE)]
        self.seen = np.stack([np.ones(self.SIZE), *waves]) / np.sqrt(self.SIZE / 2)

    def gibbs(self, rng, observed, num_chains, num_steps, every=5):
        """Draws of the posterior, or of the prior where nothing was observed."""
        weight = 0.0 if observed is None else 1 / self.NOISE**2
        data = weight * self.seen.T @ self.seen
        right = np.zeros(self.SIZE) if observed is None else weight * self.seen.T @ observed
        scales = np.ones((num_chains, self.SIZE + 1))
        scales[:, -1] = self.LEVEL**2  # the level is Gaussian
        kept = []
        for step in range(num_steps):
            precision = data + np.einsum("ji,cj,jk->cik", self.differences, 1 / scales, self.differences)
            factor = np.linalg.cholesky(precision)
            mean = np.linalg.solve(precision, np.broadcast_to(right, (num_chains, self.SIZE))[..., None])[..., 0]
            noise = rng.standard_normal((num_chains, self.SIZE, 1))
            curve = mean + np.linalg.solve(np.swapaxes(factor, 1, 2), noise)[..., 0]
            increments = np.abs(curve @ self.differences[:-1].T) + 1e-9
            scales[:, :-1] = 1 / rng.wald(1 / increments, 1.0)
            if step >= 40 and step % every == 0:
                kept.append(curve)
        return np.concatenate(kept)


@pytest.mark.slow
def test_intervals_of_a_posterior_with_laplace_increments_hold_what_they_say():
    """The denoiser is that of a long Gibbs run; 90 % intervals of draws hold the truth, within 2 %."""
    problem, rng, levels = LaplaceIncrements(), np.random.default_rng(0), noise_levels(10.0, 0.1, 40)

    def denoise(bank, position, sigma):
        distance = jnp.sum((bank - position[None]) ** 2, axis=1)
        return jax.nn.softmax(-0.5 * distance / sigma**2) @ bank

    def one(bank, spread, key):
        start_key, key = jax.random.split(key)
        start = bank.mean(0) + jnp.sqrt(spread**2 + levels[0] ** 2) * jax.random.normal(start_key, (problem.SIZE,))
        return reverse_diffusion(key, lambda z, s: denoise(bank, z, s), start, levels)

    draw = jax.jit(lambda bank, keys: jax.lax.map(lambda key: one(bank, bank.std(), key), keys, batch_size=20))
    truths = problem.gibbs(rng, None, 150, 41)
    inside, narrow, kurtosis = [], [], []
    for number, truth in enumerate(truths):
        observed = problem.seen @ truth + problem.NOISE * rng.standard_normal(3)
        bank = problem.gibbs(rng, observed, 100, 100)
        found = np.asarray(draw(jnp.asarray(bank, jnp.float32), jax.random.split(jax.random.key(number), 120)))
        steps = [family @ problem.differences[:-1].T for family in (truth[None], found)]
        for kept, family in ((inside, found), (narrow, found.mean(0) + 0.8 * (found - found.mean(0)))):
            low, high = np.quantile(family, [0.05, 0.95], axis=0)
            kept.append(np.mean((truth > low) & (truth < high)))
        kurtosis.append(np.mean(steps[1] ** 4) / np.mean(steps[1] ** 2) ** 2)
    assert np.mean(inside) == pytest.approx(0.9, abs=0.02)
    assert np.mean(narrow) < 0.87, "a family that is too narrow shows"
    assert np.mean(kurtosis) > 3.5, "it is not Gaussian"


def test_the_example_runs():
    result = doctest.testmod(sys.modules[reverse_diffusion.__module__])
    assert result.failed == 0
    assert result.attempted > 4


@pytest.mark.parametrize("levels", [(1.0, 2.0, 5), (2.0, 0.0, 5), (2.0, 1.0, 1), (float("inf"), 1.0, 5)])
def test_levels_that_do_not_fall_are_refused(levels):
    with pytest.raises(InputError, match="from large to small"):
        noise_levels(*levels)
