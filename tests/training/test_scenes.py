"""Learning from scenes: examples are the scenes they come from, losses are their formulas, and the network learns."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cryowgen_jax.models import denoiser as networks
from cryowgen_jax.models import denoising_network
from cryowgen_jax.operators import wedge_mask
from cryowgen_jax.restoration import solvent_fit
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.simulation import crowded_phantom
from cryowgen_jax.spatial import fourier
from cryowgen_jax.training import (
    CoarseScenes,
    Scenes,
    correction_loss,
    diffusion_loss,
    error_loss,
    learn_prior,
    mean_loss,
    warmed_muon,
)
from cryowgen_jax.training.diffusion import FLOOR, LIKELIHOOD_SHARE, SIGMAS, UNKNOWN_SHARE

BOX, TILTS = (15, 21, 17), (-70.0, 40.0)  # odd: the wedge is not symmetric at Nyquist
SHELLS = fourier.wide_shell_index(BOX)[1]
draw = jax.jit(lambda scenes, key: scenes(key))


@functools.cache
def scenes(number=2):
    """Noise behind a lopsided wedge, in a unit of its own."""
    rng = np.random.default_rng(0)
    mask = np.asarray(wedge_mask(BOX, TILTS))
    truth = 3 + 5 * rng.normal(size=(number, *BOX))
    data = np.stack([np.fft.irfftn(mask * np.fft.rfftn(volume), BOX, axes=(0, 1, 2)) for volume in truth])
    return Scenes(
        truth=truth.astype(np.float32),
        data=data.astype(np.float32),
        solvent=(truth + 2 * rng.normal(size=truth.shape)).astype(np.float32),
        envelope=rng.random(truth.shape).astype(np.float32),
        mean=(truth + rng.normal(size=truth.shape)).astype(np.float32),
        noise=np.full((number, SHELLS), 50.0, np.float32),
        signal=rng.uniform(20, 30, (number, SHELLS)).astype(np.float32),
        tilt_range=np.tile(np.float32(TILTS), (number, 1)),
    )


def test_examples_are_scenes_mirrored_with_their_wedge():
    """A mirror across the beam reverses the tilts: else the mask would cut off some of what was measured."""
    made = [jax.tree.map(np.asarray, draw(scenes(), jax.random.key(i))) for i in range(12)]
    for one in made:
        truth, data = one.truth, np.fft.irfftn(one.spectrum, BOX, axes=(0, 1, 2), norm="ortho")
        behind = np.fft.irfftn(one.mask * np.fft.rfftn(truth), BOX, axes=(0, 1, 2))
        np.testing.assert_allclose(data, behind, atol=1e-4 * truth.std())
        assert np.ptp(one.noise) == 0
        assert one.noise[0, 0, 0] == pytest.approx(50 * np.var(truth) / np.var(scenes().truth), rel=0.1)
    assert len({float(one.truth[0, 0, 0]) for one in made}) > 6
    tilts = {tuple(np.round(60 * one.sight.conditions[-2:]).tolist()) for one in made}
    assert tilts == {TILTS, (-TILTS[1], -TILTS[0])}


def test_a_box_is_cut_at_one_place_from_truth_and_channels():
    whole = dataclasses.replace(scenes(), mean=scenes().truth)
    cut = draw(dataclasses.replace(whole, box=(8, 8, 10)), jax.random.key(3))
    assert cut.truth.shape == (8, 8, 10)
    np.testing.assert_allclose(cut.sight.mean, cut.truth, atol=1e-4)


def coarse(key, low=-60.0, high=40.0):
    """One example whose V is a lopsided wedge's."""
    truth, *channels = jax.random.normal(key, (6, *BOX))
    power = (1.5 - np.asarray(wedge_mask(BOX, (low, high))))[None].astype(np.float32)
    conditions = jnp.arange(14.0).at[-2:].set(jnp.array([low, high]) / 60)
    return CoarseScenes(truth[None], jnp.stack(channels, axis=-1)[None], power, conditions[None])


