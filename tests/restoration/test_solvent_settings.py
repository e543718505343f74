"""The constants of the solvent model are documented, cannot be changed, and are the ones that the fit uses."""

import dataclasses
import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.operators import wedge_mask
from cryowgen_jax.restoration import solvent_fit, solvent_model
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.solvent_settings import SETTINGS, SolventSettings, between

SHAPE = (16, 18, 15)


def test_every_constant_is_documented():
    names = [field.name for field in dataclasses.fields(SolventSettings)]
    attributes = SolventSettings.__doc__.split("Attributes\n")[1]
    for name in names:
        assert name in attributes, name


def test_constants_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SETTINGS.rounds = (1, 1)


def test_every_constant_is_used():
    sources = "".join(inspect.getsource(module) for module in (solvent_fit, solvent_model))
    for field in dataclasses.fields(SolventSettings):
        assert f"given.{field.name}" in sources or f"settings.{field.name}" in sources, field.name


def test_interpolation_is_geometric():
    assert between((4.0, 24.0), 0.0) == 4.0
    assert between((4.0, 24.0), 1.0) == pytest.approx(24.0)
    assert between((4.0, 16.0), 0.5) == pytest.approx(8.0)


def test_a_fit_follows_its_settings(rng):
    axes = np.meshgrid(*(np.arange(n) - n / 2 for n in SHAPE), indexing="ij")
    ball = np.exp(-sum(a**2 for a in axes) / 8).astype(np.float32)
    volume = jnp.asarray(ball + 0.1 * rng.standard_normal(SHAPE).astype(np.float32))
    mask, geometry = np.asarray(wedge_mask(SHAPE)), Geometry((-60, 60))
    heard = []
    settings = SolventSettings(rounds=(2, 2), relative_tether=0.25)
    progress = heard.append
    model = solvent_fit.fit((volume,), mask, geometry, progress, of_spread=False, settings=settings)
    assert [p.step for p in heard] == [1, 2]
    assert model.settings is settings
    assert model.prior_precision == np.float32(0.25 / model.particle.max())
