"""Scores of pairs, in the forms in which researchers hold them."""

import jax.numpy as jnp
import numpy as np
import pytest

from divjax import ratio


@pytest.mark.parametrize("scores", [[[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], np.int8)])
def test_lists_and_integers_are_scores(scores):
    u_p, u_q = ratio.bounds.split_scores(scores)
    assert (u_p.tolist(), u_q.tolist()) == ([1.0, 4.0], [[2.0], [3.0]])
    # They keep NumPy's digits for the bounds, which are JAX's.
    assert isinstance(u_p, np.ndarray)
    assert ratio.bounds.donsker_varadhan(u_p, u_q).dtype == jnp.float32


@pytest.mark.parametrize("scores", ["text", 1.0, [], [[1.0]], np.ones(4), jnp.ones((2, 2)) * 1j])
def test_what_is_no_matrix_of_scores_is_named(scores):
    with pytest.raises(ValueError, match=r"^scores must"):
        ratio.bounds.split_scores(scores)
