"""The witness against a float64 SciPy double, and its curvature bound against power iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import nnx

from cryowgen_jax.models import ConvWitness
from cryowgen_jax.models.conv_witness import _sum_of_potentials, ridge_energy, soft_absolute, squared_gain
from cryowgen_jax.types import HasCurvature, InputError

SHAPES = [(8, 8, 8), (9, 7, 11), (5, 12, 6)]


def scaled(witness: ConvWitness, factor: float = 1.0, seed: int | None = None) -> ConvWitness:
    """The witness with filters multiplied and raw potential weights raised, all shaken where a seed is given."""
    rng = np.random.default_rng(seed)
    structure, state = nnx.split(witness)

    def change(path, x):
        x = np.asarray(x) if seed is None else np.asarray(x) + rng.normal(size=x.shape)
        name = jax.tree_util.keystr(path)
        x = factor * x if "kernel" in name else x + (factor - 1) * ("weight" in name)
        return jnp.asarray(x, jnp.float32)

    return nnx.merge(structure, jax.tree_util.tree_map_with_path(change, state))


@jax.jit
def value(witness, volume):
    return witness(volume)


slopes = jax.jit(jax.grad(lambda witness, volume: witness(volume), (0, 1)))


@jax.jit
def bounds(witness):
    return witness.curvature_bounds(), witness._raw_bounds()


class Unnormalised(ConvWitness):
    """Negative control: the same network without the division."""

    def _divisors(self):
        return jnp.ones(()), jnp.ones(())


def softplus(x):
    return np.logaddexp(0.0, np.asarray(x, float))


def reference(witness: ConvWitness, volume: np.ndarray) -> float:
    """w(z) with SciPy's 5^3 correlation, in float64, the potentials in their first form."""
    convex, concave = (max(float(b), 1.0) for b in bounds(witness)[1])
    level, energy = volume.astype(float), 0.0
    for i, scale in enumerate(witness.scales):
        if i > 0:
            d, h, w = (n // 2 for n in level.shape)
            level = level.reshape(d, 2, h, 2, w, 2).sum((1, 3, 5)) / np.sqrt(8)
        level = np.pad(level, [(0, n % 2) for n in level.shape])
        for c in range(scale.kernel.shape[-1]):
            t = scipy.ndimage.correlate(level, np.asarray(scale.kernel[..., c], float), mode="constant")
            for factor, weight, width, offset in (
                (witness.curvature / convex, scale.convex_weight, scale.convex_width, scale.convex_offset),
                (-witness.concavity / concave, scale.concave_weight, scale.concave_width, scale.concave_offset),
            ):
                size, shift = 1e-3 + softplus(width[c]), float(offset[c])
                rise = size * (np.hypot(size, t - shift) - np.hypot(size, shift))
                energy += factor * softplus(weight[c]) * rise.sum()
    return -energy


@pytest.mark.parametrize("shape", [SHAPES[1], *(pytest.param(s, marks=pytest.mark.slow) for s in SHAPES[::2])])
def test_values_are_those_of_the_definition(rng, shape):
    witness = scaled(ConvWitness((2, 3), curvature=2.0, concavity=0.7, rngs=nnx.Rngs(0)), seed=1)
    volume = rng.normal(size=shape).astype(np.float32)
    expected = reference(witness, volume)
    result = value(witness, jnp.asarray(volume))
    assert result.dtype == jnp.float32
    assert float(result) == pytest.approx(expected, rel=2e-5)
    assert abs(float(value(witness, jnp.asarray(volume[::-1]))) - expected) > 1e-3 * abs(expected), "negative control"


def test_gradient_is_the_slope(rng):
    witness = scaled(ConvWitness((2, 2), rngs=nnx.Rngs(0)), seed=1)
    volume, direction = rng.normal(size=(2, 6, 7, 6)).astype(np.float32)
    step = 1e-4
    slope = (reference(witness, volume + step * direction) - reference(witness, volume - step * direction)) / (2 * step)
    assert np.vdot(slopes(witness, jnp.asarray(volume))[1], direction) == pytest.approx(slope, rel=1e-3)


def test_gradients_of_the_ridge_energy_are_those_of_autodiff(rng):
    response = jnp.asarray(rng.normal(size=(3, 4, 5, 6)), jnp.float32)
    numbers = list(jnp.asarray(np.exp(rng.normal(size=(6, 1, 1, 1, 6))), jnp.float32))
    potentials = (tuple(numbers[:3]), tuple(numbers[3:]))
    expected = jax.jit(jax.grad(_sum_of_potentials, (0, 1, 2)))(response, *potentials)
    result = jax.jit(jax.grad(ridge_energy, (0, 1, 2)))(response, *potentials)
    for r, e in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(r, e, rtol=2e-4, atol=2e-5)


def test_soft_absolute_keeps_its_digits():
    t, width = jnp.asarray([1e-4, 1e-2, 1.0, 1e3], jnp.float32), jnp.full(4, 30.0, jnp.float32)
    exact = 30.0 * np.asarray(t, float) ** 2 / (30.0 + np.hypot(30.0, np.asarray(t, float)))
    np.testing.assert_allclose(soft_absolute(t, width), exact, rtol=1e-6)


def test_nothing_has_no_energy_and_distant_things_add_up(rng):
    witness = scaled(ConvWitness((2, 2, 2), rngs=nnx.Rngs(0)), seed=1)
    finest = scaled(ConvWitness((3,), rngs=nnx.Rngs(0)), seed=1)
    one, other = np.zeros((2, 32, 32, 56), np.float32)
    one[12:16, 12:16, 12:16] = rng.normal(size=(4, 4, 4))
    # The coarsest filter reaches 2 * 4 + 3 voxels beyond a block.
    other[12:16, 12:16, 40:44] = rng.normal(size=(4, 4, 4))
    near = np.roll(other, -24, axis=2)
    together, one_alone, other_alone, shifted, neighbours, near_alone = (
        float(value(witness, jnp.asarray(z)))
        for z in (one + other, one, other, np.roll(one, (4, 4, -4), (0, 1, 2)), one + near, near)
    )
    assert float(value(witness, jnp.zeros(one.shape))) == 0
    assert together == pytest.approx(one_alone + other_alone, rel=1e-5)
    assert shifted == pytest.approx(one_alone, rel=1e-5)
    assert abs(neighbours - one_alone - near_alone) > 1e-3 * abs(one_alone), "negative control: neighbours interact"
    odd_shift = jnp.asarray(np.roll(one, (1, 3, 5), (0, 1, 2)))
    assert float(value(finest, odd_shift)) == pytest.approx(float(value(finest, jnp.asarray(one))), rel=1e-5)


def test_squared_gain_is_above_the_supremum_and_close(rng):
    for size in (1, 4):
        kernel = rng.normal(size=(5, 5, 5, size)).astype(np.float32)
        weights = rng.uniform(size=size).astype(np.float32)
        spectrum = np.abs(np.fft.fftn(kernel.astype(float), s=(72, 72, 72), axes=(0, 1, 2))) ** 2
        supremum = (spectrum @ weights).max()
        assert supremum <= float(squared_gain(jnp.asarray(kernel), jnp.asarray(weights))) <= 1.15 * supremum


def test_squared_gain_between_grid_points():
    """A filter whose gain peaks half-way between two points of the grid on every axis."""
    wave = np.cos(2 * np.pi * (7.5 / 32) * np.arange(-2, 3))
    kernel = np.einsum("i,j,k->ijk", wave, wave, wave)[..., None].astype(np.float32)
    axis = np.abs(np.fft.fft(wave, 4096)).max() ** 2
    assert axis**3 <= float(squared_gain(jnp.asarray(kernel), jnp.ones(1)))


def inputs_of(shape):
    """Noise, blobs, nothing, noisy blobs, huge noise: what a sampler may meet."""
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(*[np.arange(n) / n for n in shape], indexing="ij"))
    blobs = 5 * sum(np.exp(-60 * ((grid - c) ** 2).sum(0)) for c in rng.uniform(size=(4, 3, 1, 1, 1)))
    noise = rng.normal(size=shape)
    return jnp.asarray(np.stack([noise, blobs, 0 * noise, blobs + 3 * noise, 1000 * noise]), jnp.float32)


