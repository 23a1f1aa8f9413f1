"""Densities from samples: by kernels and their bandwidths, and by nearest neighbours.

`log_density` is the kernel estimate, with a bandwidth that is given or chosen by a rule: `Scott`,
`Silverman`, `LikelihoodCrossValidation` or `LeastSquaresCrossValidation`. In large dimension its
regimes are known in closed form (`central_limit_bandwidth`, `condensation_bandwidth`,
`kl_optimal_bandwidth`). `knn_log_density` adapts to the density instead, and
`nearest_neighbor_distribution` predicts labels.
"""

from divjax.information.density.bandwidth_rules import (
    LeastSquaresCrossValidation,
    LikelihoodCrossValidation,
    Scott,
    Silverman,
)
from divjax.information.density.kernel_estimate import log_density
from divjax.information.density.large_dimension import (
    central_limit_bandwidth,
    condensation_bandwidth,
    kl_optimal_bandwidth,
    kl_per_dimension,
)
from divjax.information.density.neighbor_estimate import (
    knn_log_density,
    nearest_neighbor_distribution,
)
from divjax.information.density.smoothing_kernels import (
    BiweightKernel,
    EpanechnikovKernel,
    GaussianKernel,
    SmoothingKernel,
)

__all__ = [
    "BiweightKernel",
    "EpanechnikovKernel",
    "GaussianKernel",
    "LeastSquaresCrossValidation",
    "LikelihoodCrossValidation",
    "Scott",
    "Silverman",
    "SmoothingKernel",
    "central_limit_bandwidth",
    "condensation_bandwidth",
    "kl_optimal_bandwidth",
    "kl_per_dimension",
    "knn_log_density",
    "log_density",
    "nearest_neighbor_distribution",
]
