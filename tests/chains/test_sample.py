"""cg.sample against closed forms, with every kernel by name and BlackJAX's; starts, errors, and what it returns."""

import dataclasses
from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax import samplers
from cryowgen_jax.chains.assembly import assemble, require_start
from cryowgen_jax.operators import Wedge
from cryowgen_jax.types import InputError
from tests import oracles

SHAPE = (1, 2, 3)
LAM, BETA = 3.0, 0.8
RUN = {"num_chains": 64, "num_steps": 200, "num_kept": 50, "warmup": 60}
TOLERANCE = 5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hidden:
    """A quadratic witness that only admits to its curvature, so that it cannot move into the Gaussian part."""

    witness: cg.QuadraticWitness

    def __call__(self, position):
        return self.witness(position)

    def curvature_bounds(self):
        return self.witness.curvature_bounds()


class Problem:
    """A small Gaussian posterior, its witness open or hidden, and its law."""

    def __init__(self, shape=SHAPE, lam=LAM, high=2.0):
        rng = np.random.default_rng(5)
        size = int(np.prod(shape))
        self.shape = shape
        self.transfer = oracles.symmetric_half(rng, shape, 0.2, 1.0)
        self.curvature = oracles.symmetric_half(rng, shape, 0.1, high)
        self.x, self.center, self.m = rng.normal(size=(3, size))
        h, s = oracles.dense_filter(self.transfer, shape), oracles.dense_filter(self.curvature, shape)
        self.law = oracles.gaussian_posterior(h, self.x, lam, self.center, BETA, s, self.m)
        open_witness = cg.QuadraticWitness(jnp.asarray(self.curvature), volume(self.m, shape))
        decoder = Wedge(jnp.asarray(self.transfer))
        self.open = cg.Posterior(open_witness, decoder, volume(self.x, shape), volume(self.center, shape), lam, BETA)
        self.hidden = dataclasses.replace(self.open, witness=Hidden(open_witness))
        self.stiffness = np.asarray(self.curvature + lam * self.transfer**2 + BETA, float)


def volume(flat, shape=SHAPE):
    return jnp.asarray(np.reshape(flat, shape), jnp.float32)


def moment_score(result, mean, covariance):
    """Means and second moments, chain by chain: chains are independent, the spread between them is the error."""
    kept = np.asarray(result.samples, float).reshape(*result.samples.shape[:2], -1) - mean
    seconds = np.mean(kept[..., :, None] * kept[..., None, :], axis=1)
    scores = [oracles.mean_scores(kept.mean(axis=1), 0.0), *oracles.mean_scores(seconds, covariance)]
    return np.max(np.abs(scores))


@pytest.fixture(scope="module")
def small():
    return Problem()


# Laws ----------------------------------------------------------------------------------------------------------------


def expected_covariance(problem, result):
    """The stationary covariance of the kernel that ran, at the step size that it ran with."""
    q, step = problem.stiffness, float(result.step_size)
    if result.sampler == "langevin":
        return oracles.dense_filter(1 / (q * (1 - 0.5 * step * q)), problem.shape)
    if result.sampler == "pcnl_unadjusted":
        shift = 0.5 * (problem.curvature.min() + problem.curvature.max())
        c = 1 / (q - problem.curvature + shift)
        variance = oracles.pcnl_variance(c, c * (problem.curvature - shift), 1 - step)
        return oracles.dense_filter(variance, problem.shape)
    return problem.law.covariances[0]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "sampler",
    [
        "auto",
        "preconditioned",
        *(pytest.param(name, marks=SLOW) for name in ("kinetic_unadjusted", "langevin", "pcnl")),
        pytest.param("tempered", marks=SLOW),
        pytest.param("mala", marks=SLOW),
        pytest.param("pcnl_unadjusted", marks=SLOW),
        pytest.param("leimkuhler_matthews", marks=SLOW),
    ],
)
def test_every_kernel_by_name_has_its_law(key, small, sampler):
    result = cg.sample(key, small.hidden, sampler=sampler, **RUN)
    assert result.status == "ok"
    assert result.sampler == ("kinetic" if sampler == "auto" else sampler)
    assert moment_score(result, small.law.mean, expected_covariance(small, result)) < TOLERANCE
    assert moment_score(result, small.law.mean, 0.7 * expected_covariance(small, result)) > TOLERANCE
    assert 0.4 < result.acceptance <= 1
    assert result.r_hat < 1.2
    assert result.num_gradients % (64 * (200 + 60)) == 0
    assert (result.num_gradients > 64 * (200 + 60)) == (sampler == "tempered")
    assert result.samples.dtype == result.mean.dtype == jnp.float32


