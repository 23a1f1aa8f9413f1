"""A network as a head: the user's own, its start, and the rows that it is trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from divjax.ratio import Fold, Head, Rows
from divjax.ratio import heads as h
from divjax.ratio.heads.network import row_sampler
from divjax.ratio.protocols import validation_loss
from tests.ratio.test_heads import make_fold


class Own(nnx.Module):
    """A user's network, with a trained scale."""

    def __init__(self, in_features, rngs):
        self.linear = nnx.Linear(in_features, 1, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x):
        return self.scale * self.linear(x)


SMALL = dict(num_steps=60, batch_size=32, num_checks=4, learning_rate=0.05)


def test_a_network_of_the_users_own_learns_and_starts_where_it_is_told():
    fold = make_fold(14, 200, 200, 2, shift=1.0, weighted=False, masked=50)
    fold = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), fold)
    head = h.Network(network=Own, start=h.Linear(50.0), **SMALL)
    assert isinstance(head, Head)
    params = jax.jit(head.fit)(jax.random.key(0), fold)
    loss = validation_loss(head, params, fold)
    assert loss < np.log(2) - 0.05
    # The check before the first step is among those it chooses from.
    own, start = h.Network(network=Own, **SMALL), h.Linear(50.0)
    assert loss <= validation_loss(start, params[0], fold) + 0.05
    assert own.apply(params[1], fold.train.x).shape == (200, 1)


def test_a_network_keeps_its_start_where_validation_rows_say_so():
    """Validation rows with the labels exchanged: no step is better than none."""
    fold = make_fold(15, 100, 100, 1, shift=2.0, weighted=False)
    a, b = jnp.full(100, 1 / 100).astype(jnp.float32), jnp.full(100, 1 / 100).astype(jnp.float32)
    p, q = fold.train.x.astype(jnp.float32), fold.train.y.astype(jnp.float32)
    p, q = jnp.concatenate([p, q]), jnp.concatenate([q, p])
    none = jnp.zeros(100, jnp.float32)
    first, last = jnp.concatenate([a, none]), jnp.concatenate([none, b])
    fold = Fold(Rows(p, q, first, first), Rows(p, q, last, last))
    head = h.Network(hidden=(8,), **SMALL)
    params = jax.jit(head.fit)(jax.random.key(0), fold)
    assert (head(params, p) == 0).all()
    learned = jax.jit(head.fit)(jax.random.key(0), Fold(fold.train, fold.train))
    assert jnp.mean(head(learned, p)[:100]) > 0.5


def test_rows_are_drawn_in_proportion_to_their_weights():
    weights = jnp.array([0.0, 0.5, 0.0, 0.3, 0.2])
    i, j = row_sampler(weights, weights[::-1])(jax.random.key(0), 1000)
    # One a quantile: counts are right up to one at either end.
    for index, expected in ((i, weights), (j, weights[::-1])):
        counts = np.bincount(index, minlength=5)
        assert np.abs(counts - 1000 * np.asarray(expected)).max() <= 2
        assert (counts[np.asarray(expected) == 0] == 0).all()


def test_a_network_with_too_many_outputs():
    fold = make_fold(16, 10, 10, 2)
    wide = h.Network(network=lambda d, rngs: nnx.Linear(d, 2, rngs=rngs), **SMALL)
    with pytest.raises(ValueError, match="output"):
        wide.fit(jax.random.key(0), fold)
