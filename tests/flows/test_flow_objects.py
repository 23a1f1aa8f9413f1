"""A flow and its results as objects: transformations, shapes, protocols."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax import flows, kernels
from tests.flows.test_fields import KEY, OPTIONS, PAIR, TARGETS, Own, X
from tests.flows.test_flow import assert_equal


def squared_end(bandwidth):
    """With the flow made inside: the key and the particles are known, the bandwidth is traced."""
    velocity = flows.SVGD(kernels.Gaussian(bandwidth=bandwidth))
    flow = flows.Flow(PAIR, velocity=velocity, optimizer=optax.sgd(0.1))
    return jnp.mean(flow.run(KEY, X, num_steps=3).particles ** 2)


def test_a_flow_made_under_vmap_is_the_loop():
    bandwidths = jnp.array([0.3, 1.0, 3.0])
    loop = [squared_end(bandwidth) for bandwidth in bandwidths]
    assert np.ptp(loop) > 1e-3
    np.testing.assert_allclose(jax.vmap(squared_end)(bandwidths), loop, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(squared_end))(bandwidths), loop, rtol=1e-5)


def test_a_flow_made_under_grad_is_differentiated():
    with jax.enable_x64(True):
        slope = float(jax.grad(squared_end)(1.0))
        step = 1e-3
        difference = (squared_end(1 + step) - squared_end(1 - step)) / (2 * step)
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(slope, difference, rtol=1e-2)


def test_a_result_goes_through_jit_and_vmap():
    flow = flows.Flow(PAIR, **OPTIONS)
    alone = flow.run(KEY, X, num_steps=3)
    jitted = jax.jit(lambda x: flow.run(KEY, x, num_steps=3))(X)
    batched = jax.vmap(lambda x: flow.run(KEY, x, num_steps=3))(jnp.stack([X, X + 1]))
    assert type(jitted) is type(batched) is flows.FlowResult
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, jitted, alone)
    jax.tree.map(lambda a, b: close(a[0], b), batched, alone)
    assert batched.status.shape == (2,)
    assert "status=int32[2]" in repr(batched)


def test_a_flow_is_an_object_and_its_results_are_pytrees():
    flow, same = flows.Flow(PAIR, **OPTIONS), flows.Flow(PAIR, **OPTIONS)
    assert flow != same
    assert jax.tree_util.all_leaves([flow])
    with pytest.raises(AttributeError):
        flow.optimizer = optax.sgd(0.1)  # pyright: ignore[reportAttributeAccessIssue]
    slower = dataclasses.replace(flow, optimizer=optax.sgd(1e-3))
    moved = lambda flow: np.abs(flow.run(KEY, X, num_steps=1).particles - X).max()
    assert moved(slower) < 0.1 * moved(flow)


def test_a_run_of_other_shapes_leaves_the_first():
    flow = flows.Flow(PAIR, **OPTIONS)
    before = flow.run(KEY, X, num_steps=2)
    assert flow.run(KEY, X[:5], num_steps=2).particles.shape == (5, 2)
    assert flow.run(KEY, X, num_steps=3).history.step.shape == (3,)
    assert_equal(flow.run(KEY, X, num_steps=2), before)
    with jax.enable_x64(True):
        wide = flow.run(KEY, X.astype(jnp.float64), num_steps=2)
        assert wide.particles.dtype == jnp.float64
    np.testing.assert_allclose(wide.particles, before.particles, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("flag", [2, "yes", None])
def test_shared_holds_booleans(flag):
    flow = flows.Flow(
        TARGETS, velocity=flows.SVGD(), optimizer=optax.sgd(0.1), shared={"a": True, "b": flag}
    )
    message = "shared must" if flag is None else "shared must hold booleans"
    with pytest.raises(ValueError, match=message):
        flow.init(KEY, {"a": X, "b": X})


def test_values_that_a_flow_refers_to_are_those_of_its_first_call():
    center = jnp.zeros(2)
    objective = flows.Potential(lambda z: jnp.sum((z - center) ** 2))
    flow = flows.Flow((objective,), velocity=flows.Langevin(), optimizer=optax.sgd(0.1))
    move = lambda flow: flow.run(KEY, X, num_steps=1).particles
    before = move(flow)
    center = jnp.ones(2)
    np.testing.assert_array_equal(move(flow), before)
    # −2 η (x − c): a flow made now refers to the new value.
    np.testing.assert_allclose(move(dataclasses.replace(flow)), before + 0.2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("protocol", "part"),
    [
        (flows.Velocity, flows.Langevin()),
        (flows.Velocity, flows.NeuralScore()),
        (flows.Velocity, flows.SVGD()),
        (flows.Aggregator, flows.PCGrad()),
        (flows.Aggregator, Own(len)),
        (flows.Objective, TARGETS[0]),
    ],
    ids=lambda held: getattr(held, "__name__", type(held).__name__),
)
def test_protocols_are_checked_at_run_time(protocol, part):
    assert isinstance(part, protocol)
    assert not isinstance(optax.sgd(0.1), protocol)


def test_a_velocity_says_whether_it_diffuses():
    class Silent:
        init = flows.Langevin.init
        __call__ = flows.Langevin.__call__

    with pytest.raises(ValueError, match=r"velocity must be a velocity .* without diffuses"):
        flows.Flow(PAIR, velocity=Silent(), optimizer=optax.sgd(0.1))
