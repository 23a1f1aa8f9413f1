"""Objectives' variations against autodiff of the functionals they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from divjax import flows, kernels, problems

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def setup(n=6, d=2, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 1.5, n)
    return jnp.asarray(rng.normal(size=(n, d))), jnp.asarray(weights / weights.sum())


def evaluate(objective, x, weights):
    return objective(KEY, x, weights, objective.init(KEY, x))[0]


def check_gradient(objective, functional, x, weights):
    """∇δE/δq(x_i) = (1/a_i) ∂E/∂x_i for E of the empirical measure Σ a_i δ_{x_i}; δE/δq =
    ∂E/∂a_i."""
    variation = evaluate(objective, x, weights)
    expected = jax.grad(functional)(x, weights) / weights[:, None]
    np.testing.assert_allclose(variation.gradient, expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(variation.value, functional(x, weights), rtol=1e-10)
    slope = jax.grad(functional, argnums=1)(x, weights)
    # A first variation is determined up to a constant.
    np.testing.assert_allclose(
        variation.potential - variation.potential[0], slope - slope[0], rtol=1e-8, atol=1e-12
    )


def gaussian_matrix(x, y, sigma):
    return jnp.exp(-jnp.sum((x[:, None] - y[None]) ** 2, -1) / (2 * sigma**2))


def test_kl_is_the_expected_energy():
    x, weights = setup()
    mixture = problems.two_component_targets()[0]
    functional = lambda x, a: -jnp.dot(a, jax.vmap(mixture.log_prob)(x))
    check_gradient(flows.KL(mixture.log_prob), functional, x, weights)


def test_interaction_is_the_double_integral():
    x, weights = setup()
    functional = lambda x, a: 0.5 * a @ gaussian_matrix(x, x, 0.9) @ a
    check_gradient(flows.Interaction(kernels.Gaussian(bandwidth=0.9)), functional, x, weights)


def test_mmd_is_half_the_squared_distance():
    x, weights = setup()
    y = setup(9, seed=1)[0] + 1
    uniform = jnp.full(9, 1 / 9)

    def functional(x, a):
        both, signed = jnp.concatenate([x, y]), jnp.concatenate([a, -uniform])
        return 0.5 * signed @ gaussian_matrix(both, both, 0.9) @ signed

    check_gradient(flows.MMD(y, kernels.Gaussian(bandwidth=0.9)), functional, x, weights)


def test_energy_mmd_is_the_energy_distance():
    x, weights = setup()
    y = np.asarray(setup(9, seed=1)[0]) + 1
    value = evaluate(flows.MMD(jnp.asarray(y), kernels.Energy()), x, weights).value
    x, a, b = np.asarray(x), np.asarray(weights), np.full(9, 1 / 9)
    expected = a @ cdist(x, y) @ b - 0.5 * a @ cdist(x, x) @ a - 0.5 * b @ cdist(y, y) @ b
    np.testing.assert_allclose(value, expected, rtol=1e-10)


def test_mmd_of_a_sample_to_itself_is_zero():
    x, _ = setup()
    variation = evaluate(flows.MMD(x, kernels.Gaussian()), x, jnp.full(6, 1 / 6))
    np.testing.assert_allclose(variation.value, 0, atol=1e-15)
    np.testing.assert_allclose(variation.gradient, 0, atol=1e-14)


def test_objectives_take_pytrees():
    x, weights = setup(d=3)
    split = lambda z: {"a": z[..., :1], "b": z[..., 1:]}
    for whole, parts in (
        (
            flows.KL(lambda z: -jnp.sum(z**4)),
            flows.KL(lambda z: -jnp.sum(z["a"] ** 4) - jnp.sum(z["b"] ** 4)),
        ),
        (flows.MMD(x + 1, kernels.Energy()), flows.MMD(split(x + 1), kernels.Energy())),
        (flows.Interaction(kernels.Laplace(bandwidth=1.0)),) * 2,
    ):
        one, two = evaluate(whole, x, weights), evaluate(parts, split(x), weights)
        np.testing.assert_allclose(one.value, two.value, rtol=1e-12)
        np.testing.assert_allclose(one.gradient[:, :1], two.gradient["a"], rtol=1e-12)
        np.testing.assert_allclose(one.gradient[:, 1:], two.gradient["b"], rtol=1e-12)


def test_stochastic_energies_average_to_the_full_one():
    x, weights = setup()
    data = jnp.asarray(np.random.default_rng(2).normal(size=(50, 2)))
    batch = lambda key, z: jnp.sum((z - jax.random.choice(key, data, (5,))) ** 2) / 5
    objective = flows.Potential(batch, stochastic=True)
    gradients = jax.vmap(lambda key: objective(key, x, weights, ())[0].gradient)(
        jax.random.split(KEY, 2000)
    )
    standard_error = gradients.std(0) / np.sqrt(2000)
    assert jnp.all(jnp.abs(gradients.mean(0) - 2 * (x - data.mean(0))) < 4.5 * standard_error)


def test_arrays_of_a_bound_method_are_leaves():
    mixture = problems.two_component_targets()[0]
    objective = flows.KL(mixture.log_prob)
    assert len(jax.tree.leaves(objective)) == len(jax.tree.leaves(mixture))
    traces = []

    @jax.jit
    def value(objective, x):
        traces.append(None)
        return evaluate(objective, x, jnp.full(6, 1 / 6)).value

    for target in problems.two_component_targets():
        value(flows.KL(target.log_prob), setup()[0])
    assert len(traces) == 1


@pytest.mark.parametrize("make", [flows.KL, flows.Potential])
def test_a_vector_valued_energy_is_refused(make):
    x, weights = setup()
    with pytest.raises(ValueError, match=r"must return a scalar; got shape \(2,\)"):
        evaluate(make(lambda z: z), x, weights)


def test_samples_of_another_dimension_are_refused():
    x, _ = setup()
    with pytest.raises(
        ValueError, match="samples and particles must have the same number of features; got 3 and 2"
    ):
        flows.MMD(jnp.zeros((4, 3)), kernels.Energy()).init(KEY, x)


def test_negative_entropy_is_refused():
    with pytest.raises(ValueError, match="entropy must not be negative"):
        flows.Potential(jnp.sum, entropy=-1.0)


def test_integer_samples_are_refused():
    objective = flows.MMD(jnp.array([[0], [1]]), kernels.Energy())
    with pytest.raises(ValueError, match="samples must be floating-point"):
        objective.init(KEY, setup(d=1)[0])
