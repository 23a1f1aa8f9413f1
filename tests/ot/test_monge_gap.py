"""The Monge gap: exact gaps, bounds, closed forms, ott's value, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from ott.geometry import costs as ott_costs
from ott.geometry import pointcloud
from ott.solvers import linear

from divjax.core.types import Status
from divjax.ot.costs import Euclidean, SphereGeodesic, SqEuclidean
from divjax.ot.entropic.options import Sinkhorn
from divjax.ot.entropic.solver import sinkhorn
from divjax.ot.given_costs import cost_matrix
from divjax.ot.maps.gap import KINDS, monge_gap

SIZE = 40
SLOW = pytest.mark.exhaustive  # compilation, a program a cost, a kind and a dtype
gap = jax.jit(monge_gap, static_argnames=("kind",))


def sample(seed, n=SIZE, d=2):
    return jax.random.normal(jax.random.key(seed), (n, d))


def exact_gap(cost, x, y):
    """By the assignment of least cost."""
    costs = np.asarray(cost_matrix(cost, x, y), np.float64)
    rows, columns = scipy.optimize.linear_sum_assignment(costs)
    return np.trace(costs) / len(x) - costs[rows, columns].mean()


@pytest.mark.parametrize(
    "cost",
    [SqEuclidean(), *(pytest.param(c, marks=SLOW) for c in (Euclidean(), SphereGeodesic()))],
)
@pytest.mark.parametrize("relative", [0.05, 1.0])
def test_bounds_around_the_gap_of_the_samples(cost, relative):
    """M + εH ≤ entropic ≤ M + 2εH, M − εH ≤ primal ≤ M, |debiased − M| ≤ εH."""
    x, y = sample(0), 2 * sample(1) + jnp.array([1.0, 0.0])
    truth, slack = exact_gap(cost, x, y), 1e-3
    epsilon = relative * float(jnp.mean(cost_matrix(cost, x, y)))
    entropy = epsilon * np.log(SIZE)
    value = {
        kind: gap(x, y, epsilon=epsilon, cost=cost, kind=kind, solver=Sinkhorn(tolerance=1e-5))
        for kind in KINDS
    }
    assert all(result.converged for result in value.values())
    value = {kind: float(result.value) for kind, result in value.items()}
    assert truth + entropy - slack <= value["entropic"] <= truth + 2 * entropy + slack
    assert truth - entropy - slack <= value["primal"] <= truth + slack
    assert abs(value["debiased"] - truth) <= entropy + slack


@pytest.mark.parametrize("kind", KINDS)
def test_tends_to_the_exact_gap(kind):
    """Of a rotation and of a reversal, both far from optimal."""
    x = sample(0)
    for y in (x @ jnp.array([[0.0, 1.0], [-1.0, 0.0]]), x[::-1]):
        truth = exact_gap(SqEuclidean(), x, y)
        assert truth > 1
        # 2ε log 40 < 0.01 |M|
        found = gap(x, y, epsilon=1e-3, kind=kind).value
        np.testing.assert_allclose(found, truth, rtol=0.01)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0, 10.0])
def test_debiased_is_zero_for_a_shift_whatever_epsilon(epsilon):
    x = sample(0)
    result = gap(x, x + jnp.array([3.0, -4.0]), epsilon=epsilon, kind="debiased")
    np.testing.assert_allclose(result.displacement, 25.0, rtol=1e-5)
    assert abs(result.value) < 1e-4
    others = [gap(x, x + 1, epsilon=epsilon, kind=kind).value for kind in ("entropic", "primal")]
    assert others[0] > epsilon * np.log(SIZE) - 1e-3
    assert others[1] < 1e-3 - (epsilon >= 0.1) * 0.01


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_debiased_of_gaussians_in_one_dimension(epsilon):
    """OT_ε of N(0, s²) and N(0, t²): the correlation solves 2(s²t² − c²) = εc for covariance c.

    From min_c s² + t² − 2c − (ε/2) log(1 − c²/(s²t²)).
    """
    n, s, t = 400, 1.0, 2.0
    x = jax.scipy.special.ndtri((jnp.arange(n) + 0.5) / n)[:, None]
    x = x * s / jnp.std(x)

    def entropic(s, t):
        c = (-epsilon + np.sqrt(epsilon**2 + 16 * s**2 * t**2)) / 4
        return s**2 + t**2 - 2 * c - epsilon / 2 * np.log(1 - (c / (s * t)) ** 2)

    truth = (t - s) ** 2 - entropic(s, t) + (entropic(s, s) + entropic(t, t)) / 2
    found = gap(
        x, t / s * x, epsilon=epsilon, kind="debiased", solver=Sinkhorn(tolerance=1e-5)
    ).value
    assert 1e-3 < truth < epsilon**2
    np.testing.assert_allclose(found, truth, rtol=0.1)


@pytest.mark.parametrize("epsilon", [0.1, 1.0])
@pytest.mark.parametrize(
    ("cost", "theirs"),
    [
        (SqEuclidean(), ott_costs.SqEuclidean()),
        pytest.param(Euclidean(), ott_costs.Euclidean(), marks=SLOW),
    ],
)
def test_the_entropic_kind_matches_ott(epsilon, cost, theirs):
    x, y = sample(0), sample(1) ** 3
    geometry = pointcloud.PointCloud(x, y, cost_fn=theirs, epsilon=epsilon)
    output = linear.solve(geometry, threshold=1e-5)
    wanted = jnp.mean(jax.vmap(theirs)(x, y)) - output.ent_reg_cost  # pyright: ignore[reportAttributeAccessIssue]
    found = gap(
        x, y, epsilon=epsilon, cost=cost, kind="entropic", solver=Sinkhorn(tolerance=1e-5)
    ).value
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@SLOW
@pytest.mark.parametrize("kind", ["debiased", "primal"])
def test_a_weight_is_worth_its_repetitions(kind):
    x, y = sample(0, 6), sample(1, 6)
    counts = np.array([1, 2, 3, 1, 1, 2])
    weighted = gap(x, y, jnp.asarray(counts / 10, jnp.float32), epsilon=0.5, kind=kind)
    x, y = jnp.repeat(x, counts, axis=0), jnp.repeat(y, counts, axis=0)
    repeated = gap(x, y, epsilon=0.5, kind=kind)
    np.testing.assert_allclose(weighted.value, repeated.value, rtol=1e-3)
    np.testing.assert_allclose(weighted.displacement, repeated.displacement, rtol=1e-5)


@pytest.mark.parametrize(
    "kind", ["debiased", *(pytest.param(kind, marks=SLOW) for kind in ("entropic", "primal"))]
)
def test_derivative_in_the_maps_parameters(kind):
    """Against central differences in double precision."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(12, 2)))
        change = jnp.asarray(np.random.default_rng(1).normal(size=(2, 2)))

        @jax.jit
        def value(matrix, epsilon):
            image = lambda x: x @ matrix + jnp.tanh(x)
            return monge_gap(
                x, image, epsilon=epsilon, kind=kind, solver=Sinkhorn(tolerance=1e-11)
            ).value

        matrix, epsilon = jnp.eye(2), 0.3
        by_matrix, by_epsilon = jax.jit(jax.grad(value, (0, 1)))(matrix, epsilon)
        step = 1e-5
        central = value(matrix + step * change, epsilon) - value(matrix - step * change, epsilon)
        np.testing.assert_allclose(jnp.vdot(by_matrix, change), central / (2 * step), rtol=1e-5)
        central = value(matrix, epsilon + step) - value(matrix, epsilon - step)
        np.testing.assert_allclose(by_epsilon, central / (2 * step), rtol=1e-5)


