"""OPSD as Zhao et al. have it (arXiv:2601.18734): distillation alone, over the whole vocabulary."""

from srpo_trl.methods import routers
from srpo_trl.methods.record import Method


def opsd_zhao(alpha: float = 0.5) -> Method:
    """Jensen-Shannon divergence over the whole vocabulary, every rollout alike.

    Their teacher has the initial weights and is shown the reference: teacher_model_kind='base',
    teacher_context=['reference'].
    """
    return Method(route=routers.distilled, divergence={"alpha": alpha, "topk": None})
