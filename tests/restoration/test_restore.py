import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from cryowgen_jax.operators import wedge_mask
from cryowgen_jax.potentials import QuadraticWitness
from cryowgen_jax.restoration import cost, restore
from cryowgen_jax.restoration.checks import check_options
from cryowgen_jax.simulation import evaluate_family, simulate_tomogram
from cryowgen_jax.types import InputError

SHAPE = (24, 32, 28)
TILTS = (-60.0, 60.0)
MASK = np.asarray(wedge_mask(SHAPE, TILTS))
FEW = {"num_samples": 4, "num_steps": 4, "warmup": 4, "devices": jax.devices()[:1]}  # one device compiles faster
QUICK = FEW | {"witness": "solvent"}
CHAINS = QUICK | {"sampler": "preconditioned"}
SLOW = pytest.mark.slow


@functools.cache
def tomogram(shape=SHAPE, snr=0.2, seed=1):
    return simulate_tomogram(shape, TILTS, snr=snr, seed=seed)


@functools.cache
def quick(what="half1"):
    """A restoration that several tests look at: of one tomogram, with another key or chains, or of both halves."""
    sim, key = tomogram(), jax.random.key(5) if what == "another key" else None
    options = CHAINS if what == "chains" else QUICK
    return restore(sim.half1, TILTS, half2=sim.half2 if what == "halves" else None, key=key, **options)


def through_wedge(volume, mask=MASK):
    return np.fft.irfftn(np.fft.rfftn(volume) * mask, volume.shape, axes=(0, 1, 2)).astype(np.float32)


def spectrum(volume):
    return np.fft.rfftn(np.asarray(volume, np.float64), axes=(-3, -2, -1), norm="ortho")


