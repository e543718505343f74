"""Truth here comes from plane waves, angles computed one by one, dense matrices and solid angles."""

import itertools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.operators import Wedge, tilt_slope, traced_wedge_mask, wedge_mask
from cryowgen_jax.types import FourierDiagonal, InputError
from tests.conftest import SHARED

AXIS = {"z": 0, "y": 1, "x": 2}
PAIRS = list(itertools.permutations("xyz", 2))
SHAPES = [(24, 24, 24), (13, 17, 20)]


def wave(shape, cycles):
    """cos(2 pi sum_i cycles_i n_i / N_i): a whole number of cycles along each axis of the box."""
    n = np.meshgrid(*[np.arange(s) / s for s in shape], indexing="ij")
    return np.cos(2 * np.pi * sum(c * a for c, a in zip(cycles, n, strict=True))).astype(np.float32)


def passed(mask, shape, cycles):
    """Fraction of a plane wave's power that the filter lets through."""
    v = wave(shape, cycles)
    return float(np.sum(np.asarray(apply(Wedge(mask), v)) ** 2) / np.sum(v**2))


@jax.jit
def apply(operator, v):
    return operator(v)


def along(**cycles):
    vector = [0, 0, 0]
    for name, count in cycles.items():
        vector[AXIS[name]] = count
    return tuple(vector)


def oblique_cycles(shape, tilt, beam, degrees):
    """Whole cycles (plane, beam) whose direction in cycles per voxel is nearest to an angle, away from Nyquist."""
    (plane,) = set("xyz") - {tilt, beam}
    n_plane, n_beam = shape[AXIS[plane]], shape[AXIS[beam]]
    choices = itertools.product(range(1, int(0.45 * n_plane)), range(1, int(0.45 * n_beam)))
    miss, p, b = min((abs(math.degrees(math.atan2(b / n_beam, p / n_plane)) - abs(degrees)), p, b) for p, b in choices)
    assert miss < 4
    return along(**{plane: p, beam: int(math.copysign(b, degrees))})


def simple_waves_hold(mask, shape, tilt, beam):
    """Nothing passes along the beam or between beam and tilt axis; across the beam, and at 30 degrees, all does."""
    (plane,) = set("xyz") - {tilt, beam}
    vanishing = [along(**{beam: 3}), along(**{beam: 3, tilt: 5})]
    passing = [
        (0, 0, 0),
        along(**{tilt: 3}),
        along(**{plane: 3}),
        along(**{plane: 2, tilt: 4}),
        oblique_cycles(shape, tilt, beam, 30),
        oblique_cycles(shape, tilt, beam, -30),
    ]
    return all(passed(mask, shape, w) < 1e-10 for w in vanishing) and all(
        passed(mask, shape, w) == pytest.approx(1, abs=1e-5) for w in passing
    )


def quadrants_hold(mask, shape, tilt, beam):
    """For the range -40 to 60: 50 degrees passes, -50 and 70 and -70 do not, 30 and -30 do."""
    expected = {50: 1, -50: 0, 70: 0, -70: 0, 30: 1, -30: 1}
    return all(
        passed(mask, shape, oblique_cycles(shape, tilt, beam, angle)) == pytest.approx(value, abs=1e-5)
        for angle, value in expected.items()
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("tilt", "beam"), PAIRS)
def test_plane_waves(shape, tilt, beam):
    mask = wedge_mask(shape, (-60.0, 60.0), tilt_axis=tilt, beam_axis=beam)
    assert simple_waves_hold(mask, shape, tilt, beam)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("tilt", "beam"), PAIRS)
def test_positive_tilts_measure_the_positive_quadrant(shape, tilt, beam):
    mask = wedge_mask(shape, (-40.0, 60.0), tilt_axis=tilt, beam_axis=beam)
    assert quadrants_hold(mask, shape, tilt, beam)


def test_the_sign_in_the_contracts_own_words():
    shape = (40, 10, 40)
    mask = wedge_mask(shape, (-40.0, 60.0))
    kx, kz = 5, 6  # 50.2 degrees
    z, x = np.arange(40)[:, None, None], np.arange(40)[None, None, :]
    kept = np.broadcast_to(np.cos(2 * np.pi * (kx * x + kz * z) / 40), shape).astype(np.float32)
    removed = np.broadcast_to(np.cos(2 * np.pi * (kx * x - kz * z) / 40), shape).astype(np.float32)
    np.testing.assert_allclose(apply(Wedge(mask), kept), kept, atol=1e-5)
    np.testing.assert_allclose(apply(Wedge(mask), removed), 0, atol=1e-5)