@jax.jit
def extremes(witness, volumes, shift):
    """Smallest and largest eigenvalue of -Hess w found by power iteration, per volume: (volumes, 2).

    Rayleigh quotients, so that the truth lies outside of them and a bound must still hold.
    """

    def product(z, v):
        return -jax.grad(lambda u: jnp.vdot(jax.grad(witness)(u), v))(z)

    def extreme(z, sign):
        def step(carry, _):
            v, _ = carry
            bent = product(z, v)
            w = shift * v + sign * bent
            return (w / (jnp.linalg.norm(w) + 1e-30), jnp.vdot(v, bent)), None

        start = jax.random.normal(jax.random.key(0), z.shape)
        (_, quotient), _ = jax.lax.scan(step, (start / jnp.linalg.norm(start), 0.0), None, length=80)
        return quotient

    return jax.vmap(lambda z: jax.vmap(lambda sign: extreme(z, sign))(jnp.array([-1.0, 1.0])))(volumes)


def found(witness, shape):
    """Extremes over the inputs; the shift makes the wanted end the largest in magnitude."""
    _, (concave, convex) = bounds(witness)
    shift = jnp.maximum(witness.concavity * concave, witness.curvature * convex)
    if not isinstance(witness, Unnormalised):
        shift = jnp.minimum(shift, max(witness.curvature, witness.concavity))
    result = np.asarray(extremes(witness, inputs_of(shape), shift))
    return result[:, 0].min(), result[:, 1].max()


