"""Rows that are not finite, weights that are no shares, numbers out of range: no model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from divjax.ratio import Fold, Rows
from divjax.ratio import heads as h
from divjax.ratio.protocols import checked
from tests.ratio.test_heads import make_fold

SMALL_HEADS = [
    h.Linear(),
    h.Quadratic(),
    h.RandomFourier(),
    h.GaussianDiscriminant(),
    h.Neighbors(num_neighbors=(2,)),
    h.KLIEP(),
    h.LeastSquares(),
    h.Network(num_steps=2),
    h.Telescoping(network=None),
    h.Average((h.Zero(), h.Linear())),
    h.Tuned(h.Linear(ridge=jnp.array([0.5, 5.0]))),
]


@pytest.mark.parametrize("head", SMALL_HEADS, ids=lambda head: type(head).__name__)
def test_a_row_with_weight_that_is_not_finite_leaves_no_model(head):
    """In training or validation, of either sample; a row without weight changes nothing."""
    fold = make_fold(0, 12, 10, 1, masked=3)
    z = jnp.array([[0.0], [1.0]])
    values = jax.jit(lambda fold: head(head.fit(jax.random.key(0), fold), z))
    assert jnp.isfinite(values(fold)).all()
    for bad in (jnp.nan, jnp.inf):
        for part in ("train", "validation"):
            rows = getattr(fold, part)
            for sample, weights in (("x", rows.a), ("y", rows.b)):
                row = jnp.argmax(weights > 0)
                spoilt = rows._replace(**{sample: getattr(rows, sample).at[row].set(bad)})
                assert jnp.isnan(values(fold._replace(**{part: spoilt}))).all(), (bad, part, sample)
    # The first rows have no weight in training, the others none in validation.
    train = fold.train._replace(x=fold.train.x.at[0].set(jnp.nan))
    held = fold.validation._replace(y=fold.validation.y.at[-1].set(jnp.inf))
    np.testing.assert_allclose(values(Fold(train, held)), values(fold), rtol=1e-6)


def test_rows_put_into_a_checked_fold_are_checked():
    """The heads of an average are fitted to one fold that is checked once."""
    fold, valid = checked(h.Zero(), make_fold(0, 12, 10, 1, masked=3))
    is_valid = jax.jit(lambda fold: checked(h.Zero(), fold)[1])
    assert valid
    assert is_valid(fold)
    train = fold.train._replace(y=fold.train.y.at[3].set(jnp.nan))
    assert not is_valid(fold._replace(train=train))
    assert not is_valid(Fold(train, fold.validation))


@pytest.mark.parametrize("head", SMALL_HEADS, ids=lambda head: type(head).__name__)
def test_weights_that_are_no_shares_leave_no_model(head):
    """Negative ones, and those that do not sum to one, of either sample."""
    fold = make_fold(0, 12, 10, 1, masked=3)
    z = jnp.array([[0.0], [1.0]])
    values = jax.jit(lambda fold: head(head.fit(jax.random.key(0), fold), z))
    for change in (lambda weights: -weights, lambda weights: 2 * weights):
        for side in ("a", "b"):
            train = fold.train._replace(**{side: change(getattr(fold.train, side))})
            assert jnp.isnan(values(fold._replace(train=train))).all()


@pytest.mark.parametrize("rho", [0.01, 0.002])
def test_a_discriminant_of_nearly_dependent_features_is_that_of_independent_ones(rho):
    """An invertible linear map of all rows changes nothing; float32 holds its images."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(0.5, 1, (60, 2)), rng.normal(size=(80, 2))
    near = lambda z: jnp.asarray(np.stack([z[:, 0], z[:, 0] + rho * z[:, 1]], 1), jnp.float32)
    shares = [jnp.full(len(z), 1 / len(z), jnp.float32) for z in (x, y)]
    rows = Rows(near(x), near(y), *shares)
    head = h.GaussianDiscriminant(shrinkage=0.0)
    u = head(head.fit(jax.random.key(0), Fold(rows, rows)), rows.x)
    densities = [scipy.stats.multivariate_normal(z.mean(0), np.cov(z.T)) for z in (x, y)]
    np.testing.assert_allclose(u, densities[0].logpdf(x) - densities[1].logpdf(x), atol=2e-3)


