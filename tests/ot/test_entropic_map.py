"""Entropic maps against POT's plans, a closed form, and what a mean of gradients must be."""

import jax
import jax.numpy as jnp
import numpy as np
import ot as pot
import pytest

from divjax import ot
from divjax.core.types import Status

KEY = jax.random.key(0)
fitted = jax.jit(lambda method, key, x, y: method.fit(key, x, y))


def normal(seed, n, d=2):
    return jax.random.normal(jax.random.key(seed), (n, d))


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_images_match_the_mean_of_barycentric_projections_by_pot(num_blocks):
    """Every block of 60 rows has a plan; the projection of its own rows is known."""
    with jax.enable_x64(True):
        x, y = (np.asarray(normal(seed, 60 * num_blocks), np.float64) for seed in (1, 2))
        y = 2 * y + 1
        method = ot.EntropicMap(
            epsilons=(0.2,),
            block_size=60,
            solver=ot.Sinkhorn(tolerance=1e-10, max_iterations=10_000),
        )
        found = jax.jit(method.fit_split)((x, y), (x[:10], y[:10]))
        weights, epsilon = np.full(60, 1 / 60), float(found.epsilon)
        # Both blocks at the rows of the first, by potentials: z need not be among a block's rows.
        images = []
        for block in range(num_blocks):
            rows = slice(60 * block, 60 * block + 60)
            costs = pot.dist(x[rows], y[rows])
            _, log = pot.sinkhorn(
                weights, weights, costs, epsilon, method="sinkhorn_log", stopThr=1e-12, log=True
            )
            g = epsilon * log["log_v"]
            likely = np.exp((g - pot.dist(x[:60], y[rows])) / epsilon)
            images.append(likely @ y[rows] / likely.sum(1, keepdims=True))
        np.testing.assert_allclose(found(x[:60]), np.mean(images, 0), atol=1e-6)
        # Twice the traces: of few pairs, and without those of more than ten medians.
        within = np.trace(np.cov(x.T)) + np.trace(np.cov(y.T))
        np.testing.assert_allclose(epsilon, 0.2 * within, rtol=0.1)
        assert found.converged


@pytest.mark.parametrize(("epsilon", "faithful"), [(0.01, True), (50.0, False)])
def test_images_near_the_mean_of_the_targets_are_flagged(epsilon, faithful):
    """With ε far above the costs all rows go to the mean of y, here where no target is."""
    x = normal(1, 1000)
    corners = jnp.where(normal(2, 1000) > 0, 1.0, -1.0)
    y = jnp.concatenate([corners, jnp.full((1000, 1), 3.0)], axis=1)
    found = fitted(ot.EntropicMap(epsilons=(epsilon,)), KEY, jnp.pad(x, ((0, 0), (0, 1))), y)
    size = jnp.median(jnp.abs(found(jnp.pad(x, ((0, 0), (0, 1))))[:, :2]))
    assert (size > 0.9) == faithful
    assert (found.misfit < 1) == faithful
    assert found.status == (Status.CONVERGED if faithful else Status.MAX_ITERATIONS)


def test_the_best_epsilon_is_near_the_map_and_a_poor_one_is_not_chosen():
    x, z = normal(1, 1000), normal(3, 1000)
    truth = lambda z: z + 0.3 * z**3  # of a convex function, feature by feature
    found = fitted(ot.EntropicMap(epsilons=(5.0, 0.05, 0.02)), KEY, x, truth(normal(2, 1000)))
    uvp = jnp.sum(jnp.var(found(z) - truth(z), 0)) / jnp.sum(jnp.var(truth(z), 0))
    assert uvp < 0.1
    assert found.scores[0] > 2 * found.scores.min()  # where all go near the mean
    assert found.epsilon < 0.1 * jnp.mean(jnp.sum((x[:, None] - truth(x)) ** 2, -1))
    assert found.converged


