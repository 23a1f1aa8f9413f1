"""Objectives: functionals of a distribution, by their first variation at the particles."""

from divjax.flows.objectives.discrepancies import Discrepancy
from divjax.flows.objectives.energies import KL, Interaction, Potential
from divjax.flows.objectives.learned import FDivergence
from divjax.flows.objectives.mmd import MMD
from divjax.flows.objectives.stein import KernelStein
from divjax.flows.objectives.transport import SinkhornDivergence, SlicedWasserstein

__all__ = [
    "KL",
    "MMD",
    "Discrepancy",
    "FDivergence",
    "Interaction",
    "KernelStein",
    "Potential",
    "SinkhornDivergence",
    "SlicedWasserstein",
]