def radius(shape=SHAPE):
    axes = [np.fft.fftfreq(n) for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    return np.sqrt(sum(f**2 for f in np.meshgrid(*axes, indexing="ij")))


def shell_means(values, where):
    """Mean of values over the coefficients of ten shells that ``where`` selects."""
    shells = np.minimum((radius((*where.shape[:-1], SHAPE[-1])) * 20).astype(int), 9)
    return np.array([values[where & (shells == s)].mean() for s in range(10)])


def assert_sound(result, shape=SHAPE):
    assert result.mean.shape == result.std.shape == shape
    assert result.samples.shape == (QUICK["num_samples"], *shape)
    for volume in (result.mean, result.std, result.samples):
        assert volume.dtype == np.float32
        assert np.isfinite(volume).all()
    assert np.all(result.std >= 0)
    assert result.std.max() > 0
    assert result.weights.sum() == pytest.approx(1, abs=1e-5)
    assert result.report.status == "ok"


# What was measured, and what was not


@pytest.mark.slow
@pytest.mark.parametrize(("what", "number"), [("half1", 1), ("halves", 2)])
def test_the_mean_agrees_with_the_data_within_the_noise(what, number):
    sim, result = tomogram(), quick(what)
    data = sim.half1 if number == 1 else (sim.half1 + sim.half2) / 2
    misfit = np.abs(spectrum(result.mean) - spectrum(data)) ** 2 / (sim.noise_sd**2 / number)
    measured = (MASK > 0) & (radius() > 0)
    ratio = shell_means(misfit, measured)
    assert ratio.max() <= 1.1
    assert ratio.mean() > 0.1  # the noise itself is not fitted
    assert np.mean(np.abs(spectrum(data))[measured] ** 2) / (sim.noise_sd**2 / number) > ratio.mean()


def test_a_mean_that_ignores_the_data_would_be_seen():
    sim, result = tomogram(), quick("halves")
    wrong = np.roll(result.mean, 3, 2)
    data = (sim.half1 + sim.half2) / 2
    misfit = np.abs(spectrum(wrong) - spectrum(data)) ** 2 / (sim.noise_sd**2 / 2)
    assert shell_means(misfit, (MASK > 0) & (radius() > 0)).max() > 2


@pytest.mark.parametrize("what", ["half1", "halves"])
def test_samples_differ_most_where_nothing_was_measured(what):
    result = quick(what)
    variance = np.var(spectrum(result.samples), axis=0)
    low = (radius() > 0.03) & (radius() < 0.2)
    wedge, measured = variance[low & (MASK == 0)], variance[low & (MASK > 0)]
    assert np.all(wedge > 0)
    assert wedge.mean() > 1.5 * measured.mean()
    assert np.median(wedge) > np.median(measured)


def test_the_wedge_is_filled():
    result = quick("halves")
    sim = tomogram()
    score = evaluate_family(sim.truth, result.mean, result.samples, result.weights, result.wedge)
    data = evaluate_family(sim.truth, sim.half1, result.samples, result.weights, result.wedge)
    assert score.in_wedge_correlation > 0.45
    assert 0.1 < score.wedge_energy_ratio < 1.2
    assert data.in_wedge_correlation == 0
    np.testing.assert_array_equal(result.wedge, MASK)


@pytest.mark.parametrize("what", ["half1", "halves"])
def test_the_report_says_what_happened(what):
    result = quick(what)
    report = result.report
    assert_sound(result)
    assert report.contrast == "bright"
    assert report.noise_rule == ("difference of the halves" if what == "halves" else "white, from the weakest shells")
    expected = tomogram().noise_sd / (np.sqrt(2) if what == "halves" else 1)
    assert report.noise_std == pytest.approx(expected, rel=0.1)
    assert report.region == tuple((0, n) for n in SHAPE)
    assert report.envelope.shape == SHAPE
    labels = tomogram().labels
    assert report.envelope[labels > 0].mean() > report.envelope[labels == 0].mean() + 0.25
    assert (report.sampler, report.num_gradients, report.ess) == ("exact", 0, QUICK["num_samples"])
    assert (report.witness, report.hidden_tilt_agreement) == ("solvent", {})
    assert report.wedge_found.beam_axis == "z"
    assert not report.warnings


def test_chains_that_were_asked_for_say_that_they_are_short():
    report = quick("chains").report
    assert_sound(quick("chains"))
    assert report.sampler == "preconditioned"
    assert report.num_gradients == QUICK["num_samples"] * (QUICK["num_steps"] + QUICK["warmup"])
    assert any("too short to say" in sentence for sentence in report.warnings)


def test_chains_and_draws_are_of_one_posterior():
    """They have one mean; their spreads agree within what four members, and a few steps of four chains, say of them."""
    np.testing.assert_array_equal(quick("chains").mean, quick().mean)
    chains, draws = (np.square(quick(what).std) for what in ("chains", "half1"))
    assert np.mean(chains) == pytest.approx(np.mean(draws), rel=0.1)
    for result in (quick("chains"), quick()):
        off = np.mean(np.square(result.samples - result.mean), axis=0)
        assert np.mean(off / np.square(result.std)) == pytest.approx(1, abs=0.15)


# Symmetries


def differs_by(result, other, scale=1.0, shift=0.0, sign=1.0):
    """Largest difference of mean, samples and spread, over the standard deviation of the mean."""
    mean = np.abs(other.mean - (scale * sign * result.mean + shift)).max()
    samples = np.abs(other.samples - (scale * sign * result.samples + shift)).max()
    spread = np.abs(other.std - scale * result.std).max()
    return max(mean, samples, spread) / (scale * result.mean.std())


@pytest.mark.parametrize(
    ("scale", "shift", "within"),
    [
        (3.7, 1.1, 2e-3),
        *(pytest.param(*case, marks=SLOW) for case in ((4.0, 0.0, 1e-6), (1e-8, 0.0, 2e-3), (1e8, -3e8, 2e-3))),
    ],
)
def test_restorations_scale_with_the_tomogram(scale, shift, within):
    volume = np.float32(scale) * tomogram().half1 + np.float32(shift)
    other = restore(volume, TILTS, **QUICK)
    assert differs_by(quick(), other, np.float32(scale), np.float32(shift)) < within


@pytest.mark.parametrize("contrast", ["auto", pytest.param("dark", marks=SLOW)])
def test_inverted_contrast_gives_the_inverted_restoration(contrast):
    other = restore(-tomogram().half1, TILTS, contrast=contrast, **QUICK)
    assert other.report.contrast == "dark"
    assert differs_by(quick(), other, sign=-1.0) < 1e-6


def test_the_wrong_contrast_is_something_else():
    other = restore(tomogram().half1, TILTS, contrast="dark", **QUICK)
    assert differs_by(quick(), other) > 0.5


@SLOW
def test_no_key_is_key_0():
    same = restore(tomogram().half1, TILTS, key=jax.random.key(0), **QUICK)
    np.testing.assert_array_equal(same.samples, quick().samples)
    np.testing.assert_array_equal(same.mean, quick().mean)


@SLOW
def test_more_members_are_more_draws():
    many = restore(tomogram().half1, TILTS, **QUICK | {"num_samples": 6})
    assert many.samples.shape == (6, *SHAPE)
    np.testing.assert_array_equal(many.samples[:4], quick().samples)


@SLOW
def test_more_members_are_earlier_draws_of_the_same_chains():
    few, sim = quick("chains"), tomogram()
    many = restore(sim.half1, TILTS, num_chains=4, **CHAINS | {"num_samples": 10})
    assert many.samples.shape == (10, *SHAPE)
    assert np.allclose(many.weights, 0.1)
    np.testing.assert_allclose(many.samples[:4], few.samples, atol=1e-5 * few.samples.std())
    np.testing.assert_allclose(many.std, few.std, rtol=1e-4)
    assert many.report.num_gradients == few.report.num_gradients
    step = np.square(many.samples[4] - many.samples[0]).mean() / np.square(many.samples[1] - many.samples[0]).mean()
    assert 0.3 < step < 1.1, "two steps of one chain part about as far as two chains"


def test_no_position_is_special():
    """A tomogram whose faces fit, rolled, gives the rolled restoration: no seam, no favourite place."""
    sim = tomogram()
    shift, axes = (7, 11, -5), (0, 1, 2)
    other = restore(np.roll(sim.half1, shift, axes), TILTS, half2=np.roll(sim.half2, shift, axes), **QUICK)
    expected = np.roll(quick("halves").mean, shift, axes)
    assert np.corrcoef(other.mean.ravel(), expected.ravel())[0, 1] > 0.99
    assert np.corrcoef(other.mean.ravel(), quick("halves").mean.ravel())[0, 1] < 0.5
    assert other.std.mean() == pytest.approx(quick("halves").std.mean(), rel=0.03)


@pytest.mark.slow
def test_axes_can_be_called_otherwise():
    """z y x -> x z y: the beam comes to lie along x and the tilt axis along z."""
    sim, order = tomogram(), (1, 2, 0)
    turned = [np.ascontiguousarray(np.transpose(v, order)) for v in (sim.half1, sim.half2)]
    other = restore(turned[0], TILTS, half2=turned[1], tilt_axis="z", beam_axis="x", **QUICK)
    back = np.argsort(order)
    assert (other.report.wedge_found.tilt_axis, other.report.wedge_found.beam_axis) == ("z", "x")
    samples = np.stack([np.transpose(s, back) for s in other.samples])
    score = evaluate_family(sim.truth, np.transpose(other.mean, back), samples, other.weights, MASK)
    own = quick("halves")
    expected = evaluate_family(sim.truth, own.mean, own.samples, own.weights, MASK)
    assert score.in_wedge_correlation == pytest.approx(expected.in_wedge_correlation, abs=0.05)
    assert score.measured_correlation == pytest.approx(expected.measured_correlation, abs=0.02)


# Shapes


@pytest.mark.parametrize(
    "shape", [(28, 24, 32), *(pytest.param(shape, marks=SLOW) for shape in ((16, 61, 45), (31, 37, 41)))]
)
def test_thin_and_odd_boxes_with_the_beam_along_x(shape):
    """The first one has SHAPE when it is turned, which compiles nothing anew."""
    truth = tomogram((24, *shape[1:]) if shape[0] == 16 else shape).truth[: shape[0]]
    noise = truth.std() * 2 * np.random.default_rng(4).standard_normal(shape)
    data = through_wedge(truth + noise, np.asarray(wedge_mask(shape, TILTS)))
    data, truth = (np.ascontiguousarray(np.transpose(v, (1, 2, 0))) for v in (data, truth))
    result = restore(data, TILTS, tilt_axis="z", beam_axis="x", **QUICK)
    assert_sound(result, truth.shape)
    assert result.wedge.shape == (*truth.shape[:-1], truth.shape[-1] // 2 + 1)
    score = evaluate_family(truth, result.mean, result.samples, result.weights, result.wedge)
    assert score.measured_correlation > 0.8
    assert score.in_wedge_correlation > 0.2


def test_a_crop_whose_faces_do_not_fit_and_a_constant_border():
    """The border comes back as it was; inside, the jump between opposite faces is no matter."""
    sim = tomogram((24, 40, 34))
    crop = sim.half1[:, 4:-4, 3:-3]
    volume = np.pad(crop, ((3, 0), (0, 2), (1, 1)), constant_values=-50)
    result = restore(volume, TILTS, **QUICK)
    assert result.report.region == ((3, 27), (0, 32), (1, 29))
    inside = (slice(3, None), slice(0, 32), slice(1, 29))
    border = np.ones(volume.shape, bool)
    border[inside] = False
    assert np.all(result.mean[border] == -50)
    assert np.all(result.samples[:, border] == -50)
    assert np.all(result.std[border] == 0)
    assert np.all(result.std[inside] > 0)
    assert result.wedge.shape == (*volume.shape[:-1], volume.shape[-1] // 2 + 1)
    assert result.report.envelope.shape == volume.shape
    truth = sim.truth[:, 4:-4, 3:-3]
    assert np.corrcoef(result.mean[inside].ravel(), truth.ravel())[0, 1] > 0.6
    measured = np.abs(spectrum(result.mean[inside]) - spectrum(crop)) ** 2 / sim.noise_sd**2
    assert np.median(measured[MASK > 0]) < 1.1


def test_the_mean_is_solved_for_and_not_that_of_the_chains():
    other = quick("another key")
    assert differs_by(quick(), other) > 0.5
    np.testing.assert_array_equal(other.mean, quick().mean)
    assert np.all(np.std(other.samples - quick().samples, axis=(1, 2, 3)) > 0)
    off = np.mean(quick().samples, axis=0) - other.mean
    assert np.mean(off**2) < 0.6 * np.mean(other.std**2)


# Other witnesses, centres, methods


def test_a_center_tethers():
    sim = tomogram()
    center = sim.truth - sim.truth.mean()
    tethered = restore(sim.half1, TILTS, center=center, **QUICK)
    free = quick()
    wedge = MASK == 0

    def distance(result):
        return np.sum(np.abs(spectrum(result.mean) - spectrum(center))[wedge] ** 2)

    assert distance(tethered) < 0.2 * distance(free)
    assert tethered.report.prior_precision > free.report.prior_precision


def test_a_center_that_is_wrong_is_hardly_listened_to():
    sim = tomogram()
    wrong = 20 * np.random.default_rng(0).standard_normal(SHAPE) * sim.truth.std()
    tethered = restore(sim.half1, TILTS, center=wrong, **QUICK)
    assert tethered.report.prior_precision < 0.05
    assert np.corrcoef(tethered.mean.ravel(), quick().mean.ravel())[0, 1] > 0.5


def test_a_witness_of_ones_own():
    """A stationary Gaussian prior: exact draws, and where nothing was measured its own mean and variance."""
    sim = tomogram()
    witness = QuadraticWitness(jnp.full(MASK.shape, 4.0), jnp.zeros(SHAPE))
    result = restore(sim.half1, TILTS, witness=witness, **FEW | {"num_steps": 7})
    assert result.report.witness == "given"
    assert_sound(result)
    assert result.report.envelope is None
    scale = sim.half1.std(dtype=np.float64)
    precision = 4.0 + result.report.prior_precision
    variance = np.var(spectrum(result.samples), axis=0, ddof=1)[(MASK == 0)].mean() / scale**2
    assert variance == pytest.approx(1 / precision, rel=0.05)
    mean = spectrum(result.mean)[MASK == 0] / scale
    assert np.abs(mean).max() < 0.5
    measured, noise = (MASK > 0) & (radius() > 0), sim.noise_sd**2 / scale**2
    shrunk = spectrum(sim.half1)[measured] / (1 + noise * precision)
    found = spectrum(result.mean)[measured]
    assert np.corrcoef(found.real, shrunk.real)[0, 1] > 0.9
    assert found.std() == pytest.approx(shrunk.std(), rel=0.15)


@pytest.mark.slow
def test_a_witness_that_is_a_bare_function_is_sampled_with_metropolis():
    result = restore(tomogram().half1, TILTS, **FEW, witness=lambda z: -0.5 * jnp.sum(jnp.cosh(z) - 1))
    assert_sound(result)
    assert result.report.sampler == "pcnl"


def test_importance_sampling_from_the_models_own_draws_agrees_with_the_chains():
    """The posterior is what the model draws, so all weights are alike."""
    result = restore(tomogram().half1, TILTS, method="cryowgen_mc", num_candidates=24, **QUICK)
    assert_sound(result)
    assert result.report.ess == pytest.approx(24, rel=1e-5)
    assert not result.report.warnings
    assert np.mean(result.std**2) == pytest.approx(np.mean(quick().std ** 2), rel=0.1)
    off = np.mean((result.mean - quick().mean) ** 2) / np.mean(quick().std ** 2)
    assert off == pytest.approx(1 / 24, rel=0.25)


@SLOW
def test_importance_sampling_confesses():
    """A centre pulls the posterior away from what the model draws."""
    center = tomogram().truth - tomogram().truth.mean()
    result = restore(tomogram().half1, TILTS, center=center, method="cryowgen_mc", num_candidates=6, **QUICK)
    assert np.isfinite(result.mean).all()
    assert result.report.ess < 1.5
    assert any("use cryowgen_langevin" in sentence for sentence in result.report.warnings)


@SLOW
def test_importance_sampling_looks_at_no_fewer_candidates_than_members():
    few = restore(tomogram().half1, TILTS, method="cryowgen_mc", num_candidates=1, **QUICK)
    assert len(few.samples) == QUICK["num_samples"]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "off"), [("cryogen_map", 0.01), ("cryogen_ot", 0.2)])
def test_point_estimates_are_one_answer_near_the_mean_of_the_family(method, off):
    """The solvent model is Gaussian, so that its highest point is its mean; transport does without the tether."""
    sim = tomogram()
    family = restore(sim.half1, TILTS, half2=sim.half2, **QUICK)
    result = restore(sim.half1, TILTS, half2=sim.half2, method=method, **QUICK)
    assert result.samples.shape == (1, *SHAPE)
    np.testing.assert_array_equal(result.samples[0], result.mean)
    assert not result.std.any()
    assert any("says nothing of the error" in sentence for sentence in result.report.warnings)
    assert np.std(result.mean - family.mean) < off * np.std(family.mean)


# What cannot be used, and what is doubted


def bad_inputs():
    good = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    nan = good.copy()
    nan[3, 4, 5] = np.nan
    return {
        "other half": ((good, TILTS), {"half2": good[:-1]}, "shape"),
        "same half": ((good, TILTS), {"half2": good.copy()}, "same volume"),
        "half with nan": ((good, TILTS), {"half2": nan}, "second half has 1 voxels"),
        "nan": ((nan, TILTS), {}, "1 voxels"),
        "2-D": ((good[0], TILTS), {}, "3-D"),
        "complex": ((good + 1j, TILTS), {}, "real numbers"),
        "constant": ((np.ones(SHAPE), TILTS), {}, "constant"),
        "small": ((good[:15], TILTS), {}, "at least 16"),
        "center": ((good, TILTS), {"center": good[..., :-1]}, "centre"),
        "center with nan": ((good, TILTS), {"center": nan}, "centre"),
        "reversed tilts": ((good, (60, -60)), {}, "60"),
        "tilts beyond 90": ((good, (-60, 95)), {}, "90"),
        "no tilts": ((good, (30, 30)), {}, "30"),
        "method": ((good, TILTS), {"method": "magic"}, "cryowgen_langevin, cryowgen_mc"),
        "one sample": ((good, TILTS), {"num_samples": 1}, "at least 2"),
        "no steps": ((good, TILTS), {"num_steps": 0}, "at least 1 step"),
        "negative warm-up": ((good, TILTS), {"warmup": -1}, "warmup"),
        "sampler": ((good, TILTS), {"sampler": "magic"}, "auto, kinetic"),
        "sampler of a point": (
            (good, TILTS),
            {"sampler": "langevin", "method": "cryogen_map"},
            "leave it out",
        ),
        "sampler in tiles": ((good, TILTS), {"sampler": "mala", "tile_shape": (64, 64, 64)}, "one box"),
        "axis": ((good, TILTS), {"tilt_axis": "w"}, "axis|axes"),
        "same axis": ((good, TILTS), {"tilt_axis": "z"}, "axis|axes"),
        "contrast": ((good, TILTS), {"contrast": "grey"}, "auto, bright, dark"),
        "witness": ((good, TILTS), {"witness": "fancy"}, "witness"),
        "other angles": ((good, TILTS), {"tilt_angles": [-40, 0, 40]}, "make them agree"),
        "nothing measured": ((np.broadcast_to(np.arange(24.0)[:, None, None] % 7, SHAPE), TILTS), {}, "no model fits"),
    }


BAD_INPUTS = bad_inputs()


@pytest.mark.filterwarnings("ignore:.*missing wedge:UserWarning")
@pytest.mark.parametrize("case", BAD_INPUTS)
def test_what_cannot_be_used_is_refused_in_one_line(case):
    arguments, options, word = BAD_INPUTS[case]
    with pytest.raises(InputError, match=word) as caught:
        restore(*arguments, **{**QUICK, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("num_chains", "num_samples", "num_steps", "fits"),
    [
        (2, 8, 4, True),
        (2, 9, 4, False),
        (3, 5, 4, True),
        (5, 5, 1, True),
        (5, 6, 1, False),
        (6, 5, 4, False),
        (1, 4, 4, False),
    ],
)
def test_chains_have_a_step_for_every_member_and_at_least_one_member_each(num_chains, num_samples, num_steps, fits):
    arguments = ("cryowgen_langevin", "solvent", "auto", num_samples, num_steps, 0, None, num_chains)
    if fits:
        check_options(*arguments)
    else:
        with pytest.raises(InputError, match=f"num_chains={num_chains} of {num_steps} steps for {num_samples} samples"):
            check_options(*arguments)


def test_a_step_before_the_samples_is_thought_to_take_as_long_as_one_between_them(monkeypatch):
    monkeypatch.setattr(cost, "_filter_seconds", lambda shape: 0.25)
    monkeypatch.setattr(cost, "_available_memory", lambda: 2**40)
    monkeypatch.setattr(cost, "convolution_seconds", lambda shape, channels: 0.01)

    def seconds(num_steps, warmup):
        return cost.estimate_cost(SHAPE, 4, num_steps, warmup, with_chains=True).seconds

    assert seconds(10, 30) == seconds(40, 0) == seconds(20, 20)
    assert seconds(10, 30) - seconds(10, 10) == pytest.approx(cost.FILTERS_PER_STEP * 4 * 20 * 0.25)
    drawn, more = (cost.estimate_cost(SHAPE, count, 0, 0, witness="learned").seconds for count in (4, 8))
    per_operation = 0.01 / (2 * 27 * cost.PROBE_CHANNELS**2 * np.prod(cost.PROBE))
    assert more - drawn == pytest.approx(4 * cost.WALK_OPERATIONS * np.prod(SHAPE) * per_operation)


@SLOW
def test_a_tilt_range_that_the_tomogram_contradicts_is_doubted():
    with pytest.warns(UserWarning, match="missing wedge looks like"):
        result = restore(tomogram().half1, (-40, 40), **QUICK)
    assert_sound(result)
    assert "missing wedge looks like" in result.report.warnings[0]


# Data that are out of the ordinary


def blurred_noise(width, seed=5):
    return gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPE), width, mode="wrap")