def test_the_map_is_the_gradient_of_a_convex_function():
    """Its Jacobian is symmetric and has no negative eigenvalue."""
    method = ot.EntropicMap(epsilons=(0.1,), block_size=100)
    found = fitted(method, KEY, normal(1, 500, 3), jnp.tanh(normal(2, 400, 3)) + 1)
    jacobians = jax.vmap(jax.jacfwd(lambda z: found(z[None])[0]))(normal(3, 20, 3))
    np.testing.assert_allclose(jacobians, jnp.swapaxes(jacobians, 1, 2), atol=1e-4)
    assert jnp.linalg.eigvalsh(jacobians).min() > -1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost": ot.Euclidean()}, "with a known ∇h\\*"),
        ({"epsilons": (0.1, 0.0)}, "epsilons must be a positive"),
        ({"score_epsilon": -1.0}, "score_epsilon must be a positive"),
        ({"block_size": 0}, "block_size"),
        ({"solver": ot.Sinkhorn}, "solver must be an `ot.Sinkhorn`"),
    ],
)
def test_bad_settings_raise(options, message):
    with pytest.raises(ValueError, match=message):
        ot.EntropicMap(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": 3}, "key must be one typed key"),
        ({"x": jnp.zeros((1, 2))}, "x must have at least 2 rows"),
        ({"y": jnp.zeros((5, 3))}, "same number of features"),
        ({"x": jnp.zeros(5)}, "x must be a matrix"),
        ({"y": jnp.zeros((5, 2), jnp.float16)}, "y must be float32 or float64"),
    ],
)
def test_bad_samples_raise(change, message):
    arguments = {"key": KEY, "x": normal(0, 5), "y": normal(1, 5)} | change
    with pytest.raises(ValueError, match=message):
        ot.EntropicMap().fit(**arguments)


@pytest.mark.parametrize("epsilons", [(), 0.1, jnp.zeros(0)])
def test_epsilons_are_one_or_more(epsilons):
    with pytest.raises(ValueError, match="epsilons must be one or more"):
        ot.EntropicMap(epsilons=epsilons).fit(KEY, normal(0, 5), normal(1, 5))


def test_an_epsilon_that_is_not_positive_is_never_chosen():
    x = normal(1, 20)
    found = fitted(ot.EntropicMap(epsilons=jnp.array([-0.01, 0.1])), KEY, x, x + 1)
    assert jnp.isnan(found.scores[0])
    assert found.epsilon > 0
    assert not fitted(ot.EntropicMap(epsilons=jnp.array([-0.01])), KEY, x, x + 1).converged


def test_what_is_not_a_number_is_flagged_and_another_dimension_raises():
    x = normal(1, 20)
    method = ot.EntropicMap(epsilons=(0.1,))
    assert not fitted(method, KEY, x.at[:, 0].set(jnp.nan), x).converged
    found = fitted(method, KEY, x, x)
    assert found.converged
    with pytest.raises(ValueError, match="z must have shape"):
        found(normal(1, 5, 3))


spread = lambda images: jnp.sqrt(jnp.mean(jnp.var(images, axis=0)))


@pytest.mark.parametrize("shift", [0.0, 30.0, 100.0, 1e4])
def test_a_shift_does_not_shrink_the_image(shift):
    """y = 2 x′ + (s, 0): ε has nothing to do with s."""
    x, z, t = normal(0, 1000), normal(1, 1000), normal(2, 500)
    away = jnp.array([shift, 0.0])
    found = fitted(ot.EntropicMap(), KEY, x, 2 * z + away)
    np.testing.assert_allclose(spread(found(t)), 2, rtol=0.1)
    assert jnp.mean(jnp.sum((found(t) - 2 * t - away) ** 2, 1)) < 0.1 * 8
    assert found.converged


@pytest.mark.parametrize("side", [0, 1])
def test_an_outlier_does_not_shrink_the_image(side):
    rows = [normal(0, 1000), 2 * normal(1, 1000)]
    rows[side] = rows[side].at[0].set(-9999.0)
    t = normal(2, 500)
    found = fitted(ot.EntropicMap(), KEY, *rows)
    errors = jnp.sum((found(t) - 2 * t) ** 2, 1)
    assert jnp.median(errors) < 0.1 * 8
    np.testing.assert_allclose(found.epsilon, 0.02 * 10, rtol=5)


