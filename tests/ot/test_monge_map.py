"""Maps: closed forms, what the gap selects, what the objective is made of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from divjax.core.types import Status
from divjax.ot.costs import Euclidean, EuclideanPower, PNormPower
from divjax.ot.entropic.divergence import sinkhorn_divergence
from divjax.ot.entropic.options import Sinkhorn
from divjax.ot.gaussian import gaussian_map
from divjax.ot.maps.gap import monge_gap
from divjax.ot.maps.map_objective import MapBatch
from divjax.ot.maps.monge_map import MongeMap
from divjax.ot.maps.network_map import MapFit
from divjax.ot.maps.starts import IdentityMap

SLOW = pytest.mark.exhaustive  # compilation, some ten seconds a fit
KEY = jax.random.key(0)
fitted = jax.jit(lambda method, key, x, y: method.fit(key, x, y))


def normal(seed, n=500, d=2):
    return jax.random.normal(jax.random.key(seed), (n, d))


def at_points(fit, start, z):
    """A start's images of points in the original coordinates."""
    return fit.origins.target.add(start(fit.origins.source.subtract(z)))


class Turned(nnx.Module):
    """A linear map that starts as A − I: with the identity, z ↦ A z."""

    def __init__(self, in_features, rngs):
        turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]]) - jnp.eye(2)
        self.kernel = nnx.Param(turn)

    def __call__(self, x):
        return x @ self.kernel[...]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("law", "index"), [("normal", 1), ("torn", 2)])
def test_the_start_is_what_carries_held_out_rows_nearest(law, index):
    """Gaussians have an exact linear map; a law torn in two has none near."""
    x, u, z = (normal(seed, 400, 4) for seed in (4, 5, 6))
    scales = 2.0 ** jnp.linspace(-1, 1, 4)
    truth = {
        "normal": lambda x: 1 + scales * x,
        "torn": lambda x: x + 3 * jnp.sign(x[:, :1]) * jnp.eye(4)[0],
    }[law]
    method = MongeMap(num_steps=1, num_checks=1, hidden=(2,), batch_size=32, learning_rate=1e-6)
    found = method.fit(KEY, x, truth(u))
    assert int(found.start.index) == index
    errors = [
        float(jnp.mean(jnp.sum((at_points(found, each, z) - truth(z)) ** 2, axis=1)))
        for each in found.start.maps
    ]
    assert errors[index] == min(errors)
    # Of other costs only what is optimal under them.
    started = MongeMap(Euclidean(), num_steps=1, num_checks=1, hidden=(2,), batch_size=32)
    assert isinstance(started.fit(KEY, x, truth(u)).start, IdentityMap)


@pytest.mark.parametrize("start", ["identity", "gaussian"])
def test_a_map_that_misses_its_target_is_flagged(start):
    """One step from the identity cannot reach N(5, 4), where the Gaussians' map already is."""
    x, y = normal(1, 200), 5 + 2 * normal(2, 200)
    method = MongeMap(start=start, num_steps=1, num_checks=1, hidden=(2,), batch_size=32)
    found = fitted(method, KEY, x, y)
    error = jnp.max(jnp.abs(jnp.mean(found(x), axis=0) - 5))
    if start == "identity":
        assert error > 4
        assert found.misfit > 1
        assert found.status == Status.MAX_ITERATIONS
    else:
        assert error < 0.5
        assert found.misfit < 1
        assert found.converged


@pytest.mark.exhaustive
def test_the_gap_turns_a_turned_gaussian_back():
    """Every rotation fits N(0, I); the identity alone is optimal, and a quarter turn has gap 2d."""
    x, y, z = normal(1, 1000), normal(2, 1000), normal(3)
    options = {"num_steps": 100, "batch_size": 64, "num_checks": 5, "independent_batches": False}
    options["solver"] = Sinkhorn(1e-2, max_iterations=50)
    method = MongeMap(start="identity", network=Turned, learning_rate=0.05, **options)
    found = fitted(method, KEY, x, y)
    # In the network's unit a start at A − I is not quite the quarter turn; the first gap is large.
    assert found.validation[0] > 0.3
    assert jnp.mean(jnp.sum((found(z) - z) ** 2, axis=1)) < 0.05
    assert found.finite
    assert found.converged
    # Without weight for the gap nothing turns it back: same program, another leaf.
    fits = fitted(dataclasses.replace(method, gap_weight=0.0), KEY, x, y)
    assert jnp.mean(jnp.sum((fits(z) - z) ** 2, axis=1)) > 1
    assert fits.gap > 1
    assert abs(found.gap) < 0.05
    # Held-out terms and validation are one thing.
    least = (found.divergence + found.gap) / found.mean_cost
    np.testing.assert_allclose(least, found.validation.min(), rtol=1e-3, atol=1e-4)
    # c̄ = E|X − Y|² = 2d.
    np.testing.assert_allclose(found.mean_cost, 4, rtol=0.15)
    # What is not a number is said.
    assert not fitted(method, KEY, x.at[:, 0].set(jnp.nan), y).finite


