"""A witness on rotated and wedged volumes against dense matrices, and its curvature bounds against eigenvalues."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax.models import DataConsistent
from cryowgen_jax.operators import (
    BoundedRotatedWitness,
    NoisyWitness,
    RotatedWitness,
    Rotation,
    Wedge,
    compose,
    wedge_mask,
)
from cryowgen_jax.operators.random_witness import largest_gain
from cryowgen_jax.potentials import gaussian_part, has_curvature
from cryowgen_jax.samplers import stochastic
from cryowgen_jax.spatial.rotation import axis_permutations, cube_rotations, random_rotations, rotate
from cryowgen_jax.types import Stochastic
from tests import oracles

SHAPE = (4, 4, 4)


def soft(slope, observation):
    return -jnp.sum(jax.nn.softplus(slope * observation))


SLOPES = np.random.default_rng(5).uniform(0.5, 2.5, SHAPE)
SOFT = jax.tree_util.Partial(soft, jnp.asarray(SLOPES, jnp.float32))


@pytest.fixture
def wedge():
    return Wedge(wedge_mask(SHAPE, (-50.0, 40.0)))


@pytest.fixture
def volume(rng):
    return jnp.asarray(rng.standard_normal(SHAPE), jnp.float32)


@jax.jit
def dense_rotation(matrix):
    """The interpolating rotation as a matrix on flattened volumes."""
    basis = jnp.eye(64).reshape(64, *SHAPE)
    return jax.vmap(rotate, in_axes=(0, None))(basis, matrix).reshape(64, 64).T


def by_hand(wedge, rotations, volume, transposes=None):
    """Value and gradient of the mean of SOFT, in float64."""
    t = oracles.dense_filter(wedge.transfer, SHAPE)
    v, slopes = np.asarray(volume, float).ravel(), SLOPES.ravel()
    value, gradient = 0.0, np.zeros(64)
    for i, matrix in enumerate(rotations):
        r = np.asarray(dense_rotation(matrix), float)
        back = r.T if transposes is None else np.asarray(dense_rotation(transposes[i]), float)
        seen = t @ r @ v
        value -= np.sum(np.logaddexp(0, slopes * seen)) / len(rotations)
        gradient -= back @ t.T @ (slopes / (1 + np.exp(-slopes * seen))) / len(rotations)
    return value, gradient.reshape(SHAPE)


@jax.jit
def rotations_of(key):
    return random_rotations(key, 600)


@jax.jit
def average(witness, volume):
    return jax.value_and_grad(witness)(volume)


@jax.jit
def draw(witness, keys, volume):
    return jax.lax.map(lambda key: jax.value_and_grad(witness.at(key))(volume), keys)


def test_value_and_gradient_are_those_of_dense_matrices(wedge, volume, key):
    rotations = np.asarray(rotations_of(key))[:24]
    value, gradient = average(RotatedWitness(SOFT, wedge, rotations), volume)
    expected_value, expected = by_hand(wedge, rotations, volume)
    assert float(value) == pytest.approx(expected_value, rel=1e-5)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    assert value.dtype == gradient.dtype == jnp.float32
    # the rotation by the transposed matrix is not the transpose of an interpolating rotation
    _, inverse = by_hand(wedge, rotations, volume, transposes=np.swapaxes(rotations, 1, 2))
    assert np.max(np.abs(gradient - inverse)) > 0.02


def test_new_rotations_need_no_new_trace(wedge, volume, key):
    one, _ = average(RotatedWitness(SOFT, wedge, np.asarray(rotations_of(key))[:24]), volume)
    compiled = average._cache_size()
    two, _ = average(RotatedWitness(SOFT, wedge, np.asarray(cube_rotations())), volume)
    assert average._cache_size() == compiled
    assert abs(float(one) - float(two)) > 1e-3


def test_draws_from_the_stack_are_its_rotations_in_equal_shares(wedge, volume, key):
    witness = RotatedWitness(SOFT, wedge, cube_rotations())
    assert isinstance(witness, Stochastic)
    drawn, gradients = (np.asarray(x) for x in draw(witness, jax.random.split(key, 1200), volume))
    each = np.array([by_hand(wedge, [r], volume)[0] for r in cube_rotations()])
    nearest = np.argmin(np.abs(drawn[:, None] - each[None]), axis=1)
    np.testing.assert_allclose(drawn, each[nearest], rtol=1e-5)
    assert np.sum((np.bincount(nearest, minlength=24) - 50.0) ** 2 / 50) < 23 + 4.5 * np.sqrt(46)  # chi squared
    value, gradient = average(witness, volume)
    assert float(value) == pytest.approx(each.mean(), rel=1e-5)
    assert np.max(np.abs(oracles.mean_scores(gradients, np.asarray(gradient)))) < 4.5
    assert not np.max(np.abs(oracles.mean_scores(gradients, -np.asarray(gradient)))) < 10


def test_uniform_draws_come_from_all_of_so3(wedge, volume, key):
    """Another rotation for every key, and a mean that rotations drawn elsewhere agree with; the stack plays no part."""
    keys, others = jax.random.split(key, 600), np.asarray(rotations_of(jax.random.fold_in(key, 1)))
    drawn, _ = draw(RotatedWitness(SOFT, wedge, cube_rotations(), uniform=True), keys, volume)
    drawn = np.asarray(drawn)
    assert len(np.unique(drawn)) > 590
    expected, _ = by_hand(wedge, others, volume)
    assert np.abs(np.mean(drawn) - expected) < 4.5 * np.sqrt(2 * drawn.var() / 600)
    assert not np.abs(np.mean(drawn) - by_hand(wedge, cube_rotations(), volume)[0]) < 10 * np.sqrt(drawn.var() / 600)


def test_six_of_the_cube_rotations_do_for_a_witness_with_the_wedge_s_symmetry(volume):
    """Half turns about the axes leave a symmetric wedge as it is, so that one rotation of every coset will do."""
    wedge = Wedge(wedge_mask(SHAPE, (-50.0, 50.0)))
    radius = np.linalg.norm(np.stack(np.meshgrid(*[np.arange(4) - 1.5] * 3, indexing="ij")), axis=0)
    witness = jax.tree_util.Partial(soft, jnp.asarray(np.exp(-radius), jnp.float32))
    half_turns = [np.diag(d) for d in ([1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1])]
    matrices, chosen, seen = np.asarray(cube_rotations()), [], set()
    for m in matrices:
        if m.tobytes() not in seen:
            chosen.append(m)
            seen |= {(h @ m + 0.0).astype(np.float32).tobytes() for h in half_turns}
    assert len(chosen) == 6
    of_each = [{(h @ m + 0.0).astype(np.float32).tobytes() for h in half_turns} for m in chosen]
    named = [matrix.tobytes() for matrix in np.asarray(axis_permutations()) + np.float32(0.0)]
    assert [sum(matrix in coset for matrix in named) for coset in of_each] == [1] * 6

    def repeated(rotations):
        return average(RotatedWitness(witness, wedge, jnp.asarray(np.concatenate([rotations] * 4))), volume)

    value, gradient = average(RotatedWitness(witness, wedge, jnp.asarray(matrices)), volume)
    of_six, gradient_of_six = repeated(np.stack(chosen))
    assert float(of_six) == pytest.approx(float(value), rel=1e-5)
    np.testing.assert_allclose(gradient_of_six, gradient, atol=1e-5)
    of_five, _ = repeated(np.stack(chosen[:5] + chosen[4:5]))
    assert float(of_five) != pytest.approx(float(value), rel=1e-4)


# Curvature ------------------------------------------------------------------------------------------------------------


def quadratic(rng, low, high):
    return cg.QuadraticWitness(jnp.asarray(oracles.symmetric_half(rng, SHAPE, low, high)), jnp.zeros(SHAPE))


@jax.jit
def gains(matrices):
    return jax.vmap(largest_gain)(matrices)


@jax.jit
def gradients_of(witness, volumes):
    return jax.vmap(jax.grad(witness))(volumes)


bounds_of = jax.jit(lambda witness: witness.curvature_bounds())


def curvatures(witness):
    """Eigenvalues of -Hess of a quadratic: its gradient is linear."""
    columns = gradients_of(witness, jnp.eye(64).reshape(64, *SHAPE))
    return np.linalg.eigvalsh(-np.asarray(columns, float).reshape(64, 64))


@pytest.mark.parametrize("cube", [True, False])
def test_curvature_lies_within_the_bounds(wedge, key, rng, cube):
    rotations = np.asarray(cube_rotations())[3:5] if cube else np.asarray(rotations_of(key))[:2]
    witness = BoundedRotatedWitness(quadratic(rng, -0.5, 2.0), wedge, rotations)
    low, high = bounds_of(witness)
    eigenvalues = curvatures(witness)
    assert float(low) * (1 + 1e-5) <= eigenvalues[0] < -0.05
    assert (0.8 if cube else 0.15) * float(high) < eigenvalues[-1] <= float(high) * (1 + 1e-5)
    d_low, d_high = bounds_of(witness.witness)
    if cube:  # D's own, as rotations of the cube are orthogonal
        np.testing.assert_allclose((low, high), (d_low, d_high), rtol=1e-5)


def test_a_convex_witness_is_blind_in_the_wedge(wedge, rng):
    low, high = bounds_of(BoundedRotatedWitness(quadratic(rng, 1.0, 2.0), wedge, np.asarray(cube_rotations())[3:5]))
    assert float(low) == 0.0
    assert float(high) <= 2.0


def test_the_norm_of_interpolating_rotations_is_bounded(key):
    eighth = np.sqrt(0.5) * np.array([[1, -1, 0], [1, 1, 0], [0, 0, np.sqrt(2)]])
    drawn = np.asarray(rotations_of(key))[:40]
    matrices = np.concatenate([drawn, eighth[None], cube_rotations()]).astype(np.float32)
    bounds = np.asarray(gains(matrices))
    norms = np.array([np.linalg.norm(np.asarray(dense_rotation(m)), 2) for m in matrices])
    assert np.all(norms**2 <= bounds + 1e-5)
    assert np.all((bounds > 1 - 1e-5) & (bounds < 1.465))
    np.testing.assert_allclose(bounds[-24:], 1.0, atol=1e-5)
    assert bounds[40] == pytest.approx(1 + 4 * (1 - np.sqrt(0.5)) ** 2, abs=1e-5)  # one centre, four neighbours


def test_column_sums_reach_the_bound(key):
    """What one voxel gives to all others, in a box of which the centre is a voxel: kappa itself, and no more off it."""
    given = jax.jit(lambda matrix, ones: jax.linear_transpose(lambda v: rotate(v, matrix), ones)(ones)[0])
    matrices = np.asarray(rotations_of(key))[:3]
    for shape in ((9, 9, 9), (8, 9, 8)):
        for matrix, bound in zip(matrices, np.asarray(gains(matrices)), strict=True):
            sums = np.asarray(given(matrix, np.ones(shape, np.float32)))
            assert sums.max() <= bound + 1e-4
            if shape == (9, 9, 9):
                assert sums[4, 4, 4] == pytest.approx(bound, abs=1e-4)


def test_bounds_are_there_only_where_they_are_known(wedge, rng):
    known = quadratic(rng, 0.0, 1.0)
    assert has_curvature(BoundedRotatedWitness(known, wedge, cube_rotations()))
    assert not has_curvature(RotatedWitness(known, wedge, cube_rotations()))
    tilted = compose(wedge, Rotation(np.asarray(cube_rotations())[1]))
    for arguments in ((SOFT, wedge), (known, tilted)):
        with pytest.raises(TypeError):
            BoundedRotatedWitness(*arguments, cube_rotations()).curvature_bounds()


@pytest.mark.slow
def test_drives_the_stochastic_kernel(wedge, volume, key):
    """With one rotation there is nothing random; with random ones there is, and it is reported."""
    posterior = cg.Posterior(SOFT, wedge, wedge(volume), jnp.zeros(SHAPE), jnp.float32(2.0), jnp.float32(1.0))

    def build(witness):
        return stochastic(witness, gaussian_part(posterior), jnp.float32(0.7))

    start = jax.jit(lambda witness: build(witness).init(volume, key))
    for uniform in (False, True):
        witness = RotatedWitness(SOFT, wedge, cube_rotations()[:1], uniform=uniform)
        state = start(witness)
        noise = np.asarray(state.gradient_variance)
        assert np.mean(noise) > 1e-3 if uniform else np.all(noise == 0)
    new, info = jax.jit(build(witness).step)(key, state)
    assert np.all(np.isfinite(new.position))
    assert float(info.inflation) > 1e-4


ENERGY = jax.tree_util.Partial(lambda y: 0.5 * jnp.sum(y**2))


def test_noise_has_the_spectrum_that_is_stated(wedge, volume, key):
    """A witness of squares is raised by half of the noise's energy, and only where there is noise."""
    amplitude = np.asarray(wedge.transfer) * np.float32(0.7)
    noisy = NoisyWitness(ENERGY, amplitude, jax.random.split(key, 3))
    assert isinstance(noisy, Stochastic)
    values, gradients = draw(noisy, jax.random.split(key, 2000), volume)
    energy = 0.5 * 0.49 * np.sum(oracles.multiplicity(SHAPE) * np.asarray(wedge.transfer) ** 2)
    expected = 0.5 * np.sum(np.asarray(volume, float) ** 2) + energy
    assert abs(np.mean(values) - expected) < 5 * np.std(values) / 2000**0.5
    assert abs(expected - energy - np.mean(values)) > 5 * np.std(values) / 2000**0.5
    noise = np.fft.rfftn(np.asarray(gradients, float) - np.asarray(volume), axes=(1, 2, 3), norm="ortho")
    power = np.mean(np.abs(noise) ** 2, axis=0)
    assert np.all(power[np.asarray(wedge.transfer) == 0] < 1e-10)
    np.testing.assert_allclose(power[np.asarray(wedge.transfer) == 1], 0.49, rtol=0.2)
    fixed = np.mean(draw(noisy, noisy.keys, volume)[0])
    np.testing.assert_allclose(average(noisy, volume)[0], fixed, rtol=1e-5)