def test_a_chosen_epsilon_at_the_edge_is_flagged():
    x, y = normal(1, 300), 2 * normal(2, 300)
    assert fitted(ot.EntropicMap(epsilons=(1.0, 2.0, 3.0)), KEY, x, y).at_edge
    assert not fitted(ot.EntropicMap(epsilons=(1e-5, 0.05, 5.0)), KEY, x, y).at_edge
    assert not fitted(ot.EntropicMap(epsilons=(1.0,)), KEY, x, y).at_edge


def test_far_away_the_map_is_constant():
    """One target is nearest by far: the Jacobian is zero."""
    found = fitted(ot.EntropicMap(epsilons=(0.05,)), KEY, normal(1, 300), 2 * normal(2, 300))
    far = jax.jacfwd(lambda z: found(z[None])[0])(jnp.array([1e4, 3e3]))
    np.testing.assert_allclose(far, 0, atol=1e-6)
    near = jax.jacfwd(lambda z: found(z[None])[0])(jnp.zeros(2))
    assert jnp.linalg.norm(near) > 1


@pytest.mark.exhaustive
def test_weights_are_repetitions_and_padding_counts_nothing():
    x, y = normal(1, 200), 2 * normal(2, 150)
    method = ot.EntropicMap(
        epsilons=(0.1,), solver=ot.Sinkhorn(tolerance=1e-5, max_iterations=2000)
    )
    a = jnp.where(jnp.arange(200) < 60, 3.0, 1.0).at[100:].set(0.0)
    found = method.fit_split((x, y), (x[:9], y[:9]), (a, None))
    repeated = jnp.concatenate([x[:60]] * 3 + [x[60:100]])
    expected = method.fit_split((repeated, y), (x[:9], y[:9]))
    np.testing.assert_allclose(found.epsilon, expected.epsilon, rtol=0.3)
    same = dict(epsilon=found.epsilon)
    plan = ot.sinkhorn(repeated, y, solver=ot.Sinkhorn(tolerance=1e-5), **same)
    np.testing.assert_allclose(found(x[:20]), plan.transport(x[:20]), atol=0.01)
    # What rows of weight zero hold changes nothing.
    other = x.at[100:].set(jnp.nan)
    padded = method.fit_split((other, y), (x[:9], y[:9]), (a, None))
    np.testing.assert_allclose(padded(x[:20]), found(x[:20]), atol=1e-4)
    # A fit splits rows with their weights.
    weighted = method.fit(KEY, other, y, a)
    assert weighted.converged
    assert jnp.isfinite(weighted(x[:20])).all()


def test_numpy_samples_keep_their_signal_at_an_offset():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 2)), 2 * rng.normal(size=(500, 2))
    method = ot.EntropicMap(epsilons=(0.02,))
    found = method.fit(KEY, 1e6 + x, y - 1e6)
    # float32 has steps of 1/16 there.
    np.testing.assert_allclose(found(1e6 + x) + 1e6, method.fit(KEY, x, y)(x), atol=0.1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [pytest.param(3, marks=pytest.mark.exhaustive), 400])
def test_padding_changes_neither_the_unit_nor_the_map(number):
    """Before the rows of either side; ε is a share of the mean cost within those with weight."""
    generator = np.random.default_rng(0)
    parts = [generator.normal(size=(n, 2)).astype(np.float32) for n in (40, 30, 20, 15)]
    padded = [np.concatenate([np.full((number, 2), 7, np.float32), part]) for part in parts]
    weights = [np.append(np.zeros(number), np.ones(len(part))) for part in parts]
    method = ot.EntropicMap(epsilons=(0.1, 1.0))
    alone = method.fit_split(tuple(parts[:2]), tuple(parts[2:]))
    found = method.fit_split(
        tuple(padded[:2]), tuple(padded[2:]), tuple(weights[:2]), tuple(weights[2:])
    )
    np.testing.assert_allclose(found.epsilon, alone.epsilon, rtol=1e-4)
    np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-3)
    np.testing.assert_allclose(found(parts[2]), alone(parts[2]), atol=1e-3)