def test_a_quadratic_witness_in_the_open_gives_exact_draws(key, small):
    result = cg.sample(key, small.open, num_chains=64, num_steps=50)
    assert result.sampler == "exact Gaussian draws"
    assert result.samples.shape == (64, 50, *SHAPE)
    assert result.num_gradients == 0
    assert moment_score(result, small.law.mean, small.law.covariances[0]) < TOLERANCE
    np.testing.assert_allclose(result.ess, 64 * 50, rtol=0.4)


@pytest.mark.parametrize(
    "fault", ["flipped witness", *(pytest.param(f, marks=SLOW) for f in ("no tether", "temperature"))]
)
def test_chains_of_another_posterior_fail_the_same_check(key, small, fault):
    witness = small.open.witness
    if fault == "flipped witness":
        other = dataclasses.replace(
            small.hidden, witness=Hidden(cg.QuadraticWitness(-0.3 * witness.curvature, witness.mean))
        )
    elif fault == "no tether":
        other = dataclasses.replace(small.hidden, prior_precision=1e-6)
    else:
        other = cg.temper(small.hidden, 2.0)
    result = cg.sample(key, other, sampler="preconditioned", **RUN)
    assert moment_score(result, small.law.mean, small.law.covariances[0]) > 2 * TOLERANCE


class SgldState(NamedTuple):
    position: jax.Array


def wrapped_sgld(density, step_size):
    """BlackJAX's SGLD takes and returns bare positions; three lines make it a kernel for any driver."""
    sgld = blackjax.sgld(lambda position, batch: jax.grad(density)(position))

    def step(key, state):
        return SgldState(sgld.step(key, state.position, None, step_size)), ()

    return samplers.algorithm(lambda position, rng_key=None: SgldState(position), step)


