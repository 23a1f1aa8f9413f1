"""Means and scales against NumPy and at the edges of what floats hold; robust ones, outliers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.core.standardize import (
    Standardizer,
    _weighted_quantiles,
    mean_and_scale,
    robust_standardizer,
)


@pytest.mark.parametrize(("unit", "offset"), [(1.0, 0.0), (1e-30, 0.0), (1e30, 0.0), (1.0, 3000.0)])
def test_weighted_moments_are_numpys(unit, offset):
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(50, 3)) * unit + offset)
    weights = np.float32(rng.uniform(size=50) * (np.arange(50) % 3 > 0))
    filled = np.where(weights[:, None] > 0, x, np.nan)
    mean, scale = jax.jit(mean_and_scale)(filled, weights)
    used = x.astype(np.float64)[weights > 0]
    expected = np.average(used, axis=0, weights=weights[weights > 0])
    variance = np.average((used - expected) ** 2, axis=0, weights=weights[weights > 0])
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-5 * unit)
    np.testing.assert_allclose(scale, np.sqrt(variance), rtol=1e-4)


@pytest.mark.parametrize("value", [0.1, -7.0, 1e-38, 1e37])
def test_a_constant_is_exactly_its_mean(value):
    x = jnp.full((997, 1), value)
    mean, scale = jax.jit(mean_and_scale)(x, jnp.full(997, 1 / 997))
    assert mean[0] == x[0, 0]
    assert scale[0] == 1


def test_what_is_not_a_number_shows():
    for bad in (jnp.nan, jnp.inf):
        mean, _ = mean_and_scale(jnp.array([[1.0], [bad]]), jnp.ones(2))
        assert not jnp.isfinite(mean[0])


robust = jax.jit(robust_standardizer, static_argnames="keep_tails")


def even(x):
    return jnp.full(x.shape[0], 1 / x.shape[0], x.dtype)


def fit(*samples, **options):
    samples = [jnp.asarray(x, jnp.float32) for x in samples]
    return robust(*((x, even(x)) for x in samples), **options)


def gaussians(n=400, m=300, shift=1.0, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 2)) * scale + shift, rng.normal(size=(m, 2))
    return np.float32(x), np.float32(y)


@pytest.mark.parametrize("keep_tails", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_clean_samples_have_plain_moments(scale, keep_tails):
    """Both samples weigh the same; also where one is a thousand times as narrow."""
    x, y = gaussians(scale=scale)
    found = fit(x, y, keep_tails=keep_tails)
    mean = (x.mean(0) + y.mean(0)) / 2
    second = ((x - mean) ** 2).mean(0) / 2 + ((y - mean) ** 2).mean(0) / 2
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
    np.testing.assert_allclose(found.scale, np.sqrt(second), rtol=1e-5)
    z = (x - mean) / np.sqrt(second)
    for seen in (found.squash(x), found.clip(x), found.affine(x)):
        np.testing.assert_allclose(seen, z, atol=1e-5)


@pytest.mark.parametrize("keep_tails", [False, True])
@pytest.mark.parametrize("bad", [999999.0, -9999.0, 3e38])
def test_outliers_move_moments_by_their_share(bad, keep_tails):
    x, y = gaussians()
    clean = fit(x, y, keep_tails=keep_tails)
    x[:3, 0] = bad  # pyright: ignore[reportIndexIssue]
    found = fit(x, y, keep_tails=keep_tails)
    # Three rows of 400 at no more than ten deviations, in half of the mixture.
    assert abs(found.mean - clean.mean).max() < 10 * 3 / 800
    assert abs(found.scale / clean.scale - 1).max() < 0.5 * 10**2 * 3 / 800
    assert abs(found.squash(x)).max() < 12
    assert abs(found.clip(x)).max() < 8
    np.testing.assert_allclose(found.scale[1], clean.scale[1], rtol=1e-6)


@pytest.mark.parametrize("share", [0.03, 0.1, 0.2])
def test_codes_for_missing_values_leave_the_others_their_resolution(share):
    x, y = gaussians(1000, 900)
    coded = np.random.default_rng(1).uniform(size=(2, 1000)) < share
    x[coded[0], 0], y[coded[1][:900], 0] = -9999, -9999  # pyright: ignore[reportIndexIssue]
    found = fit(x, y)
    assert found.scale[0] < 5
    z = np.asarray(found.squash(x))
    assert np.ptp(z[coded[0], 0]) == 0
    assert z[coded[0], 0].max() < z[~coded[0], 0].min() - 1


FEATURES = {
    "constant": lambda rng, n: np.full(n, 0.1),
    "binary": lambda rng, n: rng.uniform(size=n) < 0.3,
    "rare": lambda rng, n: rng.uniform(size=n) < 0.004,
    "ties": lambda rng, n: rng.integers(0, 4, n),
    "zero-inflated": lambda rng, n: rng.lognormal(6, 0.5, n) * (rng.uniform(size=n) < 0.2),
}


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
def test_discrete_features_are_what_they_were(name, unit):
    rng = np.random.default_rng(2)
    x, y = (np.float32(unit * FEATURES[name](rng, n))[:, None] for n in (1000, 800))
    x[1], y[2] = x.max(), y.max()
    if name == "rare":
        x[:4] = unit
    found = fit(x, y)
    expected, scale = mean_and_scale(
        jnp.concatenate([x, y]), jnp.concatenate([even(x), even(y)]).astype(jnp.float32)
    )
    np.testing.assert_allclose(found.mean, expected, rtol=1e-3)
    np.testing.assert_allclose(found.scale, scale, rtol=2e-2)
    np.testing.assert_allclose(found.squash(x), found.affine(x), rtol=1e-5, atol=1e-6)


def test_one_bad_row_of_a_constant_feature():
    """The other sample's spread decides, if it has one."""
    x, y = np.zeros((500, 1)), np.random.default_rng(3).normal(size=(400, 1))
    x[7] = 999999
    x, y = np.float32(x), np.float32(y)
    found = fit(x, y)
    assert 0.3 < found.scale[0] < 1
    alone = fit(x, np.zeros((400, 1)))
    assert abs(alone.squash(x)).max() < 100
    assert alone.squash(x)[7] > alone.squash(x)[0] + 1


