"""Between two samples: kernel discrepancies, energy distances, and their tests.

- **How far apart**, exact for the rows and differentiable: `mmd`, `energy_distance`,
  `cauchy_schwarz`, `conditional_cauchy_schwarz`. With a standard error: `mmd_estimate`. In time
  that is linear in the rows: `mmd_block`, `sliced_energy_distance`,
  `characteristic_function_distance`. Where they differ: `witness`.
- **Whether they differ**: `energy_test`, `mmd_test`, `aggregated_mmd_test`, exact by permutations.
  Which of two samples is nearer to a third: `relative_mmd_test`.
- **A sample and a density** known up to a constant: `kernel_stein`, `kernel_stein_blocks`,
  `kernel_stein_test`.
- **Features of generated data**: `frechet_distance`, `precision_recall`.

Squares, not roots: `mmd` is MMD², `kernel_stein` is KSD². A bandwidth rule is evaluated once, at
the rows of both samples together. Transport between samples is in `divjax.ot`, divergences of
their densities in `divjax.ratio`.
"""

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
