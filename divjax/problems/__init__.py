"""Targets and flows whose answers are known, exactly or to a stated error: the truth of tests."""

from divjax.problems.gaussian_flows import (
    MomentFlow,
    Moments,
    accelerated_moments,
    fokker_planck_moments,
    multi_objective_moments,
)
from divjax.problems.mixtures import (
    GaussianMixture,
    three_component_targets,
    two_component_targets,
)

__all__ = [
    "GaussianMixture",
    "MomentFlow",
    "Moments",
    "accelerated_moments",
    "fokker_planck_moments",
    "multi_objective_moments",
    "three_component_targets",
    "two_component_targets",
]
