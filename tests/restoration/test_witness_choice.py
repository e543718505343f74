"""The witness that a tomogram gets is the one that foretells hidden tilts."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.restoration import restore, witness_choice
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.prior_weights import shipped_weights
from cryowgen_jax.restoration.volume_family import PreparedVolume
from cryowgen_jax.simulation import simulate_tomogram
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import InputError

SHAPE, TILTS = (24, 32, 32), (-60.0, 60.0)


@functools.cache
def tomogram():
    return simulate_tomogram(SHAPE, TILTS, snr=0.3, seed=2)


def prepared(geometry=None):
    sim = tomogram()
    scale = sim.half1.std()
    return PreparedVolume((jnp.asarray(sim.half1 / scale), jnp.asarray(sim.half2 / scale)), geometry or Geometry(TILTS))


@dataclasses.dataclass
class Model:
    """Stands for a model: all that is asked of it is its mean, and that its family is none of Langevin's."""

    mean: np.ndarray
    coarse: object = None


def answering(monkeypatch, solvent, learned):
    """Let the candidates answer with these volumes; returns the geometries that they were shown."""
    shown = []

    def fit(halves, mask, geometry, *_, **__):
        shown.append((geometry, mask))
        return Model(solvent)

    def model_of(weights, solvent_model, mask, geometry):
        shown.append((geometry, mask))
        return Model(learned)

    monkeypatch.setattr(witness_choice.solvent_fit, "fit", fit)
    monkeypatch.setattr(witness_choice.learned_model, "model_of", model_of)
    return shown


def test_the_better_one_is_taken_whichever_it_is(monkeypatch, rng):
    truth = tomogram().truth.astype(np.float32)
    worse = truth + rng.normal(size=SHAPE).astype(np.float32) * truth.std()
    for solvent, learned, expected in ((truth, worse, "solvent"), (worse, truth, "learned")):
        answering(monkeypatch, solvent, learned)
        choice = witness_choice.choose(prepared(), "weights")
        assert choice.name == expected
        assert choice.witness == ("solvent" if expected == "solvent" else "weights")
        assert choice.agreement[expected] > max(0.1, *(v for n, v in choice.agreement.items() if n != expected))


def test_only_what_was_hidden_counts(monkeypatch, rng):
    """A volume that is right wherever candidates were shown the data, and noise or nothing elsewhere, scores 0."""
    truth = tomogram().truth.astype(np.float32)
    shown = answering(monkeypatch, truth, truth)
    full = witness_choice.choose(prepared(), "weights").agreement["solvent"]
    (geometry, mask), _ = shown
    assert geometry.tilt_range == (-45.0, 45.0)
    whole = Geometry(TILTS).mask(SHAPE)
    assert np.all(mask <= whole)
    assert 0.1 < np.sum(whole * (1 - mask)) / np.sum(whole) < 0.4
    noise = rng.normal(size=SHAPE) * truth.std()
    cheat = np.fft.irfftn(np.fft.rfftn(truth) * mask + np.fft.rfftn(noise) * (1 - mask), SHAPE, axes=(0, 1, 2)).astype(
        np.float32
    )
    outside = np.fft.irfftn(np.fft.rfftn(truth) * whole, SHAPE, axes=(0, 1, 2)).astype(np.float32)
    answering(monkeypatch, cheat, outside)
    agreement = witness_choice.choose(prepared(), "weights").agreement
    assert abs(agreement["solvent"]) < 0.15 < full
    assert agreement["learned"] == pytest.approx(full, abs=1e-3)
    answering(monkeypatch, np.zeros(SHAPE, np.float32), outside)
    assert witness_choice.choose(prepared(), "weights").agreement["solvent"] == 0


def test_no_member_is_drawn_where_nobody_asks_for_the_spread(monkeypatch, rng):
    """A point estimate takes the same witness as a family, and pays for its mean alone."""
    truth = tomogram().truth.astype(np.float32)
    answering(monkeypatch, rng.normal(size=SHAPE).astype(np.float32), truth)
    drawable = Model(truth, "something that would have to be drawn from")
    monkeypatch.setattr(witness_choice.learned_model, "model_of", lambda *_: drawable)
    choice = witness_choice.choose(prepared(), "weights", of_spread=False)
    assert (choice.name, choice.widening) == ("learned", 1.0)
    with pytest.raises(AttributeError, match="draw"):
        witness_choice.choose(prepared(), "weights")