def test_rotations_and_noise_are_drawn_together(wedge, volume, key):
    keys, rotations = jax.random.split(key, 50), np.asarray(cube_rotations())
    alike = np.repeat(rotations[:1], 24, axis=0)  # one rotation, and the programs of all 24
    noisy = NoisyWitness(SOFT, np.asarray(wedge.transfer), jax.random.split(key, 1))
    both, of_noise_alone = (draw(RotatedWitness(noisy, wedge, r), keys, volume)[0] for r in (rotations, alike))
    assert np.std(of_noise_alone) > 0.1
    assert len({float(v) for v in np.asarray(both)}) > 24
    turned = RotatedWitness(SOFT, wedge, rotations)
    assert np.std(draw(dataclasses.replace(turned, rotations=alike), keys, volume)[0]) < 1e-5
    outside = NoisyWitness(turned, 0 * np.asarray(wedge.transfer), jax.random.split(key, 1))
    drawn = draw(outside, keys, volume)[0]
    each = np.array([by_hand(wedge, [matrix], volume)[0] for matrix in rotations])
    assert np.abs(np.asarray(drawn)[:, None] - each).min(axis=1).max() < 1e-4
    assert np.std(drawn) > 0.1
    np.testing.assert_allclose(average(outside, volume)[0], np.mean(each), rtol=1e-5)


