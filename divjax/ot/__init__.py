"""Optimal transport."""

from divjax.ot.costs import (
    Cosine,
    Euclidean,
    EuclideanPower,
    PNorm,
    PNormPower,
    SphereGeodesic,
    SqEuclidean,
    cost_matrix,
)
from divjax.ot.divergence import (
    DivergenceResult,
    sinkhorn_divergence,
    sinkhorn_divergence_result,
)
from divjax.ot.iterations import Annealing
from divjax.ot.sinkhorn import SinkhornResult, sinkhorn

__all__ = [
    "Annealing",
    "Cosine",
    "DivergenceResult",
    "Euclidean",
    "EuclideanPower",
    "PNorm",
    "PNormPower",
    "SinkhornResult",
    "SphereGeodesic",
    "SqEuclidean",
    "cost_matrix",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_divergence_result",
]
