"""Generators, closed forms, inequalities, and estimates without a model."""

import jax
import jax.numpy as jnp
import numpy as np

from divjax import fdiv
from divjax.fdiv import categorical, exponential_family, gaussian, histogram, inequalities
from tests.contract.edges import Edges
from tests.contract.promises import Row, of_samples, of_scores


def _integrands(method, key, x, weights):
    return jnp.stack([method.integrand_p(x[:, 0]), method.integrand_q(x[:, 1])], axis=1)


def _plug_in(method, key, x, weights):
    return method.plug_in(x[:, 0], x[:, 1]).value


def _of_gammas(divergence):
    """A divergence `(family, eta_p, eta_q, *method)` between two Gamma distributions."""

    def evaluate(method, key, x, weights):
        gamma = exponential_family.GAMMA
        return divergence(gamma, _eta(x), gamma.natural(2.0, 1.5).astype(x.dtype), *method)

    return evaluate


@jax.jit
def _eta(x):
    """Natural parameters of a Gamma distribution."""
    return jnp.stack([jnp.mean(x**2) + 1, -jnp.mean(jnp.abs(x)) - 1])


def _of_gaussians(divergence):
    """A divergence `(p, q, *method)` between the particles' Gaussian and a fixed one."""

    def evaluate(method, key, x, weights):
        other = np.array([0.3, -0.2], x.dtype), np.array([[1.5, 0.2], [0.2, 0.8]], x.dtype)
        divergences = divergence(_fitted(x, weights), other, *method)
        return jnp.stack(jax.tree.leaves(divergences))

    return evaluate


@jax.jit
def _fitted(x, weights):
    """The particles' mean and covariance."""
    centered = x - weights @ x
    covariance = (weights[:, None] * centered).T @ centered + 0.1 * jnp.eye(2, dtype=x.dtype)
    return weights @ x, covariance


def _elementwise(function, low=0.0, high=1.0):
    """A function `(numbers, *method)` of numbers between two others, and all that it returns."""

    def evaluate(method, key, x, weights):
        numbers = low + (high - low) * jax.nn.sigmoid(x)
        return sum(jax.tree.leaves(function(numbers, *method)))

    return evaluate


def _categorical(divergence):
    """A divergence `(logits "d n", weights "n", method)` of each feature's softmax over rows."""
    return lambda method, key, x, weights: divergence(x.T, weights, method)[:, None]


def _of_logits(divergence):
    """A divergence `(p, q)`, p the features' softmax over the rows and q the weights."""
    return lambda method, key, x, weights: divergence(categorical.Logits(x.T), weights)


def _transposed(function):
    return lambda *args: function(*args).T


def _jensen_shannon(x, weights, mixture):
    shares = jnp.exp(categorical.log_probs(mixture))
    return categorical.jensen_shannon(weights, categorical.Logits(x), weights=shares)


RATIO = "the ratio is zero or infinite"
EXCLUDED = "an infinite logit excludes a class, or all others"
END = "the end of the numbers' range"