def test_answers_that_keep_the_data_are_seen_again_with_noise_once(wedge, key):
    """D(y) = |y|^2 / 2 counts it: noise where it was measured is in the answer, inside the wedge it is put back."""
    answer = DataConsistent(jax.tree_util.Partial(jnp.zeros_like), wedge)
    mask = np.asarray(wedge.transfer)
    once = NoisyWitness(RotatedWitness(ENERGY, wedge, cube_rotations()), 1 - mask, key[None])
    twice = RotatedWitness(NoisyWitness(ENERGY, mask, key[None]), wedge, cube_rotations())

    def looked_at(witness, keys):
        noise, look = keys
        return witness.at(look)(answer(jax.random.normal(noise, SHAPE)))

    keys = (jax.random.split(key, 2000), jax.random.split(jax.random.fold_in(key, 1), 2000))
    found, doubled = (np.asarray(jax.jit(jax.vmap(lambda k, w=w: looked_at(w, k)))(keys)) for w in (once, twice))
    expected = 0.5 * np.sum(np.broadcast_to(oracles.multiplicity(SHAPE), mask.shape) * mask)
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / 2000**0.5
    assert np.mean(doubled) > 1.3 * expected


def test_noise_around_a_witness_without_bounds_has_none(wedge, key):
    noisy = NoisyWitness(SOFT, jnp.asarray(wedge.transfer), jax.random.split(key, 1))
    assert not has_curvature(noisy)
    assert not has_curvature(BoundedRotatedWitness(noisy, wedge, cube_rotations()))
