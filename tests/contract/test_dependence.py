"""Measures of dependence."""

import jax.numpy as jnp

from divjax import information, kernels
from tests.contract.edges import Edges
from tests.contract.promises import Row


def _of_pairs(measure, debias=False):
    """A measure `(x, y, weights, method)` of the two features as paired samples."""
    return lambda method, key, x, w: measure(x[:, :1], x[:, 1:], w, exponent=method, debias=debias)


def _by_kernels(measure, **options):
    """A measure of the two features as paired samples, by a kernel for each."""
    return lambda kernels, key, x, w: measure(
        x[:, :1], x[:, 1:], w, kernel_x=kernels[0], kernel_y=kernels[1], **options
    )


def _attributes(exponent, key, x, w):
    third = x[:, :1] * x[:, 1:]
    found = information.concatenated_distance_covariance(
        third, [x[:, :1], x[:, 1:]], w, exponent=exponent
    )
    return jnp.concatenate([found.value[None], found.parts, found.interaction[None]])


FIXED = kernels.Gaussian(bandwidth=0.7), kernels.Matern(bandwidth=1.2)

ROWS: dict[str, Row] = {
    "information.distance_covariance": Row(
        1.0, _of_pairs(information.distance_covariance), weighted=True, sampled=True
    ),
    "information.distance_covariance (debias)": Row(
        1.3,
        _of_pairs(information.distance_covariance, debias=True),
        weighted=True,
        sampled=True,
        slow=True,
    ),
    "information.distance_correlation": Row(
        0.7, _of_pairs(information.distance_correlation), weighted=True, sampled=True, slow=True
    ),
    "information.joint_distance_covariance": Row(
        0.8,
        lambda c, key, x, w: information.joint_distance_covariance(
            [x[:, :1], x[:, 1:], x[:, :1] * x[:, 1:]], w, offset=c
        ),
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "information.concatenated_distance_covariance": Row(
        1.0, _attributes, weighted=True, sampled=True, slow=True
    ),
    "information.hsic": Row(FIXED, _by_kernels(information.hsic), weighted=True, sampled=True),
    "information.hsic (debias)": Row(
        FIXED, _by_kernels(information.hsic, debias=True), weighted=True, sampled=True, slow=True
    ),
    "information.hsic (rule)": Row(
        (kernels.Gaussian(), kernels.Polynomial(degree=2)),
        _by_kernels(information.hsic),
        smooth=False,
        weighted=True,
        sampled=True,
        slow=True,
    ),
    "information.cka": Row(
        (),
        lambda method, key, x, w: information.cka(x, x**3, w, debias=True),
        weighted=True,
        sampled=True,
        slow=True,
    ),
    "information.cka (kernels)": Row(
        FIXED, _by_kernels(information.cka), weighted=True, sampled=True, slow=True
    ),
    "information.cauchy_schwarz_mutual_information": Row(
        (*FIXED, 2.0),
        lambda m, key, x, w: information.cauchy_schwarz_mutual_information(
            x[:, :1], x[:, 1:], w, kernel_x=m[0], kernel_y=m[1], base=m[2]
        ),
        weighted=True,
        sampled=True,
        slow=True,
    ),
    "information.cauchy_schwarz_mutual_information (normalized)": Row(
        FIXED,
        _by_kernels(information.cauchy_schwarz_mutual_information, normalized=True),
        weighted=True,
        sampled=True,
        slow=True,
    ),
    "information.maximal_correlation": Row(
        (*FIXED, 0.1),
        lambda m, key, x, w: information.maximal_correlation(
            x[:, :1], x[:, 1:], w, kernel_x=m[0], kernel_y=m[1], ridge=m[2]
        ),
        slow=True,
        weighted=True,
        sampled=True,
    ),
    "information.maximal_correlation (linear)": Row(
        0.1,
        lambda ridge, key, x, w: information.maximal_correlation(
            x, x**3, w, kernel_x=None, kernel_y=None, ridge=ridge
        ),
        slow=True,
        weighted=True,
        sampled=True,
    ),
    "information.maximal_correlation (rank)": Row(
        (*FIXED, 0.1),
        lambda m, key, x, w: information.maximal_correlation(
            x[:, :1], x[:, 1:], w, kernel_x=m[0], kernel_y=m[1], ridge=m[2], rank=8
        ),
        slow=True,
        weighted=True,
        sampled=True,
    ),
    "information.hsic_test": Row(
        FIXED,
        lambda kernels, key, x, w: (
            information.hsic_test(
                key,
                x[:, :1],
                x[:, 1:],
                kernel_x=kernels[0],
                kernel_y=kernels[1],
                num_permutations=9,
            ).null
        ),
        "random",
        sampled=True,
    ),
    "information.hsic_test (rank)": Row(
        (),
        lambda method, key, x, w: (
            information.hsic_test(key, x, x**2, rank=3, num_permutations=9).null
        ),
        "random",
        smooth=False,  # the pivots jump
        sampled=True,
        slow=True,
    ),
    "information.hsic_test (gamma)": Row(
        FIXED,
        lambda kernels, key, x, w: (
            information.hsic_test(
                None, x[:, :1], x[:, 1:], kernel_x=kernels[0], kernel_y=kernels[1], null="gamma"
            ).p_value
        ),
        sampled=True,
        slow=True,
    ),
    "information.distance_covariance_test": Row(
        (),
        lambda method, key, x, w: (
            information.distance_covariance_test(key, x, x**2, num_permutations=9).null
        ),
        "random",
        sampled=True,
    ),
    "information.distance_covariance_test (chi_squared)": Row(
        (),
        lambda method, key, x, w: (
            information.distance_covariance_test(None, x, x**2, null="chi_squared").p_value
        ),
        sampled=True,
        slow=True,
    ),
}


class TestDependence(Edges):
    rows = ROWS
