"""Between two samples: kernel discrepancies, energy distances, and their tests."""

from divjax.discrepancy.aggregation import aggregated_mmd_test
from divjax.discrepancy.cauchy_schwarz_divergences import cauchy_schwarz, conditional_cauchy_schwarz
from divjax.discrepancy.characteristic_functions import characteristic_function_distance
from divjax.discrepancy.energy import energy_distance, sliced_energy_distance
from divjax.discrepancy.feature_distances import PrecisionRecall, frechet_distance, precision_recall
from divjax.discrepancy.goodness_of_fit import kernel_stein_test
from divjax.discrepancy.kernel_means import mmd, witness
from divjax.discrepancy.mmd_estimates import mmd_block, mmd_estimate
from divjax.discrepancy.relative_similarity import relative_mmd_test
from divjax.discrepancy.stein import kernel_stein, kernel_stein_blocks
from divjax.discrepancy.two_sample_tests import energy_test, mmd_test

__all__ = [
    "PrecisionRecall",
    "aggregated_mmd_test",
    "cauchy_schwarz",
    "characteristic_function_distance",
    "conditional_cauchy_schwarz",
    "energy_distance",
    "energy_test",
    "frechet_distance",
    "kernel_stein",
    "kernel_stein_blocks",
    "kernel_stein_test",
    "mmd",
    "mmd_block",
    "mmd_estimate",
    "mmd_test",
    "precision_recall",
    "relative_mmd_test",
    "sliced_energy_distance",
    "witness",
]
