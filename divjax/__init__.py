"""Wasserstein gradient flows of several objectives at once, and f-divergences, in JAX.

Rooms: `flows` (move particles until functionals of their distribution fall), `fdiv` (f-divergences:
generators, closed forms, estimates, inequalities), `kernels`, and `problems` (targets whose answers
are known).
"""

from divjax import fdiv, flows, kernels, problems
from divjax.flows import SVGD, Blob, MinNorm, accelerated

__version__ = "0.1.0"

__all__ = [
    "SVGD",
    "Blob",
    "MinNorm",
    "__version__",
    "accelerated",
    "fdiv",
    "flows",
    "kernels",
    "problems",
]
