"""Training losses from divergences: distillation."""

from divjax.losses.class_relations import class_costs, class_similarity
from divjax.losses.distillation import sinkhorn_distillation, wkd_features, wkd_logits

__all__ = [
    "class_costs",
    "class_similarity",
    "sinkhorn_distillation",
    "wkd_features",
    "wkd_logits",
]
