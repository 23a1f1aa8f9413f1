"""Kernels and their bandwidth rules."""

import jax.numpy as jnp

from divjax import kernels
from tests.contract.edges import Edges
from tests.contract.promises import Row, samples


def _kernel(method, key, x, weights):
    kernel, _ = method.resolve(x, method.init(x))
    return kernel(x) @ weights[:, None]


def _kernel_sums(kernel, key, x, weights):
    values, gradients = kernels.kernel_sums(kernel, x, None, x, weights[:, None])
    return jnp.concatenate([values, gradients[:, 0]], axis=1)


def _kernel_mean(debias, with_second):
    """Of the particles and, unless of these alone, of a second sample."""

    def evaluate(kernel, key, x, weights):
        y = samples(x.dtype) if with_second else None
        return kernels.kernel_mean(kernel, x, y, weights, debias=debias)

    return evaluate


def _resolved(method, key, x, weights):
    """At particles and samples; a constant to differentiation."""
    y = samples(x.dtype)
    return kernels.resolved_kernel(method, x, y, weights)(x[:1], y)


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
    "kernels.MedianDistance": Row(
        kernels.Gaussian(bandwidth=kernels.MedianDistance()), _kernel, "equivariant", smooth=False
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
    **{
        f"kernels.Matern({smoothness})": Row(
            kernels.Matern(0.9, smoothness),
            _kernel,
            "equivariant",
            slow=smoothness == 1.5,
            positive=(0,),
        )
        for smoothness in (1.5, 2.5)
    },
    "kernels.Polynomial": Row(
        kernels.Polynomial(3, 0.5, 0.8), _kernel, "equivariant", positive=(0, 1)
    ),
    "kernels.kernel_mean": Row(
        kernels.Gaussian(bandwidth=0.9),
        _kernel_mean(False, True),
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "kernels.kernel_mean (pairs of one sample)": Row(
        kernels.Matern(0.9, 1.5),
        _kernel_mean(True, False),
        slow=True,
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "kernels.resolved_kernel": Row(
        kernels.Gaussian(bandwidth=kernels.MultiScale((0.7, 1.5), kernels.Mean())),
        _resolved,
        "random",
        smooth=False,
        sampled=True,
        positive=(0, 1),
    ),
    "kernels.kernel_sums": Row(
        kernels.Gaussian(bandwidth=0.9), _kernel_sums, "equivariant", positive=(0,)
    ),
}


class TestKernels(Edges):
    rows = ROWS
