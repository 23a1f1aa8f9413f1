"""Divergences between Gaussians in closed form, their plug-in estimate, and bounds on KL.

A Gaussian is a `divjax.Normal`, or any pair of a mean "d" and a covariance: "d" for the variances
of a diagonal one, "d d" for a full one.

A singular covariance puts all mass on a subspace. If exactly one of the two is singular the
Gaussians are mutually singular: KL, Rényi's divergence and the Bhattacharyya distance are +∞, the
squared Hellinger distance 1 and the Jensen–Shannon divergence log 2. If both are singular, two
vectors of variances are compared feature by feature. Any other pair gives NaN, as rounding would
decide whether their subspaces agree. An indefinite covariance, a NaN or an infinity gives NaN. An
asymmetric covariance gives NaN if it is traced, and a `ValueError` otherwise.
"""

from divjax.fdiv.gaussian.analytic import bhattacharyya, js_bounds, kl, renyi, squared_hellinger
from divjax.fdiv.gaussian.fitted_gaussians import plug_in_kl
from divjax.fdiv.gaussian.kl_bounds import (
    kl_triangle_bound,
    reverse_kl_infimum,
    reverse_kl_supremum,
)

__all__ = [
    "bhattacharyya",
    "js_bounds",
    "kl",
    "kl_triangle_bound",
    "plug_in_kl",
    "renyi",
    "reverse_kl_infimum",
    "reverse_kl_supremum",
    "squared_hellinger",
]
