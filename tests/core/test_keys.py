"""Do a function's draws repeat those of its caller?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import inference, ot
from divjax.core.keys import own_key
from divjax.ratio import ClassifierRatio

KEY = jax.random.key(0)


def test_a_key_is_none_of_the_callers():
    data = lambda key: tuple(np.asarray(jax.random.key_data(key)).tolist())
    callers = {data(KEY), *map(data, jax.random.split(KEY, 100))}
    callers |= {data(jax.random.fold_in(KEY, i)) for i in range(100)}
    callers |= {data(key) for own in jax.random.split(KEY, 10) for key in jax.random.split(own, 10)}
    own = own_key(KEY)
    assert not callers & {data(own), *map(data, jax.random.split(own, 100))}
    with pytest.raises(ValueError, match="key must be one typed key"):
        own_key(None)


# The keys that were split inside a fit on the way to each sample's folds.
PATHS = [(), (0,), (1,), (1, 0), (1, 0, 0), (1, 0, 1), (1, 1)]


@pytest.mark.parametrize("path", PATHS)
def test_folds_do_not_follow_the_rows(path):
    """Rows drawn by a key that the caller derives: folds of a uniform sample have equal means."""
    key = KEY
    for step in path:
        key = jax.random.split(key)[step]
    x = jax.random.uniform(key, (200, 1))
    fit = ClassifierRatio("linear", num_folds=2).fit(KEY, x, 1 - x)
    for sample, held_out in ((x, fit.held_out_p), (1 - x, fit.held_out_q)):
        first, second = (sample[held_out.fold == k, 0] for k in (0, 1))
        assert abs(jnp.mean(first) - jnp.mean(second)) < 4 * np.sqrt(2 / 12 / 100)


def test_directions_and_permutations_are_not_the_rows():
    rows = jax.random.normal(KEY, (8, 3))
    other = rows + jnp.array([1.0, 0.0, 0.0])
    drawn = ot.sliced_wasserstein(KEY, rows, other, num_projections=8)
    directions = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    assert drawn != ot.sliced_wasserstein(None, rows, other, directions=directions)
    scores = jax.random.uniform(jax.random.split(KEY)[0], (100,))
    test = inference.score_permutation_test(KEY, scores[:50], scores[50:])
    assert test.p_value > 0.01
