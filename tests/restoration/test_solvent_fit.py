import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from cryowgen_jax.operators import wedge_mask
from cryowgen_jax.restoration import solvent_fit, volume_family
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.solvent_settings import SETTINGS
from cryowgen_jax.restoration.spectra import shells_of
from cryowgen_jax.restoration.volume_model import NoiseRule
from cryowgen_jax.simulation import crowded_maps, simulate_tomogram
from cryowgen_jax.simulation.phantoms import draw, species
from cryowgen_jax.spatial import fourier

SHAPE = (24, 32, 28)
MASK = np.asarray(wedge_mask(SHAPE))


@functools.cache
def tomogram(snr=0.2, seed=1):
    return simulate_tomogram(SHAPE, snr=snr, seed=seed)


def standardised(*volumes):
    scale = np.mean(volumes, axis=0).std()
    return tuple(jnp.asarray(v / scale, jnp.float32) for v in volumes), scale


def through_wedge(volume):
    return np.fft.irfftn(np.fft.rfftn(volume) * MASK, SHAPE, axes=(0, 1, 2)).astype(np.float32)


@functools.cache
def models():
    """From two halves, and from one tomogram, with the scale that each was divided by."""
    sim = tomogram()
    halves, scale = standardised(sim.half1, sim.half2)
    one, scale_of_one = standardised(sim.half1)
    return solvent_fit.first_model(halves, MASK), scale, solvent_fit.first_model(one, MASK), scale_of_one


def well_filled(model):
    return model.shells.count > 300


def test_noise_from_two_halves_is_that_of_their_mean():
    model, scale, *_ = models()
    expected = tomogram().noise_sd ** 2 / 2 / scale**2
    many = well_filled(model)
    assert model.noise_rule is NoiseRule.HALVES
    assert many.sum() > 10
    deviation = (model.noise[many] / expected - 1) * np.sqrt(model.shells.count[many] / 2)
    assert np.abs(deviation).max() < 4.5  # standard errors
    halved = (0.5 * model.noise[many] / expected - 1) * np.sqrt(model.shells.count[many] / 2)
    assert np.abs(halved).max() > 4.5


def test_white_noise_of_one_tomogram_is_found_in_its_weakest_shells():
    *_, model, scale = models()
    assert model.noise_rule is NoiseRule.WHITE
    np.testing.assert_allclose(np.sqrt(model.noise) * scale, tomogram().noise_sd, rtol=0.06)


def coloured_model():
    noise = gaussian_filter(np.random.default_rng(3).standard_normal(SHAPE), 0.6, mode="wrap")
    (one,), _ = standardised(through_wedge(tomogram().truth + tomogram().noise_sd * noise))
    return solvent_fit.first_model((one,), MASK)


def test_coloured_noise_is_not_taken_for_white():
    model = coloured_model()
    assert model.noise_rule is NoiseRule.COLOURED
    low, high = (
        model.noise[(model.shells.frequency > a) & (model.shells.frequency < b)].mean()
        for a, b in ((0.1, 0.2), (0.4, 0.5))
    )
    assert low > 3 * high  # the filter's power falls by a factor of ten between the two bands


def test_coloured_noise_is_left_below_the_power_of_the_tomogram():
    model = coloured_model()
    total = model.shells.mean(np.abs(model.observation) ** 2)
    filled = model.shells.count > 0
    assert np.all(model.noise[filled][1:] < total[filled][1:])


def ball_in_vacuum():
    """A textured ball, seen through the wedge without noise: truth, model and mean."""
    rng = np.random.default_rng(8)
    inside = sum((np.arange(n) - n / 2).reshape(-1, *(1,) * (2 - axis)) ** 2 for axis, n in enumerate(SHAPE)) < 8**2
    texture = gaussian_filter(rng.standard_normal(SHAPE), 1.5, mode="wrap")
    truth = gaussian_filter(inside * (1 + texture / texture.std()), 0.7, mode="wrap")
    (data,), scale = standardised(through_wedge(truth))
    model = solvent_fit.fit((data,), MASK, Geometry((-60.0, 60.0)), of_spread=False)
    return truth / scale, model, np.asarray(model.mean)


def test_a_map_without_noise_is_told_from_coloured_noise(monkeypatch):
    def wedge_correlation(truth, mean):
        a, b = (np.fft.rfftn(v)[MASK == 0] for v in (truth, mean))
        return np.vdot(a, b).real / np.sqrt(np.vdot(a, a).real * np.vdot(b, b).real)

    assert coloured_model().cleanness == 0.0
    assert models()[0].cleanness == models()[2].cleanness == 0.0
    truth, model, mean = ball_in_vacuum()
    assert model.noise_rule is NoiseRule.COLOURED
    assert model.cleanness == 1.0
    found = wedge_correlation(truth, mean)
    monkeypatch.setattr(solvent_fit, "_cleanness", lambda *_: 0.0)
    assert found > wedge_correlation(truth, ball_in_vacuum()[2]) + 0.02


