"""What every function of the room takes, and what it refuses by the name of the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from divjax import fdiv, ratio
from divjax.fdiv import categorical, exponential_family, gaussian, inequalities, sampled
from divjax.fdiv.categorical import Labels, Logits, Weights
from divjax.ratio import bounds

P, Q = [0.25, 0.75], [0.5, 0.5]

# Functions of two arrays, by the names of these.
PAIRS = {
    "categorical.kl": categorical.kl,
    "categorical.reverse_kl": categorical.reverse_kl,
    "categorical.kl_map": categorical.kl_map,
    "categorical.cross_entropy": categorical.cross_entropy,
    "categorical.total_variation": categorical.total_variation,
    "categorical.squared_hellinger": categorical.squared_hellinger,
    "categorical.generalized_kl": categorical.generalized_kl,
    "categorical.renyi": lambda p, q: categorical.renyi(p, q, 0.5),
    "categorical.skew_kl": lambda p, q: categorical.skew_kl(p, q, 0.5),
    "categorical.entropy": lambda p, q: categorical.entropy(p) + categorical.entropy(q),
    "sampled_kl": sampled.sampled_kl,
    "sampled_kl_surrogate": sampled.sampled_kl_surrogate,
    "gaussian.kl": lambda p, q: gaussian.kl((p, q), (q, p)),
    "exponential_family.kl": lambda p, q: exponential_family.kl(exponential_family.BETA, p, q),
}
HELD = {
    "tuple": tuple,
    "array": np.array,
    "single": lambda values: np.array(values, np.float32),
    "series": pd.Series,
    "nullable": lambda values: pd.Series(values, dtype="Float64"),
    "numbers": lambda values: [jnp.asarray(value) for value in values],
}
REFUSED = {
    "text": ("abc", "got str"),
    "strings": (["a", "b"], "real numbers"),
    "none": (None, "got NoneType"),
    "dict": ({"a": 1}, "got dict"),
    "object": (object(), "got object"),
    "objects": (np.array([None, 1]), "type object"),
    "complex": (np.array([0.5j, 0.5]), "complex"),
    "ragged": ([[1.0], [0.5, 0.5]], "equal lengths"),
    "series of text": (pd.Series(["a", "b"]), "real numbers"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_numbers_in_whatever_holds_them(name):
    expected = PAIRS[name](jnp.array(P), jnp.array(Q))
    for kind, held in HELD.items():
        found = PAIRS[name](held(P), held(Q))
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=kind)
    np.testing.assert_allclose(PAIRS[name](P, jnp.array(Q)), expected, rtol=1e-5)
    traced = jax.jit(lambda p, q: PAIRS[name]([p[0], p[1]], q))(jnp.array(P), Q)
    np.testing.assert_allclose(traced, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", PAIRS)
def test_what_is_no_array_of_numbers_is_named(name, kind):
    value, words = REFUSED[kind]
    own = {
        "sampled_kl": ("log_p", "log_q"),
        "sampled_kl_surrogate": ("log_p", "log_q"),
        "exponential_family.kl": ("eta_p", "eta_q"),
        "categorical.entropy": ("p", "p"),
        "gaussian.kl": ("the mean of p", "the covariance of p"),
    }.get(name, ("p", "q"))
    for argument, pair in zip(own, ((value, Q), (P, value)), strict=True):
        with pytest.raises(ValueError, match=f"^{argument} must .*{words}"):
            PAIRS[name](*pair)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_holds_no_numbers_within_a_distribution(kind):
    value, words = REFUSED[kind]
    for distribution in (Logits, Weights):
        with pytest.raises(ValueError, match=f"q must .*{words}|values must not be a string"):
            categorical.kl(P, distribution(value))
    with pytest.raises(ValueError, match=r"q must|values must not be a string"):
        categorical.kl(P, Labels(value, 2))


VECTOR = jnp.array([0.2, 0.3, 0.4])
NORMALS = (jnp.zeros(2), jnp.ones(2)), (jnp.ones(2), jnp.ones(2))
ETA = jnp.array([1.0, 2.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: categorical.renyi(P, Q, VECTOR), "alpha must be one real number"),
        (lambda: categorical.skew_kl(P, Q, VECTOR), "alpha must be one real number"),
        (lambda: categorical.kl(Logits(ETA, VECTOR), Q), "temperature must be one real number"),
        (lambda: categorical.kl(P, Weights(ETA, VECTOR)), "smoothing must be one real number"),
        (lambda: gaussian.renyi(*NORMALS, VECTOR), "alpha must be one real number"),
        (
            lambda: exponential_family.renyi(exponential_family.BETA, ETA, ETA, VECTOR),
            "alpha must be one real number",
        ),
        (lambda: categorical.renyi(P, Q, "a"), "alpha must be one real number; got 'a'"),
        (lambda: categorical.jensen_shannon(P, Q, weights=[]), r"weights must have shape \(2,\)"),
        (lambda: categorical.jensen_shannon(P, Q, weights=["a", "b"]), "weights must hold real"),
        (
            lambda: categorical.kl(P, Logits(ETA, mask=jnp.ones(3, bool))),
            r"the mask of q must hold booleans of a shape that broadcasts to \(2,\); got bool of",
        ),
        (lambda: categorical.kl(P, Weights(ETA, mask=["a", "b"])), "mask must not be a string"),
        (lambda: categorical.kl(P, Weights(ETA, mask=[None, 1])), "the mask of q must hold"),
        (lambda: categorical.kl(P, Weights(ETA, mask=np.ones((2, 2)) > 0)), "the mask of q must"),
        (
            lambda: categorical.pairwise(categorical.kl, jnp.ones((0, 2)), jnp.eye(2)),
            "ps must hold",
        ),
        (
            lambda: categorical.pairwise(categorical.kl, jnp.eye(2), jnp.ones((0, 2))),
            "qs must hold",
        ),
        (lambda: categorical.reverse_kl(P, [0.5, 0.6]), "q must be non-negative prob"),
        (lambda: categorical.reverse_kl([0.5, 0.6], Q), "p must be non-negative prob"),
        (lambda: inequalities.tv_bounds_of_product(0.3, 0.5), "num_samples must be at least 1"),
        (
            lambda: inequalities.tv_bounds_of_product(0.3, np.array([2, 0])),
            "num_samples must be at",
        ),
        (lambda: inequalities.tv_bounds_of_product(0.3, "two"), "num_samples must hold real"),
        (lambda: inequalities.tv_bounds_of_product("a", 2), "tv must hold real numbers"),
        (lambda: inequalities.kl_lower_bound_from_js("a"), "js must hold real numbers"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bounds_of_a_product_are_in_order():
    for num_samples in (1, 1.5, 2, 10, 1e4):
        lower, upper = inequalities.tv_bounds_of_product(np.linspace(0, 1, 11), num_samples)
        assert (lower <= upper + 1e-6).all()
    bounds = jax.jit(inequalities.tv_bounds_of_product)(0.3, jnp.array([0.5, 1.0]))
    assert [end.tolist()[1] for end in bounds] == pytest.approx([0.3, 0.3])
    assert all(jnp.isnan(end[0]) for end in bounds)


def test_offsets_in_double_precision():
    """Differences that float32 would round leave in NumPy's float64."""
    near, far = np.array([0.0, 1.0]), np.array([0.0, 1.0]) + 1e9
    np.testing.assert_allclose(categorical.kl(Logits(far), Logits(near[::-1])), 0.4621, rtol=1e-4)
    masked = np.array([True, True, False])
    logits = Logits(np.append(far, 1e20), mask=masked)
    expected = categorical.entropy(Logits(near))
    np.testing.assert_allclose(categorical.entropy(logits), expected, rtol=1e-6)
    for covariance in (np.ones(2), np.eye(2)):
        divergence = gaussian.kl((far, covariance), (far + 1, covariance))
        np.testing.assert_allclose(divergence, 1.0, rtol=1e-6)