def beads(strength):
    volume = np.zeros(SHAPE)
    volume[6, 10, 23], volume[17, 27, 6], volume[21, 5, 12] = 1, 1, 1
    blurred = gaussian_filter(volume, 1.5, mode="wrap")
    sim = tomogram()
    return sim.half1 + through_wedge(strength * sim.half1.std() * blurred / blurred.max())


@functools.cache
def odd_tomograms():
    sim = tomogram()
    rng = np.random.default_rng(0)
    full = blurred_noise(1.5)
    return {
        "pure noise": through_wedge(rng.standard_normal(SHAPE)),
        "bright beads": beads(50.0),
        "dark beads": beads(-50.0),
        "int8": np.clip(np.round(sim.half1 / sim.half1.std() * 40), -128, 127).astype(np.int8),
        "coloured noise": through_wedge(sim.truth + sim.noise_sd * blurred_noise(0.5)),
        "no noise": through_wedge(sim.truth + 0.02 * rng.standard_normal(SHAPE)),
        "no empty solvent": through_wedge(full / full.std() + rng.standard_normal(SHAPE)),
    }


QUICK_CASES = ("pure noise", "int8", "coloured noise")
SLOW_CASES = ("bright beads", "dark beads", "no noise", "no empty solvent")


@functools.cache
def restored(case):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*missing wedge", UserWarning)
        return restore(odd_tomograms()[case], TILTS, **QUICK)