@pytest.mark.exhaustive
def test_from_the_gaussian_start_gaussians_stay_right():
    mean, factor = jnp.array([2.0, -1.0]), jnp.array([[1.5, 0.0], [0.7, 0.4]])
    x, y, z = normal(1, 1000), normal(2, 1000) @ factor.T + mean, normal(3)
    method = MongeMap(start="gaussian", num_steps=20, batch_size=64, hidden=(16,), num_checks=4)
    found = fitted(method, KEY, x, y)
    truth = gaussian_map((jnp.zeros(2), jnp.eye(2)), (mean, factor @ factor.T))
    error = lambda images: jnp.mean(jnp.sum((images - truth(z)) ** 2, 1))
    # Moments of 800 rows: some d²/n of a variance of 2.9.
    assert error(found(z)) < 0.01 * 2.9
    assert error(found.initial_images(z)) < 0.01 * 2.9
    assert found.validation.shape == (5,)
    assert found.losses.shape == (20,)


@SLOW
def test_independent_batches_leave_the_exact_map_alone():
    """In 16 dimensions batches of 64 ask for too little spread, unless they are independent."""
    d, scale = 16, jnp.linspace(0.5, 2, 16)
    x, y, z = normal(1, 4000, d), normal(2, 4000, d) * scale, normal(3, d=d)
    options = {"start": "gaussian", "num_steps": 100, "batch_size": 64, "hidden": (16,)}
    uvp = lambda found: jnp.mean(jnp.sum((found(z) - z * scale) ** 2, 1)) / jnp.sum(scale**2)
    found = fitted(MongeMap(num_checks=2, **options), KEY, x, y)
    assert uvp(found) < 0.01
    same = MongeMap(independent_batches=False, num_checks=2, **options)
    # Four keys: .0018 to .0026 with independent ones, .017 to .020 without.
    assert uvp(fitted(same, KEY, x, y)) > 0.01


@SLOW
def test_an_optimizer_of_ones_own_is_used():
    """One that stands still leaves the start."""
    x, y, z = normal(1, 100), 2 * normal(2, 100), normal(3)
    method = MongeMap(start="gaussian", num_steps=3, num_checks=1, hidden=(4,), gap_kind=None)
    found = jax.jit(lambda key: method.fit(key, x, y, optimizer=optax.set_to_zero()))(KEY)
    np.testing.assert_allclose(found(z), found.initial_images(z), atol=1e-5)
    assert found.gap == 0


def terms(method, x, y):
    """What the objective is made of, for the map z ↦ z + (0.3, 0) and c̄ = 2."""
    one = jnp.ones((), x.dtype)
    build = lambda in_features, rngs: nnx.Linear(in_features, 2, rngs=rngs)
    params = {"kernel": jnp.eye(2) * 0.1, "bias": jnp.array([0.3, 0.0])}
    of = MapFit(
        params, IdentityMap(), 0 * one[None], one[None], one, 2 * one, method.cost, build, 2
    )
    objective = method._objective(2 * one)
    value = lambda params: objective.terms(KEY, of, params, MapBatch(x, x, y))[:2]
    constants = objective.constants(MapBatch(x, x, y))
    return value(params), jax.jacrev(value)(params), constants


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (40, 40)),
        pytest.param({"gap_epsilon": 0.2}, (40, 40), marks=SLOW),
        pytest.param({"gap_epsilon": 0.2}, (40, 30), marks=SLOW),
        pytest.param({"gap_kind": "entropic"}, (40, 40), marks=SLOW),
        pytest.param({"gap_kind": "primal", "gap_epsilon": 0.2}, (40, 40), marks=SLOW),
        pytest.param({"gap_kind": None}, (40, 40), marks=SLOW),
        pytest.param({"cost": Euclidean()}, (40, 40), marks=SLOW),
    ],
)
def test_the_objective_is_the_divergence_and_the_gap(options, sizes):
    """Values with what no map changes, derivatives without."""
    x, y = normal(1, sizes[0]), normal(2, sizes[1]) + 1
    options = {"independent_batches": False} | options
    method = MongeMap(
        start="identity",
        epsilon=0.1,
        solver=Sinkhorn(tolerance=1e-5, max_iterations=2000),
        **options,
    )
    values, slopes, constants = jax.jit(lambda x, y: terms(method, x, y))(x, y)
    kind, share = options.get("gap_kind", "debiased"), options.get("gap_epsilon", 0.1)
    settings = {"cost": method.cost, "solver": Sinkhorn(tolerance=1e-5)}

    def expected(params):
        images = x + x @ params["kernel"] + params["bias"]
        divergence = sinkhorn_divergence(images, y, epsilon=0.2, **settings).value
        if kind is None:
            return divergence, 0.0
        gap = monge_gap(x, images, epsilon=2 * share, kind=kind, **settings)
        return divergence, gap.value

    params = {"kernel": jnp.eye(2) * 0.1, "bias": jnp.array([0.3, 0.0])}
    wanted, wanted_slopes = jax.jit(lambda p: (expected(p), jax.jacrev(expected)(p)))(params)
    found = [value + constant for value, constant in zip(values, constants, strict=False)]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    for one, two in zip(jax.tree.leaves(slopes), jax.tree.leaves(wanted_slopes), strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-3, atol=1e-3)


