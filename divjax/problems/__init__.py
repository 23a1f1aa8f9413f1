"""Targets and flows whose exact answers are known: the truth of tests and experiments."""

from divjax.problems.mixtures import (
    GaussianMixture,
    three_component_targets,
    two_component_targets,
)

__all__ = ["GaussianMixture", "three_component_targets", "two_component_targets"]