@pytest.mark.parametrize("case", [*QUICK_CASES, *(pytest.param(case, marks=SLOW) for case in SLOW_CASES)])
def test_odd_tomograms_are_restored_to_finite_volumes_that_agree_with_them(case):
    data = odd_tomograms()[case].astype(np.float32)
    result = restored(case)
    assert_sound(result)
    misfit = np.abs(spectrum(result.mean) - spectrum(data))[MASK > 0] ** 2
    assert misfit.mean() < np.mean(np.abs(spectrum(data - data.mean()))[MASK > 0] ** 2)
    assert result.std.mean() < 3 * data.std()


def test_rounded_to_int8_it_is_nearly_the_same():
    whole = restored("int8")
    assert np.corrcoef(whole.mean.ravel(), quick().mean.ravel())[0, 1] > 0.98


@SLOW
@pytest.mark.filterwarnings("ignore:.*missing wedge:UserWarning")
def test_a_map_in_vacuum_without_noise_keeps_what_was_measured(rng):
    """Spectra that fall to rounding beyond 0.4 cycles per voxel, solvent of no power at all."""
    particle = np.zeros(SHAPE)
    particle[6:20, 10:26, 8:24] = rng.random((14, 16, 16)) > 0.4
    smooth = np.fft.rfftn(gaussian_filter(particle, 0.7)) * (radius() < 0.4)
    truth = np.fft.irfftn(smooth, SHAPE, axes=(0, 1, 2))
    seen = through_wedge(truth)
    result = restore(seen, TILTS, **QUICK)
    assert_sound(result)
    misfit = np.abs(spectrum(result.mean) - spectrum(truth)) ** 2 * MASK
    assert misfit.sum() < 0.01 * np.sum(np.abs(spectrum(truth)) ** 2 * MASK)
    before, after = (np.corrcoef(truth.ravel(), volume.ravel())[0, 1] for volume in (seen, result.mean))
    assert after > before + 0.03


