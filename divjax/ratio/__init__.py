"""Density ratios from samples, and the divergences that follow from them.

`ClassifierRatio().fit(key, p, q)` estimates the divergences between two samples. `heads` holds the
models it can be built from, `variational` the bounds by critics. `KernelMeanMatching` weights one
sample to match the other.
"""

from divjax.ratio import heads, variational
from divjax.ratio.critics import Critic, derangement, split_scores
from divjax.ratio.diagnostics import Diagnostics, Ties, ties
from divjax.ratio.estimators import (
    KLIEP,
    ClassifierRatio,
    LeastSquaresRatio,
    TelescopingRatio,
    classifier_js,
    classifier_kl,
)
from divjax.ratio.fit import RatioFit
from divjax.ratio.kernel_models import KernelRatio
from divjax.ratio.kliep import KLIEPHead
from divjax.ratio.learned_bounds import BoundFit, DivergenceBound, MutualInformationBound
from divjax.ratio.least_squares import LeastSquaresHead
from divjax.ratio.mean_matching import KernelMeanMatching, MatchedWeights
from divjax.ratio.telescoping import Telescoping
from divjax.ratio.types import Fold, Head, InstanceBased, Parametric, Rows

__all__ = [
    "KLIEP",
    "BoundFit",
    "ClassifierRatio",
    "Critic",
    "Diagnostics",
    "DivergenceBound",
    "Fold",
    "Head",
    "InstanceBased",
    "KLIEPHead",
    "KernelMeanMatching",
    "KernelRatio",
    "LeastSquaresHead",
    "LeastSquaresRatio",
    "MatchedWeights",
    "MutualInformationBound",
    "Parametric",
    "RatioFit",
    "Rows",
    "Telescoping",
    "TelescopingRatio",
    "Ties",
    "classifier_js",
    "classifier_kl",
    "derangement",
    "heads",
    "split_scores",
    "ties",
    "variational",
]