def test_wrong_geometry_fails_the_wave_tests():
    shape = (24, 24, 24)
    complemented = 1 - np.asarray(wedge_mask(shape, (-60.0, 60.0)))
    assert not simple_waves_hold(complemented, shape, "y", "z")
    for tilt, beam in PAIRS:
        if (tilt, beam) != ("y", "z"):
            assert not simple_waves_hold(
                wedge_mask(shape, (-60.0, 60.0), tilt_axis=tilt, beam_axis=beam), shape, "y", "z"
            )
    right = np.asarray(wedge_mask(shape, (-40.0, 60.0)))
    reversed_z = np.roll(right[::-1], 1, axis=0)
    assert quadrants_hold(right, shape, "y", "z")
    assert not quadrants_hold(reversed_z, shape, "y", "z")
    assert not quadrants_hold(np.asarray(wedge_mask(shape, (-60.0, 40.0))), shape, "y", "z")


@pytest.mark.parametrize("shape", [(12, 4, 14), (11, 3, 13), (6, 4, 30)])
@pytest.mark.parametrize("tilt_range", [(-60.0, 60.0), (-40.0, 60.0), (-70.0, 35.0)])
def test_every_coefficient_below_nyquist_against_the_inequality(shape, tilt_range):
    lo, hi = tilt_range
    mask = np.asarray(wedge_mask(shape, tilt_range))
    for index in np.ndindex(mask.shape):
        kz, _, kx = (np.fft.fftfreq(n)[i] for n, i in zip(shape, index, strict=True))
        if abs(kz) == 0.5 or abs(kx) == 0.5:
            continue
        limit = hi if kx * kz > 0 else -lo
        if kx == 0:
            limit = max(hi, -lo)
        assert mask[index] == (kz == 0 or not abs(kx) < abs(kz) * math.tan(math.radians(90 - limit)) - 1e-12)


@pytest.mark.parametrize(
    "shape",
    [(7, 9, 5), (8, 7, 6), (1, 8, 8), *(pytest.param(s, marks=pytest.mark.slow) for s in ((8, 6, 10), (2, 4, 6)))],
)
@pytest.mark.parametrize(("tilt", "beam"), PAIRS)
@pytest.mark.parametrize("tilt_range", [(-60.0, 60.0), (-75.0, 20.0)])
def test_a_hard_wedge_is_idempotent_and_self_adjoint(rng, shape, tilt, beam, tilt_range):
    wedge = Wedge(wedge_mask(shape, tilt_range, tilt_axis=tilt, beam_axis=beam))
    u, v = rng.standard_normal((2, *shape)).astype(np.float32)
    of_u, of_v = (np.asarray(apply(wedge, w)) for w in (u, v))
    np.testing.assert_allclose(apply(wedge, of_v), of_v, atol=1e-6)
    size = np.linalg.norm(u) * np.linalg.norm(v)
    assert np.sum(u * of_v - of_u * v, dtype=float) / size == pytest.approx(0, abs=1e-6)


def test_an_unsymmetrised_mask_fails_idempotence(rng):
    """The naive asymmetric mask about x on an even box: adjoint, but not a projector."""
    shape = (8, 8, 8)
    kz, ky = np.fft.fftfreq(8)[:, None, None], np.fft.fftfreq(8)[None, :, None]
    angle = np.rad2deg(np.arctan2(kz, ky))
    angle = (angle + 90) % 180 - 90
    naive = np.broadcast_to((angle <= 60) & (angle >= -40), (8, 8, 5)).astype(np.float32)
    once = np.asarray(apply(Wedge(naive), rng.standard_normal(shape).astype(np.float32)))
    assert np.abs(apply(Wedge(naive), once) - once).max() > 1e-2


@pytest.mark.parametrize(("shape", "tilt"), [((4, 4, 4), "y"), ((3, 5, 4), "x"), ((4, 3, 5), "y")])
def test_the_dense_matrix_is_an_orthogonal_projector(shape, tilt):
    """Also its trace: the number of measured real degrees of freedom, counted over the full spectrum."""
    mask = wedge_mask(shape, (-35.0, 50.0), tilt_axis=tilt)
    identity = np.eye(math.prod(shape), dtype=np.float32).reshape(-1, *shape)
    dense = np.asarray(jax.jit(jax.vmap(Wedge(mask)))(identity)).reshape(len(identity), -1)
    np.testing.assert_allclose(dense, dense.T, atol=1e-6)
    np.testing.assert_allclose(dense @ dense, dense, atol=1e-6)
    spectrum_of_a_point = np.fft.fftn(dense[0].reshape(shape))
    assert np.trace(dense) == pytest.approx(np.sum(np.abs(spectrum_of_a_point) > 1e-4), abs=1e-3)


