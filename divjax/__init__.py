"""Wasserstein gradient flows of several objectives at once, in JAX.

Rooms: `flows` (move particles until functionals of their distribution fall), `kernels`, and
`problems` (targets whose answers are known).
"""

from divjax import flows, kernels, problems
from divjax.flows import SVGD, Blob, MinNorm, accelerated

__version__ = "0.1.0"

__all__ = [
    "SVGD",
    "Blob",
    "MinNorm",
    "__version__",
    "accelerated",
    "flows",
    "kernels",
    "problems",
]
