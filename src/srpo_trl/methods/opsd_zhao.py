"""OPSD of Zhao et al. (arXiv:2601.18734): distillation alone, over the whole vocabulary."""

from srpo_trl.methods import routers
from srpo_trl.methods.record import Method


def opsd_zhao(alpha: float = 0.5) -> Method:
    """Jensen-Shannon divergence over the whole vocabulary, every rollout alike.

    `alpha`: 0 forward KL, 1 reverse KL. Their teacher has the initial weights and is shown the reference:
    teacher_model_kind='base', teacher_context=['reference'].

    Source: the authors' code. A second setting of theirs, the teacher's top 50, is not here.
    """
    return Method(route=routers.distilled, divergence={"alpha": alpha, "topk": None})