def test_heavy_tails():
    rng = np.random.default_rng(4)
    x, y = np.float32(rng.standard_cauchy((2, 5000, 1)))  # pyright: ignore[reportGeneralTypeIssues]
    x += 1
    found = fit(x, y)
    assert abs(found.mean[0] - 0.5) < 0.5
    assert 1 < found.scale[0] < 5
    assert np.isfinite(found.squash(1e3 * x)).all()


def test_squash_is_increasing_smooth_and_stays_within_floats():
    """Six units beyond the limits at most; values a thousandth apart are distinct."""
    one = Standardizer(*(jnp.full(1, v) for v in (0.0, 1.0, -5.0, 5.0)))
    squash = jax.jit(lambda z: one.squash(z[:, None])[:, 0])
    z = np.float32(np.exp(np.arange(np.log(1e-3), np.log(3e38), 1e-3)))
    for sign in (1, -1):
        values = sign * np.asarray(squash(sign * z))
        assert (np.diff(values) > 0).all()
        assert values.max() < 11
    slope = jax.vmap(jax.grad(lambda z: squash(z[None])[0]))(jnp.array([4.9, 5.1, -5.1, 3e38]))
    assert 0.8 < slope[1] < 1 == slope[0]
    np.testing.assert_allclose(slope[1], slope[2])
    assert jnp.isfinite(slope).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_nan_in_every_map(bad):
    x, y = gaussians()
    found, spoiled = fit(x, y), x.copy()
    spoiled[5, 1] = bad  # pyright: ignore[reportIndexIssue]
    for seen in (found.squash(spoiled), found.clip(spoiled), found.affine(spoiled)):
        assert np.isnan(seen[5, 1])
        assert np.isnan(seen).sum() == 1


def test_quantiles_are_those_of_rows_with_weight():
    rng = np.random.default_rng(5)
    x, y = gaussians(20001, 300)
    used = rng.uniform(size=20001) < 0.3
    filled = np.where(used[:, None], x, np.nan)
    weighted = robust((filled, jnp.asarray(used, jnp.float32)), (y, even(y)))
    plain = fit(x[used], y)
    # Quartiles of the 6000 rows up to their sampling error.
    for one, two in zip(weighted, plain, strict=True):
        np.testing.assert_allclose(one, two, rtol=0.1)
    repeated = np.repeat(y, 3, axis=0)
    np.testing.assert_allclose(fit(x, repeated).lower, fit(x, y).lower, rtol=0.02)


@pytest.mark.parametrize("weight", [1.0, 0.1, 1 / 3])
def test_shares_that_are_met_exactly_do_not_depend_on_rounding(weight):
    """Of n rows of equal weight, k rows are a share of k/n."""
    for n in (20, 40, 70):
        found = _weighted_quantiles(
            jnp.arange(n, dtype=jnp.float32), jnp.full(n, weight), jnp.arange(1, n + 1) / n
        )
        np.testing.assert_array_equal(found, np.arange(n))


def test_a_tiny_sample_has_no_limits():
    for n in (2, 3, 6):
        x, y = gaussians(n, n)
        found = fit(x, y, keep_tails=n > 3)
        assert np.isfinite(found.mean).all()
        assert np.isfinite(found.scale).all()
        assert (found.scale > 0).all()
        for limit in (found.lower, found.upper):
            assert np.isfinite(limit).all() == (n > 3)
        np.testing.assert_array_equal(found.squash(x), found.affine(x))
