"""Variational bounds on divergences from critics, and critics for pairs.

The functions take a critic's values. `DivergenceBound` and `MutualInformationBound` of
`divjax.ratio` train one.
"""

from divjax.ratio.bounds.contrastive import info_nce, interpolated_nce
from divjax.ratio.bounds.critics import Critic, derangement, split_scores
from divjax.ratio.bounds.named_bounds import BOUNDS, Bound, StatefulBound
from divjax.ratio.bounds.variational import (
    MINE,
    MINEState,
    conjugate_dual,
    donsker_varadhan,
    f_dual,
    jensen_shannon,
    kl_from_js,
    mean_log_ratio,
    nwj,
    smile,
)

__all__ = [
    "BOUNDS",
    "MINE",
    "Bound",
    "Critic",
    "MINEState",
    "StatefulBound",
    "conjugate_dual",
    "derangement",
    "donsker_varadhan",
    "f_dual",
    "info_nce",
    "interpolated_nce",
    "jensen_shannon",
    "kl_from_js",
    "mean_log_ratio",
    "nwj",
    "smile",
    "split_scores",
]
