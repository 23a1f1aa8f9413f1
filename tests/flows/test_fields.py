"""What aggregators see, and weights for each particle."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax import flows, kernels, problems
from tests.flows.test_flow import assert_equal, run

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (16, 2))
TARGETS = tuple(flows.KL(target.log_prob) for target in problems.two_component_targets())
# Of two, the shortest combination is a formula; of four, a loop that takes longer to compile.
PAIR = TARGETS[:2]
OPTIONS = dict(velocity=flows.SVGD(kernels.Gaussian(bandwidth=1.0)), optimizer=optax.adam(0.05))


class Own:
    """Weights by a function of the fields; the state counts the calls."""

    def __init__(self, weigh):
        self.weigh = weigh

    def init(self, key, num_objectives):
        return jnp.zeros((), jnp.int32)

    def __call__(self, fields, state):
        return self.weigh(fields), state + 1


HEADS = {"a": X[:, 0], "one": X[:, 0], "two": X[:, 1]}
OWN_LEAVES = (
    flows.Potential(lambda p: (p["a"] - 1) ** 2 + p["one"] ** 2, entropy=0.4),
    flows.KL(lambda p: -2 * (p["a"] + 1) ** 2 - p["two"] ** 2),
)


@pytest.mark.parametrize(
    "velocity", [flows.GFSD(kernels.Gaussian(bandwidth=1.0)), flows.Langevin()]
)
def test_equal_weights_for_each_particle_are_one_weight_for_all(velocity):
    one = jnp.array([0.3, 0.7])
    shapes = {"k": one, "k n": jnp.broadcast_to(one[:, None], (2, 16))}
    results = [
        flows.Flow(
            OWN_LEAVES,
            velocity=velocity,
            aggregator=Own(lambda fields, weights=weights: weights),
            optimizer=optax.sgd(0.05),
            shared={"a": True, "one": False, "two": False},
            mass=flows.FisherRao(0.1, kernels.Gaussian(bandwidth=1.0)),
        ).run(KEY, HEADS, num_steps=4, record_every=2)
        for weights in shapes.values()
    ]
    for result, weights in zip(results, shapes.values(), strict=True):
        np.testing.assert_array_equal(result.history.weights, np.stack([weights] * 2))
        assert result.state.aggregator == 4
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, *(result.particles for result in results))
    close(*(result.particle_weights for result in results))
    close(*(result.history.squared_norm for result in results))


def test_weights_for_each_particle_combine_particle_by_particle():
    """Against NumPy: fields −(x − m_k), masses by exp(−η Σ_k w_ki U_k(x_i)) without entropy."""
    means, rate, mass_rate = np.array([[2.0, 0.0], [-1.0, 1.0]]), 0.1, 0.3
    objectives = [flows.Potential(lambda z, m=m: 0.5 * jnp.sum((z - m) ** 2)) for m in means]
    # Each particle follows the objective whose potential is lower there.
    nearest = lambda fields: (fields.potentials == fields.potentials.min(0)).astype(jnp.float32)
    flow = flows.Flow(
        objectives,
        velocity=flows.Langevin(),
        aggregator=Own(nearest),
        optimizer=optax.sgd(rate),
        mass=flows.FisherRao(mass_rate, kernels.Gaussian(bandwidth=1.0)),
    )
    state, info = flow.step(KEY, flow.init(KEY, X))
    x = np.asarray(X, np.float64)
    potentials = 0.5 * np.sum((x - means[:, None]) ** 2, axis=2)
    weights = potentials == potentials.min(0)
    assert 0 < weights[0].sum() < 16
    direction = np.einsum("kn,knd->nd", weights, means[:, None] - x)
    np.testing.assert_array_equal(info.weights, weights)
    np.testing.assert_allclose(state.particles, x + rate * direction, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(info.squared_norm, np.mean(np.sum(direction**2, 1)), rtol=1e-5)
    masses = np.exp(-mass_rate * np.sum(weights * potentials, axis=0))
    np.testing.assert_allclose(state.particle_weights, masses / masses.sum(), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (2, 15), (16, 2), ()])
def test_weights_of_another_shape_are_named(shape):
    message = r"weights must have shape \(2,\), or \(2, 16\) with weights for each particle; got"
    with pytest.raises(ValueError, match=message):
        run(KEY, X, PAIR, aggregator=Own(lambda fields: jnp.ones(shape)), num_steps=1)


def test_an_aggregator_gets_all_four_fields_and_zeros_at_own_leaves():
    seen = []
    flow = flows.Flow(
        OWN_LEAVES,
        velocity=flows.GFSD(kernels.Gaussian(bandwidth=1.0)),
        aggregator=Own(lambda fields: seen.append(fields) or jnp.ones(2) / 2),
        optimizer=optax.sgd(0.05),
        shared={"a": True, "one": False, "two": False},
    )
    state = flow.init(KEY, HEADS)
    # Operation by operation, so that the aggregator sees numbers.
    with jax.disable_jit():
        flow._step(KEY, state)
    whole = flow.fields(KEY, state)
    np.testing.assert_array_equal(seen[0].velocities[..., 1:], 0)
    np.testing.assert_allclose(seen[0].velocities[..., 0], whole.velocities[..., 0], rtol=1e-5)
    assert np.abs(whole.velocities[..., 1:]).max() > 0.1
    for name in ("masses", "values", "potentials"):
        np.testing.assert_allclose(getattr(seen[0], name), getattr(whole, name), rtol=1e-5)


def test_gradient_surgery_is_reproducible_and_continues():
    """Fields of which all four conflict somewhere: the orders matter, and follow the run's key."""
    flow = flows.Flow(TARGETS, **OPTIONS, aggregator=flows.PCGrad())
    whole, again = (flow.run(KEY, X, num_steps=8) for _ in range(2))
    assert_equal(whole, again)
    first = flow.run(KEY, X, num_steps=5)
    continued = flow.run(KEY, first.state, num_steps=3)
    assert_equal(continued.state.aggregator, whole.state.aggregator)
    # Runs of other lengths are other programs: equal to rounding.
    np.testing.assert_allclose(continued.particles, whole.particles, rtol=1e-5, atol=1e-6)
    other = flow.run(jax.random.key(5), X, num_steps=8)
    assert np.abs(other.history.weights - whole.history.weights).max() > 1e-3
    keys = jax.random.key_data(whole.state.aggregator), jax.random.key_data(first.state.aggregator)
    assert (keys[0] != keys[1]).any()
