"""KL from samples: values, and gradients against enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from divjax.fdiv import sampled


# By enumeration: the expectation over x ~ p is a sum over all classes.
def expectations(function, logits):
    """E_{x~p} for each estimator, p held fixed as what is sampled from, and its gradients."""
    probabilities = jax.nn.softmax(logits[0])

    def value(p, q, estimator):
        estimates = function(jax.nn.log_softmax(p), jax.nn.log_softmax(q), estimator)
        return jnp.dot(probabilities, estimates)

    return {
        estimator: jax.value_and_grad(value, argnums=(0, 1))(*logits, estimator)
        for estimator in ("k1", "k2", "k3")
    }


naive = jax.jit(lambda logits: expectations(sampled.sampled_kl, logits))
surrogate = jax.jit(lambda logits: expectations(sampled.sampled_kl_surrogate, logits))


def exact(direction, logits):
    """KL and gradients with respect to the logits of p and of q, written out by hand.

    ∂KL(p‖q)/∂z_p = p (log(p/q) − KL), ∂KL(p‖q)/∂z_q = q − p.
    """
    p, q = (scipy.special.softmax(z) for z in logits)
    if direction == "reverse":
        value = np.sum(q * np.log(q / p))
        return value, (p - q, q * (np.log(q / p) - value))
    value = np.sum(p * np.log(p / q))
    return value, (p * (np.log(p / q) - value), q - p)


LOGITS = tuple(1.5 * np.random.default_rng(s).normal(size=5) for s in (8, 10))


def test_sampled_values_k1_and_k3_are_unbiased_and_k2_is_not():
    truth, _ = exact("forward", LOGITS)
    with jax.enable_x64(True):
        value = {estimator: value for estimator, (value, _) in naive(LOGITS).items()}
        np.testing.assert_allclose([value["k1"], value["k3"]], truth, rtol=1e-12)
        assert abs(value["k2"] - truth) > 0.05 * truth
        # The bias of k2 is of third order: half the distance leaves an eighth.
        bias = []
        for scale in (2e-2, 1e-2):
            logits = (LOGITS[0], LOGITS[0] + scale * LOGITS[1])
            bias.append(naive(logits)["k2"][0] - exact("forward", logits)[0])
        np.testing.assert_allclose(bias[0] / bias[1], 8, rtol=0.05)


def test_naive_gradients_are_those_of_other_objectives():
    """With respect to p: k1's is nothing, k2's is right, k3's is the other direction's."""
    _, (forward, forward_q) = exact("forward", LOGITS)
    _, (reverse, _) = exact("reverse", LOGITS)
    with jax.enable_x64(True):
        gradient = {estimator: gradients for estimator, (_, gradients) in naive(LOGITS).items()}
        gradient = jax.tree.map(np.asarray, gradient)
    np.testing.assert_allclose(gradient["k1"][0], 0, atol=1e-14)
    np.testing.assert_allclose(gradient["k2"][0], forward, rtol=1e-11)
    np.testing.assert_allclose(gradient["k3"][0], reverse, rtol=1e-11)
    assert np.abs(gradient["k3"][0] - forward).max() > 0.05
    # With respect to q: k1's and k3's are right, k2's is not.
    np.testing.assert_allclose(gradient["k1"][1], forward_q, rtol=1e-11)
    np.testing.assert_allclose(gradient["k3"][1], forward_q, rtol=1e-11)
    assert np.abs(gradient["k2"][1] - forward_q).max() > 0.05


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_surrogate_has_the_estimators_value_and_the_true_gradient(estimator):
    _, truth = exact("forward", LOGITS)
    with jax.enable_x64(True):
        value, gradients = surrogate(LOGITS)[estimator]
        np.testing.assert_allclose(value, naive(LOGITS)[estimator][0], rtol=1e-15)
    np.testing.assert_allclose(gradients[0], truth[0], rtol=1e-11)
    np.testing.assert_allclose(gradients[1], truth[1], rtol=1e-11)


def test_k3_is_accurate_and_not_negative_in_float32():
    log_r = np.concatenate([np.logspace(-12, 1.5, 200), -np.logspace(-12, 3, 200)])
    log_r = log_r.astype(np.float32)
    value = sampled.sampled_kl(jnp.zeros(400), jnp.asarray(log_r))
    assert (value >= 0).all()
    t = log_r.astype(np.longdouble)
    expected = np.where(np.abs(t) < 1e-4, t**2 / 2 * (1 + t / 3 + t**2 / 12), np.expm1(t) - t)
    np.testing.assert_allclose(value, expected.astype(np.float64), rtol=3e-6, atol=1e-37)