@pytest.mark.parametrize("which", [0, 2])
def test_spectra_are_positive_and_particles_have_no_less_power_than_solvent(which):
    model = models()[which]
    for profile in (model.noise, model.signal, model.solvent, model.particle):
        assert np.isfinite(profile).all()
        assert profile.min() > 0
    assert np.all(model.particle >= model.solvent)
    assert np.all(1 / model.shells.spread(model.particle) - model.prior_precision > 0)


def test_solvent_spectrum_is_that_of_the_simulated_texture_and_not_of_particles():
    """Where the data are good (low frequency) the estimate is nearer to the texture's power than to the particles'."""
    model, scale, *_ = models()
    sim = tomogram()
    outside = sim.labels == 0
    texture = np.where(outside, sim.truth, 0)
    power = model.shells.mean(np.abs(np.fft.rfftn(texture - texture[outside].mean() * outside, norm="ortho")) ** 2)
    band = (model.shells.frequency > 0.06) & (model.shells.frequency < 0.2)
    ratio = model.solvent[band] / (power[band] / outside.mean() / scale**2)
    assert 0.3 < np.median(ratio) < 6
    assert np.median(model.particle[band] / model.solvent[band]) > 2


@pytest.mark.parametrize("which", [0, 2])
def test_envelope_is_low_in_particles_and_high_in_solvent(which):
    model = models()[which]
    labels = tomogram().labels
    assert 0 <= model.envelope.min() <= model.envelope.max() <= 1
    assert model.envelope[labels == 0].mean() > model.envelope[labels > 0].mean() + 0.25


def test_level_is_near_that_of_the_solvent():
    model, scale, *_ = models()
    seen = through_wedge(tomogram().truth) / scale
    assert abs(model.level - np.median(seen[tomogram().labels == 0])) < 0.15


def test_the_posterior_weighs_data_by_the_noise():
    model, *_ = models()
    posterior = model.posterior(MASK)
    weight = np.asarray(posterior.data_weight * posterior.decoder.transfer**2)
    np.testing.assert_allclose(weight, MASK / model.shells.spread(model.noise), rtol=1e-4)
    assert posterior.data_weight == pytest.approx(
        1 / np.average(model.shells.spread(model.noise), weights=model.shells.weight), rel=1e-4
    )
    quadratic = posterior.witness.terms[0].curvature + posterior.prior_precision
    np.testing.assert_allclose(quadratic, 1 / model.shells.spread(model.particle), rtol=1e-4)
    seen = np.fft.rfftn(np.asarray(posterior.observation), norm="ortho")
    expected = np.asarray(posterior.decoder.transfer) * model.observation
    np.testing.assert_allclose(seen, expected, atol=1e-4 * np.abs(expected).max())


