"""Densities, dimension and spectra."""

import jax
import jax.numpy as jnp
import numpy as np

from divjax import information, kernels
from divjax.core.numerics import matmul
from divjax.information import (
    contraction,
    density,
    dimension,
    generalization,
    linear_memorization,
)
from tests.contract.edges import Edges
from tests.contract.promises import Row, samples


def _numbers(estimate):
    return jnp.stack([estimate.value, estimate.std_error, *estimate.interval])


def _log_density(kernel=None):
    """At fixed points, as a function of the particles."""
    options = {} if kernel is None else {"kernel": kernel}
    return lambda m, key, x, w: density.log_density(samples(x.dtype), x, w, bandwidth=m, **options)


def _labels(x):
    return (jnp.arange(5) % 3).astype(jnp.int32)


def _covariance(x):
    return x.T @ x


def _log_partition(eta):
    return jnp.sum(jnp.exp(eta)) + jnp.sum(eta) ** 2 / 2


def _gram(x):
    return matmul(x, x.T) + jnp.eye(x.shape[0], dtype=x.dtype)


def _gaussian_gram(gram):
    variances = jnp.diagonal(gram)
    return jnp.exp(gram - (variances[:, None] + variances) / 2)


def _layers(x):
    return {"first": x[:, :, None], "second": x[:, :1] ** 2}