def test_a_frame_as_a_covariance():
    frame = pd.DataFrame([[2.0, 0.5], [0.5, 1.0]], index=["a", "b"], columns=["a", "b"])
    p, q = ([0, 1], frame), (pd.Series([1.0, 0.0]), np.eye(2))
    expected = gaussian.kl((jnp.array([0.0, 1.0]), frame.to_numpy()), (jnp.array([1.0, 0.0]), q[1]))
    np.testing.assert_allclose(gaussian.kl(p, q), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="p must hold numbers in all columns"):
        gaussian.kl(([0, 1], frame.assign(a="x")), q)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fdiv.Reversed(fdiv.Renyi(2.0)), "that of an f-divergence; got Renyi"),
        (lambda: fdiv.Reversed(fdiv.KL), "an instance; got the class KL"),
        (lambda: fdiv.Mixed(fdiv.KL, 0.5), "an instance; got the class KL"),
        (lambda: fdiv.Combination((fdiv.Renyi(2.0),), (2.0,)), "f-divergence; got Renyi"),
        (lambda: fdiv.Combination((), ()), "same length of at least one; got 0 and 0"),
        (lambda: fdiv.Combination((fdiv.KL(),), (1.0, 2.0)), "got 1 and 2"),
        (lambda: bounds.f_dual(jnp.ones(2), jnp.ones(2), fdiv.Renyi(0.5)), "got Renyi"),
        (lambda: bounds.conjugate_dual(jnp.ones(2), jnp.ones(2), fdiv.Renyi(0.5)), "got Renyi"),
        (lambda: ratio.DivergenceBound(train=fdiv.Renyi(0.5)), "got Renyi"),
    ],
)
def test_a_divergence_without_a_generator_is_refused(make, message):
    """Without its logarithm Rényi's would be another divergence."""
    with pytest.raises(ValueError, match=message):
        make()
