"""Inference from finite samples: confidence bounds, intervals, permutation tests, AUC, accuracy."""

from divjax.inference.betting import betting_lower_bound, betting_upper_bound
from divjax.inference.bounded_samples import Bounded
from divjax.inference.concentration import (
    empirical_bernstein_lower_bound,
    empirical_bernstein_upper_bound,
    sum_of_means_lower_bound,
)
from divjax.inference.hypothesis import TestResult
from divjax.inference.intervals import logit_interval, normal_interval
from divjax.inference.permutation import permutation_test, score_permutation_test
from divjax.inference.rank import accuracy, auc

__all__ = [
    "Bounded",
    "TestResult",
    "accuracy",
    "auc",
    "betting_lower_bound",
    "betting_upper_bound",
    "empirical_bernstein_lower_bound",
    "empirical_bernstein_upper_bound",
    "logit_interval",
    "normal_interval",
    "permutation_test",
    "score_permutation_test",
    "sum_of_means_lower_bound",
]
