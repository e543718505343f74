"""Draws of the learned model on half the grid: the Gaussian where the network says nothing, and what belongs to it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from cryowgen_jax import platform
from cryowgen_jax.methods import noise_levels
from cryowgen_jax.models import denoising_network, prior_network
from cryowgen_jax.restoration import load_witness, restore, save_witness, solvent_fit
from cryowgen_jax.restoration.annealed_family import (
    LARGEST,
    LEAST_EDGE,
    NUM_LEVELS,
    SMALLEST,
    CoarseNoise,
    half_turned,
    walked,
)
from cryowgen_jax.restoration.geometry import HALF_TURNS, Geometry
from cryowgen_jax.restoration.known_scenes import coarse_scene_of
from cryowgen_jax.restoration.learned_model import model_of
from cryowgen_jax.restoration.prior_weights import PriorWeights, shipped_weights
from cryowgen_jax.restoration.tiles import BlockNoise
from cryowgen_jax.samplers import white_noise
from cryowgen_jax.simulation import simulate_tomogram
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import InputError
from tests.networks import shaken

SIZES = {"channels": 2, "levels": 1, "widths": "[4]", "pairs": "[1]", "third_widths": "[4, 6]", "third_pairs": "[1, 1]"}
SHAPE, TILTS = (24, 28, 26), (-60.0, 50.0)
GEOMETRY = Geometry(TILTS)
MASK = GEOMETRY.mask(SHAPE)
NOISE = 4.5  # standard errors


def third():
    return denoising_network((4, 6), (1, 1))


@functools.cache
def weights(size=0.0):
    """Small networks; the third one is untrained where ``size`` is 0."""
    first, second = (lambda: prior_network(channels=2, levels=1)), (lambda: denoising_network((4,), (1,)))
    return PriorWeights(shaken(first(), 0.1, 5), shaken(second(), 0.1, 5), SIZES, shaken(third(), size, 5))


@functools.cache
def simulated():
    return simulate_tomogram(SHAPE, TILTS, snr=0.3, seed=2)


@functools.cache
def solvent():
    return solvent_fit.fit(halves(), MASK, GEOMETRY, of_spread=False)


def halves(shape=SHAPE, order=(0, 1, 2)):
    sim = simulated()
    region = tuple(slice(0, n) for n in shape)
    return tuple(jnp.asarray(half[region].transpose(order)) for half in (sim.half1, sim.half2))


@functools.cache
def model(size=0.0):
    return model_of(weights(size), solvent(), MASK, GEOMETRY)


@functools.cache
def draws(size=0.0, number=60):
    made = model(size)  # not inside the loop, which would leak its tracers
    drawn = jax.lax.map(lambda key: made.draw(key, MASK), jax.random.split(jax.random.key(0), number))
    return np.asarray(drawn)


def is_coarse():
    """Coefficients that half the grid has, Nyquist left out."""
    smaller = fourier.halved(SHAPE)
    near = [np.abs(f) * n < m / 2 for f, n, m in zip(fourier.frequencies(SHAPE), SHAPE, smaller, strict=True)]
    return np.all(np.broadcast_arrays(*near), axis=0)


def test_where_the_network_says_nothing_it_draws_the_gaussian():
    """About m with power V on half the grid, and V^(1/2) s^2 V^(1/2) for the rest; the last level's noise is added."""
    power = np.mean(np.abs(np.fft.rfftn(draws() - model().mean, axes=(1, 2, 3), norm="ortho")) ** 2, axis=0)
    coarse, level = is_coarse(), (SMALLEST * float(model().coarse.sight.scale)) ** 2
    ratio = np.prod(SHAPE) / np.prod(fourier.halved(SHAPE))
    expected = model().variance + ratio * level
    for region in (coarse & (MASK > 0), coarse & (MASK == 0)):
        error = NOISE * np.sqrt(2 / (60 * region.sum()))
        assert np.mean(power[region] / expected[region]) == pytest.approx(1, abs=0.062 + error), "16 levels are few"
    gaussian = dataclasses.replace(model(), coarse=None)
    finer = np.asarray(jax.lax.map(lambda key: gaussian.draw(key, MASK), jax.random.split(jax.random.key(0), 60)))
    spectra = [np.fft.rfftn(family, axes=(1, 2, 3), norm="ortho")[:, ~coarse] for family in (draws(), finer)]
    np.testing.assert_allclose(*spectra, atol=1e-3 * np.abs(spectra[1]).max())
    mean = np.mean(draws() - model().mean, axis=0)
    assert np.mean(mean**2) == pytest.approx(np.mean(np.var(draws(), axis=0)) / 60, rel=0.2)


