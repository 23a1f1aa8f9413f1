"""Density ratios from samples, and the divergences that follow from them.

`ClassifierRatio().fit(key, x, y)` estimates the divergences between two samples. `heads` holds the
models it can be built from, `bounds` the variational bounds by critics. `KernelMeanMatching`
weights one sample to match the other.
"""

from divjax.ratio import bounds, heads
from divjax.ratio.bounds.bound_fit import BoundFit
from divjax.ratio.bounds.learned import DivergenceBound, MutualInformationBound
from divjax.ratio.diagnostics import Diagnostics, Ties, ties
from divjax.ratio.estimators import (
    ClassifierRatio,
    KLIEPRatio,
    LeastSquaresRatio,
    TelescopingRatio,
    classifier_js,
    classifier_kl,
)
from divjax.ratio.fit import RatioFit
from divjax.ratio.given_scores import from_scores
from divjax.ratio.mean_matching import KernelMeanMatching, MatchedWeights
from divjax.ratio.protocols import Fold, Head, InstanceBased, Parametric, Ranged, Rows
from divjax.ratio.sklearn_ratio import Classifier, SklearnRatio

__all__ = [
    "BoundFit",
    "Classifier",
    "ClassifierRatio",
    "Diagnostics",
    "DivergenceBound",
    "Fold",
    "Head",
    "InstanceBased",
    "KLIEPRatio",
    "KernelMeanMatching",
    "LeastSquaresRatio",
    "MatchedWeights",
    "MutualInformationBound",
    "Parametric",
    "Ranged",
    "RatioFit",
    "Rows",
    "SklearnRatio",
    "TelescopingRatio",
    "Ties",
    "bounds",
    "classifier_js",
    "classifier_kl",
    "from_scores",
    "heads",
    "ties",
]
