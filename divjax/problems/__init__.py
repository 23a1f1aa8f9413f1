"""Targets and flows with known answers, exact or to a stated error, as ground truth for tests."""

from divjax.problems.dependence import (
    additive_uniform,
    binormal,
    dense_gaussian,
    gaussian_dependence,
    student_t,
    two_pairs,
)
from divjax.problems.gaussian_flows import (
    MomentFlow,
    accelerated_moments,
    fokker_planck_moments,
    multi_objective_moments,
)
from divjax.problems.gaussian_tasks import (
    chasm,
    correlated_gaussians,
    gaussian_pair,
    gaussian_scale,
    gaussian_shift,
    lattice,
    random_gaussians,
)
from divjax.problems.mixture_tasks import fitted_mixture, mixture_pair, mixtures
from divjax.problems.mixtures import (
    GaussianMixture,
    three_component_targets,
    two_component_targets,
)
from divjax.problems.task import Task

__all__ = [
    "GaussianMixture",
    "MomentFlow",
    "Task",
    "accelerated_moments",
    "additive_uniform",
    "binormal",
    "chasm",
    "correlated_gaussians",
    "dense_gaussian",
    "fitted_mixture",
    "fokker_planck_moments",
    "gaussian_dependence",
    "gaussian_pair",
    "gaussian_scale",
    "gaussian_shift",
    "lattice",
    "mixture_pair",
    "mixtures",
    "multi_objective_moments",
    "random_gaussians",
    "student_t",
    "three_component_targets",
    "two_component_targets",
    "two_pairs",
]