class Spectra:
    """Stands for shells: one value for all."""

    def spread(self, profile):
        return np.float64(profile)


@pytest.mark.parametrize(("spread", "noise", "expected"), [(0.5, 1.0, 4.0), (1.0, 1.0, 1.0), (2.0, 0.2, 0.25)])
def test_widening_is_the_squared_error_over_the_variance_of_the_draws(monkeypatch, rng, spread, noise, expected):
    """An error of variance 1 beside noise in the data; the family's spread is given."""
    monkeypatch.setattr(witness_choice, "LARGEST_WIDENING", 10.0)
    judged = Geometry(TILTS).mask(SHAPE) * fourier.multiplicity(SHAPE)
    mean, error, white = (rng.normal(size=SHAPE).astype(np.float32) for _ in range(3))
    data = np.fft.rfftn(mean + error + np.sqrt(noise) * white, norm="ortho")
    draws = [jnp.asarray(mean + spread * rng.normal(size=SHAPE), jnp.float32) for _ in range(4)]
    model = types.SimpleNamespace(mean=mean, shells=Spectra(), noise=noise)
    found = witness_choice.widening_of(model, draws, data, judged)
    assert found == pytest.approx(expected, rel=0.05)
    monkeypatch.setattr(witness_choice, "LARGEST_WIDENING", 2.0)
    assert witness_choice.widening_of(model, draws, data, judged) == pytest.approx(np.clip(expected, 0.5, 2), rel=0.05)
    certain = np.fft.rfftn(mean + np.sqrt(noise) * white, norm="ortho")
    assert witness_choice.widening_of(model, draws, certain, judged) == 1.0, "an error that noise hides says nothing"


def test_candidates_do_not_see_the_hidden_tilts():
    """What is put into the hidden part of the data changes no candidate's answer."""
    geometry = Geometry(TILTS)
    narrow = geometry.within((-45.0, 45.0))
    hidden = geometry.mask(SHAPE) * (1 - narrow.mask(SHAPE))
    noise = np.fft.irfftn(np.fft.rfftn(np.random.default_rng(0).normal(size=SHAPE)) * hidden, SHAPE, axes=(0, 1, 2))
    volume = prepared()
    other = dataclasses.replace(volume, halves=tuple(half + jnp.asarray(noise, jnp.float32) for half in volume.halves))
    fits = [
        witness_choice.solvent_fit.fit(v.halves, narrow.mask(SHAPE), narrow, of_spread=False).mean
        for v in (volume, other)
    ]
    np.testing.assert_allclose(fits[0], fits[1], atol=2e-3 * fits[0].std())


def test_a_list_of_tilts_is_thinned_out():
    geometry = Geometry(TILTS, tilt_angles=tuple(range(-60, 61, 5)))
    narrow = geometry.within((-45.0, 45.0))
    assert narrow.tilt_angles == tuple(range(-45, 46, 5))
    assert narrow.tilt_range == (-45.0, 45.0)
    with pytest.raises(InputError, match="0 tilts between"):
        geometry.within((1.0, 2.0))


def test_too_few_tilts_to_hide_some_leave_the_solvent_model():
    for geometry in (Geometry((-3.5, 3.5)), Geometry(TILTS, tilt_angles=(-60, 0, 60))):
        assert witness_choice.choose(prepared(geometry), "weights") == ("solvent", "solvent", {}, 1.0)


def test_restore_says_what_it_chose(monkeypatch):
    sim = tomogram()
    result = restore(sim.half1, TILTS, half2=sim.half2, num_samples=2, devices=jax.devices()[:1])
    assert set(result.report.hidden_tilt_agreement) == {"solvent", "learned"}
    assert 0.5 <= result.report.widening <= 2.0
    best = max(result.report.hidden_tilt_agreement, key=result.report.hidden_tilt_agreement.get)
    assert result.report.witness == best
    named = restore(sim.half1, TILTS, half2=sim.half2, num_samples=2, witness=best)
    np.testing.assert_array_equal(named.mean, result.mean)
    assert named.report.hidden_tilt_agreement == {}


def test_weights_of_ones_own_are_not_judged():
    sim = tomogram()
    result = restore(sim.half1, TILTS, num_samples=2, witness=shipped_weights())
    assert (result.report.witness, result.report.hidden_tilt_agreement) == ("weights", {})
