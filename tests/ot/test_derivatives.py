"""Derivatives against finite differences, dense linear algebra, and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import ot
from divjax.ot.entropic import derivatives


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


N, M, D = 8, 6, 2


def inputs(shift=0.5):
    """Points of which some coincide, logits of weights, ε's factor and the cost's exponent."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, D)), shift + 1.2 * rng.normal(size=(M, D))
    x[2], x[4], y[1] = y[0], x[3], y[0]
    return tuple(map(jnp.asarray, (x, y, rng.normal(size=N), rng.normal(size=M), 1.0)))


def solve(parameters, epsilon, block_size=None, **settings):
    x, y, a, b, factor = parameters
    a = jax.nn.softmax(a).at[5].set(0)
    a, b = a / jnp.sum(a), jax.nn.softmax(b)
    solver = ot.Sinkhorn(1e-13, max_iterations=20_000, block_size=block_size)
    return ot.sinkhorn(x, y, a, b, epsilon=epsilon * factor, solver=solver, **settings)


def directions(parameters):
    """One random direction for each argument alone."""
    rng = np.random.default_rng(1)
    for k, _ in enumerate(parameters):
        yield tuple(
            jnp.asarray(rng.normal(size=p.shape)) * (i == k) for i, p in enumerate(parameters)
        )


def differences(function, parameters, direction, step):
    """Of fourth order."""
    at = lambda s: function(jax.tree.map(lambda p, d: p + s * step * d, parameters, direction))
    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)


def slope(gradient, direction):
    return sum(jnp.vdot(g, d) for g, d in zip(gradient, direction, strict=True))


VALUE = jax.jit(
    jax.value_and_grad(
        lambda p, epsilon, offset: solve((p[0] + offset, p[1] + offset, *p[2:]), epsilon).value
    )
)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("share", [1e-3, 1e-2, 0.1, 1.0, 10.0])
def test_the_values_gradient_is_the_slope(share, offset):
    # At the smallest ε the clouds are far from each other: else nearly a permutation, to which
    # iterations converge exponentially slowly in 1/ε.
    parameters = inputs(30.0 if share < 1e-2 else 0.5)
    mean = float(jnp.mean(ot.cost_matrix(ot.SqEuclidean(), *parameters[:2])))
    _, gradient = VALUE(parameters, share * mean, offset)
    for direction in directions(parameters):
        value = lambda p: VALUE(p, share * mean, offset)[0]
        expected = differences(value, parameters, direction, 3e-4 if share > 1e-3 else 1e-3)
        np.testing.assert_allclose(slope(gradient, direction), expected, rtol=1e-6, atol=1e-8)


def test_unbalanced_gradients_and_those_of_costs_are_slopes():
    def value(p):
        *p, exponent, rho = p
        settings = dict(cost=ot.PNormPower(exponent), marginal_penalty=(rho, 2 * rho))
        return solve(tuple(p), 0.5, **settings).value

    parameters = (*inputs(), jnp.asarray(1.7), jnp.asarray(0.6))
    function = jax.jit(jax.value_and_grad(value))
    _, gradient = function(parameters)
    for k, direction in enumerate(directions(parameters)):
        expected = differences(lambda p: function(p)[0], parameters, direction, 1e-4)
        if k > 1:  # |z|^1.7 has no second derivative where points coincide
            np.testing.assert_allclose(slope(gradient, direction), expected, rtol=1e-6)
        assert jnp.isfinite(gradient[k]).all()


def test_forward_mode_and_hessian():
    parameters = inputs()
    value = lambda x: solve((x, *parameters[1:]), 0.1).value
    gradient = jax.jit(jax.grad(value))
    x, direction = parameters[0], next(directions(parameters))[0]
    _, tangent = jax.jit(lambda x: jax.jvp(value, (x,), (direction,)))(x)
    np.testing.assert_allclose(tangent, jnp.vdot(gradient(x), direction), rtol=1e-10)
    hessian = jax.jit(jax.hessian(value))(x).reshape(N * D, N * D)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-10)
    expected = differences(gradient, x, direction, 1e-4).ravel()
    np.testing.assert_allclose(hessian @ direction.ravel(), expected, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"marginal_penalty": 0.7}, {"block_size": 3}])
