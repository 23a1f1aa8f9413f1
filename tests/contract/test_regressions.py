"""Inputs that were once answered wrongly in silence, or by an error from somewhere deep."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from divjax import Normal, fdiv, inference, losses, ot, ratio
from divjax.core.pytrees import pytree, static
from divjax.core.types import Status
from divjax.ratio import bounds

KEY = jax.random.key(0)
X = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]])
Y = X + 1
RNG = np.random.default_rng(0)


def squared(slope):
    """A cost with a derivative of one's own, which no jaxpr's text shows."""

    @jax.custom_jvp
    def square(z):
        return z * z

    square.defjvp(lambda p, t: (p[0] * p[0], slope * p[0] * t[0]))
    return lambda u, v: jnp.sum(square(u - v))


def on_the_host(factor):
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    host = lambda a, b: np.float32(factor * abs(a.mean() - b.mean()))
    return lambda a, b: jax.pure_callback(host, shape, a, b, vmap_method="sequential")


def test_functions_that_look_alike_are_not_one_program():
    slope = lambda k: jax.grad(lambda x: ot.sinkhorn(x, Y, epsilon=0.5, cost=squared(k)).value)
    x = jnp.asarray(X, jnp.float32)
    np.testing.assert_allclose(slope(4.0)(x), 2 * slope(2.0)(x), rtol=1e-4)
    rows = np.arange(5.0)
    for factor in (1.0, 2.0):
        test = inference.permutation_test(
            KEY, on_the_host(factor), rows, rows + 1, num_permutations=9
        )
        assert test.statistic == factor


@pytree
class Scaled:
    """A cost of the user's own, with structure, whose function closes over what it likes."""

    size: float
    function: object = static(default=None)

    def h(self, d):
        return self.size * jnp.sum(self.function(d) ** 2)

    def __call__(self, u, v):
        return self.h(u - v)


@pytest.mark.parametrize(
    "cost",
    [
        lambda w: jax.tree_util.Partial(lambda s, u, v: s * w * jnp.sum((u - v) ** 2), 1.0),
        lambda w: Scaled(1.0, lambda d: jnp.sqrt(w) * d),
    ],
    ids=["partial", "own"],
)
def test_a_pytree_that_closes_over_a_traced_number(cost):
    """The value is w ⟨P, C⟩ + ε KL: its derivative is ⟨P, C⟩."""
    solve = lambda w: ot.sinkhorn(
        X, Y, epsilon=0.5, cost=cost(w), solver=ot.Sinkhorn(tolerance=1e-5)
    )
    expected = solve(jnp.float32(1.0)).transport_cost
    for derivative in (
        jax.grad(lambda w: solve(w).value)(1.0),
        jax.jvp(lambda w: solve(w).value, (1.0,), (1.0,))[1],
    ):
        np.testing.assert_allclose(derivative, expected, rtol=1e-3)
    assert jnp.isfinite(jax.jit(solve)(1.0).plan()).all()


def test_gaussians_far_from_zero_in_double_precision():
    far, eye = np.full(2, 123456789.0), np.eye(2)
    p, q = Normal(far, eye), Normal(far + 1, eye)
    assert ot.gaussian_wasserstein(p, q) == 2
    near = ot.gaussian_entropic(Normal(0 * far, eye), Normal(0 * far + 1, eye), epsilon=0.1).value
    assert ot.gaussian_entropic(p, q, epsilon=0.1).value == near
    moved = ot.gaussian_map(p, Normal(far + 1, 4 * eye))
    np.testing.assert_array_equal(moved(far[None] + 1), far[None].astype(np.float32) + 3)


def test_a_target_far_below_the_bridges_resolution_is_flagged():
    x = RNG.normal(size=(100, 2))
    method = ot.LightSchrodingerBridge(2, epsilon=0.5, num_steps=2)
    assert method.fit(KEY, x, 2 * x + 3).status == Status.CONVERGED
    lost = method.fit(KEY, x, (2 * x + 3) * 1e-15)
    assert lost.status == Status.FLOATING_POINT_RESOLUTION


