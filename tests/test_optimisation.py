"""Descents against the same arithmetic in NumPy, and minima against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cryowgen_jax.optimisation import Iterate, debiased_average, follow_gradient, minimise, start_average

RATE, MOMENTUM, DECAY = 0.1, 0.8, 0.5


def noisy_slope(item, parameters, state):
    """Of |p|^2 / 2 plus a push per step; the state counts steps."""
    return parameters + item, state + 1, {"push": item, "before": parameters}


def kept(item, parameters, average):
    return DECAY * average + (1 - DECAY) * parameters


def descent(items, average=kept):
    """Gradient descent with momentum, as it stands in textbooks."""
    p, velocity, mean, path = np.array([3.0, -2.0]), np.zeros(2), np.array([3.0, -2.0]), []
    for item in items:
        path.append(p)
        velocity = MOMENTUM * velocity + (p + item)
        p = p - RATE * velocity
        mean = mean if average is None else average(item, p, mean)
    return p, mean, path


@pytest.mark.parametrize("average", [kept, None])
def test_a_descent_goes_downhill_step_by_step(average):
    items = np.array([0.3, -0.1, 0.2, 0.5, -0.4])
    optimizer = optax.sgd(RATE, momentum=MOMENTUM)
    parameters = jnp.array([3.0, -2.0])
    start = Iterate(parameters, parameters, optimizer.init(parameters), jnp.int32(0))
    pushes = jnp.asarray(items, jnp.float32)
    end, log = jax.jit(lambda at: follow_gradient(noisy_slope, optimizer, at, pushes, average))(start)
    p, mean, path = descent(items, average)
    np.testing.assert_allclose(end.parameters, p, rtol=1e-5)
    np.testing.assert_allclose(end.average, mean, rtol=1e-5)
    np.testing.assert_allclose(log["before"], path, rtol=1e-5)
    np.testing.assert_allclose(log["push"], items, rtol=1e-6)
    assert end.state == 5
    assert np.linalg.norm(p) < np.linalg.norm(path[0])


def test_a_descent_in_two_parts_is_the_whole():
    items = jnp.linspace(-1.0, 1.0, 8)
    optimizer = optax.adam(0.05)
    parameters = jnp.array([3.0, -2.0])
    start = Iterate(parameters, parameters, optimizer.init(parameters), jnp.int32(0))
    whole, _ = follow_gradient(noisy_slope, optimizer, start, items, kept)
    half, _ = follow_gradient(noisy_slope, optimizer, start, items[:4], kept)
    rest, _ = follow_gradient(noisy_slope, optimizer, half, items[4:], kept)
    jax.tree.map(np.testing.assert_array_equal, whole, rest)


def test_the_debiased_average_weighs_what_it_was_given():
    values = np.array([2.0, -1.0, 5.0])
    state = start_average(jnp.float32(0.0))
    for n, value in enumerate(values, start=1):
        average, state = debiased_average(DECAY, jnp.float32(value), state)
        weights = DECAY ** np.arange(n - 1, -1, -1)
        np.testing.assert_allclose(average, weights @ values[:n] / weights.sum(), rtol=1e-6)


def rosenbrock(z):
    return jnp.sum(100.0 * (z[1:] - z[:-1] ** 2) ** 2 + (1.0 - z[:-1]) ** 2)


def test_the_minimum_of_a_curved_valley_is_found():
    found = jax.jit(lambda z: minimise(rosenbrock, z, 200))(jnp.array([-1.2, 1.0, 0.5]))
    np.testing.assert_allclose(found, np.ones(3), atol=1e-3)
    assert float(rosenbrock(minimise(rosenbrock, jnp.array([-1.2, 1.0, 0.5]), 3))) > 0.1  # three steps are too few


def test_a_search_ends_where_float32_does_not_see_the_slope():
    evaluations = []

    def bowl(z):
        jax.debug.callback(lambda: evaluations.append(None))
        return 0.5 * jnp.sum((z - 3.0) ** 2)

    found = jax.jit(lambda z: minimise(bowl, z, 1000))(jnp.zeros(4))
    np.testing.assert_allclose(found, np.full(4, 3.0), rtol=1e-6)
    jax.effects_barrier()
    assert 2 <= len(evaluations) < 30
