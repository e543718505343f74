"""What every sampler owes its callers, one suite for all."""

import dataclasses

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.util import run_inference_algorithm

import cryowgen_jax as cg
from cryowgen_jax import samplers
from cryowgen_jax.operators import Wedge
from cryowgen_jax.potentials import split
from cryowgen_jax.pytrees import as_pytree
from tests import oracles

SHAPE = (4, 3, 4)
STEPS = 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CountingWitness:
    """Soft and skewed; counts how often Python runs it, that is how often it is traced."""

    slope: jax.Array
    calls = 0

    def __call__(self, position):
        type(self).calls += 1
        return -jnp.sum(jax.nn.softplus(self.slope * position))

    def curvature_bounds(self):
        return jnp.zeros(()), 0.25 * self.slope**2


def posterior(seed):
    rng = np.random.default_rng(seed)
    x, center = jnp.asarray(rng.normal(size=(2, *SHAPE)), jnp.float32)
    witness = CountingWitness(jnp.float32(rng.uniform(1.0, 2.0)))
    mask = jnp.asarray(oracles.wedge(SHAPE))
    return cg.Posterior(witness, Wedge(mask), x, center, jnp.float32(rng.uniform(2, 4)), jnp.float32(1.0))


def langevin(target):
    return cg.langevin(target.log_density, jnp.float32(0.05))


def leimkuhler_matthews(target):
    return cg.leimkuhler_matthews(target.log_density, jnp.float32(0.05))


def pcnl(target):
    gaussian, rest = split(target)
    return cg.pcnl(rest, gaussian, jnp.float32(0.4))


def pcnl_unadjusted(target):
    gaussian, rest = split(target)
    return cg.pcnl(rest, gaussian, jnp.float32(0.2), adjusted=False)


def preconditioned(target):
    gaussian, rest = split(target)
    return samplers.preconditioned(rest, gaussian, jnp.float32(0.5))


def independent(target):
    return samplers.independent(split(target)[0].draw)


def sk_rock(target):
    return cg.sk_rock(target.log_density, jnp.float32(0.3), num_stages=4)


def kinetic(target):
    gaussian, rest = split(target)
    return cg.kinetic(rest, gaussian, jnp.float32(0.4))


def kinetic_unadjusted(target):
    gaussian, rest = split(target)
    return cg.kinetic(rest, gaussian, jnp.float32(0.4), adjusted=False)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RandomWitness:
    """A witness, at a point moved at random."""

    witness: CountingWitness

    def __call__(self, position):
        return self.witness(position)

    def at(self, key):
        shift = 0.1 * jax.random.normal(key, SHAPE)
        return jax.tree_util.Partial(lambda witness, shift, position: witness(position + shift), self.witness, shift)


def stochastic(target):
    gaussian, rest = split(target)
    return samplers.stochastic(RandomWitness(rest), gaussian, jnp.float32(0.4))


BUILDERS = [
    langevin,
    leimkuhler_matthews,
    pcnl,
    pcnl_unadjusted,
    kinetic,
    kinetic_unadjusted,
    preconditioned,
    independent,
    sk_rock,
    stochastic,
]
EVERY = pytest.mark.parametrize("build", BUILDERS)


@jax.jit
def steps(algorithm, keys, position):
    """Scans of one chain per row of keys; the states and everything on the way."""

    def body(state, key):
        state, info = algorithm.step(key, state)
        return state, (state.position, info)

    def chain(keys):
        return jax.lax.scan(body, algorithm.init(position, keys[0]), keys)

    return jax.vmap(chain)(keys)


def keys_of_two_chains(key):
    return jax.random.split(key, (2, STEPS))


def as_argument(algorithm):
    return as_pytree(algorithm)


