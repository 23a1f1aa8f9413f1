"""Distributions as arguments: labels, masks, smoothing, axes, and numbers that are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats

from divjax.fdiv import categorical
from divjax.fdiv.categorical import Logits, Weights
from tests.fdiv.test_categorical import random_pair

C = 6


DIVERGENCES = {
    "kl": categorical.kl,
    "reverse_kl": categorical.reverse_kl,
    "skew_kl": lambda p, q: categorical.skew_kl(p, q, 0.3),
    "jensen_shannon": categorical.jensen_shannon,
    "weighted jensen_shannon": lambda p, q: categorical.jensen_shannon(
        p, q, weights=jnp.array([0.2, 0.8])
    ),
    "total_variation": categorical.total_variation,
    "squared_hellinger": categorical.squared_hellinger,
    "cross_entropy": categorical.cross_entropy,
    "renyi": lambda p, q: categorical.renyi(p, q, 0.7),
}


# All at once, so that one compilation serves them.
all_divergences = jax.jit(lambda p, q: {name: d(p, q) for name, d in DIVERGENCES.items()})


def test_every_axis_and_base():
    p, q = random_pair(shape=(3, 4, C))
    moved = [np.moveaxis(a, -1, 1) for a in (p, q)]
    with jax.enable_x64(True):
        functions = [
            categorical.kl,
            categorical.reverse_kl,
            categorical.kl_map,
            categorical.cross_entropy,
            lambda p, q, **options: categorical.skew_kl(p, q, 0.3, **options),
            lambda p, q, **options: categorical.renyi(p, q, 0.7, **options),
            lambda p, q, **options: categorical.entropy(p, **options),
            categorical.jensen_shannon,
        ]
        of = jax.jit(lambda p, q, axis: [f(p, q, axis=axis) for f in functions], static_argnums=2)
        in_bits = jax.jit(lambda p, q: [f(p, q, base=2) for f in functions])(p, q)
        traced = jax.jit(lambda p, q, b: [f(p, q, base=b) for f in functions])(p, q, 2.0)
        plain, along = of(p, q, -1), of(*moved, 1)
        without_base = [categorical.total_variation, categorical.squared_hellinger]
        for f in without_base:
            np.testing.assert_allclose(f(*moved, axis=1), f(p, q), rtol=1e-12)
        masked = Weights(moved[0], mask=np.arange(C)[:, None] != 2)
        expected = categorical.entropy(Weights(p, mask=np.arange(C) != 2))
        np.testing.assert_allclose(categorical.entropy(masked, axis=1), expected)
        np.testing.assert_allclose(categorical.log_probs(moved[0], axis=1), np.log(moved[0]))
        np.testing.assert_allclose(
            categorical.generalized_kl(3 * moved[0], moved[1], axis=1),
            scipy.special.kl_div(3 * p, q).sum(-1),
        )
    for ours, theirs, bits, also_bits in zip(along, plain, in_bits, traced, strict=True):
        ours = np.moveaxis(ours, 1, -1) if ours.ndim == 3 else ours
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        np.testing.assert_allclose(bits, np.asarray(theirs) / np.log(2), rtol=1e-12)
        np.testing.assert_allclose(also_bits, bits, rtol=1e-12)


def test_labels_are_distributions_with_all_mass_on_one_class():
    _, q = random_pair()
    labels = categorical.Labels(jnp.array([0, 3, 5, 2]), C)
    picked = -np.log(q[np.arange(4), [0, 3, 5, 2]])
    np.testing.assert_allclose(categorical.cross_entropy(labels, q), picked, rtol=1e-6)
    np.testing.assert_allclose(categorical.kl(labels, Weights(q)), picked, rtol=1e-6)
    np.testing.assert_allclose(
        categorical.total_variation(labels, q), 1 - np.exp(-picked), rtol=1e-6
    )
    np.testing.assert_allclose(categorical.kl(labels, q.T, axis=0), picked, rtol=1e-6)
    with jax.enable_x64(True):
        assert categorical.kl(labels, jnp.asarray(q, jnp.float32)).dtype == jnp.float32


def test_a_mask_drops_classes():
    rng = np.random.default_rng(5)
    p, q = (jnp.asarray(rng.normal(size=(3, C)), jnp.float32) for _ in range(2))
    mask = np.array([1, 0, 1, 1, 0, 1], bool)
    masked = all_divergences(Logits(p, mask=mask), Weights(q**2, 0.5, mask))
    dropped = all_divergences(Logits(p[:, mask]), Weights(q[:, mask] ** 2, 0.5))
    for name, value in masked.items():
        np.testing.assert_allclose(value, dropped[name], rtol=1e-5)


def test_smoothing_is_laplaces_rule():
    log_probs = categorical.log_probs(Weights(jnp.array([3, 0, 1]), smoothing=1.0))
    np.testing.assert_allclose(np.exp(log_probs), [4 / 7, 1 / 7, 2 / 7], rtol=1e-6)
    assert log_probs.dtype == jnp.float32


def test_negative_weights_are_no_distribution_whatever_is_added():
    weights = np.array([-1.0, 2.0, 3.0])
    entropy = lambda values: categorical.entropy(Weights(values, smoothing=2.0))
    assert jnp.isnan(entropy(weights))
    assert jnp.isnan(jax.jit(entropy)(weights))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int8])
def test_labels_of_any_integer_type(dtype):
    labels = categorical.Labels(np.array([0, 1, 7]).astype(dtype), 2)
    value = categorical.cross_entropy(labels, np.full((3, 2), 0.5))
    np.testing.assert_allclose(value, [np.log(2), np.log(2), np.nan], rtol=1e-6)


def test_probabilities_that_float32_lacks_are_not_zero():
    p, q = np.array([0.5, 0.5]), np.array([1 - 1e-50, 1e-50])
    expected = np.sum(p * np.log(p / q))
    np.testing.assert_allclose(categorical.kl(p, q), expected, rtol=1e-6)
    np.testing.assert_allclose(categorical.kl(Weights(7 * p), Weights(3 * q)), expected, rtol=1e-6)
    # Both classes of p have mass, where all of q's is.
    assert abs(categorical.renyi(Weights(np.array([1, 1e-40])), p, 0.0)) < 1e-6