ROWS: dict[str, Row] = {
    "information.projection_risk": Row(
        7.0,
        lambda m, key, x, w: information.projection_risk(_log_partition, jnp.sum(x, axis=0), m),
        positive=(0,),
        slow=True,
    ),
    "information.p_n_criterion": Row(
        0.3,
        lambda m, key, x, w: information.p_n_criterion(
            _log_partition, jnp.sum(x, axis=0), bayes_error=m
        ),
        slow=True,
    ),
    "information.gram_kl": Row(
        0.1,
        lambda m, key, x, w: information.gram_kl(
            _gram(x), _gaussian_gram(matmul(x, x.T)), jitter=m
        ),
    ),
    "information.deep_kernel_divergence": Row(
        (1.5, 0.1),
        lambda m, key, x, w: information.deep_kernel_divergence(
            [matmul(x, x.T), _gram(x), 2 * _gram(x)], _gaussian_gram, widths=m[0], jitter=m[1]
        ),
        slow=True,
    ),
    "information.generalization.layer_divergences": Row(
        (),
        lambda m, key, x, w: jnp.stack(
            jax.tree.leaves(
                generalization.layer_divergences(
                    lambda x, y: jnp.sum((jnp.mean(x, axis=0) - jnp.mean(y, axis=0)) ** 2),
                    _layers(x),
                    _layers(samples(x.dtype)),
                )
            )
        ),
        slow=True,
    ),
    "information.generalization.kl_bound": Row(
        0.5,
        lambda m, key, x, w: generalization.kl_bound(jnp.square(x), m),
        "equivariant",
        positive=(0,),
    ),
    "information.generalization.wasserstein_bound": Row(
        0.5,
        lambda m, key, x, w: generalization.wasserstein_bound(
            jnp.exp(x[:, 0]), m * jnp.exp(x[:, 1])
        ),
        infinite="a layer at no distance, or without a bound",
        positive=(0,),
    ),
    "information.generalization.lipschitz_constants": Row(
        0.5,
        lambda m, key, x, w: generalization.lipschitz_constants([x, matmul(x.T, x)], m),
        positive=(0,),
    ),
    "information.total_correlation_decomposition": Row(
        0.7,
        lambda m, key, x, w: jnp.stack(
            jax.tree.leaves(
                information.total_correlation_decomposition(
                    key, x, jnp.broadcast_to(jnp.asarray(m, x.dtype), x.shape)
                )
            )
        ),
        "random",
        sampled=True,
        positive=(0,),
        slow=True,
    ),
    "information.information_projection": Row(
        1e-8,
        lambda m, key, x, w: (
            information.information_projection(
                lambda eta: jnp.sum(jnp.exp(eta)), jnp.exp(x), w, tolerance=m
            ).value
        ),
        weighted=True,
        sampled=True,
        infinite="a statistic of zero",
    ),
    "information.contraction.total_variation": Row(
        (),
        lambda m, key, x, w: contraction.total_variation(jax.nn.softmax(x, axis=1)),
        sampled=True,
        infinite="an impossible output",
        slow=True,
    ),
    "information.contraction.chi_squared": Row(
        (),
        lambda m, key, x, w: contraction.chi_squared(
            jax.nn.softmax(x, axis=1), jnp.full(x.shape[0], 1 / max(x.shape[0], 1), x.dtype)
        ),
        sampled=True,
        infinite="an impossible output",
    ),
    "information.contraction.dropout": Row(
        0.3,
        lambda m, key, x, w: contraction.dropout(m * jax.nn.sigmoid(x[:, :1]), 3),
        "equivariant",
        infinite="all features, or none",
        positive=(0,),
    ),
    "information.contraction.binary_symmetric": Row(
        0.3,
        lambda m, key, x, w: contraction.binary_symmetric(m * jax.nn.sigmoid(x[:, :1])),
        "equivariant",
        infinite="all bits, or none",
        positive=(0,),
        slow=True,
    ),
    "information.contraction.gaussian_noise": Row(
        0.7,
        lambda m, key, x, w: contraction.gaussian_noise(jnp.exp(x[:, :1]), m),
        "equivariant",
        positive=(0,),
        slow=True,
    ),
    "information.linear_memorization.bulk_distance": Row(
        0.7,
        lambda m, key, x, w: linear_memorization.bulk_distance(m * jnp.exp(x[:, :1])),
        "equivariant",
        positive=(0,),
    ),
    "information.linear_memorization.model_distance": Row(
        0.7,
        lambda m, key, x, w: linear_memorization.model_distance(m, jnp.exp(x[:, :1])),
        "equivariant",
        positive=(0,),
        slow=True,
    ),
    "information.linear_memorization.eigenvector_overlap": Row(
        3.0,
        lambda m, key, x, w: linear_memorization.eigenvector_overlap(m, jnp.exp(x[:, :1])),
        "equivariant",
        positive=(0,),
        slow=True,
    ),
    "information.von_neumann_entropy": Row(
        2.0, lambda m, key, x, w: information.von_neumann_entropy(_covariance(x), base=m)
    ),
    "information.von_neumann_entropy of low rank": Row(
        2.0,
        lambda m, key, x, w: information.von_neumann_entropy(x @ x.T, base=m),
        slow=True,
    ),
    "information.matrix_renyi_entropy": Row(
        (0.7, kernels.Gaussian(0.8)),
        lambda m, key, x, w: information.matrix_renyi_entropy(x, w, order=m[0], kernel=m[1]),
        weighted=True,
        sampled=True,
        positive=(0,),
        slow=True,
    ),
    "information.matrix_renyi_entropy by the median": Row(
        3.0,
        lambda m, key, x, w: information.matrix_renyi_entropy(x, order=m, base=2),
        smooth=False,
        sampled=True,
        positive=(0,),
        slow=True,
    ),
    "information.matrix_renyi_mutual_information": Row(
        (1.01, kernels.Gaussian(0.8)),
        lambda m, key, x, w: information.matrix_renyi_mutual_information(
            x[:, :1], x[:, 1:], w, order=m[0], kernel_x=m[1], kernel_y=m[1]
        ),
        weighted=True,
        sampled=True,
        positive=(0,),
        slow=True,
    ),
    "information.diffusion_spectral_entropy": Row(
        (0.7, 1.3),
        lambda m, key, x, w: information.diffusion_spectral_entropy(
            x, w, bandwidth=m[0], time=m[1]
        ),
        weighted=True,
        sampled=True,
        positive=(0, 1),
    ),
    "information.diffusion_spectral_mutual_information": Row(
        (0.7, 1.3),
        lambda m, key, x, w: information.diffusion_spectral_mutual_information(
            key,
            x,
            np.arange(x.shape[0]) % 3,
            num_subsets=2,
            bandwidth=m[0],
            time=m[1],
        ),
        "random",
        sampled=True,
        positive=(0, 1),
        slow=True,
    ),
    "information.density.log_density": Row(0.7, _log_density(), weighted=True, sampled=True),
    "information.density.log_density by features": Row(
        (0.7, 1.1),
        lambda m, key, x, w: density.log_density(
            samples(x.dtype), x, w, bandwidth=jnp.stack([jnp.asarray(h, x.dtype) for h in m])
        ),
        weighted=True,
        sampled=True,
        slow=True,
    ),
    "information.density.log_density by a matrix": Row(
        1.2,
        lambda m, key, x, w: density.log_density(
            samples(x.dtype),
            x,
            w,
            bandwidth=jnp.asarray(m, x.dtype) * jnp.array([[1, 0.3], [0.3, 0.5]], x.dtype),
        ),
        weighted=True,
        sampled=True,
        slow=True,
    ),
    "information.density.log_density at the particles": Row(
        0.7,
        lambda m, key, x, w: density.log_density(x, samples(x.dtype), bandwidth=m)[:, None],
        "equivariant",
    ),
    "information.density.GaussianKernel": Row(
        0.7,
        _log_density(density.GaussianKernel()),
        weighted=True,
        sampled=True,
        slow=True,
    ),
    "information.density.EpanechnikovKernel": Row(
        3.0,
        _log_density(density.EpanechnikovKernel()),
        weighted=True,
        sampled=True,
        slow=True,
    ),
    "information.density.BiweightKernel": Row(
        3.0,
        _log_density(density.BiweightKernel()),
        weighted=True,
        sampled=True,
        slow=True,
    ),
    "information.density.Scott": Row(
        (), lambda m, key, x, w: density.Scott()(x, w), smooth=False, weighted=True, sampled=True
    ),
    "information.density.Scott in log_density": Row(
        density.Scott(),
        _log_density(),
        smooth=False,
        weighted=True,
        sampled=True,
        slow=True,
    ),
    "information.density.Silverman": Row(
        (),
        lambda m, key, x, w: density.Silverman()(x, w),
        smooth=False,
        weighted=True,
        sampled=True,
        slow=True,
    ),
    "information.density.LikelihoodCrossValidation": Row(
        density.LikelihoodCrossValidation(smallest=0.1, largest=10.0),
        lambda m, key, x, w: m(x, w),
        smooth=False,
        weighted=True,
        sampled=True,
        slow=True,
    ),
    "information.density.LeastSquaresCrossValidation": Row(
        density.LeastSquaresCrossValidation(smallest=0.1, largest=10.0),
        lambda m, key, x, w: m(x, w),
        smooth=False,
        weighted=True,
        sampled=True,
        slow=True,
    ),
    "information.density.knn_log_density": Row(
        (),
        lambda m, key, x, w: density.knn_log_density(samples(x.dtype), x, k=3),
        sampled=True,
    ),
    "information.density.nearest_neighbor_distribution": Row(
        (0.8, 0.3),
        lambda m, key, x, w: density.nearest_neighbor_distribution(
            x,
            samples(x.dtype),
            _labels(x),
            3,
            k=4,
            temperature=m[0],
            model=jnp.full((x.shape[0], 3), 1 / 3, x.dtype),
            share=m[1],
        ),
        "equivariant",
        positive=(0, 1),
        slow=True,
    ),
    "information.density.condensation_bandwidth": Row(
        0.3,
        lambda m, key, x, w: density.condensation_bandwidth(m * jnp.exp(x[:, :1])),
        "equivariant",
        positive=(0,),
    ),
    "information.density.central_limit_bandwidth": Row(
        0.3,
        lambda m, key, x, w: density.central_limit_bandwidth(m * jnp.exp(x[:, :1])),
        "equivariant",
        positive=(0,),
        slow=True,
    ),
    "information.density.kl_optimal_bandwidth": Row(
        0.3,
        lambda m, key, x, w: density.kl_optimal_bandwidth(m * jnp.exp(x[:, :1])),
        "equivariant",
        positive=(0,),
        slow=True,
    ),
    "information.density.kl_per_dimension": Row(
        0.3,
        lambda m, key, x, w: density.kl_per_dimension(jnp.exp(x[:, :1]), m),
        "equivariant",
        positive=(0,),
    ),
    "information.dimension.two_nn": Row(
        0.3,
        lambda m, key, x, w: dimension.two_nn(x, w, discard=m).value,
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "information.dimension.two_nn interval": Row(
        0.6,
        lambda m, key, x, w: _numbers(dimension.two_nn(x, discard=0.3, confidence_level=m)),
        smooth=False,
        sampled=True,
        positive=(0,),
        slow=True,
    ),
    "information.dimension.maximum_likelihood": Row(
        (),
        lambda m, key, x, w: dimension.maximum_likelihood(x, w, k=4).value,
        weighted=True,
        sampled=True,
    ),
    "information.dimension.maximum_likelihood interval": Row(
        0.6,
        lambda m, key, x, w: _numbers(dimension.maximum_likelihood(x, k=4, confidence_level=m)),
        smooth=False,
        sampled=True,
        positive=(0,),
        slow=True,
    ),
    "information.dimension.local": Row(
        (),
        lambda m, key, x, w: dimension.local(x, k=4)[:, None],
        "equivariant",
        sampled=True,
        slow=True,
    ),
    "information.dimension.persistent_homology": Row(
        (),
        lambda m, key, x, w: (
            dimension.persistent_homology(
                key, x, w, min_points=3, max_points=6, num_sizes=2, num_subsamples=3
            ).value
        ),
        "random",
        weighted=True,
        sampled=True,
    ),
}


class TestDensity(Edges):
    rows = ROWS
