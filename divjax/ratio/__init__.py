"""Density ratios from samples, and the divergences that follow from them."""

from divjax.ratio.classifier import ClassifierRatio, classifier_js, classifier_kl
from divjax.ratio.fit import RatioFit

__all__ = ["ClassifierRatio", "RatioFit", "classifier_js", "classifier_kl"]
