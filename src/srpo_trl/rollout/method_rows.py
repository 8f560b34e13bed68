"""What a method makes of whole groups, for each rollout of this process."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from srpo_trl.loss.float64 import back_from_float64
from srpo_trl.methods.record import Method, Scored
from srpo_trl.rollout.graded import RoutedRollouts

IS_RESCORED = "is_rescored"


def method_rows(
    method: Method, rollouts: RoutedRollouts, own_rows: slice, scored: Callable[[], Scored]
) -> Mapping[str, Tensor]:
    """Return the method's rows and "is_correct" of this process's rollouts, (B,) or (B, T) each.

    Where scorers have log-probabilities also "is_rescored".

    Args:
        method: whose `rows` is called, on every process alike.
        rollouts: of this process.
        own_rows: its rows among those of all processes.
        scored: returns all rollouts of all processes; called where the method has rows, by every process.
    Raises:
        ValueError: a row is neither (P, G) nor (P, G, T), or not finite where there is a score.
    """
    graded, made = rollouts.graded, {} if method.rows is None else method.rows(scored())
    shape = rollouts.route_PG.shape
    for name, value_PG in made.items():
        if not isinstance(value_PG, Tensor) or value_PG.shape[:2] != shape or value_PG.dim() > 3:
            found = tuple(value_PG.shape) if isinstance(value_PG, Tensor) else type(value_PG).__name__
            raise ValueError(
                f"The method's row {name!r} is {found}; {tuple(shape)} is required, a value for each "
                "rollout of each prompt."
            )
        if not bool(torch.isfinite(value_PG[graded.is_scored_PG.to(value_PG.device)]).all()):
            raise ValueError(f"The method's row {name!r} is not finite for a rollout that has a score.")
    ours = {"is_correct": rollouts.is_correct_B}
    if method.reads_logps:
        ours[IS_RESCORED] = rollouts.is_rescored_B
    device = rollouts.route_B.device
    return ours | {
        name: back_from_float64(value_PG.flatten(0, 1)[own_rows], device) for name, value_PG in made.items()
    }
