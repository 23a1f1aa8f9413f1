"""Folds with rows that are not finite, or weights that are no shares, leave no model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from divjax.ratio import Fold, Rows
from divjax.ratio import heads as h
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