def test_the_posterior_is_the_model_of_the_docstring(rng):
    model, *_ = models()
    posterior = model.posterior(MASK)
    volume = rng.standard_normal(SHAPE).astype(np.float32)
    both = 2.0 * np.ones(SHAPE[-1] // 2 + 1)
    both[0] = both[-1] = 1  # an even last axis

    def filtered(profile, v):
        return np.fft.irfftn(np.fft.rfftn(v) * model.shells.spread(profile), SHAPE, axes=(0, 1, 2))

    def energy(profile, v):
        return 0.5 * np.sum(both * model.shells.spread(profile) * np.abs(np.fft.rfftn(v, norm="ortho")) ** 2)

    def log_density(v):
        offset = v - model.level
        misfit = np.abs(np.fft.rfftn(v, norm="ortho") - model.observation) ** 2 / model.shells.spread(model.noise)
        in_solvent = 0.5 * np.sum(model.envelope * filtered(1 / np.sqrt(model.solvent), offset) ** 2)
        return -in_solvent - energy(1 / model.particle, offset) - 0.5 * np.sum(both * MASK * misfit)

    other = np.zeros(SHAPE, np.float32)
    expected = log_density(volume) - log_density(other)
    found = float(posterior.log_density(jnp.asarray(volume)) - posterior.log_density(jnp.asarray(other)))
    assert found == pytest.approx(expected, rel=1e-3)


def test_updates_keep_the_noise_of_halves_and_sharpen_the_envelope():
    model, *_ = models()
    truth = through_wedge(tomogram().truth) / models()[1]
    better = solvent_fit.update(solvent_fit.update(model, truth, 0.5), truth, 1.0)
    np.testing.assert_array_equal(better.noise, model.noise)
    assert abs(better.level - model.level) < 0.05  # a mean over the envelope drifts by 0.3
    labels = tomogram().labels

    def contrast(m):
        return m.envelope[labels == 0].mean() - m.envelope[labels > 0].mean()

    assert contrast(better) > contrast(model)


def test_a_higher_threshold_leaves_more_to_solvent():
    model, *_ = models()
    truth = through_wedge(tomogram().truth) / models()[1]
    low, high = (solvent_fit.update(model, truth, t).envelope.mean() for t in (0.3, 1.0))
    assert high > low


@pytest.mark.parametrize("kind", ["particle", "solvent"])
def test_starts_have_the_spread_of_their_kind_of_voxel(kind):
    model, *_ = models()
    envelope = np.full(SHAPE, 1.0 if kind == "solvent" else 0.0, np.float32)
    model = dataclasses.replace(model, envelope=envelope, mean=np.full(SHAPE, 0.3, np.float32))
    draws = [np.asarray(model.draw(jax.random.key(i), MASK)) - 0.3 for i in range(6)]
    precision = MASK / model.shells.spread(model.noise) + 1 / model.shells.spread(model.particle)
    if kind == "solvent":
        precision = precision + 1 / model.shells.spread(model.solvent)
    whitened = np.mean([np.abs(np.fft.rfftn(d, norm="ortho")) ** 2 for d in draws], axis=0) * precision
    for region in (MASK > 0, MASK == 0):
        assert whitened[region].mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("widening", [1.0, 6.0])
def test_starts_are_draws_of_the_posterior(widening):
    """log rho at the mean less that at a draw is half a chi squared of as many degrees of freedom as voxels."""
    model, *_ = models()
    mean = model.posterior_mean(jnp.zeros(SHAPE), MASK)
    model = dataclasses.replace(model, mean=np.asarray(mean), widening=np.full_like(model.solvent, widening))
    posterior = model.posterior(MASK)
    wiener = jax.jit(posterior.drift)(jnp.zeros(SHAPE))
    assert np.linalg.norm(jax.jit(posterior.drift)(mean)) < 0.02 * np.linalg.norm(wiener)
    exactly = model.posterior_mean(mean, MASK, SETTINGS.final_residual)
    exact = dataclasses.replace(model, mean=np.asarray(exactly)).posterior(MASK)
    assert np.linalg.norm(jax.jit(exact.drift)(exactly)) < 1e-3 * np.linalg.norm(wiener)
    log_density = jax.jit(posterior.log_density)

    def depth(key, model=model):
        return 2 * float(log_density(mean) - log_density(model.draw(key, MASK))) / np.prod(SHAPE)

    keys = [jax.random.key(i) for i in range(4)]
    error = 4 * np.sqrt(2 / (len(keys) * np.prod(SHAPE))) + 2e-3  # and what conjugate gradients leave
    assert np.mean([depth(key) for key in keys]) == pytest.approx(1, abs=error)
    other = dataclasses.replace(model, envelope=np.roll(model.envelope, SHAPE[1] // 2, axis=1) ** 2)
    assert abs(np.mean([depth(key, other) for key in keys]) - 1) > 4 * error, "negative control"


def test_pure_noise_is_nearly_all_solvent():
    noise = through_wedge(np.random.default_rng(8).standard_normal(SHAPE))
    (one,), _ = standardised(noise)
    model = solvent_fit.first_model((one,), MASK)
    model = solvent_fit.update(model, np.zeros(SHAPE, np.float32) + 0.01 * np.asarray(one), 1.0)
    assert model.envelope.mean() > 0.8
    assert np.median(model.signal) < 0.15 * np.median(model.noise)


@pytest.mark.parametrize(
    ("tilts", "axes", "hidden"),
    [
        ((-60, 60), "yz", (-15, 15)),
        ((-40, 60), "yz", (-10, 30)),
        ((-35, 50), "zx", (-9.5, 24.5)),  # 0.4 of the range is less than half of what is missing
        ((-50, 80), "yz", (2.5, 27.5)),
        ((0, 60), "yz", (18, 42)),
        ((-80, -30), "xy", (-65, -45)),
    ],
)
def test_a_blind_model_lacks_the_tilts_in_the_middle(tilts, axes, hidden):
    tilt, beam = axes
    mask = np.asarray(wedge_mask(SHAPE, tilts, tilt_axis=tilt, beam_axis=beam))
    seen = solvent_fit.without_middle(mask, SHAPE, Geometry(tilts, tilt, beam))
    frequency = dict(zip("zyx", np.broadcast_arrays(*fourier.frequencies(SHAPE)), strict=True))
    k_beam, k_plane = frequency[beam], frequency[({*"xyz"} - {tilt, beam}).pop()]
    inside = (np.abs(k_beam) < 0.5) & (np.abs(k_plane) < 0.5)
    off_axis = inside & (k_plane != 0)
    angle = np.rad2deg(np.arctan(k_beam[off_axis] / k_plane[off_axis]))
    expected = (angle > hidden[0]) & (angle < hidden[1])
    margin = np.minimum(np.abs(angle - hidden[0]), np.abs(angle - hidden[1])) > 1e-3
    np.testing.assert_array_equal((mask[off_axis] * (1 - seen[off_axis]))[margin], expected[margin])
    axis = (k_beam == 0) & (k_plane == 0)
    np.testing.assert_array_equal(seen[axis], mask[axis])
    whole = np.ones_like(mask)
    np.testing.assert_array_equal(solvent_fit.without_middle(whole, SHAPE, Geometry((-90, 90), tilt, beam)), whole)


@pytest.mark.parametrize(("too_sure", "noise", "expected"), [(1.0, 0.02, 1.0), (8.0, 0.02, 8.0), (8.0, 100.0, 1.0)])
def test_solvent_is_widened_by_as_much_as_a_blind_model_was_too_sure(rng, too_sure, noise, expected):
    """Volumes drawn from the prior of solvent everywhere, whose P_s the models then take for smaller than it is.

    Where noise hides all of the solvent nothing can be learned, and nothing is done.
    """
    shape = (32, 48, 40)  # on a smaller box now and then noise seems significant
    mask, sim = np.asarray(wedge_mask(shape)), simulate_tomogram(shape, snr=0.2, seed=1)
    model = solvent_fit.first_model(standardised(sim.half1, sim.half2)[0], mask)
    model = dataclasses.replace(model, particle=30 * model.solvent, noise=noise * model.solvent)
    spread = model.shells.spread
    seen = solvent_fit.without_middle(mask, shape, Geometry((-60, 60)))

    def coloured(power):
        return np.fft.rfftn(rng.standard_normal(shape), norm="ortho") * np.sqrt(spread(power))

    data = coloured(1 / (1 / model.particle + 1 / model.solvent)) + coloured(model.noise)
    data[0, 0, 0] += model.level * np.sqrt(np.prod(shape))
    sure = dataclasses.replace(
        model,
        halves=(data.astype(np.complex64) * mask,),
        solvent=model.solvent / too_sure,
        envelope=np.ones(shape, np.float32),
    )
    blind = dataclasses.replace(sure, shells=shells_of(shape, seen), halves=(sure.halves[0] * seen,))
    blind = dataclasses.replace(blind, mean=np.asarray(blind.posterior_mean(jnp.zeros(shape), seen)))
    found = solvent_fit.widen(sure, mask, blind, seen).widening
    many = shells_of(shape, mask - seen).count > 100
    assert many.sum() > 10
    factor = np.log(found[many]) / SETTINGS.share_of_widening
    assert factor.mean() == pytest.approx(np.log(expected), abs=0.1)
    assert np.abs(factor - np.log(expected)).max() < 0.5


@pytest.mark.parametrize("widening", [1.0, 20.0])
def test_standard_deviation_is_that_of_many_draws(widening):
    """From eight draws, within what so few say; it follows the envelope and does not depend on which draws."""
    model, *_ = models()
    mean = np.asarray(model.posterior_mean(jnp.zeros(SHAPE), MASK))
    model = dataclasses.replace(model, mean=mean, widening=np.full_like(model.solvent, widening))
    draws = [volume_family.draw(jax.random.key(5), i, model, MASK) for i in range(88)]
    found, others = (np.asarray(model.standard_deviation(some)) for some in (draws[:8], draws[8:16]))
    expected = np.sqrt(np.mean([np.square(draw - model.mean) for draw in draws[8:]], axis=0))
    ratio = found / expected
    for kind in (model.envelope > 0.9, model.envelope < 0.1):
        assert ratio[kind].mean() == pytest.approx(1, abs=0.06)
    assert ratio.std() < 0.16, "80 draws alone leave 0.08"
    assert np.abs(found / others - 1).mean() < 0.06
    flat = np.full_like(found, np.sqrt(np.mean(np.square(found))))
    assert np.std(flat / expected) > 1.5 * ratio.std() or widening > 10


def missing_energy(volume, mask):
    shape = volume.shape
    missing = (1 - mask) * fourier.multiplicity(shape) * (fourier.radial_frequency(shape) < 0.25)
    return np.sum(missing * np.abs(np.fft.rfftn(np.asarray(volume), norm="ortho")) ** 2)


@functools.cache
def spread_over_error(shape, seed):
    """In the wedge of a tomogram whose truth is known: of the family, and without the widening."""
    sim, mask = simulate_tomogram(shape, snr=0.1, seed=seed), np.asarray(wedge_mask(shape))
    halves, scale = standardised(sim.half1, sim.half2)
    model = solvent_fit.fit(halves, mask, Geometry((-60, 60)))
    ratios = []
    for widening in (model.widening, np.ones_like(model.widening)):
        other = dataclasses.replace(model, widening=widening)
        draws = [volume_family.draw(jax.random.key(4), i, other, mask) for i in range(6)]
        spread = np.mean([missing_energy(draw - model.mean, mask) for draw in draws])
        ratios.append(spread / missing_energy(sim.truth / scale - model.mean, mask))
    return ratios


def test_the_fit_widens_what_the_family_misses_in_the_wedge():
    """Of two small tomograms; by how much is seen on the average of larger ones, which the slow test looks at."""
    with_it, without = np.mean([spread_over_error(SHAPE, seed) for seed in (0, 1)], axis=0)
    assert 0.8 < with_it < 1.25
    assert without < 0.8 * with_it


@pytest.mark.slow
@pytest.mark.parametrize("widened", [True, False])
def test_the_family_spreads_by_about_what_it_misses_in_the_wedge(widened):
    """Without the widening (the negative control) by much less."""
    with_it, without = np.mean([spread_over_error((32, 48, 40), seed) for seed in (0, 1, 3)], axis=0)
    assert 0.8 < with_it < 1.25 if widened else without < 0.65


@functools.cache
def alone():
    """One complex in vacuum behind the wedge, and two halves with little noise."""
    rng = np.random.default_rng(2)
    _, density = draw(species(rng, 1.0)[1], 1.0)
    truth = crowded_maps(SHAPE, [density], rng, most=1).density
    return truth, [through_wedge(truth + 0.1 * rng.normal(size=SHAPE)) for _ in range(2)]


def in_wedge(volume):
    """Correlation with the truth where nothing was measured."""
    a, b = (np.where(MASK == 0, np.fft.rfftn(np.asarray(v, np.float64)), 0) for v in (volume, alone()[0]))
    return float(np.sum(np.real(a * np.conj(b))) / np.sqrt(np.sum(np.abs(a) ** 2) * np.sum(np.abs(b) ** 2)))


def test_halves_of_a_complex_in_vacuum_are_no_worse_than_their_mean():
    """Empty space has no texture to measure deviations by: taken for a tomogram's, its streaks become particles."""
    halves, _ = standardised(*alone()[1])
    unaware = dataclasses.replace(SETTINGS, empty_share=(1e-9, 1e-10))

    def fitted(*parts, settings=SETTINGS):
        return solvent_fit.fit(parts, MASK, Geometry((-60.0, 60.0)), of_spread=False, settings=settings)

    both, one, as_before = fitted(*halves), fitted(0.5 * (halves[0] + halves[1])), fitted(*halves, settings=unaware)
    assert both.cleanness > 0.5 > as_before.cleanness
    assert in_wedge(both.mean) > in_wedge(one.mean) - 0.01
    assert in_wedge(both.mean) > in_wedge(as_before.mean) + 0.01


def test_a_crowded_tomogram_of_halves_is_not_taken_for_vacuum():
    halves, _ = standardised(tomogram().half1, tomogram().half2)
    assert solvent_fit.fit(halves, MASK, Geometry((-60.0, 60.0)), of_spread=False).cleanness == 0


def test_a_blind_model_is_of_the_kind_of_the_whole_one(monkeypatch):
    """What is hidden from it must not make a tomogram look like particles in vacuum."""
    asked = []

    def note(halves, mask, settings=SETTINGS):
        asked.append(settings.empty_share)
        return first_model(halves, mask, settings)

    first_model = solvent_fit.first_model
    monkeypatch.setattr(solvent_fit, "first_model", note)
    for halves in ((tomogram().half1, tomogram().half2), alone()[1]):
        solvent_fit.fit(standardised(*halves)[0], MASK, Geometry((-60.0, 60.0)))
    assert asked == [SETTINGS.empty_share, solvent_fit.NEVER_EMPTY, SETTINGS.empty_share, SETTINGS.empty_share]
