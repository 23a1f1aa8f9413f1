"""Divergences from samples, and flows of particles that decrease several of them, in JAX.

Rooms: `ratio` (density ratios and divergences from samples), `fdiv` (f-divergences: generators,
closed forms, estimates, inequalities), `ot` (optimal transport), `losses` (distillation), `flows`
(particles that decrease functionals of their distribution), `kernels`, `inference` (tests,
intervals and bounds), `sweeps` (grids of hyper-parameters, by `sweep`), and `problems` (targets
with known answers). `pytree` and `static` define methods of your own. `Estimate`, `Interval` and
`Status` are the parts of results, and `Normal` is a Gaussian wherever one is an argument.
"""

from divjax import fdiv, flows, inference, kernels, losses, ot, plot, problems, ratio, sweeps
from divjax.core.normal import Normal
from divjax.core.pytrees import pytree, static
from divjax.core.types import Estimate, Interval, Status
from divjax.flows import SVGD, Blob, MinNorm, accelerated
from divjax.ot import sinkhorn, sinkhorn_divergence
from divjax.ratio import ClassifierRatio, classifier_js, classifier_kl
from divjax.sweeps import sweep

__version__ = "0.2.0"

__all__ = [
    "SVGD",
    "Blob",
    "ClassifierRatio",
    "Estimate",
    "Interval",
    "MinNorm",
    "Normal",
    "Status",
    "__version__",
    "accelerated",
    "classifier_js",
    "classifier_kl",
    "fdiv",
    "flows",
    "inference",
    "kernels",
    "losses",
    "ot",
    "plot",
    "problems",
    "pytree",
    "ratio",
    "sinkhorn",
    "sinkhorn_divergence",
    "static",
    "sweep",
    "sweeps",
]