@SLOW
@pytest.mark.parametrize("cost", [EuclideanPower(1.5), PNormPower(3.0), EuclideanPower(2.0)])
def test_on_the_line_structured_maps_are_monotone_for_every_cost(cost):
    """From U(0, 1) to the law of T(U), T(u) = u + u², from no start at all."""
    x, u = jax.random.uniform(jax.random.key(1), (2, 2000, 1))
    truth = lambda u: u + u**2
    options = {"structured": True, "num_steps": 500, "batch_size": 256, "hidden": (32, 32)}
    found = fitted(
        MongeMap(cost, 0.02, start="identity", learning_rate=2e-2, **options), KEY, x, truth(u)
    )
    z = (jnp.arange(200) + 0.5)[:, None] / 200
    # The variance is 16/45 − 1/36, and the mean shift alone has an error of 1/12 + 1/180.
    assert jnp.mean((found(z) - truth(z)) ** 2) < 0.01 * 0.33
    assert found.finite


@SLOW
def test_the_entropic_start_tears_where_the_map_does():
    """Of an even mixture's halves, 2 + x and x − 2 apart, it knows where each goes."""
    x, side = normal(1, 1000), jnp.where(jnp.arange(1000) % 2 == 0, 4.0, -4.0)
    y, z = normal(2, 1000), normal(3, 400)
    stretched = lambda z, side: jnp.stack([z[:, 0] + side, z[:, 1]], axis=1)
    method = MongeMap(start="entropic", num_steps=1, batch_size=64, hidden=(4,))
    found = fitted(method, KEY, stretched(x, side), stretched(y, 2 * side))
    truth = stretched(z, 2 * side[:400])
    error = jnp.mean(jnp.sum((found.initial_images(stretched(z, side[:400])) - truth) ** 2, 1))
    assert error < 0.05 * jnp.sum(jnp.var(truth, 0))


class Skewed(nnx.Module):
    """The rows and the context, through fixed matrices."""

    def __init__(self, in_features, rngs):
        self.kernel = nnx.Param(jnp.array([[1.0, 2.0], [-1.0, 3.0]]))

    def __call__(self, x):
        return x @ self.kernel[...]


@SLOW
def test_the_asymmetry_of_a_linear_map():
    """‖J − Jᵀ‖²/d = 2·3²/2, whatever the directions, by the first value of the objective."""
    x, y = normal(1, 100), normal(2, 100)
    method = MongeMap(start="identity", network=Skewed, num_steps=1, num_checks=1)
    plain = fitted(method, KEY, x, y).validation[0]
    weighted = fitted(dataclasses.replace(method, symmetry_weight=0.5), KEY, x, y).validation[0]
    np.testing.assert_allclose(weighted - plain, 0.5 * 9, rtol=1e-4)


@SLOW
def test_a_family_of_problems():
    """x + 4c under context c; a context between those seen is interpolated."""
    context = jnp.linspace(-1, 1, 5)[:, None]
    x = jax.random.normal(jax.random.key(1), (5, 300, 2))
    y = jax.random.normal(jax.random.key(2), (5, 400, 2)) + 4 * context[:, None]
    method = MongeMap(
        start="identity", num_steps=600, batch_size=128, hidden=(32,), learning_rate=1e-2
    )
    found = jax.jit(method.fit)(KEY, x, y, context)
    z = normal(3)
    for c in (-1.0, 0.5, 0.75):
        error = found(z, jnp.array([c])) - z - 4 * c
        assert jnp.mean(jnp.sum(error**2, 1)) < 0.2
    each = found(z[:2], jnp.array([[0.5], [-1.0]]))
    np.testing.assert_allclose(each[1], found(z[1:2], jnp.array([-1.0]))[0], rtol=1e-4)
    with pytest.raises(ValueError, match="context must have 1 features; got none"):
        found(z)
    with pytest.raises(ValueError, match="context must have shape"):
        found(z, jnp.zeros(2))