def test_pure_noise_is_not_made_into_particles():
    shape = (28, 40, 36)
    noise = np.random.default_rng(0).standard_normal(shape)
    noise = through_wedge(noise, np.asarray(wedge_mask(shape, TILTS)))
    result = restore(noise, TILTS, **QUICK)
    assert result.report.envelope.mean() < 0.1
    assert result.mean.std() < 0.2 * noise.std()


def test_the_noise_of_one_tomogram_with_coloured_noise_is_coloured():
    assert restored("coloured noise").report.noise_rule.startswith("coloured")


@pytest.mark.parametrize("step", [pytest.param(3.0, marks=SLOW), 20.0])
def test_a_list_of_tilts(step):
    sim = tomogram()
    result = restore(sim.half1, TILTS, tilt_angles=np.arange(-60, 60.1, step), **QUICK)
    assert_sound(result)
    assert 0 < np.mean(result.wedge == 0) < 0.8
    assert result.wedge.max() == pytest.approx(1)
    score = evaluate_family(sim.truth, result.mean, result.samples, result.weights, MASK)
    assert score.in_wedge_correlation > 0.2


# Interruption


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["warm-up", "sampling"])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, phase):
    uninterrupted, steps = quick("chains"), []

    def stop(progress):
        if progress.phase == phase and progress.step > 2:
            raise KeyboardInterrupt

    def watch(progress):
        if progress.phase in ("warm-up", "sampling"):
            steps.append(progress.step)

    with pytest.raises(KeyboardInterrupt):
        restore(tomogram().half1, TILTS, checkpoint=tmp_path / "run", progress=stop, **CHAINS)
    resumed = restore(tomogram().half1, TILTS, checkpoint=tmp_path / "run", progress=watch, **CHAINS)
    for name in ("samples", "mean", "std"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(uninterrupted, name))
    assert not steps or steps[0] > 3  # it did not start again


