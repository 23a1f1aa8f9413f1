"""Heads: models of the log ratio of p to q that are fitted to one fold.

The logistic heads, the networks and `Telescoping` minimise the balanced cross-entropy, whose
minimiser over all functions is log p/q and whose minimum is log 2 − JS. `GaussianDiscriminant` fits
moments, `Neighbors` counts rows, and the kernel models have objectives of their own. Convex heads
are fitted to convergence. `Network` uses the validation rows for early stopping, `Average` for its
weights, and `Tuned` for model selection. Heads compose: a network may start at the average of
several convex fits, and `Telescoping` fits one head to each of several intermediate ratios.
"""

from divjax.ratio.heads.closed_form import GaussianDiscriminant, Zero
from divjax.ratio.heads.combinations import Auto, Average, Tuned
from divjax.ratio.heads.kernel_models import KernelRatio
from divjax.ratio.heads.kliep import KLIEP
from divjax.ratio.heads.least_squares import LeastSquares
from divjax.ratio.heads.logistic import Linear, Quadratic, RandomFourier
from divjax.ratio.heads.neighbors import Neighbors
from divjax.ratio.heads.network import Network
from divjax.ratio.heads.telescoping import Telescoping

__all__ = [
    "KLIEP",
    "Auto",
    "Average",
    "GaussianDiscriminant",
    "KernelRatio",
    "LeastSquares",
    "Linear",
    "Neighbors",
    "Network",
    "Quadratic",
    "RandomFourier",
    "Telescoping",
    "Tuned",
    "Zero",
]
