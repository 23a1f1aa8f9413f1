"""Divergences from samples, and flows of particles that decrease several of them, in JAX.

Rooms: `ratio` (density ratios and divergences from samples), `fdiv` (f-divergences: generators,
closed forms, estimates, inequalities), `discrepancy` (kernel discrepancies of two samples, and
their tests), `information` (dependence, mutual information, entropies, dimension, density), `ot`
(optimal transport), `losses` (distillation), `flows` (particles that decrease functionals of their
distribution), `kernels`, `inference` (tests, intervals and bounds), `sweeps` (grids of
hyper-parameters, by `sweep`), `sharding` (many devices), and `problems` (targets with known
answers). `tables` (two data frames compared) needs the extra of
its name. `pytree` and `static` define methods of your own. `Estimate`, `Interval` and `Status` are
the parts of results, and `Normal` is a Gaussian wherever one is an argument.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from divjax import (
        discrepancy,
        fdiv,
        flows,
        inference,
        information,
        kernels,
        losses,
        ot,
        plot,
        problems,
        ratio,
        sharding,
        sweeps,
    )
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
    "discrepancy",
    "fdiv",
    "flows",
    "inference",
    "information",
    "kernels",
    "losses",
    "ot",
    "plot",
    "problems",
    "pytree",
    "ratio",
    "sharding",
    "sinkhorn",
    "sinkhorn_divergence",
    "static",
    "sweep",
    "sweeps",
]

_ROOMS = {
    "discrepancy",
    "fdiv",
    "flows",
    "inference",
    "information",
    "kernels",
    "losses",
    "ot",
    "plot",
    "problems",
    "ratio",
    "sharding",
    "sweeps",
    "tables",
}
_HOMES = {
    "core.normal": ("Normal",),
    "core.pytrees": ("pytree", "static"),
    "core.types": ("Estimate", "Interval", "Status"),
    "flows": ("SVGD", "Blob", "MinNorm", "accelerated"),
    "ot": ("sinkhorn", "sinkhorn_divergence"),
    "ratio": ("ClassifierRatio", "classifier_js", "classifier_kl"),
    "sweeps": ("sweep",),
}


def __getattr__(name: str) -> Any:
    """A room or a name, imported when it is first asked for.

    The command answers without JAX where a file is missing, and no room but `tables` needs pandas.
    """
    if name in _ROOMS:
        return importlib.import_module(f"divjax.{name}")
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"divjax.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'divjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "tables"})
