"""Between two samples: kernel discrepancies, energy distances, and their tests."""

from divjax.discrepancy.energy import energy_distance, sliced_energy_distance
from divjax.discrepancy.kernel_means import mmd, witness

__all__ = ["energy_distance", "mmd", "sliced_energy_distance", "witness"]
