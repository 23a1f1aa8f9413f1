"""Potentials on the line: the programme's, beside padding, outliers and weights below rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.core.types import Status
from divjax.ot.one_dimensional import transport_1d, wasserstein_1d
from divjax.ot.unbalanced_line import unbalanced_1d
from tests.ot.test_one_dimensional import programme, samples


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("p", [1, 1.5, 2])
def test_plan_and_potentials_solve_the_programme(ties, p):
    """Primal and dual feasible, of equal value: optimal."""
    run = jax.jit(functools.partial(transport_1d, p=p))
    for seed in range(5):
        x, y, a, b = samples(seed, ties)
        a[1] = 0
        found = run(x, y, a, 2 * b)
        plan, costs = found.plan(), np.abs(x[:, None] - y) ** p
        np.testing.assert_allclose(plan.sum(1), a / a.sum(), atol=1e-12)
        np.testing.assert_allclose(plan.sum(0), b, atol=1e-12)
        assert (found.f[:, None] + found.g <= costs + 1e-12).all()
        np.testing.assert_allclose(np.sum(plan * costs), found.value, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(a @ found.f / a.sum(), found.value / 2, atol=1e-12)
        np.testing.assert_allclose(b @ found.g, found.value / 2, atol=1e-12)
        np.testing.assert_allclose(
            found.value, programme(x, y, a / a.sum(), b, p), rtol=1e-9, atol=1e-12
        )
        assert found.status == Status.CONVERGED
        # The images of rows are the plan's barycentric projection, of equal rows together.
        images = found.transport(x)
        for value in np.unique(x[a > 0]):
            rows = (x == value) & (a > 0)
            mean = (plan[rows].sum(0) @ y) / plan[rows].sum()
            np.testing.assert_allclose(images[rows], mean, atol=1e-9)
        grid = np.linspace(-6, 6, 50)
        assert (np.diff(found.transport(grid)) >= -1e-12).all()


def test_potentials_do_not_depend_on_the_total_mass():
    """Weights of any sum: their product with costs near 1e33 must not overflow."""
    x, y = np.float32([0, 1e8]), np.float32([2e8, 3e8])
    unit = transport_1d(x, y, p=4)
    heavy = transport_1d(x, y, np.float32([1e7, 1e7]), p=4)
    assert jnp.isfinite(unit.f).all()
    np.testing.assert_allclose(heavy.f, unit.f, rtol=1e-6)
    np.testing.assert_allclose(heavy.g, unit.g, rtol=1e-6)


def test_a_weightless_row_whose_cost_overflows():
    x, y = np.random.default_rng(0).normal(size=(2, 20)).astype(np.float32)
    weights = np.append(np.ones(20), 0).astype(np.float32)
    plain = transport_1d(x, y)
    right = transport_1d(np.append(x, np.float32(1e20)), y, weights)
    np.testing.assert_allclose(right.f[:20], plain.f, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(right.g, plain.g, rtol=1e-4, atol=1e-5)
    left = transport_1d(np.append(x, np.float32(-1e20)), y, weights)
    assert left.status == Status.NOT_FINITE or jnp.isfinite(left.g).all()


@pytest.mark.parametrize("p", [1, 2, 3.0])
@pytest.mark.parametrize("far", [-1e30, -1e20, -1e4, -100, 100, 1e20])
def test_padding_at_either_end_of_the_line(far, p):
    """Weightless rows to the left lead to the others: their costs must not be part of sums."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=30), generator.normal(size=25) + 1
    padded, a, b = np.append(x, far), np.append(np.full(30, 1 / 30), 0), np.full(25, 1 / 25)
    x, y, padded, a, b = (jnp.asarray(each, jnp.float32) for each in (x, y, padded, a, b))
    for found, alone in (
        (transport_1d(padded, y, a, b, p=p), transport_1d(x, y, p=p)),
        (
            unbalanced_1d(padded, y, a, b, marginal_penalty=1.0, p=p),
            unbalanced_1d(x, y, marginal_penalty=1.0, p=p),
        ),
    ):
        assert int(found.status) == Status.CONVERGED
        np.testing.assert_allclose(found.value, alone.value, rtol=1e-5)
        np.testing.assert_allclose(found.f[:-1], alone.f, atol=1e-5)
        np.testing.assert_allclose(found.g, alone.g, atol=1e-5)


def test_potentials_beside_an_outlier_keep_their_digits():
    """A row of little weight far to the left: equality holds on the plan of all other rows."""
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=30), generator.normal(size=30) + 1
    x[0], a = -1e5, np.full(30, 1.0)
    a[0] = 1e-6
    found = transport_1d(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), jnp.asarray(a))
    rows, columns = np.asarray(found.rows), np.asarray(found.columns)
    near = (np.asarray(found.masses) > 0) & (x[rows] > -1e4)
    sums = np.asarray(found.f, float)[rows] + np.asarray(found.g, float)[columns]
    np.testing.assert_allclose(sums[near], ((x[rows] - y[columns]) ** 2)[near], atol=1e-4)


@pytest.mark.parametrize("p", [1, 1.5, 2])
@pytest.mark.parametrize("far", [1e3, 1e6, 1e30])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_path_through_padding_gives_no_other_row_its_cost(p, far, side):
    """The level of a weight below rounding is that of the end, where the padding lies."""
    with jax.enable_x64(False):
        x, a = np.array([0.0, 1.0]), np.array([0.3, 0.7])
        y, b = np.array([0.5, 3.0, 4.0]), np.array([1.0, 1.0, 1e-7])
        # The path of exact levels is (0, .5), (1, .5), (1, 3), (1, 4).
        c = np.abs(x[:, None] - y) ** p
        f = np.array([0.0, c[1, 0] - c[0, 0]])
        g = np.array([c[0, 0], c[1, 1] - f[1], c[1, 2] - f[1]])
        rows, columns, masses = side * np.append(x, far), side * y, np.append(a, 0.0)
        found = transport_1d(rows, columns, masses, b, p=p)
        assert found.status == Status.CONVERGED
        constant = found.f[0] - f[0]
        np.testing.assert_allclose(found.f[:2] - constant, f, atol=1e-5)
        np.testing.assert_allclose(found.g + constant, g, atol=1e-5)
        slopes = jax.grad(lambda b: wasserstein_1d(rows, columns, masses, b, p=p))(jnp.asarray(b))
        np.testing.assert_allclose(slopes, (g - b @ g / b.sum()) / b.sum(), atol=1e-5)


def test_many_equal_rows_add_up_no_rounding():
    """Padding by zeros within the data; by the optimality of a plan in float64."""
    with jax.enable_x64(False):
        rng = np.random.default_rng(7)
        x, y = np.float32(rng.normal(size=60)), np.float32(rng.normal(size=50) + 0.5)
        a, b = np.float32(rng.random(60)), np.float32(rng.random(50))
        padded = (
            np.append(x, np.zeros(20_000, np.float32)),
            np.append(a, np.zeros(20_000, np.float32)),
        )
        found = transport_1d(padded[0], y, padded[1], b)
        f, g = np.asarray(found.f, float)[:60], np.asarray(found.g, float)
        costs = (x[:, None].astype(float) - y) ** 2
        assert (f[:, None] + g <= costs + 2e-6).all()
        value = a @ f / a.sum(dtype=float) + b @ g / b.sum(dtype=float)
        np.testing.assert_allclose(value, found.value, atol=2e-6)