# Quality, on tomograms with known truth and on real ones


def projections_onto_sets(data, mask, rounds=100):
    """The plain baseline: density never below the solvent's median, measured coefficients as measured."""
    estimate = data
    for _ in range(rounds):
        raised = np.fft.rfftn(np.maximum(estimate, np.median(estimate)))
        estimate = np.fft.irfftn(np.where(mask > 0, np.fft.rfftn(data), raised), data.shape, axes=(0, 1, 2))
    return estimate.astype(np.float32)


@pytest.mark.computes
@pytest.mark.slow
def test_the_wedge_is_restored_better_than_by_projections_and_the_spread_is_honest():
    sim = simulate_tomogram((40, 64, 64), TILTS, snr=0.1, seed=3)
    result = restore(sim.half1, TILTS, half2=sim.half2, witness="solvent", num_samples=6)
    score = evaluate_family(sim.truth, result.mean, result.samples, result.weights, result.wedge)
    average = (sim.half1 + sim.half2) / 2
    smooth = gaussian_filter(average, 1.0, mode="wrap")
    plain = max(
        evaluate_family(
            sim.truth, projections_onto_sets(v, result.wedge), result.samples, result.weights, result.wedge
        ).in_wedge_correlation
        for v in (average, smooth)
    )
    assert score.in_wedge_correlation > 0.6
    assert score.in_wedge_correlation > plain + 0.05
    assert score.measured_correlation > 0.9
    assert 0.5 < score.spread_over_error < 2
    assert 0.8 < score.coverage_95 < 0.99
    assert score.error_spread_correlation > 0


