"""Both forms of the convolution against SciPy, their gradients against autodiff, injection into Flax, resampling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import linen, nnx
from jax import lax

from cryowgen_jax import platform
from cryowgen_jax.models import conv_general_dilated, convolve3
from cryowgen_jax.models.convolution import depth_to_space, double, halve, pad_to_multiple, space_to_depth
from cryowgen_jax.models.layers import Convolution
from cryowgen_jax.types import InputError

FORMS = ["native", "stacked"]


def reference(volume: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Cross-correlation with zeros outside, one channel pair at a time, in float64."""
    pairs = [
        [scipy.signal.correlate(volume[..., i].astype(float), kernel[..., i, o].astype(float), "same", "direct")
         for i in range(volume.shape[-1])]
        for o in range(kernel.shape[-1])
    ]  # fmt: skip
    return np.stack([sum(row) for row in pairs], -1)


def autodiff(volume: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same layer with the gradients that JAX derives."""
    layout = ("NDHWC", "DHWIO", "NDHWC")
    return lax.conv_general_dilated(volume[None], kernel, (1, 1, 1), "SAME", dimension_numbers=layout)[0]


@pytest.fixture
def arrays(rng):
    volume = rng.normal(size=(5, 4, 7, 2)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 2, 3)).astype(np.float32)
    return volume, kernel


@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_scipy(arrays, form):
    volume, kernel = arrays
    expected = reference(volume, kernel)
    result = convolve3(jnp.asarray(volume), jnp.asarray(kernel), form)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, atol=2e-5)
    flipped = convolve3(jnp.asarray(volume), jnp.asarray(kernel[::-1]), form)
    assert np.abs(flipped - expected).max() > 1, "negative control: a flipped kernel must be told apart"


@pytest.mark.parametrize("form", FORMS)
def test_one_voxel_thick_volume(rng, form):
    volume = rng.normal(size=(1, 1, 4, 1)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 1, 2)).astype(np.float32)
    result = convolve3(jnp.asarray(volume), jnp.asarray(kernel), form)
    np.testing.assert_allclose(result, reference(volume, kernel), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_autodiff(arrays, form):
    volume, kernel = map(jnp.asarray, arrays)

    def loss(layer, v, k):
        return jnp.sum(jnp.sin(layer(v, k)))

    expected = jax.jit(jax.grad(functools.partial(loss, autodiff), (0, 1)))(volume, kernel)
    result = jax.jit(jax.grad(functools.partial(loss, lambda v, k: convolve3(v, k, form)), (0, 1)))(volume, kernel)
    for r, e in zip(result, expected, strict=True):
        np.testing.assert_allclose(r, e, atol=3e-5)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_the_same_but_for_rounding(arrays, form):
    volume, kernel = map(jnp.asarray, arrays)

    def slopes(v, k):
        return jax.grad(lambda v, k: jnp.sum(jnp.sin(convolve3(v, k, form).astype(jnp.float32))), (0, 1))(v, k)

    expected = (convolve3(volume, kernel, form), *slopes(volume, kernel))
    volume, kernel = volume.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    for found, exact in zip((convolve3(volume, kernel, form), *slopes(volume, kernel)), expected, strict=True):
        assert found.dtype == jnp.bfloat16
        assert 1e-4 < np.abs(found - exact).max() / np.abs(exact).max() < 0.03


def test_only_layers_that_ask_for_it_are_rounded_and_only_where_it_is_fast(arrays, monkeypatch):
    volume = jnp.asarray(arrays[0])
    exact, rounded = (Convolution(2, 3, rngs=nnx.Rngs(0), half=half) for half in (False, True))
    for fast in (False, True):
        monkeypatch.setattr(platform, "half_is_fast", lambda fast=fast: fast)
        assert exact(volume).dtype == rounded(volume).dtype == jnp.float32
        assert np.any(exact(volume) != rounded(volume)) == fast
        np.testing.assert_allclose(exact(volume), rounded(volume), atol=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_are_those_of_autodiff(arrays, form):
    volume, kernel = map(jnp.asarray, arrays)

    def product(layer):
        def slope(v, k):
            return jax.grad(lambda u: jnp.sum(jnp.sin(layer(u, k))))(v)

        return jax.jit(jax.grad(lambda v, k: jnp.vdot(slope(v, k), jnp.cos(v)), (0, 1)))(volume, kernel)

    for r, e in zip(product(lambda v, k: convolve3(v, k, form)), product(autodiff), strict=True):
        np.testing.assert_allclose(r, e, atol=2e-4)


@pytest.mark.parametrize("form", FORMS)
def test_vmap_and_scan_change_nothing(rng, form):
    volumes = jnp.asarray(rng.normal(size=(3, 4, 5, 6, 2)), jnp.float32)
    kernels = jnp.asarray(0.1 * rng.normal(size=(3, 3, 3, 3, 2, 2)), jnp.float32)

    @jax.jit
    def slope(v, k):
        return jax.grad(lambda u: jnp.sum(convolve3(u, k, form) ** 2))(v)

    one_kernel = jnp.stack([slope(v, kernels[0]) for v in volumes])
    np.testing.assert_allclose(jax.jit(jax.vmap(slope, (0, None)))(volumes, kernels[0]), one_kernel, atol=1e-5)
    own_kernel = jnp.stack([slope(v, k) for v, k in zip(volumes, kernels, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(slope))(volumes, kernels), own_kernel, atol=1e-5)
    scanned, _ = jax.jit(lambda v: lax.scan(lambda c, _: (slope(c, kernels[0]), None), v, None, length=2))(volumes[0])
    np.testing.assert_allclose(scanned, slope(slope(volumes[0], kernels[0]), kernels[0]), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_in_a_scan_is_an_ordinary_convolution(form):
    """The transposed kernel axes that XLA is slow at ("012oi") must not appear in the compiled loop."""
    volume, kernel = jnp.ones((8, 8, 8, 8)), jnp.ones((3, 3, 3, 8, 16))

    def text(layer):
        def step(c, _):
            return jax.grad(lambda u: jnp.sum(jnp.sin(layer(u, kernel))))(c), None

        return jax.jit(lambda v: lax.scan(step, v, None, length=3)[0]).lower(volume).as_text()

    transposed = ["x[0, 1, 2, o, i]", "x[0, 1, o, i]"]
    assert any(t in text(autodiff) for t in transposed), "negative control: autodiff does transpose the kernel axes"
    assert not any(t in text(lambda v, k: convolve3(v, k, form)) for t in transposed)


@pytest.mark.parametrize("shapes", [((4, 4, 4), (3, 3, 3, 1, 1)), ((4, 4, 4, 2), (3, 3, 3, 1, 1)),
                                    ((4, 4, 4, 1), (5, 5, 5, 1, 1))])  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(InputError, match="do not fit"):
        convolve3(jnp.zeros(shapes[0]), jnp.zeros(shapes[1]))


LAYERS = {
    "fast": ({"kernel_size": (3, 3, 3)}, True),
    "explicit padding": ({"kernel_size": (3, 3, 3), "padding": ((1, 1),) * 3}, True),
    "five": ({"kernel_size": (5, 5, 5)}, False),
    "stride": ({"kernel_size": (3, 3, 3), "strides": 2}, False),
    "valid": ({"kernel_size": (3, 3, 3), "padding": "VALID"}, False),
    "dilated": ({"kernel_size": (3, 3, 3), "kernel_dilation": 2}, False),
    "grouped": ({"kernel_size": (3, 3, 3), "feature_group_count": 2}, False),
    "plane": ({"kernel_size": (3, 3)}, False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_injection_into_flax(rng, name):
    settings, fast = LAYERS[name]
    dimensions = len(settings["kernel_size"])
    inputs = jnp.asarray(rng.normal(size=(2, *(6, 5, 7)[:dimensions], 4)), jnp.float32)
    plain = nnx.Conv(4, 2, rngs=nnx.Rngs(0), **settings)
    injected = nnx.Conv(4, 2, rngs=nnx.Rngs(0), conv_general_dilated=conv_general_dilated, **settings)
    np.testing.assert_allclose(injected(inputs), plain(inputs), atol=1e-5)
    assert ("custom_vjp" in str(jax.make_jaxpr(injected)(inputs))) == fast
    variables = linen.Conv(2, **settings).init(jax.random.key(0), inputs)
    old = linen.Conv(2, conv_general_dilated=conv_general_dilated, **settings)
    np.testing.assert_allclose(
        old.apply(variables, inputs), linen.Conv(2, **settings).apply(variables, inputs), atol=1e-5
    )


def test_resampling(rng):
    volume = rng.normal(size=(4, 6, 2, 3)).astype(np.float32)
    halved, blocks, doubled = halve(jnp.asarray(volume)), space_to_depth(jnp.asarray(volume)), double(volume)
    for z, y, x in np.ndindex(2, 3, 1):
        block = volume[2 * z : 2 * z + 2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        np.testing.assert_allclose(halved[z, y, x], block.mean((0, 1, 2)), atol=1e-6)
        np.testing.assert_array_equal(blocks[z, y, x], block.reshape(-1))
    np.testing.assert_array_equal(doubled, volume.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    np.testing.assert_array_equal(depth_to_space(blocks), volume)
    padded = pad_to_multiple(jnp.asarray(volume), 4)
    assert padded.shape == (4, 8, 4, 3)
    np.testing.assert_array_equal(padded[:, :6, :2], volume)
    assert float(jnp.abs(padded).sum()) == pytest.approx(float(np.abs(volume).sum()), rel=1e-5)
