"""Many Faces of On-Policy Distillation (arXiv:2605.11182): a support whose masses sum to 1."""

from srpo_trl.methods import routers
from srpo_trl.methods.record import Method


def many_faces(topk: int = 20, add_tail: bool = False) -> Method:
    """Reverse KL over the student's top `topk`, renormalized, or with `add_tail` a tail: no gradient at the teacher.

    Source: secondary sources. One of their remedies; the divergence is our choice among them.
    """
    return Method(routers.distilled, divergence={"alpha": 1.0, "topk": topk, "add_tail": add_tail})
