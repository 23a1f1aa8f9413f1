"""Wasserstein gradient flows of one or several functionals, by interacting particles.

Four nouns, none of which inherits from another: an *objective* (the functional to decrease), a
*velocity* (how its gradient flow is estimated from particles), an *aggregator* (the weights of
several velocities), and an optax *optimizer* (how the step is taken). A `Flow` holds them and runs.
"""

from divjax.core.simplex import effective_sample_size, min_norm_weights, project_simplex
from divjax.flows.aggregators import CAGrad, FixedWeights, MinNorm, PCGrad, ProjectedStep
from divjax.flows.diagnostics import (
    Diagnostics,
    ParticleDiagnostics,
    distinct_particles,
    relative_spread,
)
from divjax.flows.fields import gram
from divjax.flows.flow import Flow
from divjax.flows.mass import FisherRao
from divjax.flows.objectives import (
    KL,
    MMD,
    Discrepancy,
    FDivergence,
    Interaction,
    KernelStein,
    Potential,
    SinkhornDivergence,
    SlicedWasserstein,
)
from divjax.flows.optimizers import AcceleratedState, accelerated
from divjax.flows.pareto import hypervolume, pareto_residual, squared_norm
from divjax.flows.protocols import Aggregator, Fields, Objective, Variation, Velocity
from divjax.flows.state import FlowResult, FlowState, History, StepInfo
from divjax.flows.velocities import GFSD, GFSF, SVGD, Blob, Langevin, NeuralScore

__all__ = [
    "GFSD",
    "GFSF",
    "KL",
    "MMD",
    "SVGD",
    "AcceleratedState",
    "Aggregator",
    "Blob",
    "CAGrad",
    "Diagnostics",
    "Discrepancy",
    "FDivergence",
    "Fields",
    "FisherRao",
    "FixedWeights",
    "Flow",
    "FlowResult",
    "FlowState",
    "History",
    "Interaction",
    "KernelStein",
    "Langevin",
    "MinNorm",
    "NeuralScore",
    "Objective",
    "PCGrad",
    "ParticleDiagnostics",
    "Potential",
    "ProjectedStep",
    "SinkhornDivergence",
    "SlicedWasserstein",
    "StepInfo",
    "Variation",
    "Velocity",
    "accelerated",
    "distinct_particles",
    "effective_sample_size",
    "gram",
    "hypervolume",
    "min_norm_weights",
    "pareto_residual",
    "project_simplex",
    "relative_spread",
    "squared_norm",
]