@pytest.mark.parametrize("tilt_range", [(-60.0, 60.0), (-40.0, 60.0), (-50.0, 70.0), (-30.0, 30.0)])
@pytest.mark.parametrize("shape", [(64, 64, 64), (80, 48, 121)])
def test_the_missing_fraction_is_that_of_the_angles(tilt_range, shape):
    mask = np.asarray(wedge_mask(shape, tilt_range))
    kz, ky, kx = np.meshgrid(
        np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), np.fft.rfftfreq(shape[2]), indexing="ij"
    )
    both_halves = (kz**2 + ky**2 + kx**2 < 0.25) * np.where(kx == 0, 1, 2)
    missing = 1 - np.average(mask, weights=both_halves)
    assert missing == pytest.approx((180 - (tilt_range[1] - tilt_range[0])) / 180, abs=0.003)


@pytest.mark.parametrize("shape", [(16, 18, 20), (15, 17, 13), (16, 8, 64)])
@pytest.mark.parametrize("tilt_range", [(-60, 60), (-40, 60), (-70, 51)])
def test_agrees_with_the_independent_mask_below_nyquist(shape, tilt_range, monkeypatch):
    if not (SHARED / "bench" / "wedge.py").exists():
        pytest.skip("../shared/bench is not here")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(SHARED / "bench"))
    import wedge as independent

    theirs = independent.mask(shape, *tilt_range)
    below = (np.abs(np.fft.fftfreq(shape[0]))[:, None, None] < 0.5) & (np.fft.rfftfreq(shape[2])[None, None, :] < 0.5)
    below = np.broadcast_to(below, theirs.shape)
    np.testing.assert_array_equal(np.asarray(wedge_mask(shape, tilt_range))[below], theirs[below])


def test_layout_and_extremes():
    mask = wedge_mask((6, 7, 9), (-60, 60))
    assert mask.shape == (6, 7, 5)
    assert mask.dtype == jnp.float32
    assert isinstance(mask, jax.Array)
    assert np.min(wedge_mask((6, 8, 10), (-90, 90))) == 1.0
    assert np.min(wedge_mask((6, 8, 10), (-90, 90), edge=5.0)) == 1.0
    assert np.min(wedge_mask((1, 16, 16))) == 1.0  # a slice has no frequency along the beam


@pytest.mark.parametrize("edge", [0.0, 10.0])
def test_no_frequency_along_the_beam_counts_as_measured(edge):
    assert np.min(np.asarray(wedge_mask((6, 7, 8), (10, 60), edge=edge))[0]) == 1.0
    assert np.min(np.asarray(wedge_mask((6, 7, 8), (10, 60), beam_axis="x", edge=edge))[..., 0]) == 1.0


@pytest.mark.parametrize("angle", [-60.0, -7.0, 35.0])
def test_the_slope_of_a_tilt_is_that_of_the_edge(angle):
    """On a fine grid the mask ends where k_beam passes slope times k_plane."""
    mask = np.asarray(wedge_mask((201, 1, 201), (min(angle, 0.0) - 1e-3, max(angle, 0.0) + 1e-3)))[:, 0]
    kz, kx = np.fft.fftfreq(201)[:, None], np.fft.rfftfreq(201)[None, 1:]
    beyond = (np.sign(angle) * (kz - tilt_slope(angle) * kx) > 0.01) & (np.sign(angle) * kz > 0)
    within = (np.sign(angle) * (kz - tilt_slope(angle) * kx) < -0.01) & (np.sign(angle) * kz > 0)
    assert beyond.any()
    assert not mask[:, 1:][beyond].any()
    assert mask[:, 1:][within].all()


def test_a_soft_edge_is_monotone_and_centred_on_the_boundary():
    shape, edge = (64, 4, 64), 12.0
    hard, soft = (np.asarray(wedge_mask(shape, (-50, 60), edge=e)) for e in (0.0, edge))
    kz, kx = np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(64)[None, :]
    angle = np.rad2deg(np.arctan2(kz, kx))
    values, rough = soft[:, 0], hard[:, 0]
    used = (np.abs(kz) < 0.5) & (kx < 0.5) & (kz > 0) & (kx > 0)
    order = np.argsort(angle[used])
    assert (np.diff(values[used][order]) <= 1e-6).all()
    assert values.min() >= 0
    assert values.max() <= 1
    np.testing.assert_array_equal(values[used & (angle < 60 - edge / 2)], 1)
    np.testing.assert_array_equal(values[used & (angle > 60 + edge / 2)], 0)
    outside = used & (np.abs(angle - 60) > edge / 2)
    np.testing.assert_array_equal(values[outside], rough[outside])
    quarter = 0.5 + 0.5 * math.cos(math.pi / 4)  # raised cosine a quarter of the way across
    near = used & (np.abs(angle - (60 - edge / 4)) < 0.4)
    np.testing.assert_allclose(values[near], quarter, atol=0.07)
    assert near.any()


