"""Units of a millionth and of a trillionth of a trillionth change nothing, or are flagged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from divjax import inference, ot
from divjax.core.types import Status
from divjax.inference import Bounded

KEY = jax.random.key(0)
RNG = np.random.default_rng(1)
X, Y = RNG.normal(size=(20, 3)), RNG.normal(size=(30, 3))
SHARES = RNG.uniform(size=50)


def least_cost(costs):
    """By SciPy, of uniform weights."""
    n, m = costs.shape
    rows = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    masses = np.r_[np.full(n, 1 / n), np.full(m, 1 / m)]
    return scipy.optimize.linprog(costs.ravel(), A_eq=np.vstack(rows), b_eq=masses).fun


@pytest.mark.parametrize("unit", [1e-6, 1e-7, 1e-12])
def test_exact_transport(unit):
    """Solvers have absolute tolerances."""
    truth = least_cost(((X[:, None] - Y) ** 2).sum(axis=2))
    result = ot.exact(X * unit, Y * unit)
    np.testing.assert_allclose(result.value / unit**2, truth, rtol=1e-5)
    # The potentials are feasible.
    costs = ((X[:, None] - Y) ** 2).sum(axis=2)
    slack = costs - (np.asarray(result.f)[:, None] + np.asarray(result.g)) / np.float64(unit) ** 2
    assert slack.min() > -1e-4 * costs.max()


def test_exact_transport_of_any_mass():
    costs = np.abs(RNG.normal(size=(5, 7)))
    for mass in (1e-20, 1e10):
        result = ot.exact(None, None, np.full(5, mass / 5), np.full(7, mass / 7), cost=costs)
        np.testing.assert_allclose(result.value / mass, least_cost(costs), rtol=1e-5)


@pytest.mark.parametrize("unit", [1e-17, 1e-22, 1e-30, 1e20])
def test_bounds_on_means(unit):
    """Squares of widths leave float32's range; bounds are those of the shares, by any unit."""
    bounds = inference.empirical_bernstein_lower_bound, inference.empirical_bernstein_upper_bound
    for bound in bounds:
        np.testing.assert_allclose(
            bound(SHARES * unit, 0.0, unit) / unit, bound(SHARES, 0.0, 1.0), rtol=1e-5
        )
    one = inference.sum_of_means_lower_bound(Bounded(SHARES, 0, 1), Bounded(2 * SHARES, 0, 2))
    scaled = [Bounded(k * SHARES * unit, 0.0, k * unit) for k in (1, 2)]
    np.testing.assert_allclose(inference.sum_of_means_lower_bound(*scaled) / unit, one, rtol=1e-5)


@pytest.mark.parametrize("offset", [1e3, 2e4])
def test_bounds_far_from_zero_are_rounded_towards_safety(offset):
    """NumPy's float64 keeps its digits, up to those of the answer."""
    near = inference.betting_lower_bound(SHARES, 0.0, 1.0)
    far = np.float64(inference.betting_lower_bound(SHARES + offset, offset, offset + 1)) - offset
    grid = np.spacing(np.float32(offset))
    assert near - 2 * grid <= far <= near


@pytest.mark.parametrize("unit", [1e-9, 3e-10, 1e-18, 1e20])
def test_gaussian_maps_with_and_without_shrinkage(unit):
    z = np.array([[5.0, -4.0, 1.0]])
    for shrinkage in (0.0, "ledoit-wolf"):
        one = ot.gaussian_map_from_samples(X, Y, shrinkage=shrinkage)(z)
        small = ot.gaussian_map_from_samples(X * unit, Y * unit, shrinkage=shrinkage)(z * unit)
        np.testing.assert_allclose(small / unit, one, rtol=1e-4)


def test_spreads_whose_squares_are_lost_are_flagged():
    tiny = (
        ot.exact(X * 1e-19, Y * 1e-19),
        ot.EntropicMap(solver=ot.Sinkhorn(tolerance=1e-2, max_iterations=50)).fit(
            KEY, X * 1e-20, Y * 1e-20
        ),
    )
    assert all(result.status == Status.FLOATING_POINT_RESOLUTION for result in tiny)
    # One point is not a small spread.
    assert ot.exact(np.ones((3, 2)), np.ones((4, 2))).converged


def test_a_statistic_of_rounded_rows_is_flagged():
    difference = lambda x, y: jnp.abs(x.mean() - y.mean())
    tests = [
        inference.permutation_test(KEY, difference, X + o, Y + o, num_permutations=19).status
        for o in (0.0, 1e6, 1e9)
    ]
    lost = Status.FLOATING_POINT_RESOLUTION
    assert [int(status) for status in tests] == [Status.CONVERGED, lost, lost]


def test_weights_in_any_unit():
    even = ot.EntropicMap(solver=ot.Sinkhorn(tolerance=1e-2, max_iterations=50)).fit(KEY, X, Y)(X)
    weights = np.full(len(X), 1e-40), np.full(len(Y), 1e300)
    found = ot.EntropicMap(solver=ot.Sinkhorn(tolerance=1e-2, max_iterations=50)).fit(
        KEY, X, Y, a=weights[0], b=weights[1]
    )(X)
    np.testing.assert_allclose(found, even, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="a must be positive for at least 2 rows"):
        ot.EntropicMap().fit(KEY, X, Y, a=np.eye(len(X))[0])


def test_large_costs_that_forbid_pairs_leave_the_others_their_digits():
    costs = np.abs(RNG.normal(size=(6, 8)))
    forbidden = costs.copy()
    forbidden[0, :5] = 1e12
    truth = least_cost(np.where(forbidden > 1e6, 1e3, costs))  # none of them is used
    np.testing.assert_allclose(ot.exact(None, None, cost=forbidden).value, truth, rtol=1e-5)
    # Nor do rows without mass.
    padded = np.vstack([costs, np.full(8, 1e30)])
    weights = np.r_[np.full(6, 1 / 6), 0]
    value = ot.exact(None, None, weights, cost=padded).value
    np.testing.assert_allclose(value, least_cost(costs), rtol=1e-5)
