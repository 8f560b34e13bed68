"""What a method makes of whole groups, for each rollout of this process."""

from collections.abc import Mapping

import torch
from torch import Tensor

from srpo_trl.methods.record import Method, Scored


def method_rows(method: Method, scored: Scored, own_rows: slice) -> Mapping[str, Tensor]:
    """Return the method's rows and "is_correct", of this process's rollouts, (B,) each.

    Args:
        method: whose `rows` is called, on every process alike.
        scored: all rollouts of all processes, (P, G).
        own_rows: of this process among them.
    Raises:
        ValueError: a row is not (P, G), or not finite where there is a score.
    """
    made = {} if method.rows is None else method.rows(scored)
    for name, value_PG in made.items():
        if not isinstance(value_PG, Tensor) or value_PG.shape != scored.route_PG.shape:
            found = tuple(value_PG.shape) if isinstance(value_PG, Tensor) else type(value_PG).__name__
            raise ValueError(
                f"The method's row {name!r} is {found}; {tuple(scored.route_PG.shape)} is required, a value for each "
                "rollout of each prompt."
            )
        if not bool(torch.isfinite(value_PG[scored.is_scored_PG]).all()):
            raise ValueError(f"The method's row {name!r} is not finite for a rollout that has a score.")
    return {
        name: value_PG.flatten()[own_rows]
        for name, value_PG in {"is_correct": scored.is_correct_PG, **made}.items()
    }