def read(path):
    """A map of mode 0 with no extended header, straight from its bytes."""
    raw = path.read_bytes()
    columns, rows, sections = np.frombuffer(raw, "<i4", 3)
    return np.frombuffer(raw, "i1", offset=1024).reshape(sections, rows, columns)


def width_of_autocorrelation(volume, axis):
    """Distance (voxels) at which the autocorrelation along an axis, low-passed, has fallen to half."""
    power = np.abs(np.fft.fftn(volume - volume.mean())) ** 2
    k2 = sum(f**2 for f in np.meshgrid(*[np.fft.fftfreq(n) for n in volume.shape], indexing="ij"))
    line = np.fft.ifftn(power * np.exp(-((2 * np.pi) ** 2) * k2)).real
    line = line.take(0, axis=(axis + 1) % 3).take(0, axis=0 if axis == 2 else (1 if axis == 0 else 0))
    return np.interp(-0.5, -line[: len(line) // 2] / line[0], np.arange(len(line) // 2))


@pytest.mark.slow
def test_a_real_microtubule_is_less_elongated_along_the_beam(shared_data):
    data = read(shared_data / "tomo_microtubule_13pf.mrc")[:, 60:150]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = restore(data, TILTS, num_samples=2, witness="solvent")
    assert np.isfinite(result.mean).all()
    assert result.report.contrast == "bright"

    def elongation(volume):
        return width_of_autocorrelation(volume, 0) / width_of_autocorrelation(volume, 2)

    assert elongation(result.mean) < 0.9 * elongation(data.astype(np.float32))
