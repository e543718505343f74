"""The loop over steps: devices, batches, chunks, interruption and resumption, runs that blow up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cryowgen_jax as cg
from cryowgen_jax.chains import parallel
from cryowgen_jax.chains.schedule import MAX_RECORDS, RAMP, SETTLING, WARMUP, plan
from cryowgen_jax.operators import Wedge
from cryowgen_jax.types import InputError
from tests import oracles

LARGE = (8, 8, 12)  # more elements than are vectorised together on a CPU
SMALL = (1, 2, 3)


def problem(shape):
    rng = np.random.default_rng(4)
    x, center = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)
    means = jnp.asarray(0.5 * rng.normal(size=(2, *shape)), jnp.float32)
    witness = cg.GaussianMixtureWitness(jnp.array([0.4, 0.6]), means, 1.0)
    return cg.Posterior(witness, Wedge(jnp.asarray(oracles.wedge(shape))), x, center, 50.0, 1.0)


def same(one, other):
    return all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


# Devices and batches -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_and_two_devices_give_the_same_bits(key):
    kwargs = {"sampler": "langevin", "num_chains": 2, "num_steps": 6, "num_kept": 2, "warmup": 0}
    target = problem(LARGE)
    one, two = (cg.sample(key, target, devices=jax.devices()[:n], **kwargs) for n in (1, 2))
    assert same(one, two)
    other = cg.sample(jax.random.fold_in(key, 1), target, devices=jax.devices()[:1], **kwargs)
    assert not same(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "count"), [("kinetic", 2), ("pcnl", 4), ("preconditioned", 2), ("mala", 2)])
def test_one_and_more_devices_give_the_same_bits(key, sampler, count):
    """Where acceptance rates steer step sizes, whatever is rounded otherwise anywhere shows."""
    warmup = 40 if sampler == "kinetic" else 10  # enough to learn from
    kwargs = {"sampler": sampler, "num_chains": 4, "num_steps": 12, "num_kept": 4, "warmup": warmup}
    one, more = (cg.sample(key, problem(LARGE), devices=jax.devices()[:n], **kwargs) for n in (1, count))
    assert same(one, more)


@pytest.mark.slow
def test_the_batch_changes_rounding_only(key):
    kwargs = {"num_chains": 4, "num_steps": 12, "num_kept": 4, "warmup": 0, "sampler": "preconditioned"}
    kwargs["devices"] = jax.devices()[:1]
    target = problem(SMALL)
    every, few = (cg.sample(key, target, batch_size=b, **kwargs) for b in (None, 1))
    np.testing.assert_allclose(few.samples, every.samples, rtol=1e-4, atol=1e-5)


def step(start, slope, chain):
    """One chain: a random walk and its end, with keys among inputs and outputs."""
    key, position = chain
    path = position[None] + jnp.cumsum(slope * jax.random.normal(key, (5, *position.shape)), axis=0)
    return (jax.random.fold_in(key, start), path[-1]), path


@jax.jit
def every_chain(slope, chains):
    return jax.vmap(lambda chain: step(7, slope, chain))(chains)


def test_every_layout_maps_every_chain(key):
    """And two devices to the bits of one, where they map groups of the same size."""
    chains = (jax.random.split(key, 8), jnp.arange(24.0).reshape(8, 3))
    expected, bits = every_chain(jnp.float32(0.5), chains), {}
    for group, count in ((1, 1), (4, 1), (2, 1), (2, 2)):
        layout = parallel.Layout(group, tuple(jax.devices()[:count]))
        (keys, ends), paths = parallel.map_chains(step, (7,), layout)(jnp.float32(0.5), chains)
        np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(expected[0][0]))
        np.testing.assert_allclose(ends, expected[0][1], rtol=1e-6)
        np.testing.assert_allclose(paths, expected[1], rtol=1e-6)
        assert paths.devices() == {jax.devices()[0]}
        bits[group, count] = np.asarray(ends).tobytes(), np.asarray(paths).tobytes()
    assert bits[2, 1] == bits[2, 2]


def test_pmap_maps_every_chain(key):
    """What accelerators run, on four virtual devices."""
    chains = (jax.random.split(key, 8), jnp.arange(24.0).reshape(8, 3))
    expected = every_chain(jnp.float32(0.5), chains)
    mapped = parallel._pmap(
        lambda slope, some: jax.vmap(lambda chain: step(7, slope, chain))(some), tuple(jax.devices())
    )
    for _ in range(2):
        (keys, ends), paths = mapped(jnp.float32(0.5), chains)
        np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(expected[0][0]))
        np.testing.assert_allclose(ends, expected[0][1], rtol=1e-6)
        np.testing.assert_allclose(paths, expected[1], rtol=1e-6)
        chains = (keys, ends)
        expected = every_chain(jnp.float32(0.5), chains)


@pytest.mark.parametrize("num_chains", [1, 4, 6, 7, 64, 1000])
@pytest.mark.parametrize("size", [1, 6, 511, 512, 10**6])
def test_the_layout_shares_the_chains_evenly_and_groups_them_whatever_the_devices(num_chains, size):
    groups = set()
    for count in (1, 2, 3, 4):
        group, devices = parallel.layout(num_chains, size, jax.devices()[:count], None)
        assert num_chains % (group * len(devices)) == 0
        assert devices == tuple(jax.devices()[: len(devices)])
        groups.add(group)
    assert len(groups) == 1
    assert parallel.layout(num_chains, size, None, 2).group <= 2
    assert max(groups) * size <= 512 or groups == {1}


def test_all_local_devices_are_taken_where_none_are_named(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", jax.devices)
    assert parallel.layout(8, 10**6, None, None).devices == tuple(jax.devices())
    assert len(jax.devices()) == 4


# Chunks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_one", [False, True])
@pytest.mark.parametrize(
    ("warmup", "num_steps", "num_kept"),
    [(0, 1, 1), (7, 10, 3), (500, 2000, 2000), (250, 1000, 10), (0, 997, 5), (13, 17, 17), (1, 5000, 700)],
)
def test_chunks_hold_every_step_once(warmup, num_steps, num_kept, in_one):
    chunks = plan(warmup, num_steps, num_kept, in_one=in_one)
    assert sum(c.steps for c in chunks if c.phase == "warm-up") == warmup
    assert sum(c.steps for c in chunks if c.phase != "warm-up") == num_steps
    assert sum(c.kept for c in chunks) == num_kept * chunks[-1].group
    assert sum(c.kept * c.records for c in chunks) <= max(MAX_RECORDS, num_kept)
    assert [c.phase for c in chunks] == sorted(
        (c.phase for c in chunks), key=["warm-up", "unrecorded", "sampling"].index
    )
    assert len(set(chunks)) <= 3  # each kind compiles once


@pytest.mark.parametrize("in_one", [False, True])
@pytest.mark.parametrize("warmup", [1, 39, 40, 47, 500])
def test_a_kernel_that_learns_has_three_phases(warmup, in_one):
    chunks = [c for c in plan(warmup, 10, 2, in_one=in_one, learns=True) if c.phase in WARMUP]
    assert sum(c.steps for c in chunks) == warmup
    phases = [c.phase for c in chunks]
    assert phases == sorted(phases, key=WARMUP.index)
    assert (len(set(phases)) == 3) == (warmup >= 40)
    assert phases[-1] == SETTLING
    ramp = [c for c in chunks if c.phase == RAMP]
    assert all(c.ramp == sum(c.steps for c in ramp) for c in ramp)
    assert all(c.ramp == 0 for c in chunks if c.phase != RAMP)
    assert len({c._replace(phase="", ramp=0) for c in chunks}) <= (3 if in_one else 2)


# Interruption --------------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def stop_after(count):
    """A progress callback that ends the run after so many chunks."""
    told = []

    def callback(progress):
        told.append(progress)
        if len(told) == count:
            raise Interrupted

    return callback


RUN = {"sampler": "preconditioned", "num_chains": 4, "num_steps": 33, "num_kept": 8, "warmup": 10}


@pytest.mark.parametrize(
    ("sampler", "chunks"),
    [
        *(("preconditioned", n) for n in (3, 11, 20)),
        *(pytest.param("preconditioned", n, marks=pytest.mark.slow) for n in (10, 14)),
        *(pytest.param("pcnl", n, marks=pytest.mark.slow) for n in (3, 10, 11, 14, 20)),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(key, tmp_path, sampler, chunks):
    """Interrupted in warm-up, after it, before the first block is recorded, within a block and between blocks."""
    target, arguments = problem(SMALL), RUN | {"sampler": sampler}
    whole = cg.sample(key, target, **arguments)
    with pytest.raises(Interrupted):
        cg.sample(key, target, checkpoint=tmp_path, progress=stop_after(chunks), **arguments)
    told = []
    resumed = cg.sample(key, target, checkpoint=tmp_path, progress=told.append, **arguments)
    assert len(told) == len(plan(10, 33, 8)) - chunks
    assert same(whole, resumed)
    assert (whole.status, whole.num_gradients) == (resumed.status, resumed.num_gradients)


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [3, 8, 11, 15, 16, 20, 25], ids=lambda n: f"after {n}")
def test_a_kernel_that_learned_is_resumed_with_the_same_bits(key, tmp_path, chunks):
    """Interrupted in the ramp, behind it, while it learns, before and after it changes, at the end of warm-up."""
    target, arguments = problem(SMALL), RUN | {"sampler": "kinetic", "warmup": 60}
    whole = cg.sample(key, target, **arguments)
    with pytest.raises(Interrupted):
        cg.sample(key, target, checkpoint=tmp_path, progress=stop_after(chunks), **arguments)
    resumed = cg.sample(key, target, checkpoint=tmp_path, **arguments)
    assert same(whole, resumed)
    assert not same(whole, cg.sample(key, target, **(arguments | {"warmup": 40})))


@pytest.mark.slow
def test_a_run_may_go_on_elsewhere_and_be_interrupted_again(key, tmp_path):
    """Interrupted on four devices, gone on with two, ended on one."""
    kwargs = {"num_chains": 4, "num_steps": 6, "num_kept": 6, "warmup": 6}
    target = problem(LARGE)
    whole = cg.sample(key, target, devices=jax.devices()[:1], **kwargs)
    for devices, chunks in ((4, 4), (2, 4)):
        with pytest.raises(Interrupted):
            cg.sample(
                key,
                target,
                checkpoint=tmp_path,
                progress=stop_after(chunks),
                devices=jax.devices()[:devices],
                **kwargs,
            )
    assert same(whole, cg.sample(key, target, checkpoint=tmp_path, devices=jax.devices()[:1], **kwargs))


def test_a_checkpoint_of_another_run_is_refused(key, tmp_path):
    target = problem(SMALL)
    cg.sample(key, target, checkpoint=tmp_path, **RUN)
    with pytest.raises(InputError, match="another key"):
        cg.sample(jax.random.fold_in(key, 1), target, checkpoint=tmp_path, **RUN)
    with pytest.raises(InputError, match="of another run"):
        cg.sample(key, target, checkpoint=tmp_path, **(RUN | {"num_steps": 65}))
    with pytest.raises(InputError, match="of another run"):
        cg.sample(key, target, checkpoint=tmp_path, **(RUN | {"num_chains": 2}))


def test_a_checkpoint_of_another_sampler_is_refused(key, tmp_path):
    """Even of one whose states are alike."""
    target, few = problem(SMALL), {"num_chains": 1, "num_steps": 2, "warmup": 0, "checkpoint": tmp_path}
    cg.sample(key, target, sampler="kinetic", **few)
    with pytest.raises(InputError, match="is of sampler 'kinetic', not of 'kinetic_unadjusted'"):
        cg.sample(key, target, sampler="kinetic_unadjusted", **few)


def test_a_traced_run_is_not_saved(key, tmp_path):
    with pytest.raises(InputError, match="leave out checkpoint"):
        jax.jit(lambda k: cg.sample(k, problem(SMALL), checkpoint=tmp_path, **RUN).mean)(key)


def test_progress_is_told_in_order_and_printed(key, capsys):
    told = []
    cg.sample(key, problem(SMALL), progress=told.append, **RUN)
    steps = [p.step for p in told]
    assert steps == sorted(set(steps))
    assert steps[-1] == told[0].num_steps == 43
    assert {p.phase for p in told} == {"warm-up", "unrecorded", "sampling"}
    assert all(0 <= p.acceptance <= 1 for p in told)
    assert capsys.readouterr().out == ""
    cg.sample(key, problem(SMALL), progress=True, **RUN)
    assert "step 43 of 43" in capsys.readouterr().out


# Runs that blow up ---------------------------------------------------------------------------------------------------


def fragile(limit):
    """A standard Gaussian whose gradient is nan far out: 0 * d sqrt(limit^2 - z^2)."""
    return jax.tree_util.Partial(_fragile, jnp.float32(limit))


def _fragile(limit, z):
    return -0.5 * jnp.sum(z**2) + 0.0 * jnp.sum(jnp.sqrt(limit**2 - z**2))


def test_states_that_are_not_finite_stop_the_run_and_leave_what_was_good(key, tmp_path):
    density = fragile(3.3)
    kwargs = {"num_chains": 4, "num_steps": 160, "num_kept": 160, "warmup": 4, "init": jnp.zeros(3)}
    sampler = cg.langevin(density, 0.3)
    result = cg.sample(key, density, sampler=sampler, checkpoint=tmp_path, **kwargs)
    assert result.status.startswith("stopped: ")
    assert "not finite between steps" in result.status
    kept = result.samples.shape[1]
    assert 0 < kept < 160
    assert result.num_gradients == 4 * (4 + kept)
    every = np.asarray(result.samples, float).reshape(-1, 3)
    assert np.all(np.isfinite(every))
    np.testing.assert_allclose(result.mean, every.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(result.variance, every.var(axis=0, ddof=1), rtol=1e-4)
    untroubled = cg.sample(key, fragile(1e3), sampler=cg.langevin(fragile(1e3), 0.3), **kwargs)
    assert untroubled.status == "ok"
    np.testing.assert_allclose(np.asarray(untroubled.samples)[:, :kept], result.samples, rtol=1e-4, atol=1e-5)
    again = cg.sample(key, density, sampler=sampler, checkpoint=tmp_path, **kwargs)  # it stops where it stopped
    assert again.status == result.status
    assert same(again.samples, result.samples)


def test_an_unstable_step_is_reported_before_anything_is_kept(key):
    density = lambda z: -50.0 * jnp.sum(z**2)  # noqa: E731
    result = cg.sample(
        key, density, sampler=cg.langevin(density, 1.0), num_chains=2, num_steps=40, num_kept=4, init=jnp.ones(3)
    )
    assert result.status.startswith("stopped: 2 of 2 chains")
    assert result.samples.shape == (2, 0, 3)
    assert np.isnan(result.ess)


def test_a_posterior_without_a_law_is_reported(key):
    """A witness that is more convex than the tether is strong: the Gaussian part has a negative precision."""
    target = problem(SMALL)
    convex = dataclasses.replace(target, witness=cg.QuadraticWitness(jnp.full((1, 2, 2), -60.0), target.center))
    assert cg.sample(key, convex, num_chains=2, num_steps=4).status.startswith("stopped")