def test_gradients_of_plan_potentials_and_map(settings):
    weights = jnp.asarray(np.random.default_rng(3).normal(size=(N, M)))

    def scalar(p):
        result = solve(p, 0.3, **settings)
        of_map = jnp.sum(jnp.cos(result.transport(p[1])))
        return jnp.vdot(weights, result.plan()) + weights[:, 0] @ result.f + of_map

    function = jax.jit(jax.value_and_grad(scalar))
    parameters = inputs()
    _, gradient = function(parameters)
    for direction in directions(parameters):
        expected = differences(lambda p: function(p)[0], parameters, direction, 1e-4)
        np.testing.assert_allclose(slope(gradient, direction), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("share", [2e-3, 1e-2, 0.1])
def test_the_implicit_rule_is_dense_linear_algebra(share):
    """At small ε the system is nearly singular: against a least-squares solution of all of it."""
    x, y, a, b, _ = inputs()
    costs = ot.cost_matrix(ot.SqEuclidean(), x, y)
    a, b = jax.nn.softmax(a), jax.nn.softmax(b)
    epsilon = share * jnp.mean(costs)
    change = jnp.asarray(np.random.default_rng(4).normal(size=(N, M)))
    solver = ot.Sinkhorn(1e-12, ot.Annealing(), max_iterations=20_000)
    plan = lambda costs: ot.sinkhorn(
        None, None, a, b, epsilon=epsilon, cost=costs, solver=solver
    ).plan()
    found, tangent = jax.jit(lambda costs: jax.jvp(plan, (costs,), (change,)))(costs)
    found = np.asarray(found)
    system = np.block([[np.diag(found.sum(1)), found], [found.T, np.diag(found.sum(0))]])
    target = np.concatenate([(found * change).sum(1), (found * change).sum(0)])
    solution = np.linalg.lstsq(system, target, rcond=1e-14)[0]
    expected = found * (solution[:N, None] + solution[N:] - change) / epsilon
    assert jnp.isfinite(tangent).all()
    np.testing.assert_allclose(tangent, expected, atol=1e-5 * np.abs(change).max() / share)


def test_a_gradient_of_the_value_solves_nothing(monkeypatch):
    """What the potentials' derivatives would need is traced, but dropped before it runs."""
    calls = []

    def solve_slowly(apply, target, weight):
        count = lambda target: calls.append(1) or target
        return jax.pure_callback(count, target, target)

    monkeypatch.setattr(derivatives, "_conjugate_gradients", solve_slowly)
    x, y, *_ = inputs()
    value = lambda x: ot.sinkhorn(x, y, epsilon=0.1).value
    jax.block_until_ready(jax.jit(jax.grad(value))(x))
    assert not calls
    potential = lambda x: ot.sinkhorn(x, y, epsilon=0.1).f[0]
    jax.block_until_ready(jax.jit(jax.grad(potential))(x))
    assert calls


@pytest.mark.parametrize("unit", [1.0, 1e20, 1e-20])
def test_derivatives_in_epsilon_and_penalties_do_not_depend_on_the_unit(unit):
    """All are homogeneous in the costs; dV/dε = KL(P‖a⊗b) by a plan in float64."""
    rng = np.random.default_rng(0)
    costs, ends = rng.random((7, 5)), (np.full(7, 1 / 7), np.full(5, 1 / 5))
    u, kernel = np.ones(7), np.exp(-costs / 0.4)
    for _ in range(500):
        v = 1 / (kernel.T @ (ends[0] * u))
        u = 1 / (kernel @ (ends[1] * v))
    density = u[:, None] * kernel * v
    divergence = (np.outer(*ends) * density * np.log(density)).sum()
    of = lambda epsilon, **relaxed: ot.sinkhorn(
        None, None, cost=jnp.float32(costs) * jnp.float32(unit), epsilon=epsilon, **relaxed
    )
    epsilon = jnp.float32(0.4 * unit)
    np.testing.assert_allclose(jax.grad(lambda e: of(e).value)(epsilon), divergence, rtol=1e-3)
    # These have no closed form: they are differences, of steps relative to the unit.
    relaxed = lambda e, rho: of(e, marginal_penalty=(rho, 2 * rho))
    rho, step = jnp.float32(0.7 * unit), 1e-2

    def numbers(e, rho):
        balanced, other = of(e), relaxed(e, rho)
        weighted = jnp.sum(balanced.f * jnp.arange(7)), jnp.sum(other.f)
        return jnp.stack([balanced.transport_cost, other.value, *weighted])

    found = jax.jit(jax.jacrev(numbers, (0, 1)))(epsilon, rho)
    at = lambda i, j: np.asarray(numbers(epsilon * (1 + i * step), rho * (1 + j * step)), float)
    differences = (at(1, 0) - at(-1, 0)) / epsilon, (at(0, 1) - at(0, -1)) / rho
    np.testing.assert_allclose(found, np.array(differences) / (2 * step), rtol=0.01, atol=2e-3)


@pytest.mark.parametrize("scale", [1e-12, 1e-16, 1e-20])
@pytest.mark.parametrize("of", ["gap", "potential"])
def test_implicit_derivatives_are_linear_in_a_small_cotangent(of, scale):
    """A loss of any unit: squares of the cotangent leave float32's range."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 2)).astype(np.float32)
    y = (x + 0.1 * rng.normal(size=(24, 2))).astype(np.float32)
    v = rng.normal(size=24).astype(np.float32)

    def loss(y, scale):
        if of == "gap":
            return scale * ot.monge_gap(x, y, epsilon=0.2, kind="primal").value
        return scale * (ot.sinkhorn(x, y, epsilon=0.2).f @ v)

    with jax.enable_x64(False):
        slope = jax.jit(jax.grad(loss))
        plain, scaled = slope(jnp.asarray(y), 1.0), slope(jnp.asarray(y), scale)
    np.testing.assert_allclose(scaled / scale, plain, atol=2e-4 * jnp.abs(plain).max())
