"""A public function that is called eagerly, as in a notebook, is compiled as one program.

Operation by operation a first call compiles up to a hundred, which takes seconds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax import fdiv, flows, kernels
from divjax.fdiv import categorical, exponential_family, histogram
from tests.contract import test_discrepancy, test_fdiv, test_inference, test_losses
from tests.contract.promises import COMPILED, KEY, D, floats

ROWS = {
    **test_fdiv.ROWS,
    **test_inference.ROWS,
    **test_losses.ROWS,
    **test_discrepancy.ROWS,
}

# One is the function's own. The others are the row's arithmetic, and conversions at the door.
MOST_PROGRAMS = 8


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] * ROWS[name].slow) for name in ROWS]
)
def test_a_first_call_compiles_few_programs(name):
    """Of a size that no other test has: nothing is compiled yet but what knows no size."""
    size = 20 + list(ROWS).index(name)
    rng = np.random.default_rng(size)
    x = jnp.asarray(rng.normal(size=(size, D)), jnp.float32)
    weights = jnp.asarray(rng.dirichlet(np.ones(size)), jnp.float32)
    method = floats(ROWS[name].method, jnp.float32)
    COMPILED.clear()
    ROWS[name].evaluate(method, KEY, x, weights)
    assert len(COMPILED) <= MOST_PROGRAMS


ETA = jnp.array([0.7]), jnp.array([0.2])
P, Q = jnp.array([[0.2, 0.8], [0.5, 0.5]]), jnp.array([[0.3, 0.7]])
U = jnp.linspace(-1, 1, 7)
# A new function at each call, which does the same, is no new program.
OWN = {
    "log_partition": lambda: exponential_family.kl(lambda eta: jax.nn.softplus(eta[0]), *ETA),
    "pairwise": lambda: categorical.pairwise(lambda p, q: categorical.kl(p, q, base=2), P, Q),
    "bias": lambda: histogram.bias(lambda p, q: categorical.kl(p, q, base=2), 9 * P[0], 9 * Q[0]),
    "histogram": lambda: histogram.divergence(
        lambda p, q: categorical.kl(p, q, base=2), P, Q, num_bins=2, smoothing=1.0, debias=True
    ),
    "conjugate": lambda: fdiv.Jeffreys().conjugate(U),
    "plug_in": lambda: fdiv.KL().plug_in(U, U + 1),
    "sensitivities": lambda: fdiv.SkewKL(0.3).sensitivities(U, U + 1),
    "potentials": lambda: fdiv.SkewKL(0.3).potentials(U, U + 1),
}


@pytest.mark.parametrize("name", OWN)
def test_the_same_call_again_compiles_nothing(name):
    OWN[name]()
    COMPILED.clear()
    OWN[name]()
    assert not COMPILED


def test_what_a_function_refers_to_may_change():
    """A program that was compiled for its former value is not run for the new one."""
    scale = 1.0
    log_partition = lambda eta: scale * jnp.exp(eta[0])
    divergence = lambda p, q: scale * categorical.kl(p, q)
    calls = (
        lambda: exponential_family.kl(log_partition, *ETA),
        lambda: categorical.pairwise(divergence, P, Q),
        lambda: histogram.bias(divergence, 9 * P[0], 9 * Q[0]),
    )
    before = [np.asarray(call()) for call in calls]
    scale = 2.0
    for call, value in zip(calls, before, strict=True):
        np.testing.assert_allclose(call(), 2 * value, rtol=1e-5)


def _flow():
    log_prob = lambda z: -0.5 * jnp.sum(z**2)
    return flows.Flow(
        (flows.KL(log_prob), flows.MMD(Z, kernels.Energy())),
        velocity=flows.SVGD(kernels.Gaussian(bandwidth=1.0)),
        aggregator=flows.PCGrad(),
        optimizer=optax.adam(0.1),
        mass=flows.FisherRao(0.1, kernels.Gaussian(bandwidth=1.0)),
    )


Z, OTHER = jnp.linspace(-1, 1, 14).reshape(7, 2), jnp.linspace(-1, 2, 14).reshape(7, 2)
FLOW_CALLS = {
    "init": lambda flow, x, state: flow.init(KEY, x),
    "fields": lambda flow, x, state: flow.fields(KEY, state),
    "step": lambda flow, x, state: flow.step(KEY, state),
    "run": lambda flow, x, state: flow.run(KEY, x, num_steps=5, record_every=2),
    "continued": lambda flow, x, state: flow.run(KEY, state, num_steps=5),
    "tolerance": lambda flow, x, state: flow.run(KEY, x, num_steps=5, tolerance=0.1),
    "observe": lambda flow, x, state: flow.run(KEY, x, num_steps=5, observe=_particles),
}


def _particles(state):
    return state.particles


@pytest.mark.parametrize("name", FLOW_CALLS)
def test_a_flow_compiles_once(name):
    """One program at a first call, besides those of conversions; none at a second one."""
    flow = _flow()
    state = flow.init(KEY, Z)
    COMPILED.clear()
    FLOW_CALLS[name](flow, Z, state)
    assert len(COMPILED) <= (0 if name == "init" else 3)
    flow.run(KEY, Z[:4], num_steps=5)  # other shapes in between
    later = flow.init(jax.random.key(4), OTHER)
    COMPILED.clear()
    FLOW_CALLS[name](flow, OTHER, later)
    assert not COMPILED


def test_numbers_of_steps_may_be_of_numpy():
    flow = _flow()
    flow.run(KEY, Z, num_steps=5)
    COMPILED.clear()
    flow.run(KEY, OTHER, num_steps=np.int64(5))
    assert not COMPILED