ROWS = {
    "fdiv.KL": Row(fdiv.KL(), _integrands, "equivariant", infinite=RATIO),
    "fdiv.ReverseKL": Row(fdiv.ReverseKL(), _integrands, "equivariant", infinite=RATIO),
    "fdiv.SquaredHellinger": Row(
        fdiv.SquaredHellinger(), _integrands, "equivariant", infinite=RATIO
    ),
    "fdiv.TotalVariation": Row(fdiv.TotalVariation(), _integrands, "equivariant", infinite=RATIO),
    "fdiv.ChiSquared": Row(fdiv.ChiSquared(), _integrands, "equivariant", infinite=RATIO),
    "fdiv.NeymanChiSquared": Row(
        fdiv.NeymanChiSquared(), _integrands, "equivariant", infinite=RATIO
    ),
    "fdiv.Reversed": Row(
        fdiv.Reversed(fdiv.SkewKL(0.2)), _integrands, "equivariant", infinite=RATIO
    ),
    "fdiv.Alpha": Row(fdiv.Alpha(0.6), _integrands, "equivariant", infinite=RATIO),
    "fdiv.CressieRead": Row(fdiv.CressieRead(0.6), _integrands, "equivariant", infinite=RATIO),
    "fdiv.JensenShannon": Row(fdiv.JensenShannon(), _integrands, "equivariant", infinite=RATIO),
    "fdiv.Jeffreys": Row(fdiv.Jeffreys(), _integrands, "equivariant", infinite=RATIO),
    "fdiv.SkewKL": Row(fdiv.SkewKL(0.2), _integrands, "equivariant", infinite=RATIO, positive=(0,)),
    "fdiv.SoftenedReverseKL": Row(
        fdiv.SoftenedReverseKL(), _integrands, "equivariant", infinite=RATIO
    ),
    "fdiv.Mixed": Row(
        fdiv.Mixed(fdiv.ReverseKL(), 0.2),
        _integrands,
        "equivariant",
        infinite=RATIO,
        positive=(0,),
    ),
    "fdiv.Combination": Row(
        0.5 * fdiv.KL() + 2.0 * fdiv.ChiSquared(),
        _integrands,
        "equivariant",
        infinite=RATIO,
        positive=(0, 1),
    ),
    "fdiv.Renyi": Row(fdiv.Renyi(0.6), _plug_in, infinite=RATIO, positive=(0,), sampled=True),
    "fdiv.gaussian.plug_in_kl": Row(
        (),
        lambda m, k, x, w: fdiv.gaussian.plug_in_kl(x, 2 * x[:, ::-1] + 1).value,
        sampled=True,
    ),
    "fdiv.categorical.kl": Row(
        2.0,
        _categorical(lambda x, w, t: categorical.kl(categorical.Logits(x, t), w)),
        infinite=EXCLUDED,
        positive=(0,),
    ),
    **{
        f"fdiv.categorical.{divergence.__name__}": Row(
            (), _of_logits(divergence), infinite=EXCLUDED
        )
        for divergence in (
            categorical.reverse_kl,
            categorical.cross_entropy,
            categorical.squared_hellinger,
            categorical.total_variation,
        )
    },
    "fdiv.categorical.entropy": Row(
        (), _of_logits(lambda p, q: categorical.entropy(p)), infinite=EXCLUDED
    ),
    "fdiv.categorical.log_probs": Row(
        (),
        _transposed(_of_logits(lambda p, q: categorical.log_probs(p))),
        "equivariant",
        infinite=EXCLUDED,
    ),
    "fdiv.categorical.kl_map": Row(
        (), _transposed(_of_logits(categorical.kl_map)), "equivariant", infinite=EXCLUDED
    ),
    "fdiv.categorical.pairwise": Row(
        (),
        _of_logits(
            lambda p, q: categorical.pairwise(
                categorical.kl, p, categorical.Weights(jnp.stack([q, q**2]))
            )
        ),
        infinite=EXCLUDED,
    ),
    "fdiv.categorical.generalized_kl": Row(
        (),
        lambda m, k, x, w: categorical.generalized_kl(jnp.exp(x), w[:, None], axis=0)[:, None],
        infinite="no mass",
    ),
    "fdiv.categorical.renyi": Row(
        0.6,
        _categorical(lambda x, w, alpha: categorical.renyi(w, categorical.Logits(x), alpha)),
        infinite=EXCLUDED,
        positive=(0,),
    ),
    "fdiv.categorical.skew_kl": Row(
        0.3,
        _categorical(lambda x, w, alpha: categorical.skew_kl(w, categorical.Logits(x), alpha)),
        infinite=EXCLUDED,
        positive=(0,),
    ),
    "fdiv.categorical.jensen_shannon": Row(
        categorical.Weights(jnp.array([0.3, 0.7]), 0.1),
        _categorical(_jensen_shannon),
        infinite=EXCLUDED,
        positive=(0, 1),
    ),
    "fdiv.exponential_family.kl": Row((), _of_gammas(exponential_family.kl)),
    "fdiv.exponential_family.jeffreys": Row((), _of_gammas(exponential_family.jeffreys)),
    "fdiv.exponential_family.bhattacharyya": Row((), _of_gammas(exponential_family.bhattacharyya)),
    "fdiv.exponential_family.renyi": Row(
        (0.7,), _of_gammas(exponential_family.renyi), positive=(0,)
    ),
    "fdiv.gaussian.kl": Row((), _of_gaussians(gaussian.kl)),
    "fdiv.gaussian.bhattacharyya": Row((), _of_gaussians(gaussian.bhattacharyya)),
    "fdiv.gaussian.squared_hellinger": Row((), _of_gaussians(gaussian.squared_hellinger)),
    "fdiv.gaussian.js_bounds": Row((), _of_gaussians(gaussian.js_bounds)),
    "fdiv.gaussian.renyi": Row((0.6,), _of_gaussians(gaussian.renyi), positive=(0,)),
    "fdiv.gaussian.reverse_kl_supremum": Row(
        (), _elementwise(gaussian.reverse_kl_supremum), "equivariant", infinite=END
    ),
    "fdiv.gaussian.reverse_kl_infimum": Row(
        (), _elementwise(gaussian.reverse_kl_infimum), "equivariant", infinite=END
    ),
    "fdiv.gaussian.kl_triangle_bound": Row(
        (0.3,),
        _elementwise(gaussian.kl_triangle_bound),
        "equivariant",
        infinite=END,
        positive=(0,),
    ),
    "fdiv.inequalities.kl_lower_bound_from_js": Row(
        (),
        _elementwise(inequalities.kl_lower_bound_from_js, 0.01, 0.69),
        "equivariant",
        infinite=END,
    ),
    "fdiv.inequalities.kl_lower_bound_from_cross_entropy": Row(
        (),
        _elementwise(inequalities.kl_lower_bound_from_cross_entropy, 0.01, 0.69),
        "equivariant",
        infinite=END,
    ),
    "fdiv.inequalities.kl_lower_bound_from_tv": Row(
        (), _elementwise(inequalities.kl_lower_bound_from_tv), "equivariant", infinite=END
    ),
    "fdiv.inequalities.tv_upper_bound_from_kl": Row(
        (), _elementwise(inequalities.tv_upper_bound_from_kl, 0.1, 3.0), "equivariant", infinite=END
    ),
    "fdiv.inequalities.js_bounds_from_tv": Row(
        (), _elementwise(inequalities.js_bounds_from_tv), "equivariant", infinite=END
    ),
    "fdiv.inequalities.js_lower_bound_from_error": Row(
        (),
        _elementwise(inequalities.js_lower_bound_from_error, 0.0, 0.5),
        "equivariant",
        infinite=END,
    ),
    "fdiv.inequalities.tv_bounds_from_hellinger": Row(
        (), _elementwise(inequalities.tv_bounds_from_hellinger), "equivariant", infinite=END
    ),
    "fdiv.inequalities.tv_bounds_of_product": Row(
        (),
        _elementwise(lambda tv: inequalities.tv_bounds_of_product(tv, 3)),
        "equivariant",
        infinite=END,
    ),
    "fdiv.inequalities.tv_lower_bound_from_auc": Row(
        (),
        _elementwise(inequalities.tv_lower_bound_from_auc, 0.5, 1.0),
        "equivariant",
        infinite=END,
    ),
    "fdiv.inequalities.auc_upper_bound_from_tv": Row(
        (), _elementwise(inequalities.auc_upper_bound_from_tv), "equivariant", infinite=END
    ),
    "fdiv.sampled_kl": Row(
        (), of_scores(lambda m, p, q, w: fdiv.sampled_kl(p, q)[:, None]), "equivariant"
    ),
    "fdiv.sampled_kl_surrogate": Row(
        # Its derivative is that of the expectation, not of the value.
        (),
        of_scores(lambda m, p, q, w: fdiv.sampled_kl_surrogate(p, q)[:, None]),
        "equivariant",
        smooth=False,
    ),
    "fdiv.knn_kl": Row((), of_samples(lambda x, y, w, m: fdiv.knn_kl(x, y, 3).value), sampled=True),
    "fdiv.knn_kl(bias_order)": Row(
        (),
        of_samples(lambda x, y, w, m: fdiv.knn_kl(x, y, 2, bias_order=0).value),
        sampled=True,
    ),
    "fdiv.knn_renyi": Row(
        0.7,
        of_samples(lambda x, y, w, alpha: fdiv.knn_renyi(x, y, alpha, 3).value),
        slow=True,
        sampled=True,
    ),
    "fdiv.histogram.edges": Row(
        (), of_samples(lambda x, y, w, m: histogram.edges(x, y, num_bins=4)), sampled=True
    ),
    "fdiv.histogram.counts": Row(
        (),
        lambda m, key, x, w: histogram.counts(x[:, 0], jnp.linspace(-3, 3, 5, dtype=x.dtype), w),
        smooth=False,
        weighted=True,
        sampled=True,
        infinite="outside of all bins",
    ),
    "fdiv.histogram.bias": Row(
        0.5,
        of_scores(
            lambda m, p, q, w: histogram.bias(
                categorical.kl, 9 * jnp.exp(p), 9 * jnp.exp(q), smoothing=m
            )
        ),
        infinite="an empty bin",
        positive=(0,),
    ),
    "fdiv.histogram.divergence": Row(
        0.5,
        of_samples(
            lambda x, y, w, smoothing: histogram.divergence(
                categorical.kl, x, y, num_bins=4, a=w, smoothing=smoothing
            )
        ),
        smooth=False,
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
}


class TestFdiv(Edges):
    rows = ROWS
