"""Folds with rows that are not finite leave no model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.ratio import Fold
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
