"""The largest curvature against the eigenvalues of dense matrices: never below, never far above."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cryowgen_jax as cg
from cryowgen_jax.models import Decoder
from cryowgen_jax.operators import Rotation, Wedge
from cryowgen_jax.potentials import ScaledWitness, SolventWitness, SumWitness, largest_curvature
from tests import oracles

LAM, BETA = 30.0, 0.7
bound = jax.jit(largest_curvature, static_argnames="num_points")
linear = functools.partial(bound, num_points=0)


def make(decoder, witness, shape, lam=LAM, beta=BETA, observed=None):
    observation = jnp.zeros(observed or shape)
    return cg.Posterior(witness, decoder, observation, jnp.zeros(shape), jnp.float32(lam), jnp.float32(beta))


def quadratic(rng, shape, low=0.2, high=40.0):
    return cg.QuadraticWitness(jnp.asarray(oracles.symmetric_half(rng, shape, low, high)), jnp.zeros(shape))


def fits(value, truth):
    """An upper bound, and no loose one."""
    return truth <= float(value) <= 1.2 * truth


@jax.jit
def over_keys(posterior, key):
    return jax.vmap(lambda p, k: largest_curvature(p, k, num_points=0), (None, 0))(posterior, jax.random.split(key, 20))


def top(matrix):
    return np.linalg.eigvalsh(matrix)[-1]


# Decoders given by a matrix -----------------------------------------------------------------------------------------


def apply(matrix, z):
    return matrix @ z


def with_singular_values(rng, values, rows):
    """A (rows, D) matrix."""
    left = np.linalg.qr(rng.normal(size=(rows, rows)))[0]
    right = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    kept = min(rows, len(values))
    return left[:, :kept] @ (np.sort(values)[::-1][:kept, None] * right[:kept])


SPECTRA = {
    "one that stands out": np.r_[1.0, np.full(59, 0.1)],
    "one just above the rest": np.r_[1.0, np.full(59, 0.98)],
    "all alike": np.ones(60),
    "one alone": np.r_[1.0, np.zeros(59)],
    "even": np.linspace(0, 1, 60),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_dense_decoders(rng, key, spectrum):
    matrix = with_singular_values(rng, SPECTRA[spectrum], 60)
    witness = quadratic(rng, (60,))
    decoder = jax.tree_util.Partial(apply, jnp.asarray(matrix, jnp.float32))
    truth = top(LAM * matrix.T @ matrix + BETA * np.eye(60) + oracles.dense_filter(witness.curvature, (60,)))
    posterior = make(decoder, witness, (60,))
    assert all(fits(value, truth) for value in over_keys(posterior, key))


def test_a_term_that_is_left_out_is_caught(rng, key):
    witness = quadratic(rng, (60,))
    truth = LAM + BETA + witness.curvature.max()  # every term counts at its largest value
    posterior = make(jax.tree_util.Partial(apply, jnp.eye(60)), witness, (60,))
    assert all(fits(value, truth) for value in over_keys(posterior, key))
    for lacking in (
        {"data_weight": jnp.float32(0.5 * LAM)},
        {"witness": quadratic(rng, (60,), 0.0, 0.1)},
        {"data_weight": jnp.float32(0.0)},
    ):
        values = over_keys(dataclasses.replace(posterior, **lacking), key)
        assert not any(fits(value, truth) for value in values)


@pytest.mark.parametrize("rows", [7, pytest.param(90, marks=pytest.mark.slow)])
def test_decoders_that_are_not_square(rng, key, rows):
    matrix = with_singular_values(rng, rng.uniform(0, 2, 40), rows)
    posterior = make(
        jax.tree_util.Partial(apply, jnp.asarray(matrix, jnp.float32)),
        quadratic(rng, (40,), 1, 1),
        (40,),
        3.0,
        2.0,
        (rows,),
    )
    assert fits(linear(posterior, key), top(3.0 * matrix.T @ matrix) + 3.0)


@jax.jit
def of_few_iterations(posterior, keys, number):
    def one(key):
        return largest_curvature(posterior, key, num_points=0, num_iterations=number)

    return jax.vmap(one)(keys)


@pytest.mark.parametrize("num_iterations", [3, 10])
def test_few_iterations_widen_the_margin_and_keep_the_bound(rng, key, num_iterations):
    matrix = with_singular_values(rng, SPECTRA["one that stands out"], 60)
    flat = cg.QuadraticWitness(jnp.zeros(31), jnp.zeros(60))
    posterior = make(jax.tree_util.Partial(apply, jnp.asarray(matrix, jnp.float32)), flat, (60,), 1.0, 0.0)
    keys = jax.random.split(key, 40)
    values = np.asarray(of_few_iterations(posterior, keys, num_iterations))
    assert np.all(values >= 1.0)
    assert np.all(values < (1.3 * np.sqrt(60) / 1e-3) ** (1 / num_iterations))  # |v|^2 is 60 +- 11
    without = values * 1e-3 ** (1 / num_iterations)
    assert np.mean(without < 1.0) > 0.5  # powers without the margin are more often below than not


# Operators ------------------------------------------------------------------------------------------------------------


SHAPE = (4, 5, 4)
SIZE = 80


@pytest.fixture(scope="module")
def rotation():
    return Rotation(np.asarray(cg.random_rotations(jax.random.key(4), 1))[0])


@pytest.fixture(scope="module")
def rotated(rotation):
    """R column by column."""
    columns = jax.jit(jax.vmap(rotation))(jnp.eye(SIZE).reshape(SIZE, *SHAPE))
    return np.asarray(columns, float).reshape(SIZE, SIZE).T


@pytest.mark.slow
def test_an_interpolated_rotation(rng, key, rotation, rotated):
    witness = quadratic(rng, SHAPE, 0.1, 2.0)
    curvature = BETA * np.eye(SIZE) + oracles.dense_filter(witness.curvature, SHAPE)
    truth = top(LAM * rotated.T @ rotated + curvature)
    assert top(rotated.T @ rotated) < 0.99  # not orthogonal: interpolation smooths
    assert fits(linear(make(rotation, witness, SHAPE), key), truth)


def test_a_rotated_wedge_and_preconditioners_of_it(key, rotation, rotated):
    """What the wedge's own precision does as a preconditioner where R mixes coefficients; 1/(beta + S) does not."""
    mask = oracles.wedge(SHAPE)
    decoder = cg.compose(Wedge(jnp.asarray(mask)), rotation)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(decoder, (np.zeros(SHAPE, np.float32),), (np.zeros(SHAPE, np.float32),))  # reverse mode alone
    power = (0.05 + oracles.radius(SHAPE)) ** -2  # of a volume: red
    spectral = 1.0 + 20.0 / power
    witness = cg.QuadraticWitness(jnp.asarray(spectral, jnp.float32), jnp.zeros(SHAPE))
    posterior = make(decoder, witness, SHAPE, lam=300.0, beta=0.1)
    h = oracles.dense_filter(mask, SHAPE) @ rotated
    hessian = 300.0 * h.T @ h + oracles.dense_filter(0.1 + spectral, SHAPE)
    found, conditions = {}, {}
    for name, metric in {"safe": 1 / (0.1 + spectral), "wedge": 1 / (300.0 * mask + 0.1)}.items():
        root = oracles.dense_filter(np.sqrt(metric), SHAPE)
        eigenvalues = np.linalg.eigvalsh(root @ hessian @ root)
        found[name] = float(linear(posterior, key, metric=jnp.asarray(metric, jnp.float32)))
        conditions[name] = eigenvalues[-1] / eigenvalues[0]
        assert fits(found[name], eigenvalues[-1])
    assert found["wedge"] > 5 * found["safe"]
    assert found["wedge"] > 0.3 * 300.0 / 0.1
    assert conditions["wedge"] > 50 * conditions["safe"]


