"""What the estimators take and refuse, and how their parts are chosen."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from divjax.core.pytrees import pytree
from divjax.ratio import ClassifierRatio, RatioFit, TelescopingRatio, classifier_js, classifier_kl
from divjax.ratio import heads as h
from divjax.ratio.estimators import HEADS

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def samples():
    p, q = jax.random.normal(KEY, (2, 60, 2))
    return p + 1, q


def test_names_of_heads():
    for name, kind in HEADS.items():
        assert isinstance(ClassifierRatio(head=name).head, kind)
    assert ClassifierRatio(head="mlp", hidden=(5,)).head.hidden == (5,)  # pyright: ignore[reportAttributeAccessIssue]
    assert ClassifierRatio(hidden=(5,)).head.network.hidden == (5,)  # pyright: ignore[reportAttributeAccessIssue]


def test_numbers_are_leaves_and_structure_is_not():
    method = ClassifierRatio(head=h.Linear(2.0), validation_share=0.3)
    assert jax.tree.leaves(method) == [2.0]
    rebuilt = jax.tree.unflatten(jax.tree.structure(method), [3.0])
    assert (rebuilt.head.ridge, rebuilt.validation_share) == (3.0, 0.3)
    assert jax.tree.structure(method) != jax.tree.structure(
        ClassifierRatio(head=h.Linear(2.0), num_folds=2)
    )


def test_other_numbers_do_not_compile_again(samples):
    traces = []

    @pytree
    class Counting:
        ridge: float | jax.Array = 1.0

        def fit(self, key, fold):
            traces.append(1)
            return h.Linear(self.ridge).fit(key, fold)

        def __call__(self, params, z):
            return h.Linear(self.ridge)(params, z)

    first = ClassifierRatio(head=Counting(1.0), num_folds=2).fit(KEY, *samples)
    seen = len(traces)
    second = ClassifierRatio(head=Counting(50.0), num_folds=2).fit(KEY, *samples)
    assert len(traces) == seen > 0
    assert (first.log_ratio_p != second.log_ratio_p).all()


def test_one_call_is_fit_and_divergence(samples):
    options = dict(head="linear", num_folds=2)
    fit = ClassifierRatio(**options).fit(KEY, *samples)
    assert isinstance(fit, RatioFit)
    np.testing.assert_array_equal(classifier_kl(KEY, *samples, **options).value, fit.kl().value)
    np.testing.assert_array_equal(
        classifier_js(KEY, *samples, base=2, **options).value, fit.js(base=2).value
    )


def test_numpy_samples_and_mixed_dtypes(samples):
    p, q = map(np.asarray, samples)
    method = ClassifierRatio(head="linear", num_folds=2)
    expected = method.fit(KEY, *samples).kl().value
    np.testing.assert_allclose(method.fit(KEY, p, q).kl().value, expected, rtol=1e-6)
    with jax.enable_x64(True):
        wide = jax.eval_shape(lambda: method.fit(KEY, p.astype(np.float64), q).kl().value)
        assert wide.dtype == jnp.float64


class Own(nnx.Module):
    def __init__(self, d, rngs):
        self.linear = nnx.Linear(d, 1, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


def test_a_network_of_the_users_own(samples):
    head = h.Network(network=Own, num_steps=150, batch_size=32, learning_rate=0.05, num_checks=5)
    estimate = jax.jit(lambda: ClassifierRatio(head=head, num_folds=2).fit(KEY, *samples).kl())()
    assert abs(estimate.value - 1.0) < 3 * estimate.std_error
    assert estimate.std_error < 0.7


def test_not_a_number_is_flagged_and_nothing_raises(samples):
    p, q = samples
    for bad in (jnp.nan, jnp.inf):
        fit = ClassifierRatio(head="linear", num_folds=2).fit(KEY, p.at[3, 1].set(bad), q)
        estimate = fit.kl()
        assert not estimate.diagnostics.finite
        assert jnp.isnan(estimate.value)
        assert not fit.certified_js() > 0


@pytest.mark.parametrize("name", ["ClassifierRatio", "TelescopingRatio"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_folds": 1},
        {"num_repeats": 0},
        {"pack_size": 0},
        {"calibration": "isotonic"},
        {"validation_share": 0.0},
        {"validation_share": 1.0},
        {"validation_share": jnp.array(0.2)},
    ],
    ids=str,
)
def test_attributes_out_of_range(name, options):
    kind = {"ClassifierRatio": ClassifierRatio, "TelescopingRatio": TelescopingRatio}[name]
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(**options)


def test_unknown_heads(samples):
    with pytest.raises(ValueError, match="auto"):
        ClassifierRatio(head="forest")
    for head in (h.Linear, 3.0, None):
        with pytest.raises(ValueError, match="head"):
            ClassifierRatio(head=head).fit(KEY, *samples)


def test_numbers_that_are_none(samples):
    fit = ClassifierRatio("linear", num_folds=2).fit(KEY, *samples)
    for call, message in (
        (lambda: ClassifierRatio(hidden=32), "hidden must be a tuple of widths; got 32"),
        (lambda: ClassifierRatio("mlp", hidden=(8, 0)), "hidden must be an integer of at least 1"),
        (
            lambda: ClassifierRatio(count_duplicates="yes"),
            "count_duplicates must be True or False; got 'yes'",
        ),
        (lambda: ClassifierRatio(num_folds=2.5), "num_folds must be an integer of at least 2"),
        (
            lambda: fit.kl(confidence_level=95),
            r"confidence_level must be a number in \(0, 1\); got 95",
        ),
        (
            lambda: fit.auc(confidence_level="95"),
            "confidence_level must be one real number; got '95'",
        ),
        (lambda: fit.js(base=1), "base must be a number above 1"),
        (lambda: fit.js(base="bits"), "base must be a number above 1.*'bits'"),
        (lambda: fit.certified_js(clip=math.inf), "clip must be a positive, finite"),
        (
            lambda: fit.certified_kl(confidence_level=1.0),
            r"confidence_level must be a number in \(0, 1\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def refused(message, *args, method=None, **kwargs):
    method = ClassifierRatio(head="linear") if method is None else method
    with pytest.raises(ValueError, match=message):
        method.fit(*args, **kwargs)


def test_samples_that_are_refused(samples):
    p, q = samples
    refused("key", 0, p, q)
    refused("key", jax.random.split(KEY), p, q)
    refused(r"key must be one typed key.*of shape \(60, 2\)", p, q)
    refused("y is missing: fit takes a key, x and y", KEY, p)
    refused("x must be a matrix.*x\\[:, None\\]", KEY, p[:, 0], q)
    refused("x must hold real numbers", KEY, [["a", "b"]] * 60, q)
    refused("y must be a non-empty matrix", KEY, p, q[:0])
    refused("float32", KEY, p.astype(jnp.float16), q.astype(jnp.float16))
    refused("same number of features", KEY, p, q[:, :1])


def test_what_researchers_hold(samples):
    """Lists, integers, booleans: as floats."""
    p, q = (np.round(x) for x in samples)
    method = ClassifierRatio(head="linear", num_folds=2)
    expected = method.fit(KEY, p, q).kl().value
    for given in ((p.tolist(), q), (p.astype(int), q.tolist()), (np.asarray(p, np.float64), q)):
        np.testing.assert_allclose(method.fit(KEY, *given).kl().value, expected, rtol=1e-4)
    weights = [1] * 60
    weighted = method.fit(KEY, p, q, a=weights, b=tuple(weights))
    np.testing.assert_allclose(weighted.kl().value, expected, rtol=1e-5)


@pytest.mark.parametrize("offset", [123456789.0, -3e6])
def test_double_precision_far_from_zero_keeps_its_signal(offset):
    """The same as without the offset, also at new points."""
    p, q = np.random.default_rng(0).normal(size=(2, 60, 2))
    p[:, 0] += np.sqrt(2) * 0.75
    method = ClassifierRatio(head="linear", num_folds=2)
    plain, moved = method.fit(KEY, p, q), method.fit(KEY, p + offset, q + offset)
    np.testing.assert_allclose(moved.kl().value, plain.kl().value, atol=1e-3)
    x = np.array([[0.0, 0.0], [1.0, -0.5]])
    expected = plain.log_ratio(x)
    np.testing.assert_allclose(moved.log_ratio(x + offset), expected, atol=1e-3)


@pytest.mark.exhaustive
def test_packs_of_double_precision_far_from_zero():
    """log r(x₁) + log r(x₂) = ¾√2 · (x₁₁ + x₂₁ − ¾√2)."""
    p, q = np.random.default_rng(0).normal(size=(2, 500, 2)) + 123456789.0
    shift = np.sqrt(2) * 0.75
    p[:, 0] += shift
    packs = ClassifierRatio(head=h.Linear(0.5), num_folds=2, pack_size=2).fit(KEY, p, q)
    x = np.array([[[0.0, 0.0], [1.0, -0.5]]])
    np.testing.assert_allclose(packs.log_ratio(x + 123456789.0), shift * (1 - shift), atol=0.5)


def test_samples_too_small_for_their_folds(samples):
    p, q = samples
    refused("x must hold at least two rows", KEY, p[:9], q)
    refused("y must hold at least two rows", KEY, p, q[:9])
    refused("packs of 3", KEY, p[:29], q, method=ClassifierRatio(head="linear", pack_size=3))
    # Rows without weight do not count.
    refused("x must", KEY, p, q, a=jnp.zeros(60).at[:9].set(1))
    fit = ClassifierRatio(head="linear").fit(KEY, p[:10], q[:10])
    assert fit.diagnostics.finite


@pytest.mark.parametrize("name", ["a", "b"])
def test_weights_that_are_refused(samples, name):
    for bad in (
        jnp.ones(59),
        jnp.ones((60, 1)),
        jnp.ones(60).at[0].set(-1),
        jnp.zeros(60),
        jnp.ones(60).at[0].set(jnp.nan),
        np.full(60, np.inf),
    ):
        refused(rf"\b{name} must", KEY, *samples, **{name: bad})


def test_heads_that_are_refused(samples):
    class Unfinished:
        def fit(self, key, fold):
            return ()

    @pytree
    class Column(h.Zero):
        def __call__(self, params, z):
            return z[:, :1]

    refused("head must be a ratio head.*without __call__", KEY, *samples, method=of(Unfinished()))
    refused(r"log ratio by head must have shape \(\d+,\)", KEY, *samples, method=of(Column()))


def of(head):
    return ClassifierRatio(head=head)


def test_errors_are_raised_while_tracing(samples):
    p, q = samples
    with pytest.raises(ValueError, match="features"):
        jax.eval_shape(lambda p, q: ClassifierRatio(head="linear").fit(KEY, p, q[:, :1]), p, q)