@SLOW
def test_one_wrong_context_leaves_the_others_their_maps():
    """x + 4c for each of 40 contexts, of which one is mistyped."""
    context = jnp.linspace(-1, 1, 40)[:, None]
    x = jax.random.normal(jax.random.key(1), (40, 100, 2))
    y = jax.random.normal(jax.random.key(2), (40, 100, 2)) + 4 * context[:, None]
    method = MongeMap(
        start="identity", num_steps=500, batch_size=50, hidden=(32, 32), learning_rate=3e-3
    )
    z = normal(3)
    fit = jax.jit(method.fit)
    found = fit(KEY, x, y, context.at[7].set(999999.0))
    contexts = jnp.array([-0.9, -0.3, 0.3, 0.9])
    errors = [jnp.sum((found(z, c[None]) - z - 4 * c) ** 2, axis=1) for c in contexts]
    # Without a map for each context the error would be that of the shift.
    assert jnp.mean(jnp.stack(errors)) < 0.1 * jnp.mean(2 * (4 * contexts) ** 2)
    # An infinite one is no outlier.
    assert fit(KEY, x, y, context.at[7].set(jnp.inf)).status == Status.NOT_FINITE


@SLOW
def test_dtypes_are_kept_and_a_key_repeats():
    method = MongeMap(start="gaussian", num_steps=2, batch_size=8, hidden=(4,), num_checks=1)
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            x = jnp.ones((20, 2), dtype)
            shapes = jax.eval_shape(method.fit, KEY, x, x)
            leaves = jax.tree.leaves(shapes)
            floats = {v.dtype for v in leaves if jnp.issubdtype(v.dtype, jnp.floating)}
            assert floats == {np.dtype(dtype)}


def test_points_of_another_dimension_raise():
    method = MongeMap(
        start="identity",
        num_steps=1,
        num_checks=1,
        hidden=(2,),
        gap_kind=None,
        solver=Sinkhorn(tolerance=1e-2, max_iterations=2),
    )
    found = jax.eval_shape(method.fit, KEY, normal(0, 5), normal(1, 5))
    with pytest.raises(ValueError, match="z must have shape"):
        jax.eval_shape(lambda found: found(normal(0, 5, 3)), found)
    with pytest.raises(ValueError, match="context must have shape"):
        jax.eval_shape(lambda found: found(normal(0, 5), jnp.zeros(1)), found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gap_kind": "dual"}, "gap_kind must be one of None, debiased"),
        ({"start": "zero"}, "start must be one of auto, identity, gaussian, entropic"),
        ({"cost": Euclidean(), "structured": True}, "with a known ∇h\\*"),
        ({"cost": Euclidean(), "start": "entropic"}, "with a known ∇h\\*"),
        ({"cost": Euclidean(), "symmetry_weight": 1.0}, "symmetry_weight needs structured"),
        ({"cost": 3}, "cost must be a function"),
        ({"epsilon": 0.0}, "epsilon must be a positive"),
        ({"gap_epsilon": -1.0}, "gap_epsilon must be a positive"),
        ({"gap_weight": -1.0}, "gap_weight must not be negative"),
        ({"symmetry_weight": -1.0}, "symmetry_weight must not be negative"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"solver": Sinkhorn}, "solver must be an `ot.Sinkhorn`"),
        ({"hidden": 3}, "hidden must be a tuple"),
        ({"network": 3}, "network must be a function"),
        ({"num_steps": 0}, "num_steps"),
        ({"batch_size": 1.5}, "batch_size"),
    ],
)
def test_bad_settings_raise(options, message):
    with pytest.raises(ValueError, match=message):
        MongeMap(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": 3}, "key must be one typed key"),
        ({"x": jnp.zeros((2, 2))}, "x must have at least 3 rows; got 2"),
        ({"y": jnp.zeros((5, 3))}, "same number of features"),
        ({"x": jnp.zeros(5)}, "x must be a matrix"),
        ({"x": jnp.zeros((5, 2), jnp.float16)}, "x must be float32 or float64"),
        ({"context": jnp.zeros((3, 1))}, "x must have shape \\(3, n, d\\)"),
        ({"context": jnp.zeros(3)}, "context must have shape"),
        ({"context": jnp.zeros((1, 1)), "x": jnp.zeros((1, 5, 2))}, "y must have shape"),
    ],
)
def test_bad_samples_raise(change, message):
    arguments = {"key": KEY, "x": normal(0, 5), "y": normal(1, 5), "context": None} | change
    with pytest.raises(ValueError, match=message):
        MongeMap().fit(**arguments)


