"""Between two samples: kernel discrepancies, energy distances, and their tests."""

from divjax.discrepancy.cauchy_schwarz_divergences import (
    cauchy_schwarz,
    conditional_cauchy_schwarz,
)
from divjax.discrepancy.characteristic_functions import characteristic_function_distance
from divjax.discrepancy.energy import energy_distance, sliced_energy_distance
from divjax.discrepancy.feature_distances import (
    PrecisionRecall,
    frechet_distance,
    precision_recall,
)
from divjax.discrepancy.kernel_means import mmd, witness
from divjax.discrepancy.mmd_estimates import mmd_block, mmd_estimate

__all__ = [
    "PrecisionRecall",
    "cauchy_schwarz",
    "characteristic_function_distance",
    "conditional_cauchy_schwarz",
    "energy_distance",
    "frechet_distance",
    "mmd",
    "mmd_block",
    "mmd_estimate",
    "precision_recall",
    "sliced_energy_distance",
    "witness",
]
