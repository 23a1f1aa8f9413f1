"""One Gaussian for closed forms, transport and problems: what is taken, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import divjax
from divjax import Normal, fdiv, ot, problems
from divjax.core.normal import are_symmetric, as_normal, full_covariance, stacked_normals

MEAN, VARIANCES = [1.0, -0.5], [0.5, 2.0]
FULL = [[0.5, 0.3], [0.3, 2.0]]
Q = Normal(jnp.array([0.2, 0.1]), jnp.array([[1.5, -0.2], [-0.2, 0.7]]))
# Functions of two Gaussians, in every room.
PAIRS = {
    "kl": fdiv.gaussian.kl,
    "renyi": lambda p, q: fdiv.gaussian.renyi(p, q, 0.3),
    "js_bounds": lambda p, q: fdiv.gaussian.js_bounds(p, q).lower,
    "wasserstein": ot.gaussian_wasserstein,
    "map": lambda p, q: ot.gaussian_map(p, q).matrix,
    "entropic": lambda p, q: ot.gaussian_entropic(p, q, epsilon=0.5).value,
    "flow": lambda p, q: problems.fokker_planck_moments(jnp.ones(1), p, q).covariance,
    "barycenter": lambda p, q: ot.gaussian_barycenter([Normal(*p), Normal(*q)]).covariance,
}
# The moments of a pair of known divergences are concrete.
CONCRETE = PAIRS | {"task": lambda p, q: problems.gaussian_pair(p, q).kl}


def stacked(*normals):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *normals)


def test_it_is_the_packages():
    assert divjax.Normal is Normal
    assert "Normal" in divjax.__all__
    assert "Normal" not in fdiv.gaussian.__all__
    assert not hasattr(problems, "Moments")


@pytest.mark.parametrize("covariance", [VARIANCES, FULL], ids=["variances", "full"])
@pytest.mark.parametrize("name", CONCRETE)
def test_pairs_of_any_arrays_are_gaussians(name, covariance):
    expected = CONCRETE[name](Normal(jnp.array(MEAN), jnp.array(covariance)), Q)
    forms = {
        "list": [MEAN, covariance],
        "tuple": (tuple(MEAN), covariance),
        "NumPy": (np.array(MEAN), np.array(covariance)),
        "lists in a Normal": Normal(MEAN, covariance),
    }
    for form in forms.values():
        np.testing.assert_allclose(CONCRETE[name](form, Q), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", CONCRETE)
@pytest.mark.parametrize(
    ("p", "message"),
    [
        (Normal(jnp.zeros(3), jnp.ones(3)), "must have the same dimension; got 3 and 2"),
        (
            Normal(jnp.zeros(2), jnp.ones(3)),
            r"must be a mean \(d,\) with variances \(d,\) or a",
        ),
        (Normal(jnp.zeros(0), jnp.ones(0)), r"must be a mean \(d,\)"),
        (Normal(np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]])), "must be symmetric; got entries"),
        (Normal(np.zeros(2), 1j * np.eye(2)), "must hold real numbers"),
        (Normal(["a", "b"], np.eye(2)), "must hold real numbers"),
    ],
)
def test_the_messages_are_the_same_everywhere(name, p, message):
    with pytest.raises(ValueError, match=message):
        CONCRETE[name](p, Q)


@pytest.mark.parametrize("p", [None, 1.0, "p", jnp.zeros(3), (1.0,), jnp.zeros((3, 2))])
def test_what_is_no_pair_is_refused(p):
    with pytest.raises(ValueError, match=r"^(the (mean|covariance) of )?p must"):
        ot.gaussian_wasserstein(p, Q)
    with pytest.raises(ValueError, match=r"^(the mean of )?targets must|^targets must"):
        problems.multi_objective_moments(jnp.ones(1), Q, p)


@pytest.mark.parametrize("name", PAIRS)
def test_vmap_over_stacked_gaussians_is_a_loop(name):
    each = [Normal(jnp.array(MEAN) + i, (1 + i) * jnp.array(FULL)) for i in range(3)]
    found = jax.vmap(PAIRS[name], in_axes=(0, None))(stacked(*each), Q)
    for row, p in zip(found, each, strict=True):
        np.testing.assert_allclose(row, PAIRS[name](p, Q), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("covariance", [VARIANCES, FULL], ids=["variances", "full"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_gradient_with_respect_to_a_gaussian_is_one(name, covariance):
    with jax.enable_x64(True):
        p = Normal(np.array(MEAN), np.array(covariance))
        q = Normal(*(np.asarray(leaf, float) for leaf in Q))
        value = lambda p: jnp.sum(PAIRS[name](p, q))
        slope = jax.jit(jax.grad(value))(p)
        assert isinstance(slope, Normal)
        direction = Normal(np.array([0.3, -0.7]), np.array(VARIANCES) - 0.8)
        if np.ndim(covariance) == 2:
            direction = direction._replace(covariance=np.array([[0.4, 0.2], [0.2, -0.3]]))
        moved = lambda step: value(jax.tree.map(lambda x, v: x + step * v, p, direction))
        along = sum(jax.tree.leaves(jax.tree.map(lambda s, v: jnp.sum(s * v), slope, direction)))
        difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
        np.testing.assert_allclose(along, difference, rtol=2e-4, atol=1e-8)


@pytest.mark.parametrize("name", PAIRS)
def test_a_traced_covariance_that_is_not_symmetric_gives_nan(name):
    skew = Normal(jnp.zeros(2), jnp.array([[1.0, 0.5], [0.0, 1.0]]))
    found = jax.jit(PAIRS[name])(skew, Q)
    assert jnp.isnan(found).all()


def test_several_are_one_stack_a_list_or_a_pair_of_arrays():
    one, other = Normal(jnp.array(MEAN), jnp.array(FULL)), Q
    expected = ot.gaussian_barycenter(stacked(one, other))
    for form in ([one, other], (one, other), tuple(stacked(one, other))):
        found = ot.gaussian_barycenter(form)
        np.testing.assert_array_equal(found.covariance, expected.covariance)
        np.testing.assert_array_equal(found.mean, expected.mean)
    flow = lambda targets: problems.multi_objective_moments(jnp.ones(1), Q, targets, num_substeps=4)
    expected = flow(stacked(one, other)).covariance
    np.testing.assert_array_equal(flow([one, other]).covariance, expected)


def test_a_list_of_variances_and_matrices_is_one_of_matrices():
    found = stacked_normals("normals", [Normal(np.zeros(2), np.ones(2)), Normal(MEAN, FULL)])
    np.testing.assert_array_equal(found.covariance, [np.eye(2), FULL])
    assert found.mean.dtype == np.float64  # NumPy's digits are kept
    few = stacked_normals("normals", [Normal(np.zeros(2), np.ones(2))] * 3)
    assert few.covariance.shape == (3, 2)


def test_two_pairs_of_lists_are_ambiguous_and_refused():
    """Two Gaussians of two features, or the two means and the two vectors of variances."""
    pairs = [([1.0, 0.5], VARIANCES), ([1.0, 0.5], VARIANCES)]
    for form in (pairs, tuple(pairs)):
        with pytest.raises(ValueError, match="normals must be a Normal with a leading axis"):
            ot.gaussian_barycenter(form)
    assert ot.gaussian_barycenter(Normal(*pairs)).converged


@pytest.mark.parametrize(
    ("normals", "message"),
    [
        ([Q, Normal(jnp.zeros(3), jnp.ones(3))], "normals.0. and normals.1. must have the same"),
        ([Q, Normal(jnp.zeros(2), jnp.ones(3))], "normals.1. must be a mean"),
        ([], "normals must be a Normal with a leading axis"),
        (None, "normals must be a Normal with a leading axis"),
        (Q, r"normals must be means \(k, d\) with variances \(k, d\) or covariances \(k, d, d\)"),
        (stacked(Q._replace(covariance=jnp.ones(3))), "normals must be means"),
    ],
)
def test_lists_of_gaussians_are_checked(normals, message):
    with pytest.raises(ValueError, match=message):
        ot.gaussian_barycenter(normals)


def test_half_precision_is_for_variances():
    half = lambda covariance: Normal(jnp.zeros(2, "bfloat16"), jnp.array(covariance, "bfloat16"))
    for function in (fdiv.gaussian.kl, ot.gaussian_wasserstein):
        with pytest.raises(ValueError, match="a full covariance must be float32 or float64"):
            function(half(FULL), half(FULL))
        assert jnp.isfinite(function(half(VARIANCES), half([1.0, 1.0])))


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_symmetry_does_not_depend_on_units(unit):
    scale = np.array([unit, 1.0])
    rounded = np.array([[0.5, 0.3], [0.3 * (1 + 1e-6), 2.0]]) * np.outer(scale, scale)
    skew = np.array([[0.5, 0.3], [0.31, 2.0]]) * np.outer(scale, scale)
    as_normal("p", (MEAN, rounded))
    assert are_symmetric(jnp.asarray(rounded))
    assert not are_symmetric(jnp.asarray(skew))
    with pytest.raises(ValueError, match="the covariance of p must be symmetric"):
        as_normal("p", (MEAN, skew))


def test_full_covariances_of_infinite_variances_are_zero_off_the_diagonal():
    found = full_covariance(Normal(jnp.zeros(2), jnp.array([jnp.inf, 1.0])))
    np.testing.assert_array_equal(found, [[np.inf, 0], [0, 1]])


def test_results_of_transport_are_trees_that_map_and_print():
    p = Normal(jnp.array(MEAN), jnp.array(FULL))
    barycenter = ot.gaussian_barycenter([p, Q])
    assert barycenter.check() is barycenter
    assert barycenter.finite
    entropic = ot.gaussian_entropic(p, Q, epsilon=1.0)
    found = ot.gaussian_map(p, Q)
    for result in (barycenter, entropic, found):
        rebuilt = jax.tree.map(lambda leaf: leaf, result)
        assert type(rebuilt) is type(result)
        assert repr(rebuilt).startswith(f"{type(result).__name__}(")
        with pytest.raises(AttributeError):
            result.covariance = 0  # pyright: ignore[reportAttributeAccessIssue]
    moved = jax.vmap(ot.gaussian_map, in_axes=(0, None))(stacked(p, Q), Q)
    rows = jnp.ones((2, 5, 2))
    np.testing.assert_allclose(
        jax.vmap(lambda to_q, x: to_q(x))(moved, rows)[0], found(rows[0]), rtol=1e-5
    )
