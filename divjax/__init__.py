"""Wasserstein gradient flows of several objectives at once, in JAX.

Rooms: `flows` (move particles until functionals of their distribution fall), `kernels`, `core`, and
`problems` (targets whose exact answers are known).
"""

from divjax import flows, kernels, problems
from divjax.flows import KL, MMD, SVGD, Blob, MinNorm, accelerated
from divjax.kernels import Gaussian, Median

__version__ = "0.1.0"

__all__ = [
    "KL",
    "MMD",
    "SVGD",
    "Blob",
    "Gaussian",
    "Median",
    "MinNorm",
    "__version__",
    "accelerated",
    "flows",
    "kernels",
    "problems",
]
