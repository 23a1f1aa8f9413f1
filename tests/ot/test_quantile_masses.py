"""Masses of quantile intervals on the line: against exact arithmetic of the weights as given."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.ot.one_dimensional import transport_1d, wasserstein_1d
from divjax.ot.sliced import sliced_wasserstein
from divjax.ot.unbalanced_line import unbalanced_1d

INFINITE = float("inf")
largest = functools.partial(wasserstein_1d, p=INFINITE)


def evenly(x, y):
    """The uniform coupling's distances and masses, by levels in units of 1/(n m)."""
    x, y = np.sort(np.asarray(x, float)), np.sort(np.asarray(y, float))
    n, m = x.size, y.size
    levels = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    left = levels[:-1]
    return np.abs(x[left // m] - y[left // n]), np.diff(levels) / (n * m)


def weighted(x, y, a, b):
    """The coupling's distances and masses, by a merge in rational numbers."""
    sides = []
    for z, weights in ((x, a), (y, b)):
        weights = np.ones(len(z)) if weights is None else np.asarray(weights, float)
        shares = [Fraction(w) for w in weights]
        total = sum(shares)
        sides.append([(float(z[i]), shares[i] / total) for i in np.argsort(z, kind="stable")])
    (rows, columns), apart, masses = sides, [], []
    (u, left), (v, other) = rows.pop(0), columns.pop(0)
    while True:
        mass = min(left, other)
        if mass:
            apart.append(abs(u - v))
            masses.append(float(mass))
        left, other = left - mass, other - mass
        if not left:
            if not rows:
                return np.array(apart), np.array(masses)
            u, left = rows.pop(0)
        if not other and columns:
            v, other = columns.pop(0)


def test_one_far_row_among_many_decides_the_largest_distance():
    x = np.zeros(200_000, np.float32)
    x[5] = 1
    assert largest(x, np.zeros(3, np.float32)) == 1
    assert largest(np.zeros(3, np.float32), x) == 1


def test_a_row_of_little_weight_decides_the_largest_distance():
    x, y, a = jnp.array([0.0, 1.0, 5.0]), jnp.array([0.0, 1.0]), jnp.array([1.0, 1.0, 1e-6])
    assert largest(x, y, a) == largest(y, x, None, a) == 4
    # Divided between two columns, it has mass in either.
    a = jnp.array([1.0, 1e-9, 1.0])
    assert largest(jnp.array([0.0, 5.0, 6.0]), jnp.array([0.0, 6.0]), a) == 5


def test_the_largest_distance_of_nearly_equal_numbers_of_rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=130_000).astype(np.float32)
    y = rng.normal(1, size=129_999).astype(np.float32)
    expected = evenly(x, y)[0].max()
    np.testing.assert_allclose(largest(x, y), expected, rtol=1e-6)
    # Equal weights are uniform ones, and padding leaves them so.
    padded = np.append(y, np.float32([7e7, np.nan]))
    zeros = np.append(np.full(y.size, np.float32(0.1)), np.float32([0, 0]))
    np.testing.assert_allclose(largest(x, padded, None, zeros), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.exhaustive) for s in (1, 2))]
)
def test_importance_weights_decide_the_largest_distance(seed):
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=n).astype(np.float32) for n in (2000, 3000))
    a, b = (rng.lognormal(sigma=3, size=n).astype(np.float32) for n in (2000, 3000))
    x, y = x * 20, y * 30
    apart, masses = weighted(x, y, a, b)
    np.testing.assert_allclose(largest(x, y, a, b), apart.max(), rtol=1e-6)
    np.testing.assert_allclose(wasserstein_1d(x, y, a, b), masses @ apart**2, rtol=2e-6)


def test_weights_that_are_equal_up_to_their_rounding_leave_no_mass_between():
    x, y = jnp.array([0.0, 9.0]), jnp.array([0.0, 0.5, 9.5])
    for scale in (1.0, 1e-6, 1e6, 0.37):
        a, b = scale * jnp.array([0.3, 0.7]), jnp.array([0.1, 0.2, 0.7])
        np.testing.assert_allclose(largest(x, y, a, b), 0.5)


