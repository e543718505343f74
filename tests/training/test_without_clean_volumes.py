"""A witness learned from wedged observations alone fills the wedge as a rotation-invariant prior says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cryowgen_jax.operators import RotatedWitness, Wedge, wedge_mask
from cryowgen_jax.spatial import fourier
from cryowgen_jax.spatial.rotation import axis_permutations
from cryowgen_jax.training import LangevinNegatives, Model, train
from tests import oracles

SHAPE = (6, 6, 6)
LAM, BETA = 1000.0, 0.25  # little noise, so that putting it back may be left out
POWER = 1.2 * np.exp(-2.0 * np.asarray(fourier.radial_frequency(SHAPE))).astype(np.float32)
RADII = np.round(3 * 2 * np.asarray(fourier.radial_frequency(SHAPE)), 3)
SHELLS, SHELL = np.unique(RADII, return_inverse=True)
SHELL = SHELL.reshape(RADII.shape)


def quadratic(log_curvature, observation):
    """D(y) = -1/2 y^T s y, s one number per distance from the origin of Fourier space, of either sign."""
    return -fourier.quadratic_form(observation, log_curvature[SHELL])


def value_of_observation(witness, observation):
    return witness.witness(observation)


def centre(observation):
    return jnp.zeros_like(observation)


@pytest.mark.slow
def test_the_wedge_gets_the_power_of_the_other_orientations(key, rng):
    """Positives are observations too; of the prior nothing is known but that all orientations are alike."""
    mask = np.asarray(wedge_mask(SHAPE, (-50.0, 50.0)))
    wedge = Wedge(jnp.asarray(mask))
    root = jnp.asarray(np.sqrt(POWER))
    fields = jax.vmap(lambda k: fourier.filter_volume(jax.random.normal(k, SHAPE), root))(jax.random.split(key, 256))
    noise = jnp.asarray(rng.normal(size=(256, *SHAPE)) / LAM**0.5, jnp.float32)
    observations = jax.vmap(wedge)(fields + noise)
    witness = RotatedWitness(jax.tree_util.Partial(quadratic, jnp.zeros(len(SHELLS))), wedge, axis_permutations())
    model = Model(witness, wedge, centre, jnp.float32(np.log(LAM)), jnp.float32(np.log(BETA)))
    found = train(
        key,
        model,
        observations,
        observations,
        learn=("witness.witness",),
        negatives=LangevinNegatives(num_steps=8, restart=0.0),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.3, 80)),
        num_iterations=80,
        batch_size=32,
        num_positives=128,
        witness_value=value_of_observation,
    )
    np.testing.assert_array_equal(found.model.witness.rotations, witness.rotations)

    def filled(witness):
        """Power of the posterior, which the witness leaves diagonal in Fourier space, over the fields' in the wedge."""
        probe = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
        curvature = np.real(-np.fft.rfftn(jax.grad(witness)(probe)) / np.fft.rfftn(probe))
        weight = (mask == 0) * np.broadcast_to(oracles.multiplicity(SHAPE), mask.shape)
        return np.sum(weight / (curvature + BETA)) / np.sum(weight * POWER)

    assert filled(witness) > 2.5
    assert abs(filled(found.model.witness) - 1) < 0.2
