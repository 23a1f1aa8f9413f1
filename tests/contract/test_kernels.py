"""Kernels and their bandwidth rules."""

import jax.numpy as jnp

from divjax import kernels
from tests.contract.edges import Edges
from tests.contract.promises import Row


def _kernel(method, key, x, weights):
    kernel, _ = method.resolve(x, method.init(x))
    return kernel(x) @ weights[:, None]


def _kernel_sums(kernel, key, x, weights):
    values, gradients = kernels.kernel_sums(kernel, x, None, x, weights[:, None])
    return jnp.concatenate([values, gradients[:, 0]], axis=1)


ROWS = {
    "kernels.Gaussian": Row(kernels.Gaussian(bandwidth=0.9), _kernel, "equivariant", positive=(0,)),
    "kernels.Median": Row(
        # The rule is a constant to differentiation, so finite differences see what gradients must
        # not.
        kernels.Gaussian(bandwidth=kernels.Median()),
        _kernel,
        "equivariant",
        smooth=False,
    ),
    "kernels.Mean": Row(
        kernels.Gaussian(bandwidth=kernels.Mean()), _kernel, "equivariant", smooth=False
    ),
    "kernels.MultiScale": Row(
        kernels.Gaussian(bandwidth=kernels.MultiScale()),
        _kernel,
        "equivariant",
        smooth=False,
        positive=(0, 4),
    ),
    "kernels.Laplace": Row(kernels.Laplace(bandwidth=0.9), _kernel, "equivariant", positive=(0,)),
    "kernels.InverseMultiquadric": Row(
        kernels.InverseMultiquadric(bandwidth=0.9), _kernel, "equivariant", positive=(0, 1)
    ),
    "kernels.Energy": Row(kernels.Energy(), _kernel, "equivariant"),
    "kernels.kernel_sums": Row(
        kernels.Gaussian(bandwidth=0.9), _kernel_sums, "equivariant", positive=(0,)
    ),
}


class TestKernels(Edges):
    rows = ROWS