@SLOW
@pytest.mark.parametrize("kind", KINDS)
def test_coincident_points_and_dtypes(kind):
    of = lambda x: monge_gap(x, jnp.sin, epsilon=0.1, kind=kind).value
    value, gradient = jax.jit(jax.value_and_grad(of))(jnp.zeros((SIZE, 2)))
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            assert jax.eval_shape(of, jnp.ones((3, 2), dtype)).dtype == dtype


@SLOW
def test_many_epsilons_at_once():
    x, y = sample(0), sample(1)
    epsilons = jnp.array([0.1, 0.5, 2.0])
    of = lambda epsilon: monge_gap(x, y, epsilon=epsilon).value
    together = jax.jit(jax.vmap(of))(epsilons)
    np.testing.assert_allclose(together, [gap(x, y, epsilon=e).value for e in epsilons], rtol=1e-3)


def test_not_converged_is_said():
    x, y = sample(0), sample(1)
    assert not gap(x, y, epsilon=1e-3, solver=Sinkhorn(tolerance=1e-9)).converged
    assert not gap(x.at[0, 0].set(jnp.nan), y, epsilon=0.1).converged


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "dual"}, "kind must be one of"),
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"y": sample(1, 5)}, "a row for each row of x"),
        ({"y": sample(1, SIZE, 3)}, "same number of features"),
        ({"x": jnp.zeros((0, 2))}, "non-empty"),
        ({"cost": 3.0}, "cost must be a function"),
        ({"solver": Sinkhorn}, "solver must be an `ot.Sinkhorn`"),
    ],
)
def test_bad_input_raises(change, message):
    arguments = {"x": sample(0), "y": sample(1), "epsilon": 0.1} | change
    with pytest.raises(ValueError, match=message):
        monge_gap(arguments.pop("x"), arguments.pop("y"), **arguments)
    with pytest.raises(ValueError, match="images must"):
        monge_gap(sample(0), 3.0, epsilon=0.1)  # pyright: ignore


