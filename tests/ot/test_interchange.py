"""ott-jax's costs and potentials, handed over both ways; ott-jax's own numbers are the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ott.geometry import costs as theirs
from ott.geometry import pointcloud
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn as ott_sinkhorn

from divjax import ot

X, Y = jax.random.normal(jax.random.key(0), (2, 24, 2))
Y = 0.5 * Y[:20] + 1
A = jnp.arange(1.0, 25) / jnp.sum(jnp.arange(1.0, 25))
B = jnp.full(20, 1 / 20)
EPSILON = 0.5

COSTS = {
    "SqEuclidean": theirs.SqEuclidean(),
    "Euclidean": theirs.Euclidean(),
    "PNormP": theirs.PNormP(1.5),
    "SqPNorm": theirs.SqPNorm(1.5),
    "EuclideanP": theirs.EuclideanP(1.5),
    "Cosine": theirs.Cosine(),
}


def _solved_by_ott(cost):
    geometry = pointcloud.PointCloud(X, Y, cost_fn=cost, epsilon=EPSILON)
    problem = linear_problem.LinearProblem(geometry, A, B)
    return ott_sinkhorn.Sinkhorn(threshold=1e-5, max_iterations=5000)(problem)


@pytest.mark.parametrize("name", COSTS)
def test_their_costs_are_costs(name):
    expected = _solved_by_ott(COSTS[name])
    result = ot.sinkhorn(
        X, Y, A, B, epsilon=EPSILON, cost=COSTS[name], solver=ot.Sinkhorn(tolerance=1e-5)
    )
    np.testing.assert_allclose(result.plan(), expected.matrix, rtol=2e-3, atol=1e-6)
    matrix = ot.cost_matrix(COSTS[name], X, Y)
    np.testing.assert_allclose(matrix, COSTS[name].all_pairs(X, Y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["PNormP", "SqPNorm"])
def test_their_displacement_costs_are_centred_and_give_a_map(name):
    cost = COSTS[name]
    solve = lambda x, y: ot.sinkhorn(
        x, y, A, B, epsilon=EPSILON, cost=cost, solver=ot.Sinkhorn(tolerance=1e-5)
    )
    near, far = (
        solve(np.asarray(X, float) + o, np.asarray(Y, float) + o) for o in (0.0, 123456789.0)
    )
    np.testing.assert_allclose(far.value, near.value, rtol=1e-5)
    moved = _solved_by_ott(cost).to_dual_potentials().transport(X)
    np.testing.assert_allclose(near.transport(X), moved, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "cost", [ot.SqEuclidean(), ot.EuclideanPower(1.5), ot.PNormPower(1.5), COSTS["SqPNorm"]]
)
def test_potentials_go_there(cost):
    result = ot.sinkhorn(X, Y, A, B, epsilon=EPSILON, cost=cost, solver=ot.Sinkhorn(tolerance=1e-5))
    for ours, their in ((result, result.to_ott()), (result.transposed, result.transposed.to_ott())):
        of_x, of_y = (X, Y) if ours is result else (Y, X)
        np.testing.assert_allclose(their.transport(of_x), ours.transport(of_x), atol=1e-4)
        back = their.transport(of_y, forward=False)
        np.testing.assert_allclose(back, ours.transposed.transport(of_y), atol=1e-4)
    f, g = (jax.vmap(of)(at) for of, at in ((their.f, Y), (their.g, X)))
    np.testing.assert_allclose(B @ f + A @ g, result.value, rtol=1e-4)


@pytest.mark.parametrize("penalty", [1.0, (0.5, None)])
def test_maps_between_relaxed_marginals_go_there(penalty):
    """The barycentric projection P y / P 1, whatever damps the potentials."""
    result = ot.sinkhorn(X, Y, A, B, epsilon=EPSILON, marginal_penalty=penalty)
    plan = np.asarray(result.plan())
    theirs = result.to_ott()
    np.testing.assert_allclose(
        theirs.transport(X), plan @ Y / plan.sum(1, keepdims=True), atol=1e-4
    )
    np.testing.assert_allclose(
        theirs.transport(Y, forward=False), plan.T @ X / plan.sum(0)[:, None], atol=1e-4
    )


def test_potentials_come_back_at_the_optimum():
    weights = A.at[3].set(0) / (1 - A[3])
    geometry = pointcloud.PointCloud(X, Y, epsilon=EPSILON)
    problem = linear_problem.LinearProblem(geometry, weights, B)
    output = ott_sinkhorn.Sinkhorn(threshold=1e-6, max_iterations=5000)(problem)
    start = ot.potentials_from_ott(output)
    result = ot.sinkhorn(
        X, Y, weights, B, epsilon=EPSILON, init=start, solver=ot.Sinkhorn(tolerance=1e-4)
    )
    assert int(result.num_iterations) == 1
    np.testing.assert_allclose(result.value, output.reg_ot_cost, rtol=1e-4)


def test_what_cannot_be_handed_over_is_refused():
    of_matrix = ot.sinkhorn(None, None, epsilon=1.0, cost=jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="cost matrix"):
        of_matrix.to_ott()
    with pytest.raises(ValueError, match="SinkhornOutput"):
        ot.potentials_from_ott(of_matrix)