QUICK = h.Network(num_steps=2)
# A head by one number, and a value out of its range.
RANGES = {
    "ridge": (lambda number: h.Linear(ridge=number), -1.0),
    "features' ridge": (lambda number: h.RandomFourier(num_features=4, ridge=number), -1.0),
    "features' bandwidth": (lambda number: h.RandomFourier(4, bandwidth=number), 0.0),
    "shrinkage": (lambda number: h.GaussianDiscriminant(shrinkage=number), 1.5),
    "prior": (lambda number: h.Neighbors((2,), prior=number), -1.0),
    "relative": (lambda number: h.LeastSquares(relative=number), 1.0),
    "floor": (lambda number: h.LeastSquares(floor=number), 0.0),
    "kernel bandwidth": (lambda number: h.KLIEP(bandwidth=number), -1.0),
    "rate": (lambda number: dataclasses.replace(QUICK, learning_rate=number), -1.0),
    "decay": (lambda number: dataclasses.replace(QUICK, weight_decay=number), -1.0),
}
HOLDERS = {
    "alone": lambda head: head,
    "average": lambda head: h.Average((h.Linear(), head)),
    "start": lambda head: dataclasses.replace(QUICK, start=head),
    "nested": lambda head: h.Average((h.Average((head, h.Zero())), h.Linear())),
    "telescoping": lambda head: h.Telescoping(2, start=head, network=None),
}


# Every number alone and in an average; a few of them in whatever holds heads.
HELD = [
    pytest.param(
        kind,
        holder,
        marks=[pytest.mark.exhaustive]
        * (holder not in ("alone", "average") and kind not in ("ridge", "prior")),
        id=f"{kind}-{holder}",
    )
    for kind in RANGES
    for holder in HOLDERS
]


@pytest.mark.parametrize(("kind", "holder"), HELD)
def test_a_traced_number_out_of_range_leaves_no_model(kind, holder):
    """Nor does it in a head that holds it, where it could merely lose to the others."""
    make, wrong = RANGES[kind]
    fold = make_fold(0, 12, 10, 1, masked=3)
    z = jnp.array([[0.0], [1.0]])

    @jax.jit
    def values(number):
        head = HOLDERS[holder](make(number))
        return head(head.fit(jax.random.key(0), fold), z)

    assert jnp.isfinite(values(0.3)).all()
    assert jnp.isnan(values(wrong)).all()


@pytest.mark.parametrize("kind", ["ridge", "shrinkage", "prior"])
def test_a_setting_out_of_range_leaves_no_model_of_a_grid(kind):
    make, wrong = RANGES[kind]
    fold = make_fold(0, 12, 10, 1, masked=3)

    @jax.jit
    def values(numbers):
        head = h.Tuned(make(numbers))
        return head(head.fit(jax.random.key(0), fold), jnp.array([[0.0], [1.0]]))

    assert jnp.isfinite(values(jnp.array([0.3, 0.6]))).all()
    assert jnp.isnan(values(jnp.array([wrong, 0.6]))).all()


DIFFERENTIABLE = [
    pytest.param(
        head,
        marks=[pytest.mark.exhaustive] * isinstance(head, h.Telescoping),
        id=type(head).__name__,
    )
    for head in SMALL_HEADS
]


@pytest.mark.parametrize("head", DIFFERENTIABLE)
def test_gradients_do_not_see_the_content_of_padding(head):
    """In training and validation; zero at the padding itself."""
    if isinstance(head, h.Network):
        pytest.skip("fits of networks are not differentiable")
    fold = make_fold(0, 12, 10, 1, masked=3)
    z = jnp.array([[0.0], [1.0]])
    value = lambda fold: jnp.sum(head(head.fit(jax.random.key(0), fold), z))
    gradient = jax.jit(jax.grad(value))
    plain = gradient(fold)
    for content in (1e30, jnp.nan, jnp.inf):
        padded = lambda z, w, content=content: jnp.where((w == 0)[:, None], content, z)
        spoilt = Fold(*(r._replace(x=padded(r.x, r.a), y=padded(r.y, r.b)) for r in fold))
        assert not all(jnp.isfinite(rows.x).all() and (abs(rows.x) < 1e9).all() for rows in spoilt)
        for found, expected, weights in zip(
            jax.tree.leaves([(r.x, r.y) for r in gradient(spoilt)]),
            jax.tree.leaves([(r.x, r.y) for r in plain]),
            jax.tree.leaves([r.weights for r in fold]),
            strict=True,
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
            assert (found[weights == 0] == 0).all()


def test_a_telescoping_ratio_may_start_from_nothing():
    """A chain of networks alone; without steps that improve it the log ratio is zero."""
    fold = make_fold(0, 12, 10, 1, masked=3)
    head = h.Telescoping(3, start=h.Zero(), network=QUICK)
    u = head(head.fit(jax.random.key(0), fold), jnp.array([[0.0], [1.0]]))
    assert u.shape == (2,)
    assert jnp.isfinite(u).all()


def test_a_grid_needs_one_axis_in_all_numbers():
    fold = make_fold(0, 12, 10, 1, masked=3)
    for head in (h.Linear(0.5), h.KLIEP(bandwidth=jnp.array([0.5, 1.0]))):
        with pytest.raises(ValueError, match="head must hold arrays of one length"):
            h.Tuned(head).fit(jax.random.key(0), fold)
