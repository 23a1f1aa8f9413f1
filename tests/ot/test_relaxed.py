"""Relaxed marginals, ρ from far below ε to infinity: SciPy's optimum, and few iterations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from ott.geometry import pointcloud
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn as ott_sinkhorn
from scipy.spatial.distance import cdist

from divjax import ot

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 2)).astype(np.float32)
Y = (0.5 + 1.2 * RNG.normal(size=(9, 2))).astype(np.float32)
B = np.full(9, 1 / 9, np.float32)


@functools.cache
def compiled(**options):
    solver = ot.Sinkhorn(**{"tolerance": 1e-4, "max_iterations": 20_000} | options)
    return jax.jit(
        lambda a, epsilon, rho: ot.sinkhorn(
            X, Y, a, B, epsilon=epsilon, marginal_penalty=rho, solver=solver
        )
    )


def optimum(a, epsilon, rho_a, rho_b):
    """Potentials and value by Newton's method on the dual, in double precision."""
    costs = cdist(X.astype(float), Y.astype(float), "sqeuclidean")
    a, b, n = a.astype(float), B.astype(float), len(a)

    def negative(z):
        f, g = z[:n], z[n:]
        plan = a[:, None] * b * np.exp((f[:, None] + g - costs) / epsilon)
        ea, eb = np.exp(-f / rho_a), np.exp(-g / rho_b)
        value = rho_a * a @ (1 - ea) + rho_b * b @ (1 - eb)
        value -= epsilon * (plan.sum() - a.sum() * b.sum())
        slope = np.concatenate([a * ea - plan.sum(1), b * eb - plan.sum(0)])
        curvature = np.block([[np.diag(plan.sum(1)), plan], [plan.T, np.diag(plan.sum(0))]])
        curvature = curvature / epsilon + np.diag(np.concatenate([a * ea / rho_a, b * eb / rho_b]))
        return -value, -slope, curvature

    found = scipy.optimize.minimize(
        lambda z: negative(z)[0],
        np.zeros(n + len(b)),
        method="trust-exact",
        jac=lambda z: negative(z)[1],
        hess=lambda z: negative(z)[2],
        options={"gtol": 1e-11},
    )
    assert np.abs(found.jac).max() < 1e-8
    return found.x[:n], -found.fun


OPTIONS = {
    "adaptive": {},
    "plain": {"over_relaxation": 1.0},
    "over-relaxed": {"over_relaxation": 1.4},
    "annealed": {"annealing": ot.Annealing()},
    "blocked": {"block_size": 5},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("mass", [1.0, 1.2])
@pytest.mark.parametrize(
    ("epsilon", "rho"), [(0.5, (1000.0, 1000.0)), (0.5, (1000.0, 3.0)), (1.0, (0.3, 0.3))]
)
def test_potentials_are_the_optimum_within_few_iterations(name, mass, epsilon, rho):
    a = np.full(12, mass / 12, np.float32)
    result = compiled(**OPTIONS[name])(a, epsilon, rho)
    f, value = optimum(a, epsilon, *rho)
    assert result.converged
    assert result.num_iterations < 150
    np.testing.assert_allclose(result.value, value, rtol=1e-4)
    # ρ times the rounding of masses in single precision is what the constant is known to.
    np.testing.assert_allclose(result.f, f, atol=1e-3 + 1e-6 * max(rho))


@pytest.mark.parametrize("mass", [1.0, 1.2])
def test_weak_relaxation_takes_as_many_iterations_as_otts_recentred_updates(mass):
    x, y = RNG.normal(size=(60, 2)).astype(np.float32), RNG.normal(size=(50, 2)).astype(np.float32)
    a, b = np.full(60, mass / 60, np.float32), np.full(50, 1 / 50, np.float32)
    geometry = pointcloud.PointCloud(x, y, epsilon=0.1)
    tau = 1000 / 1000.1
    problem = linear_problem.LinearProblem(geometry, a, b, tau_a=tau, tau_b=tau)
    solver = ott_sinkhorn.Sinkhorn(
        threshold=1e-4, max_iterations=5000, recenter_potentials=True, inner_iterations=1
    )
    theirs = jax.jit(solver)(problem)
    ours = ot.sinkhorn(
        x, y, a, b, epsilon=0.1, marginal_penalty=1000.0, solver=ot.Sinkhorn(tolerance=1e-4)
    )
    assert ours.converged
    assert ours.num_iterations <= 1.5 * theirs.n_iters + 20
    # To the tolerance of both.
    np.testing.assert_allclose(ours.f[0], theirs.f[0] - 0.1 * np.log(a[0]), atol=0.03)


def test_an_infinite_penalty_is_an_exact_marginal():
    a = np.full(12, 1 / 12, np.float32)
    solve = compiled(tolerance=1e-5)
    eager = lambda penalty: ot.sinkhorn(
        X, Y, a, B, epsilon=0.5, marginal_penalty=penalty, solver=ot.Sinkhorn(tolerance=1e-5)
    )
    balanced, one = eager(None), eager((None, 2.0))
    for penalty, expected in (((np.inf, np.inf), balanced), ((np.inf, 2.0), one)):
        for found in (solve(a, 0.5, penalty), eager(penalty)):
            assert found.converged
            np.testing.assert_allclose(found.value, expected.value, rtol=1e-5)
            np.testing.assert_allclose(found.f, expected.f, atol=1e-3)
    slope = lambda rho: jax.grad(lambda e: compiled(tolerance=1e-5)(a, e, rho).f[0])(0.5)
    np.testing.assert_allclose(slope((np.inf, np.inf)), slope((1e5, 1e5)), rtol=1e-2)


def test_tau_is_otts():
    for tau in (0.5, 0.9, 0.999):
        rho = ot.marginal_penalty_from_tau(tau, 0.2)
        np.testing.assert_allclose(rho / (rho + 0.2), tau, rtol=1e-4)
    assert jnp.isinf(ot.marginal_penalty_from_tau(1.0, 0.2))
    with pytest.raises(ValueError, match="tau must be a number in"):
        ot.marginal_penalty_from_tau(1.5, 0.2)
    assert jnp.isnan(jax.jit(ot.marginal_penalty_from_tau)(1.5, 0.2))


def test_symmetric_problems_take_few_iterations_at_any_penalty():
    for rho in (1000.0, 0.1):
        result = ot.sinkhorn_divergence(X, Y, epsilon=0.5, marginal_penalty=rho)
        assert result.converged
        assert result.xx.num_iterations < 30
        np.testing.assert_allclose(
            result.xx.value,
            ot.sinkhorn(
                X, X, epsilon=0.5, marginal_penalty=rho, solver=ot.Sinkhorn(tolerance=1e-5)
            ).value,
            rtol=1e-3,
            atol=1e-5,
        )