def test_what_the_network_says_changes_what_is_drawn():
    deviations = [draws(size) - model(size).mean for size in (0.3, 0.0)]
    spectra = [np.fft.rfftn(family, axes=(1, 2, 3), norm="ortho") for family in deviations]
    off = np.abs(spectra[0] - spectra[1])
    assert off[:, is_coarse()].max() > 1e3 * off[:, ~is_coarse()].max()
    assert model(0.3).drawing == "annealed Langevin"


def test_a_widened_family_differs_in_the_wedge_alone():
    wide = dataclasses.replace(model(0.3), widening=2.25)
    drawn = np.asarray(jax.lax.map(lambda key: wide.draw(key, MASK), jax.random.split(jax.random.key(0), 4)))
    ours, theirs = (np.fft.rfftn(v - model(0.3).mean, axes=(1, 2, 3)) for v in (drawn, draws(0.3)[:4]))
    for region, factor in ((MASK == 0, 1.5), (MASK > 0, 1.0)):
        np.testing.assert_allclose(ours[:, region], factor * theirs[:, region], atol=1e-3 * np.abs(theirs).max())


def test_the_standard_deviation_is_that_of_the_draws():
    found = np.asarray(model(0.3).standard_deviation(draws(0.3)[:12]))
    expected = np.sqrt(np.mean(np.square(draws(0.3)[12:] - model(0.3).mean), axis=0))
    assert np.sum(found**2) / np.sum(expected**2) == pytest.approx(1, abs=0.1)
    assert np.std(found / expected) < 0.5
    gaussian = np.asarray(dataclasses.replace(model(0.3), coarse=None).standard_deviation([]))
    assert np.std(gaussian / found) > 0, "the Gaussian's is another"


@pytest.mark.parametrize(("tilt_axis", "beam_axis"), [("x", "y"), ("z", "x")])
def test_permuted_axes_give_the_permuted_posterior(tilt_axis, beam_axis):
    straight = model().coarse
    geometry = Geometry(TILTS, tilt_axis, beam_axis)
    back = np.argsort(geometry.order)
    seen = halves(order=back)
    mask = geometry.mask(seen[0].shape)
    turned = solvent_fit.fit(seen, mask, geometry, of_spread=False)
    other = model_of(weights(), turned, mask, geometry)
    np.testing.assert_allclose(other.coarse.sight.channels, straight.sight.channels, atol=3e-2)
    unknown = np.asarray(straight.sight.power) > 1e-3
    np.testing.assert_allclose(other.coarse.sight.power[unknown], straight.sight.power[unknown], rtol=3e-2)
    assert other.draw(jax.random.key(0), mask).shape == seen[0].shape


def test_overlapping_boxes_share_their_noise():
    """Boxes that differ in place only: where they overlap, the noise on half the grid is the same inside."""
    shape = (16, 16, 64)
    whole = coarse_noise(shape, (0, 0, 0))
    shifted = coarse_noise(shape, (0, 0, 2))
    inside = slice(8, 12)  # away from the faces, over which each box is periodic
    np.testing.assert_allclose(whole[..., 16 + 8 : 16 + 12], shifted[..., inside], atol=0.6)
    assert np.corrcoef(whole[..., 16 + 8 : 16 + 12].ravel(), shifted[..., inside].ravel())[0, 1] > 0.95
    smaller = fourier.halved(shape)
    lacking = np.prod([1 - 1 / n for n in smaller])  # the Nyquist planes
    assert np.var(whole) == pytest.approx(lacking, abs=NOISE * np.sqrt(2 / np.prod(smaller)))