@pytest.mark.parametrize("shape", [(15, 21, 17), (16, 20, 18)])
def test_a_range_that_is_traced_gives_the_same_mask_off_the_nyquist_planes(shape):
    ranges = jnp.asarray([(-60.0, 60.0), (-40.0, 65.0), (-70.0, 20.0)])
    masks = np.asarray(jax.jit(jax.vmap(lambda tilts: traced_wedge_mask(shape, tilts)))(ranges))
    assert masks.dtype == np.float32
    for mask, tilt_range in zip(masks, ranges, strict=True):
        different = mask != np.asarray(wedge_mask(shape, tuple(tilt_range.tolist())))
        if shape[0] % 2 == 0:
            different[shape[0] // 2] = different[:, :, -1] = False
        assert not different.any()


def test_wedge_is_a_pytree_that_jits_vmaps_and_traces_once(rng):
    v = rng.standard_normal((6, 8, 7)).astype(np.float32)
    masks = [np.asarray(wedge_mask((6, 8, 7), (-t, t))) for t in (40.0, 60.0)]
    compiled = apply._cache_size()
    apart = [np.asarray(apply(Wedge(mask), v)) for mask in masks]
    assert apply._cache_size() == compiled + 1
    np.testing.assert_allclose(Wedge(jnp.asarray(masks[0]))(v), apart[0], atol=1e-6)
    together = jax.jit(jax.vmap(lambda w: w(v)))(Wedge(np.stack(masks)))
    np.testing.assert_allclose(together, apart, atol=1e-6)
    assert np.abs(apart[0] - apart[1]).max() > 0.1
    assert isinstance(Wedge(masks[0]), FourierDiagonal)


def test_wedge_works_in_any_dimension_and_type(rng):
    for shape in ((9,), (6, 8), (3, 4, 5, 6)):
        v = rng.standard_normal(shape).astype(np.float32)
        whole = Wedge(np.ones((*shape[:-1], shape[-1] // 2 + 1), np.float32))
        np.testing.assert_allclose(apply(whole, v), v, atol=1e-6)
    assert apply(Wedge(wedge_mask((4, 4, 4))), np.ones((4, 4, 4), np.int8)).dtype == jnp.float32


def test_the_gradient_of_a_wedge_is_itself(rng):
    wedge = Wedge(wedge_mask((6, 7, 8), (-40, 60)))
    u, v = rng.standard_normal((2, 6, 7, 8)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(jax.grad(lambda x: jnp.sum(u * wedge(x))))(v), apply(wedge, u), atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 8, 10), (6, 8), ()])
def test_a_mask_for_another_shape_is_refused_while_tracing(shape):
    wedge = Wedge(wedge_mask((6, 8, 8)))
    with pytest.raises(InputError, match=r"\(6, 8, 5\).*make the mask for"):
        jax.jit(wedge)(jnp.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((8, 8, 8), {"tilt_range": (60, -60)}, "60 to -60 is reversed"),
        ((8, 8, 8), {"tilt_range": (30, 30)}, "30 to 30 has no width"),
        ((8, 8, 8), {"tilt_range": (-100, 60)}, "between -90 and 90 degrees, got -100"),
        ((8, 8, 8), {"tilt_range": (-60, math.nan)}, "finite.*got nan"),
        ((8, 8, 8), {"tilt_range": (-60, 0, 60)}, "two angles"),
        ((8, 8, 8), {"tilt_range": ("a", "b")}, "must be numbers"),
        ((8, 8, 8), {"tilt_axis": "z"}, "both 'z'"),
        ((8, 8, 8), {"tilt_axis": "w"}, "tilt axis must be one of x, y, z, got 'w'"),
        ((8, 8, 8), {"beam_axis": 0}, "beam axis must be one of x, y, z, got 0"),
        ((8, 8, 8), {"edge": -1.0}, "edge.*got -1"),
        ((8, 8, 8), {"edge": math.nan}, "edge.*got nan"),
        ((8, 8, 8), {"edge": 200.0}, "edge.*got 200"),
        ((8, 8), {}, "three positive integers"),
        ((8, 0, 8), {}, "three positive integers"),
        ((8, 8.5, 8), {}, "three positive integers"),
    ],
)
def test_unusable_input_is_one_clear_line(shape, options, message):
    with pytest.raises(InputError, match=message) as error:
        wedge_mask(shape, **options)
    assert "\n" not in str(error.value)
