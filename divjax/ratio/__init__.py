"""Density ratios from samples, and the divergences that follow from them."""

from divjax.ratio import heads
from divjax.ratio.classifier import ClassifierRatio, classifier_js, classifier_kl
from divjax.ratio.diagnostics import Diagnostics, Ties, ties
from divjax.ratio.fit import RatioFit
from divjax.ratio.telescoping import Telescoping, TelescopingRatio
from divjax.ratio.types import Fold, Head

__all__ = [
    "ClassifierRatio",
    "Diagnostics",
    "Fold",
    "Head",
    "RatioFit",
    "Telescoping",
    "TelescopingRatio",
    "Ties",
    "classifier_js",
    "classifier_kl",
    "heads",
    "ties",
]