def coarse_noise(shape, origin):
    noise = CoarseNoise(BlockNoise(jnp.asarray(origin)), shape, (0, 1, 2))
    return np.asarray(noise(jax.random.key(0), fourier.halved(shape)))


def test_weights_come_back_from_a_file_within_a_step_of_eight_bits(tmp_path):
    """Small arrays in half precision; a large one in steps of 1/127 of the largest weight of its output."""
    kept = dataclasses.replace(weights(0.3), third=shaken(denoising_network((24,), (1,)), 0.1, 5))
    kept = dataclasses.replace(kept, settings=SIZES | {"third_widths": "[24]", "third_pairs": "[1]"})
    save_witness(tmp_path / "weights.safetensors", kept)
    loaded = load_witness(tmp_path / "weights.safetensors")
    large = 0
    for part in ("first", "second", "third"):
        pairs = zip(*(jax.tree.leaves(getattr(w, part)) for w in (kept, loaded)), strict=True)
        for before, after in pairs:
            if before.ndim > 1 and before.size >= 4096:
                large += 1
                step = np.abs(before).max(tuple(range(before.ndim - 1))) / 127
                assert np.all(np.abs(before - after) <= 0.501 * step)
            else:
                np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-6)
    assert large > 1
    assert load_witness_without_third(tmp_path).third is None


def load_witness_without_third(folder):
    bare = dataclasses.replace(weights(), third=None, settings={k: SIZES[k] for k in list(SIZES)[:4]})
    save_witness(folder / "bare.safetensors", bare)
    return load_witness(folder / "bare.safetensors")


def test_restore_says_how_the_family_was_drawn():
    sim = simulated()
    restored = restore(sim.half1, TILTS, half2=sim.half2, witness=weights(0.3), num_samples=3)
    assert restored.report.sampler == "annealed Langevin"
    assert restored.report.status == "ok"
    members = restored.samples - restored.mean
    assert 0.3 < members.std() / restored.std.mean() < 3


def test_boxes_that_are_too_small_are_drawn_as_gaussians():
    shape = (LEAST_EDGE - 4, 24, 24)
    thin = solvent_fit.fit(halves(shape), GEOMETRY.mask(shape), GEOMETRY, of_spread=False)
    assert model_of(weights(), thin, GEOMETRY.mask(shape), GEOMETRY).drawing == "exact"
    with pytest.raises(InputError, match=f"give {LEAST_EDGE} voxels or more"):
        coarse_scene_of(weights(), np.zeros(shape), halves(shape), GEOMETRY)


def test_a_scene_is_what_the_network_is_shown_of_a_tomogram():
    truth = simulated().truth
    scene, own = coarse_scene_of(weights(), truth, halves(), GEOMETRY), model().coarse
    np.testing.assert_allclose(scene.channels[0], own.sight.channels, atol=2e-3 * np.abs(scene.channels).max())
    np.testing.assert_allclose(scene.power[0], own.sight.power, rtol=1e-4, atol=1e-6)
    found = own.level + float(own.sight.scale) * scene.truth[0].astype(float)
    expected = fourier.shrink(jnp.asarray(truth), fourier.halved(SHAPE))
    np.testing.assert_allclose(found, expected, atol=3e-3 * np.abs(expected).max())


@functools.cache
def shipped():
    return model_of(shipped_weights(), solvent(), MASK, GEOMETRY).coarse


@functools.cache
def walks(num_levels, number, seed=0, left_out=0):
    """Draws of the shipped network's posterior on half the grid, as sights are, and the level at which they end."""
    coarse, levels = shipped(), noise_levels(LARGEST, SMALLEST, num_levels)[: num_levels - left_out]

    def one(key):
        return walked(coarse.network, coarse.sight, key, white_noise, levels)

    keys = jax.random.split(jax.random.key(seed), number)
    return np.asarray(platform.jit(lambda keys: jax.lax.map(one, keys))(keys)), levels[-1]


