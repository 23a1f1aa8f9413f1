"""Wasserstein gradient flows of one or several functionals, by interacting particles.

Four nouns, none of which inherits from another: an *objective* (the functional to decrease), a
*velocity* (how its gradient flow is estimated from particles), an *aggregator* (the weights of
several velocities), and an optax *optimizer* (how the step is taken). `run` composes them.
"""

from divjax.core.simplex import effective_sample_size, min_norm_weights, project_simplex
from divjax.flows.aggregators import (
    CAGrad,
    FixedWeights,
    MinNorm,
    PCGrad,
    ProjectedStep,
    gram,
)
from divjax.flows.diagnostics import (
    Diagnostics,
    ParticleDiagnostics,
    distinct_particles,
    hypervolume,
    kernel_stein_discrepancy,
    pareto_residual,
    relative_spread,
    squared_norm,
)
from divjax.flows.flow import fields, init, run, step
from divjax.flows.objectives.energies import KL, MMD, Interaction, Potential
from divjax.flows.objectives.learned import FDivergence
from divjax.flows.objectives.transport import SinkhornDivergence, SlicedWasserstein
from divjax.flows.optimizers import AcceleratedState, ParticleWeights, accelerated
from divjax.flows.state import Fields, FlowResult, FlowState, History, StepInfo
from divjax.flows.types import Aggregator, Objective, Variation, Velocity
from divjax.flows.velocities.neural import NeuralScore
from divjax.flows.velocities.smoothing import GFSD, GFSF, SVGD, Blob, Langevin

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
    "FDivergence",
    "Fields",
    "FixedWeights",
    "FlowResult",
    "FlowState",
    "History",
    "Interaction",
    "Langevin",
    "MinNorm",
    "NeuralScore",
    "Objective",
    "PCGrad",
    "ParticleDiagnostics",
    "ParticleWeights",
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
    "fields",
    "gram",
    "hypervolume",
    "init",
    "kernel_stein_discrepancy",
    "min_norm_weights",
    "pareto_residual",
    "project_simplex",
    "relative_spread",
    "run",
    "squared_norm",
    "step",
]
