"""f-divergences: generators, closed forms, estimators from samples, and inequalities.

The generators (`KL`, `JensenShannon`, …) define divergences as functions of the log ratio.
`categorical`, `gaussian` and `exponential_family` provide closed forms, `histogram`, `knn_kl` and
`knn_renyi` estimate from samples without a model, and `inequalities` turns bounds on one divergence
into bounds on another.
"""

from divjax.fdiv import categorical, exponential_family, gaussian, histogram, inequalities
from divjax.fdiv.divergences import (
    KL,
    Alpha,
    ChiSquared,
    CressieRead,
    Jeffreys,
    JensenShannon,
    NeymanChiSquared,
    Renyi,
    ReverseKL,
    SkewKL,
    SoftenedReverseKL,
    SquaredHellinger,
    TotalVariation,
)
from divjax.fdiv.generators import Combination, Divergence, Generator, Mixed, PlugIn, Reversed
from divjax.fdiv.inequalities import (
    kl_lower_bound_from_cross_entropy,
    kl_lower_bound_from_js,
)
from divjax.fdiv.knn import knn_kl
from divjax.fdiv.neighbor_estimates import NeighborDiagnostics
from divjax.fdiv.neighbor_powers import knn_renyi
from divjax.fdiv.sampled import sampled_kl, sampled_kl_surrogate

__all__ = [
    "KL",
    "Alpha",
    "ChiSquared",
    "Combination",
    "CressieRead",
    "Divergence",
    "Generator",
    "Jeffreys",
    "JensenShannon",
    "Mixed",
    "NeighborDiagnostics",
    "NeymanChiSquared",
    "PlugIn",
    "Renyi",
    "ReverseKL",
    "Reversed",
    "SkewKL",
    "SoftenedReverseKL",
    "SquaredHellinger",
    "TotalVariation",
    "categorical",
    "exponential_family",
    "gaussian",
    "histogram",
    "inequalities",
    "kl_lower_bound_from_cross_entropy",
    "kl_lower_bound_from_js",
    "knn_kl",
    "knn_renyi",
    "sampled_kl",
    "sampled_kl_surrogate",
]