def test_a_mirrored_example_on_half_the_grid_is_that_of_mirrored_tilts(key):
    """All eight mirrors come; what is across the beam or the third axis reverses the tilts, wedge and numbers."""
    scene, seen = coarse(key), set()
    drawn = jax.jit(lambda k: scene(k))
    for number in range(60):
        one = drawn(jax.random.key(number))
        flips = [
            axes
            for count in range(4)
            for axes in itertools.combinations(range(3), count)
            if np.array_equal(np.flip(scene.truth[0], axes), one.truth)
        ]
        (axes,) = flips
        seen.add(axes)
        np.testing.assert_array_equal(np.flip(scene.channels[0], axes), one.sight.channels)
        limits = (-40.0, 60.0) if (0 in axes) != (2 in axes) else (-60.0, 40.0)
        np.testing.assert_allclose(one.sight.conditions[-2:], np.array(limits) / 60, rtol=1e-6)
        expected = 1.5 - np.asarray(wedge_mask(BOX, limits))
        inside = np.all([np.abs(f) * 2 < 1 for f in np.broadcast_arrays(*fourier.frequencies(BOX))], axis=0)
        np.testing.assert_allclose(one.sight.power[inside], expected[inside], atol=1e-6)
    assert len(seen) == 8


@pytest.mark.parametrize("sigma", [0.2, 0.0])
def test_diffusion_loss_is_relative_to_the_untrained_denoiser(key, sigma):
    one = coarse(key)(key)
    network = shaken_network(key)
    found = diffusion_loss(network, one, key, jnp.float32(sigma))[0]
    noise = jax.random.normal(jax.random.split(key, 3)[2], BOX)
    said = network(one.sight, one.truth + sigma * noise, jnp.float32(sigma))
    error, before = (np.mean((np.asarray(v) - np.asarray(one.truth)) ** 2) for v in (said.volume, said.begun))
    floor = FLOOR * (float(said.reach) / networks.SPREAD) ** 2
    assert found == pytest.approx(error / (before + floor), rel=1e-4)
    assert error != pytest.approx(before, rel=1e-3)


def shaken_network(key):
    leaves, structure = jax.tree.flatten(denoising_network((4,), (1,)))
    keys = jax.random.split(key, len(leaves))
    shaken = [leaf + 0.1 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, shaken)


def test_levels_of_noise_are_drawn_from_the_whole_range(key):
    """Of a stand-in that errs by sigma, and whose untrained form is exact but expects an error of s."""
    one = coarse(key)(key)

    def stand_in(sight, volume, sigma):
        said = denoising_network((2,), (0,))(sight, volume, sigma)
        return said._replace(volume=one.truth + sigma, begun=one.truth, reach=jnp.float32(networks.SPREAD))

    losses = jax.lax.map(lambda k: diffusion_loss(stand_in, one, k)[0], jax.random.split(key, 1000))
    levels = np.sqrt(np.asarray(losses) * FLOOR)
    assert np.mean(levels == 0) == pytest.approx(UNKNOWN_SHARE, abs=4 * np.sqrt(UNKNOWN_SHARE / 1000))
    logs = (np.log(levels[levels > 0]) - np.log(SIGMAS[0])) / np.log(SIGMAS[1] / SIGMAS[0])
    assert -1e-3 < logs.min() < 0.02
    assert 0.98 < logs.max() < 1.001
    assert logs.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / len(logs)))


def test_correction_loss_is_its_formula(key):
    """In float64, for an untrained network: D is the mean it is shown, P the signal, and all voxels err alike."""
    one = draw(scenes(1), key)
    _, log = jax.jit(lambda seen: correction_loss(denoising_network((2,), (0,)), seen))(one)
    truth, guess = (np.fft.rfftn(np.asarray(v, np.float64), norm="ortho") for v in (one.truth, one.sight.mean))
    variance = np.asarray(one.signal, np.float64) + 1e-4
    mask, weight = np.asarray(one.mask), np.broadcast_to(fourier.multiplicity(BOX), one.mask.shape)
    error = guess - truth
    assert log["distance"] == pytest.approx(np.sum(weight * np.abs(error) ** 2) / np.prod(BOX), rel=1e-3)
    shells = weight / (fourier.radial_frequency(BOX) + 0.04) ** 2
    shells[0, 0, 0] = 0
    terms = np.log(variance) + np.abs(error) ** 2 / variance
    assert log["likelihood"] == pytest.approx(np.sum(shells * terms) / shells.sum(), rel=1e-3)
    before = np.mean((one.sight.mean - one.truth) ** 2) + FLOOR
    parts = log["distance"] / before + LIKELIHOOD_SHARE * (log["likelihood"] + log["local"])
    assert log["loss"] == pytest.approx(float(parts), rel=1e-5)
    missing = weight * (1 - mask) * (fourier.radial_frequency(BOX) < 0.25)
    assert log["spread_over_error"] == pytest.approx(
        np.sum(missing * variance) / np.sum(missing * np.abs(guess - truth) ** 2), rel=1e-3
    )