BLACKJAX = {
    "mala": lambda density: blackjax.mala(density, 0.2),
    "barker": lambda density: blackjax.barker(density, 0.5),
    "hmc": lambda density: blackjax.hmc(density, 0.3, jnp.ones(6), 5),
    "sgld": lambda density: wrapped_sgld(density, 0.05),
    "nuts": lambda density: blackjax.nuts(density, 0.4, jnp.ones(6)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BLACKJAX)
def test_blackjax_kernels_run_in_this_driver(key, small, name):
    result = cg.sample(key, small.open, sampler=BLACKJAX[name](small.open.log_density), **RUN)
    assert result.sampler == "given"
    assert np.isnan(result.step_size)
    covariance = small.law.covariances[0]
    if name == "sgld":
        covariance = oracles.dense_filter(oracles.ula_variance(small.stiffness, 0.05), SHAPE)
    assert moment_score(result, small.law.mean, covariance) < TOLERANCE


def soft_posterior(small):
    """Skewed, its witness a plain function."""
    return dataclasses.replace(
        small.open, witness=lambda z: -2.0 * jnp.sum(jax.nn.softplus(2.0 * z)) - 0.2 * z[0, 0, 0]
    )


@pytest.mark.slow
def test_stein_and_virial_identities_on_chains(key, small):
    """E[grad F] = 0 and E[(z - c) . grad F] = -D for any c, with no reference solution; a plain function as witness."""
    target = soft_posterior(small)
    result = cg.sample(key, target, **RUN)
    assert result.sampler == "kinetic"
    assert "Metropolis" in result.reason

    def scores(samples):
        z = np.asarray(samples, float).reshape(64, -1, 6)
        drift = np.asarray(jax.jit(jax.vmap(jax.vmap(target.drift)))(samples), float).reshape(64, -1, 6)
        by_chain = [np.mean((z - c) * drift, axis=1) for c in (0.0, small.center)]
        virial = [oracles.mean_scores(terms.sum(axis=1), -6.0) for terms in by_chain]
        return np.max(np.abs([oracles.mean_scores(drift.mean(axis=1), 0.0).max(), *virial]))

    assert scores(result.samples) < TOLERANCE
    middle = jnp.mean(result.samples, axis=(0, 1), keepdims=True)
    assert scores(middle + np.sqrt(0.5) * (result.samples - middle)) > 2 * TOLERANCE  # half the noise
    tempered = cg.sample(key, cg.temper(target, 2.0), **RUN)  # functions inside a wrapper count too
    assert scores(tempered.samples) > 2 * TOLERANCE


@pytest.mark.slow
def test_a_plain_log_density(key, small):
    result = cg.sample(key, lambda z: -0.5 * jnp.sum((z - 1.5) ** 2 / 0.3), init=jnp.zeros(6), **RUN)
    assert result.sampler == "mala"
    assert moment_score(result, np.full(6, 1.5), 0.3 * np.eye(6)) < TOLERANCE


def test_a_decoder_without_transfer_falls_back_to_the_tether(key, small):
    target = dataclasses.replace(small.hidden, decoder=jax.tree_util.Partial(lambda t, z: jnp.tanh(t * z), 0.3))
    assembly = assemble(key, target, "auto", None)
    assert assembly.kernel.name == "kinetic"
    assert "tether" in assembly.reason
    starts = jax.jit(jax.vmap(require_start(assembly)))(jax.random.split(key, 2000))  # from the conditional prior
    assert np.max(np.abs(oracles.mean_scores(np.asarray(starts), np.asarray(target.center)))) < TOLERANCE
    np.testing.assert_allclose(np.var(starts, axis=0), 1 / BETA, rtol=0.2)
    for sampler in ("pcnl", "pcnl_unadjusted", "preconditioned"):
        with pytest.raises(TypeError, match="cannot be drawn exactly"):
            cg.sample(key, target, sampler=sampler)
    with pytest.raises(ValueError, match="Fourier transfer"):
        cg.sample(key, target, sampler="langevin")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counting:
    """Counts how often Python runs it, that is how often it is traced."""

    slope: jax.Array
    calls = 0

    def __call__(self, position):
        type(self).calls += 1
        return -jnp.sum(jax.nn.softplus(self.slope * position))


def test_new_arrays_and_keys_need_no_new_trace(key, small):
    target = dataclasses.replace(small.open, witness=Counting(jnp.float32(1.0)))
    one = cg.sample(key, target, num_chains=4, num_steps=4, warmup=0)
    calls = Counting.calls
    assert calls > 0
    other = dataclasses.replace(target, witness=Counting(jnp.float32(2.0)), observation=target.observation + 1)
    two = cg.sample(jax.random.fold_in(key, 1), other, num_chains=4, num_steps=4, warmup=0)
    assert Counting.calls == calls
    assert np.max(np.abs(np.subtract(one.mean, two.mean))) > 0.01


# What comes back -----------------------------------------------------------------------------------------------------


ALL_KEPT = {"sampler": "preconditioned", "num_chains": 4, "num_steps": 24, "num_kept": 24, "warmup": 5}


def test_mean_and_variance_are_over_all_chains_and_steps_kept_or_not(key, small):
    result = cg.sample(key, small.hidden, **ALL_KEPT)
    every = np.asarray(result.samples, float).reshape(-1, *SHAPE)
    np.testing.assert_allclose(result.mean, every.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(result.variance, every.var(axis=0, ddof=1), rtol=1e-4)
    few = cg.sample(key, small.hidden, **(ALL_KEPT | {"num_kept": 4}))  # evenly spaced, up to the last step
    np.testing.assert_allclose(few.samples, np.asarray(result.samples)[:, 5::6], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(few.mean, result.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(few.variance, result.variance, rtol=1e-4)


def test_every_key_and_every_chain_has_its_own_path(key, small):
    one, again = (cg.sample(key, small.hidden, **ALL_KEPT) for _ in range(2))
    np.testing.assert_array_equal(one.samples, again.samples)
    other = cg.sample(jax.random.fold_in(key, 1), small.hidden, **ALL_KEPT)
    ends = np.concatenate([np.asarray(run.samples)[:, -1] for run in (one, other)]).reshape(8, -1)
    gaps = np.linalg.norm(ends[:, None] - ends[None], axis=-1)
    assert np.min(gaps[~np.eye(8, dtype=bool)]) > 1e-3
    fewer = cg.sample(key, small.hidden, **(ALL_KEPT | {"num_chains": 2}))  # which does not hang on the others
    np.testing.assert_allclose(fewer.samples, np.asarray(one.samples)[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_under_jit(key, small):
    plain = cg.sample(key, small.hidden, **ALL_KEPT)
    jitted = jax.jit(lambda k, p: cg.sample(k, p, **ALL_KEPT))(key, small.hidden)
    np.testing.assert_allclose(jitted.samples, plain.samples, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(jitted.r_hat, plain.r_hat, rtol=1e-2)
    assert (jitted.status, jitted.sampler, jitted.num_gradients) == ("ok", "preconditioned", plain.num_gradients)


@pytest.mark.slow
def test_under_vmap_with_adaptation(key, small):
    both = jax.jit(jax.vmap(lambda k: cg.sample(k, small.hidden, **RUN)))
    result = both(jax.random.split(key, 2))
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], result)
        assert moment_score(one, small.law.mean, small.law.covariances[0]) < TOLERANCE
    assert np.max(np.abs(result.mean[0] - result.mean[1])) > 1e-4


def test_without_warm_up_the_step_size_stays(key, small):
    result = cg.sample(key, small.hidden, sampler="mala", num_chains=4, num_steps=12, warmup=0)
    np.testing.assert_allclose(result.step_size, 1e-3, rtol=1e-5)
    assert result.acceptance > 0.9


# Starts and errors ---------------------------------------------------------------------------------------------------


def test_starts(key, small):
    kwargs = {"num_chains": 4, "num_steps": 4, "warmup": 0, "sampler": samplers.langevin(small.open.log_density, 1e-8)}
    flat = {"rtol": 0, "atol": 2e-3}
    one = cg.sample(key, small.open, init=np.full(SHAPE, 2), **kwargs)  # integers of numpy
    np.testing.assert_allclose(one.samples, np.full((4, 4, *SHAPE), 2.0), **flat)
    each = jnp.asarray(np.arange(4.0).reshape(4, 1, 1, 1) * np.ones((1, *SHAPE)), jnp.float32)
    several = cg.sample(key, small.open, init=each, **kwargs)
    np.testing.assert_allclose(np.asarray(several.samples)[:, 0], each, **flat)
    density = small.open.log_density
    np.testing.assert_allclose(np.asarray(cg.sample(key, density, init=each, **kwargs).samples)[:, 0], each, **flat)
    drawn = np.asarray(cg.sample(key, small.open, **kwargs).samples)[:, 0]
    assert np.min(np.std(drawn, axis=0)) > 0.1  # from the Gaussian part, one per chain


BAD = {
    "three starts for four chains": ({"init": jnp.zeros((3, *SHAPE))}, "one per chain"),
    "start of another shape": ({"init": jnp.zeros((1, 2, 4))}, "init has shape"),
    "unknown sampler": ({"sampler": "gibbs"}, "is not known"),
    "no algorithm": ({"sampler": 3.0}, "BlackJAX"),
    "no steps": ({"num_steps": 0}, "num_steps=0"),
    "no chains": ({"num_chains": 0}, "num_chains=0"),
    "more kept than steps": ({"num_kept": 9}, "num_kept"),
    "negative warm-up": ({"warmup": -1}, "warmup"),
    "no devices": ({"devices": []}, "devices"),
    "no batch": ({"batch_size": 0}, "batch_size"),
}


@pytest.mark.parametrize("name", BAD)
def test_input_that_does_not_fit_is_refused(key, small, name):
    arguments, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        cg.sample(key, small.hidden, **({"num_chains": 4, "num_steps": 4} | arguments))


def test_a_density_needs_a_start_and_a_bound(key, small):
    with pytest.raises(ValueError, match="does not say where to start"):
        cg.sample(key, small.open.log_density)
    with pytest.raises(InputError, match="no scalar"):
        cg.sample(key, lambda z: -(z**2), init=jnp.zeros(3))
    unknown = soft_posterior(small)
    for sampler in ("langevin", "leimkuhler_matthews", "pcnl_unadjusted", "preconditioned"):
        with pytest.raises(ValueError, match="curvature_bounds"):
            cg.sample(key, unknown, sampler=sampler)


# Wedge and noise as in a tomogram ------------------------------------------------------------------------------------


def shell_errors(result, mean, variance, mask, shape):
    """Per shell, measured and wedge apart: relative error of the mean's spectrum and of the summed variance."""
    n = min(shape) // 2
    k = oracles.radius(shape)
    shells = np.minimum((k * 2 * n).astype(int), n - 1)
    weight = np.broadcast_to(oracles.multiplicity(shape), k.shape)
    mean_gap = np.abs(np.fft.rfftn(np.asarray(result.mean, float), norm="ortho") - mean) ** 2
    spectra = np.fft.rfftn(np.asarray(result.samples, float), axes=(2, 3, 4), norm="ortho")
    spread = np.mean(np.abs(spectra - mean) ** 2, axis=(0, 1))
    errors = {}
    for measured in (True, False):
        for shell in range(n):
            here = (shells == shell) & ((mask > 0) == measured)
            if here.any():
                of_mean = np.sum((weight * mean_gap)[here]) / np.sum((weight * np.abs(mean) ** 2)[here])
                of_variance = np.sum((weight * spread)[here]) / np.sum((weight * variance)[here])
                errors[measured, shell] = max(np.sqrt(of_mean), abs(of_variance - 1))
    return errors


def wedge_problem(shape, hidden):
    rng = np.random.default_rng(3)
    mask, curvature = oracles.wedge(shape), 1 + 50 * oracles.radius(shape) ** 2
    x, m = rng.normal(size=(2, *shape))
    witness = cg.QuadraticWitness(jnp.asarray(curvature, jnp.float32), jnp.asarray(3 * m, jnp.float32))
    posterior = cg.Posterior(
        Hidden(witness) if hidden else witness,
        Wedge(jnp.asarray(mask)),
        jnp.asarray(x, jnp.float32),
        jnp.zeros(shape),
        1e4,
        1.0,
    )
    q = curvature + 1e4 * mask**2 + 1.0
    fx, fm = np.fft.rfftn(x, norm="ortho"), np.fft.rfftn(3 * m, norm="ortho")
    return posterior, mask, (1e4 * mask * fx + curvature * fm) / q, 1 / q


@pytest.mark.computes
@pytest.mark.slow
def test_every_shell_of_a_wedge_posterior_with_default_settings(key):
    shape = (20, 20, 20)
    posterior, mask, mean, variance = wedge_problem(shape, hidden=False)
    result = cg.sample(key, posterior)
    errors = shell_errors(result, mean, variance, mask, shape)
    assert len(errors) == 19  # 10 shells measured, 9 in the wedge: the innermost, the mean, is measured
    assert max(errors.values()) < 0.03


@pytest.mark.computes
@pytest.mark.slow
def test_every_shell_of_a_wedge_posterior_by_chains(key):
    """The same with the witness hidden, so that chains have to do it; condition number 1e4."""
    shape = (12, 12, 12)
    posterior, mask, mean, variance = wedge_problem(shape, hidden=True)
    result = cg.sample(key, posterior, sampler="pcnl", num_steps=10_000, num_kept=2000)
    errors = shell_errors(result, mean, variance, mask, shape)
    assert max(errors.values()) < 0.03
    assert result.r_hat < 1.05
    center = result.mean[None, None]
    halved = center + np.sqrt(0.5) * (result.samples - center)
    assert max(shell_errors(dataclasses.replace(result, samples=halved), mean, variance, mask, shape).values()) > 0.3


# Random witnesses ----------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Noisy:
    """A witness of which every draw has another slope, of variance ``noise`` per coordinate."""

    witness: Hidden
    noise: jax.Array

    def __call__(self, position):
        return self.witness(position)

    def at(self, key):
        slope = jnp.sqrt(self.noise) * jax.random.normal(key, SHAPE)
        return jax.tree_util.Partial(_sloped, self.witness, slope)

    def curvature_bounds(self):
        return self.witness.curvature_bounds()


def _sloped(witness, slope, position):
    return witness(position) + jnp.sum(slope * position)


@pytest.mark.slow
def test_a_random_witness_is_recognised_and_its_noise_reported(key, small):
    """Coordinates of the measured law; a plain run is wider by the reported share of the injected variance."""
    noisy = dataclasses.replace(small.hidden, witness=Noisy(small.hidden.witness, jnp.float32(4.0)))
    result = cg.sample(key, noisy, **RUN)
    assert result.sampler == "stochastic"
    assert "random" in result.reason
    assert result.num_gradients == 2 * 64 * 260
    assert 0.02 < float(result.gradient_noise) < 1
    quiet = dataclasses.replace(small.hidden, witness=Noisy(small.hidden.witness, jnp.float32(0.0)))
    silent = cg.sample(key, quiet, **RUN)
    assert float(silent.gradient_noise) < 1e-6
    shift = 0.5 * (small.curvature.min() + small.curvature.max())
    c = 1 / (small.stiffness - small.curvature + shift)
    variance = oracles.pcnl_variance(c, c * (small.curvature - shift), 1 - float(result.step_size))
    assert moment_score(result, small.law.mean, oracles.dense_filter(variance, SHAPE)) < TOLERANCE


@pytest.mark.slow
def test_kernels_that_know_their_energy_error_report_it_and_others_do_not(key, small):
    few = {"num_chains": 2, "num_steps": 16, "num_kept": 4, "warmup": 0}
    kinetic = cg.sample(key, small.hidden, sampler="kinetic", **few)
    assert 0 < float(kinetic.energy_error) < 5
    assert kinetic.records.shape[-1] == 3 * kinetic.groups[0]
    diagnosis = kinetic.diagnose()
    assert np.isfinite(diagnosis.virial).any()
    assert kinetic.verdict.startswith("not converged")
    langevin = cg.sample(key, small.hidden, sampler="langevin", **few)
    assert np.isnan(langevin.energy_error)
    assert np.isnan(langevin.gradient_noise)
    assert langevin.records.shape[-1] == 2 * langevin.groups[0]


@pytest.mark.slow
def test_sk_rock_by_name_on_a_decoder_that_is_not_diagonal(key, small):
    """A gentle posterior, where its steps are short against every mode and its law is right."""
    size = int(np.prod(SHAPE))
    h = np.eye(size) + 0.3 * np.random.default_rng(0).normal(size=(size, size))
    decoder = jax.tree_util.Partial(_apply, jnp.asarray(h, jnp.float32))
    curvature = np.full((*SHAPE[:-1], SHAPE[-1] // 2 + 1), 0.5)
    witness = Hidden(cg.QuadraticWitness(jnp.asarray(curvature, jnp.float32), jnp.zeros(SHAPE)))
    target = dataclasses.replace(small.open, witness=witness, decoder=decoder)
    law = oracles.gaussian_posterior(h, small.x, LAM, small.center, BETA, 0.5 * np.eye(size), np.zeros(size))
    exact = cg.sample(key, target, **RUN)
    assert exact.sampler == "kinetic"
    assert moment_score(exact, law.mean, law.covariances[0]) < TOLERANCE
    result = cg.sample(key, target, sampler="sk_rock", **RUN)
    assert result.status == "ok"
    assert result.num_gradients == 10 * 64 * 260
    kept = np.asarray(result.samples, float).reshape(64, -1, size)
    assert np.max(np.abs(oracles.mean_scores(kept.mean(axis=1), law.mean))) < TOLERANCE
    share = np.diag(np.cov(kept.reshape(-1, size).T)) / np.diag(law.covariances[0])
    assert np.all(share < 1.05)  # it under-disperses, never the reverse


def _apply(matrix, z):
    return (matrix @ z.reshape(-1)).reshape(z.shape)


@pytest.mark.computes
@pytest.mark.slow
def test_without_a_metropolis_test_variances_stay_within_two_per_cent(key):
    """A log-cosh witness of ten times the tether's curvature, lambda / beta = 1e4; exact draws beside it by kinetic."""
    shape = (10, 10, 10)
    mask = oracles.wedge(shape)
    truth = jnp.asarray(0.5 * np.random.default_rng(2).normal(size=shape), jnp.float32)
    decoder = Wedge(jnp.asarray(mask))
    witness = jax.tree_util.Partial(_log_cosh, jnp.float32(10.0), jnp.float32(0.3))
    target = cg.Posterior(witness, decoder, decoder(truth), jnp.zeros(shape), 1e4, 1.0)

    def variances(sampler, noise_key):
        result = cg.sample(noise_key, target, sampler=sampler, num_chains=8, num_steps=1600, num_kept=400, warmup=400)
        assert result.verdict == "converged"
        spectra = np.fft.rfftn(np.asarray(result.samples, float), axes=(2, 3, 4), norm="ortho").reshape(-1, *mask.shape)
        spread = np.mean(np.abs(spectra - spectra.mean(axis=0)) ** 2, axis=0)
        weight = np.broadcast_to(oracles.multiplicity(shape), mask.shape)
        return np.array([np.average(spread[mask == m], weights=weight[mask == m]) for m in (0, 1)]), result

    exact, adjusted = variances("kinetic", key)
    found, free = variances("auto", jax.random.fold_in(key, 1))
    assert (adjusted.sampler, free.sampler) == ("kinetic", "kinetic_unadjusted")
    assert float(adjusted.step_size) < float(free.step_size)
    np.testing.assert_allclose(found, exact, rtol=0.02)


def _log_cosh(curvature, scale, z):
    t = jnp.abs(z) / scale
    return -curvature * scale**2 * jnp.sum(t + jax.nn.softplus(-2 * t) - jnp.log(2.0))
