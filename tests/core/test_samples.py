"""Samples as researchers hold them: every kind converted or refused, offsets kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from divjax import ratio
from divjax.core.samples import Center, as_samples, centered_samples, two_parts
from divjax.fdiv import categorical, histogram

ROWS = [[1, 2], [3, 4], [5, 7]]
KINDS = {
    "list": ROWS,
    "ints": np.array(ROWS),
    "unsigned": np.array(ROWS, np.uint8),
    "double": np.array(ROWS, float),
    "half": np.array(ROWS, np.float16),
    "jax": jnp.asarray(ROWS),
    "frame": pd.DataFrame(ROWS, columns=["a", "b"]),
    "nullable": pd.DataFrame(ROWS, columns=["a", "b"]).astype("Int64"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind):
    (x,) = as_samples(x=KINDS[kind])
    assert x.dtype == (jnp.float16 if kind == "half" else jnp.float32)
    np.testing.assert_array_equal(x, np.array(ROWS, float))


def test_common_dtype():
    x, y = as_samples(x=np.array(ROWS, np.float16), y=ROWS)
    assert x.dtype == y.dtype == jnp.float32
    with jax.enable_x64(True):
        x, y = as_samples(x=jnp.ones((2, 2), jnp.float32), y=ROWS)
        assert x.dtype == y.dtype == jnp.float64


def test_booleans_and_missing():
    (x,) = as_samples(x=pd.DataFrame({"a": [True, False], "b": pd.array([1, None], "Int64")}))
    np.testing.assert_array_equal(x, [[1, 1], [0, np.nan]])


REFUSED = {
    "vector": (np.ones(3), r"x\[:, None\]"),
    "strings": ([["a", "b"]], "real numbers"),
    "text": ("abc", "got str"),
    "objects": (np.array([[None, 1]]), "numpy.asarray"),
    "ragged": ([[1, 2], [3]], "equal lengths"),
    "complex": (np.ones((2, 2), complex), "complex"),
    "none": (None, "NoneType"),
    "empty": (np.ones((0, 2)), "non-empty"),
    "dates": (pd.DataFrame({"when": pd.to_datetime(["2020-01-01"])}), "when"),
    "category": (pd.DataFrame({"c": pd.Categorical(["a"]), "d": [1.0]}), "do not: c"),
    "key": (jax.random.key(0), "real numbers"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind):
    value, words = REFUSED[kind]
    with pytest.raises(ValueError, match=words) as error:
        as_samples(x=value)
    assert "x must" in str(error.value)


def test_feature_counts():
    with pytest.raises(ValueError, match="x and y must have the same number of features"):
        as_samples(x=np.ones((2, 2)), y=np.ones((2, 3)))


def test_offset_of_1e8():
    """Differences survive; float32 at 1e8 is a lattice of step 8."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 2))
    center, x, y = centered_samples(x=rows + 1e8, y=rows[:20] - 1 + 1e8)
    difference = np.asarray(x)[:20] - np.asarray(y)
    np.testing.assert_allclose(difference, 1, atol=1e-6)
    np.testing.assert_allclose(center.subtract(rows + 1e8), x, atol=1e-6)
    inside = jax.jit(lambda center: center.subtract(rows + 1e8))(center)
    np.testing.assert_allclose(inside, x, atol=1e-6)
    np.testing.assert_allclose(np.asarray(center.add(x)), rows + 1e8, rtol=1e-7)


def test_center_is_zero_where_nothing_is_gained():
    for rows in (jnp.ones((3, 2)) + 5, np.ones((3, 2), np.float32) + 5):
        center, x = centered_samples(x=rows)
        assert not center.high.any()
        np.testing.assert_array_equal(x, rows)


def test_rows_without_weight_and_not_finite():
    rows = np.array([[1e8], [1e8 + 2], [1e8 + 1], [-5e20], [np.nan]])
    weights = np.array([1.0, 1, 1, 0, 1])
    center, x = centered_samples(weights={"x": weights}, x=rows)
    assert np.asarray(x)[:3, 0].tolist() == [-1, 1, 0]
    assert jnp.isnan(x[4, 0])
    assert float(center.high[0]) == 1e8


LARGE = {"signed": (2**62 + 123_456_789_012, np.int64), "unsigned": (2**63 + 5, np.uint64)}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no extended precision here")
def test_integers_beyond_double_precision_keep_their_differences(kind, double):
    start, dtype = LARGE[kind]
    rows = np.array([[start + i] for i in range(5)], dtype)
    with jax.enable_x64(double):
        center, x, y = centered_samples(x=rows, y=rows[::-1])
        assert np.diff(np.asarray(x)[:, 0]).tolist() == [1, 1, 1, 1]
        np.testing.assert_array_equal(x, y[::-1])
        np.testing.assert_array_equal(center.subtract(rows), x)
        frame = pd.DataFrame({"a": rows[:, 0], "b": pd.array([0.5, None, 1, 2, 3], "Float64")})
        _, x = centered_samples(x=frame)
        assert np.diff(np.asarray(x)[:, 0]).tolist() == [1, 1, 1, 1]
        assert np.isnan(x[1, 1])
        (x,) = as_samples(x=rows)
        np.testing.assert_allclose(x, start, rtol=1e-7)


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no extended precision here")
def test_distinct_integers_are_no_ties(kind):
    start, dtype = LARGE[kind]
    x, y = (np.array([[start + i] for i in range(k, k + 40)], dtype) for k in (0, 40))
    found = ratio.ties(x, y)
    assert (found.duplicates_p, found.shared_p, found.shared_q) == (0, 0, 0)
    assert (ratio.ties(x, x).duplicates_p, ratio.ties(x, x).shared_p) == (0, 1)
    apart = histogram.divergence(categorical.jensen_shannon, x[:, 0], y[:, 0], num_bins=4)
    np.testing.assert_allclose(apart, np.log(2), rtol=1e-6)


def test_masked_numbers_are_missing():
    masked = np.ma.array([[1.0], [2.0]], mask=[[False], [True]])
    np.testing.assert_array_equal(as_samples(x=masked)[0], [[1], [np.nan]])
    np.testing.assert_array_equal(as_samples(x=np.ma.array([[1], [2]]))[0], [[1], [2]])


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">i4", "<f8"])
def test_numbers_of_any_byte_order(dtype):
    """As in files of FITS, netCDF or HDF5."""
    given = np.array([[1.0, 2.0]], dtype)
    np.testing.assert_array_equal(as_samples(x=given)[0], [[1, 2]])
    np.testing.assert_array_equal(as_samples(x=pd.DataFrame(given))[0], [[1, 2]])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_a_point_between_centers_is_as_precise_as_both(share):
    ends = np.array([[123456789.1, -3.3], [-987654.321, 1e7 + 0.7]])
    one, other = (Center(*two_parts(end, np.float32)) for end in ends)
    found = one.towards(other, share)
    exact = (1 - share) * ends[0] + share * ends[1]
    np.testing.assert_allclose(np.float64(found.high) + np.float64(found.low), exact, atol=1e-5)


def test_frames_of_the_same_columns_in_another_order_are_refused():
    x, y = (pd.DataFrame(np.eye(2) + c, columns=["a", "b"]) for c in (0, 1))
    with pytest.raises(ValueError, match=r"^y must have its columns in the order of x"):
        as_samples(x=x, y=y[["b", "a"]])
    # By position: of other names, and beside what has none.
    for other in (y.rename(columns={"a": "c"}), y.to_numpy(), y):
        np.testing.assert_array_equal(as_samples(x=x, y=other)[1], y.to_numpy())
