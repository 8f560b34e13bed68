"""Functions of whole groups that several methods share. Shapes: P prompts, G generations per prompt."""

from torch import Tensor

from srpo_trl.methods.record import Graded


def share(is_one_PG: Tensor, of_PG: Tensor) -> Tensor:
    """Return each group's share of ones among `of_PG`, (P, 1) float64; 0 where there is nothing to count.

    Args:
        is_one_PG, of_PG: bool.
    """
    number_P1 = of_PG.sum(1, keepdim=True).double()
    return (is_one_PG & of_PG).sum(1, keepdim=True) / number_P1.clamp(min=1)


def has_failed(graded: Graded) -> Tensor:
    """Return the groups in which something was scored and nothing is correct, (P, 1) bool."""
    return graded.is_scored_PG.any(1, keepdim=True) & ~graded.is_correct_PG.any(1, keepdim=True)