small = dict(num_steps=40, batch_size=64, hidden=(16,), num_checks=4)
small["solver"] = Sinkhorn(1e-2, max_iterations=100)


@pytest.mark.parametrize("change", ["none", "shift", "outlier"])
def test_the_map_does_not_collapse(change):
    """y = 2 x′, moved by 100 or with one row at −9999, from the Gaussian start."""
    x, y, z = normal(1, 1000), 2 * normal(2, 1000), normal(3)
    away = jnp.array([100.0 if change == "shift" else 0.0, 0.0])
    y = y + away
    if change == "outlier":
        y = y.at[0].set(-9999.0)
    found = fitted(MongeMap(start="gaussian", **small), KEY, x, y)
    spread = jnp.sqrt(jnp.mean(jnp.var(found(z), axis=0)))
    np.testing.assert_allclose(spread, 2, rtol=0.1)
    error = jnp.sum((found(z) - 2 * z - away) ** 2, axis=1)
    assert jnp.median(error) < 0.05 * 8
    np.testing.assert_allclose(found.mean_cost, 10, rtol=0.15)
    assert found.finite


@pytest.mark.exhaustive
def test_weights_are_what_batches_and_checks_see():
    """Of two clusters of targets the one with all of the weight; the other is padding."""
    x, z = normal(1, 1000), normal(3)
    y = (2 * normal(2, 1000)).at[500:].set(jnp.nan)
    b = jnp.where(jnp.arange(1000) < 500, 1.0, 0.0)
    method = MongeMap(start="gaussian", **small)
    found = jax.jit(lambda x, y, b: method.fit(KEY, x, y, b=b))(x, y, b)
    assert found.converged
    assert jnp.mean(jnp.sum((found(z) - 2 * z) ** 2, 1)) < 0.1 * 8
    bad = jax.jit(lambda x, y, b: method.fit(KEY, x, y, b=b).status)(x, y, -b)
    assert bad == Status.NOT_FINITE


@pytest.mark.exhaustive
def test_numpy_samples_keep_their_signal_at_an_offset():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 2)), 2 * rng.normal(size=(500, 2))
    found = MongeMap(start="gaussian", **small).fit(KEY, 1e6 + x, 1e6 + y)
    error = np.mean(np.sum((np.asarray(found(1e6 + x)) - 1e6 - 2 * x) ** 2, 1))
    assert error < 0.1 * 8


def test_numbers_of_the_method_have_no_derivatives():
    x, y = normal(1, 40), normal(2, 40)
    run = lambda e: MongeMap(
        start="identity", epsilon=e, num_steps=1, num_checks=1, hidden=(4,)
    ).fit(KEY, x, y)(x)
    with pytest.raises(ValueError, match="cannot be differentiated in its method's numbers"):
        jax.eval_shape(jax.grad(lambda e: run(e).sum()), 0.1)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_a_sample_that_is_not_finite_is_flagged_without_a_compilation_around(value):
    """Its mean cost is no unit of ε, which was refused as if the caller had given it."""
    x, y = jax.random.normal(jax.random.key(0), (2, 10, 2))
    method = MongeMap(
        start="identity",
        hidden=(4,),
        num_steps=1,
        num_checks=1,
        solver=Sinkhorn(tolerance=1e-2, max_iterations=3),
    )
    fit = method.fit(jax.random.key(1), x.at[2, 0].set(value), y)
    assert fit.status == Status.NOT_FINITE


@pytest.mark.parametrize("shift", [1e3, 123456789.0])
def test_a_shift_between_the_samples_only_shifts_the_map(shift):
    """Costs of the size of the squared shift would leave nothing of the gap in float32."""
    x = np.random.default_rng(0).normal(size=(100, 2))
    y = np.random.default_rng(1).normal(size=(100, 2)) * [1.5, 0.7]
    method = MongeMap(start="gaussian", num_steps=4, batch_size=32, num_checks=2, hidden=(8,))
    alone, found = (method.fit(jax.random.key(0), x, y + by) for by in (0.0, shift))
    np.testing.assert_allclose(found.gap, alone.gap, atol=2e-3)
    np.testing.assert_allclose(found.validation, alone.validation, atol=2e-3)
    back = method.fit(jax.random.key(0), x + shift, y)
    np.testing.assert_allclose(back(x + shift), alone(x), atol=2e-2)