@pytest.mark.parametrize("preconditioned", [False, True])
def test_decoders_that_are_diagonal_in_fourier_space_are_exact(rng, key, preconditioned):
    shape = (3, 4, 5)
    transfer, whitening, metric = (oracles.symmetric_half(rng, shape, 0.1, 1.5) for _ in range(3))
    full = SolventWitness(jnp.ones(shape), jnp.asarray(whitening), 0.3)  # envelope 1: its bounds are attained
    rough = quadratic(rng, shape)
    witness = SumWitness((ScaledWitness(jnp.float32(0.5), SumWitness((rough, full))), full))
    of_witness = 0.5 * np.asarray(rough.curvature, float) + 1.5 * whitening.astype(float) ** 2
    truth = LAM * transfer.astype(float) ** 2 + BETA + of_witness
    p = jnp.asarray(metric) if preconditioned else None
    value = bound(make(Wedge(jnp.asarray(transfer)), witness, shape), key, metric=p)
    np.testing.assert_allclose(value, np.max(truth * metric if preconditioned else truth), rtol=1e-5)


# Decoders that are not linear -----------------------------------------------------------------------------------------


def test_a_flax_decoder_at_the_centre(rng, key):
    """Without misfit there -Hess F is lambda J^T J + beta + S; it is taken from differences of the drift."""
    decoder = cg.from_nnx(Decoder(6, (4, 4, 4), channels=2, levels=1, rngs=nnx.Rngs(0)))
    posterior = make(decoder, quadratic(rng, (6,), 0.1, 2.0), (6,), observed=(4, 4, 4))
    center = jax.random.normal(key, (6,))
    posterior = dataclasses.replace(posterior, observation=jax.jit(lambda z: decoder(z))(center), center=center)
    step = 0.01 * np.eye(6)
    around = jnp.asarray(np.asarray(center) + np.concatenate([step, -step]), jnp.float32)
    drift = np.asarray(jax.jit(jax.vmap(posterior.drift))(around), float)
    hessian = (drift[6:] - drift[:6]) / 0.02
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-2 * np.abs(hessian).max())
    assert fits(linear(posterior, key), top(0.5 * (hessian + hessian.T)))