@EVERY
def test_returns_state_and_info_of_the_position_s_kind(key, build):
    target = posterior(0)
    algorithm = build(target)
    assert isinstance(algorithm, blackjax.base.SamplingAlgorithm)
    for state in jax.jit(lambda z, k: (algorithm.init(z), algorithm.init(z, k)))(target.center, key):
        np.testing.assert_array_equal(state.position, target.center)
    new, info = jax.eval_shape(algorithm.step, key, state)
    assert type(new) is type(state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert info.acceptance_rate.shape == ()


@EVERY
def test_float32_stays(key, build):
    target = posterior(0)
    loose = dataclasses.replace(target, data_weight=2.5, prior_precision=np.float64(1.0))  # as users write them
    for chosen in (target, loose):
        state, info = jax.eval_shape(build(chosen).step, key, jax.eval_shape(build(chosen).init, chosen.center, key))
        wide = (jnp.float64, jnp.complex128)
        assert all(leaf.dtype not in wide for leaf in jax.tree.leaves((state, info)))
        assert state.position.dtype == jnp.float32


@pytest.mark.parametrize("step_size", [0.05, np.float64(0.05), np.float32(0.05), jnp.float32(0.05)], ids=repr)
def test_step_sizes_of_any_kind_keep_float32(key, step_size):
    target = posterior(0)
    gaussian, rest = split(target)
    algorithms = [
        cg.langevin(target.log_density, step_size),
        cg.leimkuhler_matthews(target.log_density, step_size),
        cg.pcnl(rest, gaussian, step_size),
        cg.kinetic(rest, gaussian, step_size),
        cg.kinetic(rest, gaussian, step_size, step_size, power=step_size, adjusted=False),
        samplers.preconditioned(rest, gaussian, step_size),
    ]
    for algorithm in algorithms:
        out = jax.eval_shape(algorithm.step, key, jax.eval_shape(algorithm.init, target.center))
        assert out[0].position.dtype == jnp.float32


@EVERY
def test_plain_jit_vmap_and_scan_agree(key, build):
    target = posterior(0)
    algorithm = build(target)
    keys = keys_of_two_chains(key)
    state = algorithm.init(target.center, keys[0, 0])
    positions = []
    for k in keys[0]:
        state, _ = algorithm.step(k, state)
        positions.append(np.asarray(state.position))
    ends, (paths, info) = jax.tree.map(np.asarray, steps(as_argument(algorithm), keys, target.center))
    np.testing.assert_allclose(paths[0], positions, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(paths[:, -1], ends.position)
    assert np.max(np.abs(paths[0] - paths[1])) > 0.01  # another key is another chain
    assert np.all((info.acceptance_rate >= 0) & (info.acceptance_rate <= 1))


@EVERY
def test_same_key_same_result(key, build):
    target, keys = posterior(0), keys_of_two_chains(key)
    one, two = (steps(as_argument(build(target)), keys, target.center) for _ in range(2))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


@EVERY
def test_new_arrays_need_no_new_trace(key, build):
    keys = keys_of_two_chains(key)
    first, second = posterior(1), posterior(2)
    one = steps(as_argument(build(first)), keys, first.center)[0]
    calls, compiled = CountingWitness.calls, steps._cache_size()
    two = steps(as_argument(build(second)), keys, second.center)[0]
    assert steps._cache_size() == compiled
    assert CountingWitness.calls == calls
    assert np.max(np.abs(one.position - two.position)) > 0.01  # the new arrays are used


def test_the_trace_counter_counts(key):
    """Closures over the arrays, as the bound pytrees are not: every new function is a new trace."""
    keys = keys_of_two_chains(key)
    compiled = steps._cache_size()
    for seed in (1, 2):
        target = posterior(seed)
        steps(as_argument(cg.langevin(lambda z, t=target: t.log_density(z), 0.05)), keys, target.center)
    assert steps._cache_size() == compiled + 2


@pytest.mark.parametrize(
    "build", [pytest.param(b, marks=[] if b in (langevin, kinetic) else pytest.mark.slow) for b in BUILDERS]
)
def test_runs_in_blackjax_s_driver(key, build):
    target = posterior(0)
    algorithm = build(target)
    final, path = run_inference_algorithm(
        key, algorithm, STEPS, initial_position=target.center, transform=lambda state, info: state.position
    )
    assert path.shape == (STEPS, *SHAPE)
    np.testing.assert_array_equal(path[-1], final.position)
    assert np.all(np.isfinite(path))


def test_pcnl_refuses_a_proposal_that_is_not_finite(key):
    """A witness that is nan beyond 1.5: every accepted position stays inside."""
    gaussian, _ = split(posterior(0))
    cliff = jax.tree_util.Partial(lambda z: jnp.where(jnp.max(jnp.abs(z)) > 1.5, jnp.nan, -jnp.sum(z**2)))
    algorithm = cg.pcnl(cliff, gaussian, 0.1)
    keys = jax.random.split(key, (1, 200))
    _, (path, info) = steps(as_argument(algorithm), keys, jnp.zeros(SHAPE))
    assert np.max(np.abs(path)) <= 1.5
    assert np.sum(info.is_accepted) > 20
    assert np.sum(info.acceptance_rate == 0) > 5  # nan proposals did come
    assert np.all(np.isfinite(info.acceptance_rate))


def test_bare_functions_inside_a_pytree_become_pytrees():
    bound = as_pytree((jnp.ones(2), {"f": jnp.tanh}, [lambda z: z]))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(bound))
    np.testing.assert_array_equal(bound[2][0](jnp.ones(3)), jnp.ones(3))