@pytest.mark.parametrize("mass", [0.5, 2.0, 10.0])
def test_kinds_for_weights_of_any_mass(mass):
    """Of P itself: ⟨P, C⟩, and ⟨P, C⟩ + ε Σ P log(P/m)."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(30, 2)), jnp.float32)
    y, a = x + 1, jnp.full(30, mass / 30)
    options = {"epsilon": 0.1, "solver": Sinkhorn(tolerance=1e-5)}
    plan = np.asarray(sinkhorn(x, y, a, a, **options).plan(), np.float64)
    paid = np.sum(plan * np.sum((np.asarray(x)[:, None] - np.asarray(y)) ** 2, -1))
    with_entropy = paid + 0.1 * np.sum(plan * np.log(plan / mass, where=plan > 0, out=0 * plan))
    for kind, transport in (("primal", paid), ("entropic", with_entropy)):
        gap = monge_gap(x, y, a, kind=kind, **options)
        np.testing.assert_allclose(gap.transport, transport, rtol=1e-4)


def test_a_function_of_points_that_float32_rounds_is_flagged():
    """A turn about the samples' centre has the same gap wherever that is."""
    x = np.random.default_rng(9).normal(size=(60, 2))
    turn = lambda center: lambda z: 2 * center - z
    here = monge_gap(x, turn(0.0), epsilon=0.1)
    near = monge_gap(x + 1e3, turn(1e3), epsilon=0.1)
    assert here.converged
    assert near.converged
    np.testing.assert_allclose(near.value, here.value, rtol=1e-3)
    far = monge_gap(x + 1e7, turn(1e7), epsilon=0.1)
    assert far.status == Status.FLOATING_POINT_RESOLUTION
    # What has no weight has no say.
    weights = np.r_[np.zeros(3), np.ones(57)] / 57
    x[:3] = 1e9
    assert monge_gap(x, turn(0.0), weights, epsilon=0.1).converged


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mass", [1e-30, 1e7, 1e10])
def test_the_gap_is_linear_in_the_mass(kind, mass):
    x = np.random.default_rng(0).normal(size=(12, 2))
    gap = lambda a: monge_gap(x, x[::-1], a, epsilon=0.01, kind=kind)
    one, heavy = gap(np.full(12, 1 / 12)), gap(np.full(12, mass / 12))
    assert int(heavy.status) == int(one.status)
    np.testing.assert_allclose(heavy.value / mass, one.value, rtol=1e-4)
    np.testing.assert_allclose(heavy.transport / mass, one.transport, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["debiased", "entropic", "primal"])
@pytest.mark.parametrize("padding", [np.nan, np.inf, 1e30])
def test_gradients_of_a_map_do_not_see_rows_of_weight_zero(kind, padding):
    x, a = jnp.array([[0.3], [1.0], [padding]]), jnp.array([0.5, 0.5, 0.0])
    gap = lambda t, x, a: monge_gap(x, lambda z: t * z, a, epsilon=0.5, kind=kind).value
    slope = jax.jit(jax.grad(gap))
    np.testing.assert_allclose(slope(1.5, x, a), slope(1.5, x[:2], a[:2]), rtol=1e-4)
