"""The intrinsic dimension of the set on which samples lie.

From the distances of each row to its neighbours (`two_nn`, `maximum_likelihood`, and `local`, row
by row), or from the lengths of minimum spanning trees (`persistent_homology`).
"""

from divjax.information.dimension.neighbor_distances import (
    DimensionDiagnostics,
    local,
    maximum_likelihood,
    two_nn,
)
from divjax.information.dimension.spanning_trees import persistent_homology

__all__ = [
    "DimensionDiagnostics",
    "local",
    "maximum_likelihood",
    "persistent_homology",
    "two_nn",
]