def test_mean_loss_is_relative_to_where_the_network_begins(key):
    one = draw(scenes(1), key)
    before = float(np.mean((one.sight.mean - one.truth) ** 2))
    untrained = denoising_network((2,), (0,))
    assert float(mean_loss(untrained, one)[0]) == pytest.approx(before / (before + FLOOR), rel=1e-4)
    perfect = dataclasses.replace(one, sight=one.sight._replace(channels=one.sight.channels.at[..., 4].set(one.truth)))
    assert float(mean_loss(untrained, perfect)[0]) < 1e-6


def test_error_loss_moves_what_the_network_says_of_its_errors_and_nothing_else(key):
    one = draw(scenes(1), key)
    network = shaken_network(key)
    (value, log), slope = jax.jit(jax.value_and_grad(error_loss, has_aux=True))(network, one)
    assert float(value) == pytest.approx(float(log["likelihood"] + log["local"]), rel=1e-5)
    moved = {jax.tree_util.keystr(path) for path, s in jax.tree_util.tree_leaves_with_path(slope) if np.any(s)}
    assert {name.split("'")[1] for name in moved} == {"gain", "last"}

    def answer(network):
        return network(one.sight, one.sight.mean, jnp.zeros(()))

    stepped = answer(jax.tree.map(lambda leaf, s: leaf - 0.1 * s, network, slope))
    np.testing.assert_array_equal(stepped.volume, answer(network).volume)
    assert np.any(stepped.log_variance != answer(network).log_variance)
    assert np.any(stepped.log_gain != answer(network).log_gain)


def test_muon_moves_every_weight_and_large_ones_by_orthogonal_matrices(key):
    network = denoising_network((24, 32), (1, 1))
    optimizer = warmed_muon(1e-2, 100)
    slope = jax.tree.map(lambda leaf: 10 + jax.random.normal(key, leaf.shape), network.variables)
    state = optimizer.init(network.variables)
    for _ in range(4):
        updates, state = optimizer.update(slope, state, network.variables)
    moved = {jax.tree_util.keystr(p): u for p, u in jax.tree_util.tree_leaves_with_path(updates)}
    assert all(np.abs(update).max() > 0 for update in moved.values())
    kernels = {name: update for name, update in moved.items() if update.ndim == 5}
    assert len(kernels) > 4
    for name, update in kernels.items():
        matrix = np.asarray(update).reshape(-1, update.shape[-1])
        values = np.linalg.svd(matrix, compute_uv=False)
        assert (values.max() < 4 * values.min()) == ("last" not in name), name


def phantoms(rng, number, shape=(32, 40, 32)):
    """Crowded phantoms as scenes."""
    geometry, made = Geometry((-60.0, 60.0)), []
    mask = geometry.mask(shape)
    for _ in range(number):
        truth = crowded_phantom(shape, rng, 10.0).density
        truth = truth / truth.std()
        halves = tuple(
            fourier.irfftn(mask * fourier.rfftn(jnp.asarray(truth + 2 * rng.normal(size=shape), jnp.float32)), shape)
            for _ in range(2)
        )
        model = solvent_fit.fit(halves, mask, geometry, of_spread=False)
        made.append(
            {
                "truth": truth,
                "data": 0.5 * (halves[0] + halves[1]),
                "solvent": model.mean,
                "envelope": model.envelope,
                "mean": model.mean,
                "noise": model.noise,
                "signal": model.signal,
                "tilt_range": geometry.tilt_range,
            }
        )
    return Scenes(**{name: np.stack([np.asarray(one[name], np.float32) for one in made]) for name in made[0]})


@pytest.mark.slow
@pytest.mark.computes
def test_network_learns_to_correct_the_solvent_model(rng):
    """A minute teaches a small network more than the solvent model knows, and how wrong it is."""
    known, unseen = phantoms(rng, 6), phantoms(rng, 2)
    start = denoising_network((12, 16), (1, 1))
    parts = jax.jit(lambda network, k: correction_loss(network, unseen(k))[1])

    def taught(loss, num_iterations):
        options = {"optimizer": optax.adam(1e-3), "batch_size": 2, "num_iterations": num_iterations}
        result = learn_prior(jax.random.key(0), start, known, loss=loss, **options)
        assert result.status == "ok"
        return result.average

    def means(network):
        rows = [parts(network, jax.random.key(100 + i)) for i in range(4)]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    before, knows = means(start), means(taught(correction_loss, 70))
    assert before["wedge_correlation"] > 0.2, "untrained, it is the solvent model"
    assert knows["distance"] < 0.98 * before["distance"]
    assert abs(np.log(knows["spread_over_error"])) < 0.5 * abs(np.log(before["spread_over_error"]))