@pytest.mark.slow
@pytest.mark.computes
def test_the_learned_posterior_is_sampled_as_its_own_score_says():
    """Stein's identity by band: E <z - m, score>_B is minus the number of coefficients in B, at a level of 0.14.

    Below, the network's score is not exact: what it says there moves a member by less than that level. A family that is
    a fifth too wide does not pass.
    """
    sight, (drawn, level) = shipped().sight, walks(NUM_LEVELS, 40, left_out=3)
    assert level == pytest.approx(0.14, abs=0.01)
    seen = platform.jit(lambda z: shipped().network(sight, z, jnp.float32(level)).volume)

    def identity(family):
        scores = np.stack([(np.asarray(seen(jnp.asarray(z))) - z) / level**2 for z in family])
        off, score = (np.fft.rfftn(v - v.mean(0), axes=(1, 2, 3), norm="ortho") for v in (family, scores))
        counts = np.broadcast_to(fourier.multiplicity(family.shape[1:]), off.shape[1:])
        product = counts * np.real(off * np.conj(score)).sum(0) / (len(family) - 1)
        radius = fourier.radial_frequency(family.shape[1:])
        bands = [(radius > low) & (radius <= high) for low, high in ((0, 0.2), (0.2, 0.35), (0.35, 0.45))]
        return [-product[band].sum() / counts[band].sum() for band in bands]

    tolerance = 0.15
    np.testing.assert_allclose(identity(drawn), 1, atol=tolerance)
    wide = drawn.mean(0) + 1.2 * (drawn - drawn.mean(0))
    assert np.min(identity(wide)) > 1 + tolerance


@pytest.mark.slow
@pytest.mark.computes
def test_truths_drawn_from_the_learned_posterior_rank_evenly_among_its_members():
    """Simulation-based calibration (Talts et al., 2018) of the walk: truths by 96 levels, families by the stock ones.

    Ranks of contents in random smooth weights; a family that is a third too narrow does not pass.
    """
    (truths, _), (family, _) = walks(96, 60, seed=1), walks(NUM_LEVELS, 60, seed=2)
    rng = np.random.default_rng(0)
    weights = gaussian_filter(rng.standard_normal((24, *truths.shape[1:])), (0, 1.5, 1.5, 1.5), mode="wrap")
    contents = [np.tensordot(some, weights, ((1, 2, 3), (1, 2, 3))) for some in (truths, family)]

    def unevenness(members):
        rank = np.mean(members[None] < contents[0][:, None], axis=1)  # (truths, contents)
        return np.var(rank) * 12, np.mean(rank)

    spread, middle = unevenness(contents[1])
    assert spread == pytest.approx(1, abs=0.15)
    assert middle == pytest.approx(0.5, abs=0.04)
    narrow = contents[1].mean(0) + (contents[1] - contents[1].mean(0)) / 1.33
    assert unevenness(narrow)[0] > 1.2


@pytest.mark.parametrize("flips", HALF_TURNS)
def test_the_correction_of_the_mean_turns_with_what_is_seen(flips):
    own = model(0.3).coarse
    turned = dataclasses.replace(own, sight=half_turned(own.sight, flips)._replace(power=own.sight.power))
    small = fourier.halved(SHAPE)
    here, there = (np.asarray(fourier.shrink(coarse.correction(), small)) for coarse in (own, turned))
    expected = np.asarray(fourier.shrink(fourier.enlarge(jnp.asarray(np.flip(here, flips)), SHAPE), small))
    np.testing.assert_allclose(there, expected, atol=1e-3 * here.std())


def test_the_mean_holds_the_correction_where_that_is_within_the_noise():
    """What the third network adds is there, in the wedge as it says it."""
    bare = model_of(dataclasses.replace(weights(0.3), third=None), solvent(), MASK, GEOMETRY)
    added = np.asarray(model(0.3).mean - bare.mean)
    expected = np.asarray(model(0.3).coarse.correction())
    missing = (MASK == 0) & is_coarse()
    found = np.fft.rfftn(added)[missing]
    np.testing.assert_allclose(found, np.fft.rfftn(expected)[missing], atol=1e-3 * np.abs(found).max())
    assert np.abs(found).max() > 0.01 * np.abs(np.fft.rfftn(bare.mean)[missing]).max()
