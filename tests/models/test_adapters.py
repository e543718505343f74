"""Flax modules as pytree callables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from cryowgen_jax.models import ConvWitness, Decoder, from_linen, from_nnx
from cryowgen_jax.types import HasCurvature, InputError


class Energy(linen.Module):
    """A small Linen witness."""

    @linen.compact
    def __call__(self, volume):
        return -jnp.sum(linen.softplus(linen.Conv(2, (3, 3, 3))(volume[None, ..., None])))


class CurvedEnergy(Energy):
    def curvature_bounds(self):
        return jnp.zeros(()), jnp.sum(self.variables["params"]["Conv_0"]["kernel"] ** 2)


class Noisy(nnx.Module):
    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, volume):
        return jnp.sum(self.dropout(volume))


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, volume):
        return jnp.sum(self.norm(volume) ** 2)


def linen_energy(module, volume):
    return from_linen(module, module.init(jax.random.key(0), volume))


def adapted(volume):
    return {
        "nnx": from_nnx(ConvWitness((2, 2), rngs=nnx.Rngs(0))),
        "linen": linen_energy(Energy(), volume),
    }


@jax.jit
def call(function, position):
    return function(position)


def scaled(function, factor):
    return jax.tree.map(lambda x: jnp.asarray(factor * np.asarray(x)), function)


@pytest.fixture
def volume(key):
    return jax.random.normal(key, (4, 5, 6))


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_new_weights_do_not_retrace(volume, kind):
    function = adapted(volume)[kind]
    traces = []

    @jax.jit
    def slope(f, z):
        traces.append(None)
        return jax.grad(f)(z)

    first = slope(scaled(function, np.float32(1.0)), volume)
    other = slope(scaled(function, np.float32(1.5)), volume)
    again = slope(scaled(adapted(volume)[kind], np.float32(1.0)), volume)
    assert len(traces) == 1
    assert np.abs(np.subtract(first, other)).max() > 1e-5
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_differentiable_in_its_variables(volume, kind):
    function = adapted(volume)[kind]
    slopes = jax.jit(jax.grad(call))(function, volume)
    direction = scaled(slopes, np.float32(0.1))
    along = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (slopes, direction)), strict=True))
    step = np.float32(1e-2 / np.sqrt(along))

    def at(sign):
        return jax.tree.map(lambda p, d: np.asarray(p) + sign * step * np.asarray(d), function, direction)

    moved = [call(at(sign), volume) for sign in (np.float32(-1), np.float32(1))]
    assert float(moved[1] - moved[0]) / (2 * step) == pytest.approx(float(along), rel=0.05)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_vmap_over_stacked_variables(volume, kind):
    function = adapted(volume)[kind]
    functions = [scaled(function, np.float32(s)) for s in (0.5, 1.0, 2.0)]
    stacked = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *functions)
    result = jax.jit(jax.vmap(call, (0, None)))(stacked, volume)
    np.testing.assert_allclose(result, [call(f, volume) for f in functions], rtol=1e-5)


def test_curvature_bounds_come_along(volume):
    witness = ConvWitness((2, 2), rngs=nnx.Rngs(0))
    function = from_nnx(witness)
    assert isinstance(function, HasCurvature)
    bounds = jax.jit(lambda f: f.curvature_bounds())
    np.testing.assert_allclose(bounds(function), bounds(witness), rtol=1e-6)
    curved = linen_energy(CurvedEnergy(), volume)
    assert isinstance(curved, HasCurvature)
    kernel = curved.variables["params"]["Conv_0"]["kernel"]
    assert float(bounds(curved)[1]) == pytest.approx(np.sum(np.asarray(kernel) ** 2), rel=1e-6)
    assert not isinstance(linen_energy(Energy(), volume), HasCurvature)
    assert not isinstance(from_nnx(Decoder(2, (4, 4, 4), channels=2, rngs=nnx.Rngs(0))), HasCurvature)


def test_evaluation_mode_without_touching_the_module(key):
    module = Normed(nnx.Rngs(0))
    function = from_nnx(module)
    volume = 3 + jax.random.normal(key, (5, 4))
    # Evaluation uses the running mean 0 and variance 1, so that nothing is subtracted.
    assert float(call(function, volume)) == pytest.approx(np.sum(np.asarray(volume) ** 2), rel=1e-3)
    assert not module.norm.use_running_average


def test_decoder_in_a_pytree(key):
    function = from_nnx(Decoder(3, (4, 5, 6), channels=2, rngs=nnx.Rngs(0)))
    assert jax.jit(lambda f, z: f(z))(function, jnp.ones(3)).shape == (4, 5, 6)


def test_what_is_no_function_is_refused(volume):
    with pytest.raises(InputError, match="random-number state"):
        from_nnx(Noisy(nnx.Rngs(0)))
    with pytest.raises(InputError, match="from_linen"):
        from_nnx(Energy())
    with pytest.raises(InputError, match="from_nnx"):
        from_linen(Noisy(nnx.Rngs(0)), {"params": {}})
    with pytest.raises(InputError, match="params"):
        from_linen(Energy(), {})