@pytest.mark.parametrize("weight", [1e-7, 1e-30])
def test_small_weights_of_either_side_keep_their_mass(weight):
    x, y = jnp.array([0.0, 1.0]), jnp.array([0.0, 1.0, 0.005 / weight])
    a, b = jnp.array([1.0, 1.0]), jnp.array([1.0, 1.0, weight])
    apart, masses = weighted(x, y, a, b)
    expected = masses @ apart
    for args in ((x, y, a, b), (y, x, b, a)):
        np.testing.assert_allclose(wasserstein_1d(*args, p=1), expected, rtol=1e-6)
        found = transport_1d(*args, p=1)
        np.testing.assert_allclose(found.value, expected, rtol=1e-6)
        far = np.asarray(found.rows if args[0] is y else found.columns) == 2
        np.testing.assert_allclose(np.sum(found.masses[far]), weight / 2, rtol=1e-6)
        rows, columns = (z[:, None] for z in args[:2])
        along = sliced_wasserstein(None, rows, columns, *args[2:], p=1, directions=[[1.0]])
        np.testing.assert_allclose(along, expected, rtol=1e-6)


@pytest.mark.parametrize("sizes", [(12, 8), (1, 6), (1, 1), (5000, 4999)])
def test_uniform_plans_are_exact(sizes):
    """Masses in units of 1/(n m) are whole numbers."""
    n, m = sizes
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=n).astype(np.float32), rng.normal(size=m).astype(np.float32)
    found = transport_1d(x, y)
    apart, masses = evenly(x, y)
    some = np.asarray(found.masses) > 0
    np.testing.assert_allclose(np.asarray(found.masses)[some], masses, rtol=3e-7)
    rows, columns = np.asarray(found.rows)[some], np.asarray(found.columns)[some]
    np.testing.assert_array_equal(np.abs(x[rows].astype(float) - y[columns]), apart)


@pytest.mark.exhaustive
def test_a_far_row_among_millions():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=3_000_000), rng.normal(size=2_000_001)
    y[17] = 1e5
    x, y = x.astype(np.float32), y.astype(np.float32)
    apart, masses = evenly(x, y)
    np.testing.assert_allclose(wasserstein_1d(x, y), masses @ apart**2, rtol=1e-5)
    np.testing.assert_allclose(largest(x, y), apart.max(), rtol=1e-6)


def test_the_unbalanced_plan_keeps_small_weights():
    """A row of mass 10⁻⁸ next to its only neighbour of comparable cost: b e^{−g/ρ} = its column."""
    x, y = jnp.array([0.0, 1.0]), jnp.array([0.0, 1.0, 2.0])
    a, b = jnp.array([1.0, 1.0]), jnp.array([1.0, 1.0, 1e-8])
    for args in ((x, y, a, b), (y, x, b, a)):
        found = unbalanced_1d(*args, marginal_penalty=1.0)
        plan = np.asarray(found.plan(), float)
        for marginal, weights, potential in (
            (plan.sum(1), args[2], found.f),
            (plan.sum(0), args[3], found.g),
        ):
            np.testing.assert_allclose(marginal, weights * jnp.exp(-potential), rtol=1e-5)


def test_derivatives_beside_small_weights_are_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        x, y = rng.normal(size=6), rng.normal(size=5)
        a, b = rng.random(6), rng.random(5)
        a[2], b[3] = 1e-9, 1e-5
        args = [jnp.asarray(z) for z in (x, y, a, b)]
        value = jax.jit(wasserstein_1d)
        slopes = jax.jit(jax.grad(wasserstein_1d, (0, 1, 2, 3)))
        for position, slope in enumerate(slopes(*args)):
            for entry in range(args[position].size):
                step = min(1e-6, 1e-3 * float(args[position][entry])) if position > 1 else 1e-6
                moved = [list(args), list(args)]
                moved[0][position] = args[position].at[entry].add(step)
                moved[1][position] = args[position].at[entry].add(-step)
                difference = (value(*moved[0]) - value(*moved[1])) / (2 * step)
                atol = 1e-15 / step + 1e-8
                np.testing.assert_allclose(slope[entry], difference, rtol=1e-6, atol=atol)