def test_no_pair_is_allowed():
    found = ot.exact(None, None, cost=np.full((3, 3), np.inf))
    assert found.value == np.inf
    assert found.status == Status.NOT_FINITE


class NoPytree:
    def h(self, z):
        return jnp.sum(z**2)

    def __call__(self, x, y):
        return self.h(x - y)

    def grad_conjugate(self, z):
        return z / 2


PAIR = jax.random.normal(KEY, (2, 400, 2))
LONG, SHORT = RNG.normal(size=(12, 2)), np.ones(3)
REFUSED = {
    "line": (lambda: ot.wasserstein_1d(LONG[:, 0], LONG[:, 1], SHORT), "a must have shape"),
    "sliced": (lambda: ot.sliced_wasserstein(KEY, LONG, LONG, SHORT), "a must have shape"),
    "gaussian map": (lambda: ot.gaussian_map_from_samples(LONG, LONG, SHORT), "a must have shape"),
    "entropic map": (lambda: ot.EntropicMap().fit(KEY, LONG, LONG, SHORT), "a must have shape"),
    "matching": (lambda: ratio.KernelMeanMatching().fit(KEY, LONG, LONG, SHORT), "a must"),
    "column": (
        lambda: ot.wasserstein_1d(LONG[:, 0], LONG[:, 1], np.ones((12, 1))),
        "a must have shape",
    ),
    "complex covariance": (
        lambda: ot.gaussian_wasserstein((np.zeros(2), 1j * np.eye(2)), (np.zeros(2), np.eye(2))),
        "the covariance of p must hold real numbers",
    ),
    "complex mean": (
        lambda: ot.gaussian_map((np.array([1j, 0]), np.eye(2)), (np.zeros(2), np.eye(2))),
        "the mean of p must hold real numbers",
    ),
    "complex barycenter": (
        lambda: ot.gaussian_barycenter(Normal(np.zeros((2, 1)), 1j * np.ones((2, 1, 1)))),
        "the covariance of normals must hold real numbers",
    ),
    "no ε": (lambda: ot.MongeMap(epsilon=None).fit(KEY, LONG, LONG), "epsilon must be one real"),
    "no weight": (lambda: ot.MongeMap(gap_weight=None).fit(KEY, LONG, LONG), "gap_weight must"),
    "no score": (
        lambda: ot.EntropicMap(score_epsilon=None).fit(KEY, LONG, LONG),
        "score_epsilon must be one real number; got None",
    ),
    "text": (
        lambda: ot.EntropicMap(epsilons=("a",)).fit(KEY, LONG, LONG),
        "epsilons must not be a string",
    ),
    "no ε of a bridge": (
        lambda: ot.LightSchrodingerBridge(2, epsilon=None).fit(KEY, LONG, LONG),
        "epsilon must be one real number; got None",
    ),
    "no pytree": (lambda: ot.EntropicMap(NoPytree()), "must be a pytree for its ∇h"),
    "no layer": (lambda: ot.ICNNDual(hidden=()), "hidden must hold at least one width"),
    "structured": (lambda: ot.MongeMap(structured="yes"), "structured must be True or False"),
    "batches": (lambda: ot.MongeMap(independent_batches=3), "independent_batches must be True"),
    "generator": (lambda: bounds.f_dual(SHORT, SHORT, 3), "generator must be a generator"),
    "bounded": (
        lambda: inference.sum_of_means_lower_bound(np.ones(5)),
        r"samples must be Bounded\(values, lower, upper\); got ndarray",
    ),
    "similarity": (lambda: losses.class_costs(np.full((2, 2), 5.0)), "similarity must be at most"),
    "costs": (
        lambda: losses.wkd_logits(LONG[:, :1] * SHORT, LONG[:, :1] * SHORT, [0] * 12, -np.eye(3)),
        "costs must not be negative",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_read_out_that_refers_to_what_has_changed():
    fit = ratio.DivergenceBound(hidden=(4,), num_steps=2, num_checks=1).fit(KEY, *PAIR)
    level = 1.0
    read_out = lambda u_p, u_q: level + 0 * jnp.mean(u_p)
    assert fit.estimate(read_out).value == 1
    level = 2.0
    assert fit.estimate(read_out).value == 2


def test_lists_and_series_of_critic_values():
    assert bounds.donsker_varadhan([2.0], [1.0, 1.0]) == 1
    assert bounds.donsker_varadhan(pd.Series([2]), pd.Series([1.0, 1.0])) == 1
    assert jnp.isnan(jax.jit(ot.marginal_penalty_from_tau)(0.5, -0.1))


def test_matched_weights_have_no_derivative_in_weights_of_q():
    """The constraints depend on them: the envelope's term alone has the wrong sign."""
    x, y = (jax.random.normal(jax.random.key(seed), (9, 2)) for seed in (1, 2))
    matching = ratio.KernelMeanMatching(bandwidth=1.0, num_steps=20)
    with pytest.raises(ValueError, match="not differentiated in b"):
        jax.grad(lambda b: matching.fit(KEY, x, y, None, b).mmd)(jnp.ones(9))
    assert jnp.isfinite(jax.grad(lambda y: matching.fit(KEY, x, y, None, jnp.ones(9)).mmd)(y)).all()


@pytest.mark.parametrize("missing", [np.nan, None])
def test_labels_that_are_missing(missing):
    groups = [missing, 1, 1], [2, 3, 3]
    rows = np.arange(3.0)[:, None], np.arange(3.0)[:, None]
    with pytest.raises(ValueError, match="groups must name every row"):
        inference.permutation_test(KEY, lambda x, y: x.mean() - y.mean(), *rows, groups=groups)


@pytest.mark.exhaustive
def test_new_points_of_maps_in_whatever_holds_them():
    x = np.random.default_rng(0).normal(size=(30, 2))
    small = {"num_steps": 1, "num_checks": 1}
    methods = (
        ot.EntropicMap(epsilons=(0.5,), solver=ot.Sinkhorn(tolerance=1e-2, max_iterations=20)),
        ot.MongeMap(
            start="identity",
            hidden=(2,),
            batch_size=4,
            solver=ot.Sinkhorn(tolerance=1e-2, max_iterations=5),
            **small,
        ),
        ot.ICNNDual((2,), start_hidden=(2,), num_inner_steps=1, batch_size=4, **small),
    )
    for method in methods:
        found = method.fit(KEY, x, x + 1)
        expected = found(np.array([[0.0, 1.0]]))
        for points in ([[0, 1]], pd.DataFrame([[0, 1]]), jnp.array([[0, 1]])):
            np.testing.assert_allclose(found(points), expected, rtol=1e-6)
        with pytest.raises(ValueError, match="z must hold real numbers"):
            found([["a", "b"]])


@pytest.mark.parametrize("fill", [1e6, -1e6, 1e18, 1e30])
def test_slopes_in_the_weights_beside_far_padding(fill):
    """Slopes of normalised weights: f_i − Σ a_j f_j, of the rows without the padding."""
    x, y, a = jnp.array([0.0, 1.0, 2.0]), jnp.array([0.5, 3.0, 4.0]), jnp.array([1.0, 2.0, 1.5])
    padded, weights = jnp.append(x, fill), jnp.append(a, 0)
    costs = {
        "line": lambda x, a: ot.wasserstein_1d(x, y, a),
        "plan": lambda x, a: ot.transport_1d(x, y, a, p=1.5).value,
        "sliced": lambda x, a: ot.sliced_wasserstein(
            None, x[:, None], y[:, None], a, directions=jnp.array([[1.0]])
        ),
        "largest": lambda x, a: ot.max_sliced_wasserstein(KEY, x[:, None], y[:, None], a).value,
    }
    for name, cost in costs.items():
        slope = lambda x, a, cost=cost: jax.grad(cost, argnums=1)(x, a)
        expected = slope(x, a)
        assert jnp.abs(expected).max() > 0.1
        np.testing.assert_allclose(slope(padded, weights)[:3], expected, rtol=1e-4, err_msg=name)


def test_masked_numbers_are_missing_ones():
    masked = np.ma.masked_array([0.0, 2.0, 1e6], mask=[0, 0, 1])
    y = np.array([1.0, 2.0, 5.0])
    assert np.isnan(ot.wasserstein_1d(masked, y))
    assert not ot.transport_1d(masked, y).finite
    assert not ot.unbalanced_1d(masked, y, marginal_penalty=1.0).finite
    plan = ot.sinkhorn(X, Y, epsilon=1.0)
    assert np.isnan(plan.apply(masked)).all()
    groups = np.ma.masked_array([0, 1, 1], mask=[0, 0, 1]), [2, 3, 4]
    with pytest.raises(ValueError, match="groups must name every row"):
        inference.permutation_test(KEY, lambda x, y: x.mean() - y.mean(), X, Y, groups=groups)
    labels = np.ma.masked_array([0, 1], mask=[0, 1])
    half = np.full((2, 2), 0.5)
    value = fdiv.categorical.cross_entropy(fdiv.categorical.Labels(labels, 2), half)
    np.testing.assert_allclose(value, [np.log(2), np.nan], rtol=1e-6)


def test_zeros_of_either_sign_are_one_value_under_jit():
    x = jnp.array([[-0.0, 1.0], [2.0, 3.0], [-0.0, 4.0]])
    y = jnp.array([[0.0, 1.0], [5.0, 6.0], [0.0, 4.0]])
    found = jax.jit(ratio.ties)(x, y)
    np.testing.assert_allclose([found.shared_p, found.shared_q], 2 / 3, rtol=1e-6)


def test_paths_of_a_bridge_far_from_zero():
    """The same noise and the same drift, relative to the offset; float32 has sixteenths there."""
    x, y = RNG.normal(size=(2, 100, 1))
    paths = []
    for offset in (0.0, 1e6):
        bridge = ot.LightSchrodingerBridge(1, 0.5).fit(KEY, x + offset, y + offset + 3)
        paths.append(np.asarray(bridge.sde(KEY, x + offset, 400), np.float64) - offset)
    np.testing.assert_allclose(paths[1], paths[0], atol=0.2)


def test_the_derivative_of_a_bridge_between_gaussians_in_epsilon():
    """S = v₁/(ε/2 + √(ε²/4 + v₀v₁)) of one component."""
    x, y = RNG.normal(size=(2, 100, 1)) * [[[1.0]], [[2.0]]]
    fitted = lambda epsilon: ot.LightSchrodingerBridge(1, epsilon).fit(KEY, x, y).scales.sum()
    v0, v1 = x.var(), y.var()
    scale = lambda epsilon: v1 / (epsilon / 2 + np.sqrt(epsilon**2 / 4 + v0 * v1))
    truth = (scale(0.501) - scale(0.499)) / 0.002
    np.testing.assert_allclose(jax.grad(fitted)(0.5), truth, rtol=1e-3)


def test_padding_does_not_change_an_entropic_gaps_slope():
    x = jnp.array([[0.0], [1.0], [2.0]])
    gap = lambda a, n: ot.monge_gap(x[:n], x[:n] ** 2, a, epsilon=0.5, kind="entropic").value
    expected = jax.grad(gap)(jnp.array([1.0, 2.0]), 2)
    found = jax.grad(gap)(jnp.array([1.0, 2.0, 0.0]), 3)
    np.testing.assert_allclose(found[:2], expected, rtol=1e-4)


def test_costs_of_positions_are_not_taken_at_rounded_points():
    def cost(u, v):
        return jnp.sum((u - v) ** 2)

    calls = (
        lambda x, y: ot.exact(x, y, cost=cost),
        lambda x, y: ot.sinkhorn(x, y, epsilon=1.0, cost=cost),
        lambda x, y: ot.sinkhorn_divergence(x, y, epsilon=1.0, cost=cost),
        lambda x, y: ot.monge_gap(x, y, epsilon=1.0, cost=cost),
        lambda x, y: ot.cost_matrix(cost, x, y),
        lambda x, y: ot.MongeMap(cost, num_steps=1).fit(KEY, x, y),
    )
    for call in calls:
        with pytest.raises(ValueError, match="x must differ in float32 too"):
            call(X + 123456789.0, Y + 123456789.0)
    # A row without weight may be anywhere.
    padded, weights = np.vstack([X, [[1e30, 1e30]]]), np.r_[np.full(3, 1 / 3), 0]
    expected = ot.sinkhorn(X, Y, epsilon=1.0, cost=cost).value
    found = ot.sinkhorn(padded, Y, weights, epsilon=1.0, cost=cost).value
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_exact_transport_in_half_precision(dtype):
    """From quarters to thirds on the line, whose plan is that of the quantiles."""
    x, y = jnp.array([0.0, 1.0, 2.0, 4.0]), jnp.array([1.0, 2.0, 5.0])
    found = ot.exact(x[:, None].astype(dtype), y[:, None].astype(dtype))
    levels = (np.arange(12) + 0.5) / 12  # every quantile of both
    quantiles = [np.asarray(z)[(levels * len(z)).astype(int)] for z in (x, y)]
    truth = np.mean((quantiles[0] - quantiles[1]) ** 2)
    assert found.converged
    np.testing.assert_allclose(found.value, truth, rtol=2e-2)


def test_slopes_where_no_mass_is_worth_moving():
    """At a distance of many penalties everything is unmatched, at ρ (Σa + Σb)."""
    arguments = jnp.array([0.0, 0.5]), jnp.array([10.0]), jnp.array([0.5, 0.5]), jnp.array([1.0])
    cost = lambda *z: ot.unbalanced_1d(*z, marginal_penalty=1e-3)
    np.testing.assert_allclose(cost(*arguments).value, 2e-3, rtol=1e-5)
    assert (cost(*arguments).plan() == 0).all()
    slopes = jax.grad(lambda *z: cost(*z).value, (0, 1, 2, 3))(*arguments)
    for found, expected in zip(slopes, (0.0, 0.0, 1e-3, 1e-3), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_slope_in_a_directions_zero_weight():
    """Of a mean with weights: the direction's own cost less the mean."""
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32) * 2
    cost = lambda w: ot.sliced_wasserstein(None, x, y, directions=jnp.eye(2), direction_weights=w)
    costs = ot.projected_wasserstein(jnp.eye(2), x, y)
    found = jax.grad(cost)(jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(found, [0, costs[1] - costs[0]], rtol=1e-4)


@pytest.mark.parametrize("fill", [1e6, -1e6, 1e18])
def test_second_derivatives_beside_far_padding(fill):
    x, y = jnp.array([0.3, -1.2, 0.9]), jnp.array([0.1, 1.5, -0.4, 0.7])
    a, b = jnp.array([0.5, 1.3, 0.8]), jnp.array([1.1, 0.6, 0.9, 1.7])

    def mixed(x, a):
        slope = jax.grad(lambda y, a: ot.wasserstein_1d(x, y, a, b, p=3))
        return jax.jacfwd(slope, 1)(y, a)[:, :3]

    expected = mixed(x, a)
    assert jnp.abs(expected).max() > 1
    np.testing.assert_allclose(mixed(jnp.append(x, fill), jnp.append(a, 0)), expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Warning. converting a masked element to nan")
def test_lists_of_masked_rows():
    rows = np.ma.array(X)
    rows[2] = np.ma.masked
    for given in (rows, list(rows), [list(row) for row in rows]):
        assert np.isnan(ot.sinkhorn(given, Y, epsilon=1.0).value)
        test = inference.permutation_test(KEY, lambda x, y: jnp.mean(x) - jnp.mean(y), given, Y)
        assert np.isnan(test.p_value)