WEIGHTS = {"first": (1.0, None), "shaken": (1.0, 1), "thirtyfold": (30.0, None), "shaken thirtyfold": (30.0, 2)}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", [SHAPES[0], pytest.param(SHAPES[1], marks=pytest.mark.slow)])
def test_curvature_stays_within_its_bounds(shape, weights):
    witness = scaled(ConvWitness((3, 4), curvature=2.0, concavity=0.5, rngs=nnx.Rngs(1)), *WEIGHTS[weights])
    assert isinstance(witness, HasCurvature)
    low, high = (float(b) for b in bounds(witness)[0])
    assert -0.5 <= low < 0 < high <= 2.0
    smallest, largest = found(witness, shape)
    assert low - 1e-3 <= smallest <= largest <= high + 1e-3
    if "shaken" not in weights:  # shaken potentials bend at different heights, never all at once
        assert largest >= 0.15 * high, "a bound far from what happens is of no use"


@pytest.mark.parametrize("alone", [0, 1])
def test_every_scale_counts(alone):
    witness = scaled(ConvWitness((3, 4), curvature=2.0, concavity=0.5, rngs=nnx.Rngs(1)), 10.0)
    other = witness.scales[1 - alone].kernel
    other[...] = jnp.asarray(np.zeros(other.shape), jnp.float32)
    _, high = bounds(witness)[0]
    assert float(high) == pytest.approx(2.0, rel=1e-5)
    assert 0.15 * 2.0 <= found(witness, SHAPES[0])[1] <= 2.001


def test_concave_end_is_bounded_and_reached():
    witness = scaled(ConvWitness((3, 4), curvature=2.0, concavity=0.5, rngs=nnx.Rngs(1)), 10.0)
    for scale in witness.scales:
        scale.convex_weight[...] = jnp.asarray(np.full(scale.convex_weight.shape, -40.0), jnp.float32)
    low, _ = bounds(witness)[0]
    assert float(low) == pytest.approx(-0.5, rel=1e-5)
    smallest, _ = found(witness, SHAPES[0])
    assert -0.501 <= smallest <= 0.15 * -0.5


@pytest.mark.slow
def test_unnormalised_network_breaks_its_nominal_bound():
    witness = scaled(Unnormalised((3, 4), curvature=2.0, concavity=0.5, rngs=nnx.Rngs(1)), 10.0)
    assert found(witness, SHAPES[0])[1] > 10 * 2.0
    for scale in witness.scales:
        scale.convex_weight[...] = jnp.asarray(np.full(scale.convex_weight.shape, -40.0), jnp.float32)
    assert found(witness, SHAPES[0])[0] < 10 * -0.5


def test_every_weight_learns_and_zero_weights_are_harmless(rng):
    witness = scaled(ConvWitness((2, 2), rngs=nnx.Rngs(0)), 30.0, seed=1)
    volume = jnp.asarray(rng.normal(size=(6, 7, 6)), jnp.float32)
    found = map(np.asarray, jax.tree.leaves(slopes(witness, volume)[0]))
    assert all(np.isfinite(g).all() and np.any(g != 0) for g in found)
    nothing = jax.tree.map(lambda leaf: jnp.asarray(np.zeros(leaf.shape, np.float32)), witness)
    assert all(np.isfinite(g).all() for g in map(np.asarray, jax.tree.leaves(slopes(nothing, volume)[0])))
    assert float(value(nothing, volume)) == 0


@pytest.mark.parametrize(
    "settings", [{"curvature": 0.0}, {"curvature": float("nan")}, {"concavity": -1.0}, {"channels": ()},
                 {"channels": (4, 0)}]
)  # fmt: skip
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError):
        ConvWitness(**settings, rngs=nnx.Rngs(0))


def test_batches_are_refused():
    with pytest.raises(InputError, match="vmap"):
        ConvWitness((2,), rngs=nnx.Rngs(0))(jnp.zeros((2, 4, 4, 4)))