def bent(z):
    return z + z**3


def test_points_beyond_the_centre_count(rng, key):
    """J = 1 + 3 z^2 is 1 at the centre and grows with |z|; the draws have unit variance."""
    flat = cg.QuadraticWitness(jnp.zeros(26), jnp.zeros(50))
    posterior = make(jax.tree_util.Partial(bent), flat, (50,), 1.0, 1.0)
    largest = float(bound(posterior, key, num_points=5))
    assert 1 + (1 + 3 * 1.8**2) ** 2 < largest < 1.2 * (1 + (1 + 3 * 4.5**2) ** 2)  # max |z| of 250 normal numbers
    near = dataclasses.replace(posterior, prior_precision=1e4)
    assert 1e4 + 1.0 <= float(bound(near, key, num_points=5)) < 1e4 + 1.5  # the margin is on the decoder's part alone


def test_a_witness_without_a_bound_is_refused(key):
    with pytest.raises(TypeError, match="carries no curvature bound"):
        largest_curvature(make(jax.tree_util.Partial(bent), jax.tree_util.Partial(jnp.sum), (3,)), key)


def test_float32_and_one_trace_for_new_arrays(rng, key):
    decoder = jax.tree_util.Partial(apply, jnp.asarray(rng.normal(size=(60, 60)), jnp.float32))
    value = over_keys(make(decoder, quadratic(rng, (60,)), (60,)), key)
    compiled = over_keys._cache_size()
    other = over_keys(make(decoder, quadratic(rng, (60,)), (60,), lam=2 * LAM), key)
    assert over_keys._cache_size() == compiled
    assert value.dtype == jnp.float32
    assert value.shape == (20,)
    assert np.all(np.asarray(other) > 1.5 * np.asarray(value))
