"""Optimal transport: costs, plans, maps and processes from one distribution to another.

| Purpose | Function or class |
|---|---|
| an entropic cost, its plan and its map, sweeps over ε, gradients of all of them | `sinkhorn` |
| … its tolerance, limit, over-relaxation, block size, wherever such a problem is solved | `solver=Sinkhorn(...)` |
| … with relaxed marginals; ε far below the mean cost | `marginal_penalty` (`marginal_penalty_from_tau`); `Sinkhorn(annealing=Annealing())` |
| … with ε relative to the costs | `Relative` |
| a divergence of two samples, zero if they agree, for a loss | `sinkhorn_divergence` |
| the exact cost and plan of moderately many rows, in any dimension | `exact` |
| exact, on the line; with plan, map and potentials; with relaxed marginals | `wasserstein_1d`; `transport_1d`; `unbalanced_1d` |
| … along random, worst-case or given directions | `sliced_wasserstein`, `max_sliced_wasserstein`, `projected_wasserstein` |
| between Gaussians (`divjax.Normal`): distance, map, barycenter; entropic | `gaussian_wasserstein`, `gaussian_map`, `gaussian_barycenter`; `gaussian_entropic` |
| a map in closed form, or nearly so | `gaussian_map_from_samples`, `EntropicMap` |
| the cheapest map as a network, also for a family of problems | `MongeMap` |
| … under the squared distance, as the gradient of a convex network | `ICNNDual` |
| how far a map is from an optimal one | `monge_gap` |
| a stochastic process from one sample to the other | `LightSchrodingerBridge` |
| costs | `SqEuclidean`, `Euclidean`, `EuclideanPower`, `PNorm`, `PNormPower`, `Cosine`, `SphereGeodesic`, any function of two points |
| … what a cost of your own may declare | `Cost`, `MatrixCost`, `DisplacementCost`, `QuadraticCost`, `ConvexCost` |

**Powers, not roots:** `wasserstein_1d` and the sliced costs return W_p^p unless `root=True`,
`gaussian_wasserstein` the squared distance.

Left to ott-jax: low-rank Sinkhorn (`ott.solvers.linear.sinkhorn_lr`), distances between spaces
(`ott.solvers.quadratic.gromov_wasserstein`), barycenters of samples
(`ott.solvers.linear.continuous_barycenter`), soft sorting (`ott.tools.soft_sort`), progressive maps
(`ott.tools.progot`), and semi-discrete transport. Its costs are accepted unchanged,
`SinkhornResult.to_ott` exports the potentials, and `potentials_from_ott` imports them as a start.
"""

from divjax.ot.bridges.light_bridge import LightSchrodingerBridge
from divjax.ot.bridges.schrodinger import ConditionalPlan, SchrodingerBridge
from divjax.ot.costs import (
    Cosine,
    Euclidean,
    EuclideanPower,
    PNorm,
    PNormPower,
    SphereGeodesic,
    SqEuclidean,
)
from divjax.ot.entropic.divergence import (
    SinkhornDivergenceResult,
    sinkhorn_divergence,
)
from divjax.ot.entropic.interchange import potentials_from_ott
from divjax.ot.entropic.options import Sinkhorn
from divjax.ot.entropic.result import SinkhornResult
from divjax.ot.entropic.schedules import Annealing, Relative, marginal_penalty_from_tau
from divjax.ot.entropic.solver import sinkhorn
from divjax.ot.gaussian import (
    AffineMap,
    GaussianBarycenter,
    gaussian_barycenter,
    gaussian_map,
    gaussian_wasserstein,
)
from divjax.ot.gaussian_entropic import GaussianEntropicResult, gaussian_entropic
from divjax.ot.given_costs import cost_matrix
from divjax.ot.linear_program import ExactResult, exact
from divjax.ot.maps.convex_potential import DualFit
from divjax.ot.maps.entropic_map import EntropicFit, EntropicMap
from divjax.ot.maps.gap import MongeGapResult, monge_gap
from divjax.ot.maps.gaussian_samples import gaussian_map_from_samples
from divjax.ot.maps.icnn_dual import ICNNDual
from divjax.ot.maps.monge_map import MongeMap
from divjax.ot.maps.network_map import MapFit
from divjax.ot.one_dimensional import LineTransportResult, transport_1d, wasserstein_1d
from divjax.ot.protocols import (
    ConvexCost,
    Cost,
    DisplacementCost,
    MatrixCost,
    QuadraticCost,
)
from divjax.ot.sliced import (
    MaxSlicedResult,
    max_sliced_wasserstein,
    projected_wasserstein,
    sliced_wasserstein,
)
from divjax.ot.unbalanced_line import UnbalancedLineResult, unbalanced_1d

__all__ = [
    "AffineMap",
    "Annealing",
    "ConditionalPlan",
    "ConvexCost",
    "Cosine",
    "Cost",
    "DisplacementCost",
    "DualFit",
    "EntropicFit",
    "EntropicMap",
    "Euclidean",
    "EuclideanPower",
    "ExactResult",
    "GaussianBarycenter",
    "GaussianEntropicResult",
    "ICNNDual",
    "LightSchrodingerBridge",
    "LineTransportResult",
    "MapFit",
    "MatrixCost",
    "MaxSlicedResult",
    "MongeGapResult",
    "MongeMap",
    "PNorm",
    "PNormPower",
    "QuadraticCost",
    "Relative",
    "SchrodingerBridge",
    "Sinkhorn",
    "SinkhornDivergenceResult",
    "SinkhornResult",
    "SphereGeodesic",
    "SqEuclidean",
    "UnbalancedLineResult",
    "cost_matrix",
    "exact",
    "gaussian_barycenter",
    "gaussian_entropic",
    "gaussian_map",
    "gaussian_map_from_samples",
    "gaussian_wasserstein",
    "marginal_penalty_from_tau",
    "max_sliced_wasserstein",
    "monge_gap",
    "potentials_from_ott",
    "projected_wasserstein",
    "sinkhorn",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "transport_1d",
    "unbalanced_1d",
    "wasserstein_1d",
]
