"""SRPO, held stable (ours): its routes and weights with TRACE's forward KL, clip and falling share."""

from srpo_trl.methods import srpo
from srpo_trl.methods.record import Method


def srpo_stable(entropy_weight_beta: float, clip: float = 0.05) -> Method:
    """SRPO with forward KL, each entry of the vocabulary clipped at `clip`, w = exp(-`entropy_weight_beta` H), mean 1.

    Give teacher_update_rate=1 and teacher_update_interval=10, distilled_frac_hold_steps=10 and
    distilled_frac_decay_steps=30 besides, as TRACE (arXiv:2605.10194) has its teacher and its schedule.

    Source: ours, from TRACE's remedies.
    """
    method = srpo.srpo(entropy_weight_beta)
    return method._replace(divergence={"alpha": 0.0, "pointwise_clip": clip})
