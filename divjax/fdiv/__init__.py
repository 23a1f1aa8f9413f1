"""f-divergences: what they are, what they are in closed form, and what they imply for each other.

The generators (`KL`, `JensenShannon`, …) say what a divergence is, as functions of the log ratio.
`categorical`, `gaussian` and `exponential_family` hold closed forms, `histogram` and `knn_kl`
estimate from samples without a model, and `inequalities` carries bounds from one divergence to
another.
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
from divjax.fdiv.gaussian import plug_in_kl as gaussian_plugin_kl
from divjax.fdiv.generators import Combination, Divergence, Generator, Mixed, PlugIn, Reversed
from divjax.fdiv.inequalities import (
    kl_lower_bound_from_cross_entropy,
    kl_lower_bound_from_js,
)
from divjax.fdiv.knn import NeighborDiagnostics, knn_entropy, knn_kl
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
    "gaussian_plugin_kl",
    "histogram",
    "inequalities",
    "kl_lower_bound_from_cross_entropy",
    "kl_lower_bound_from_js",
    "knn_entropy",
    "knn_kl",
    "sampled_kl",
    "sampled_kl_surrogate",
]
