"""The columns of a batch's rows that reach reward functions, where rows of a dataset do not all have the same.

That they take every column of the first row is checked when the trainer is made. A stream, or a transform, may bring
others later, or leave some out.
"""

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

# What TRL passes to a reward function beside the dataset's columns.
REWARD_KEYWORDS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
COLUMNS_TAKEN = ("prompts", "completions")  # under whose names TRL passes something else


class RewardColumns(NamedTuple):
    """Which columns reward functions need, and which they take.

    Attributes:
        needed: names of parameters without a default.
        taken: names of the parameters that every function has; None where each takes any keyword.
    """

    needed: tuple[str, ...] = ()
    taken: frozenset[str] | None = None

    def needing_only(self, columns: Collection[str]) -> "RewardColumns":
        """Return the same with these columns alone among those that are needed."""
        return self._replace(needed=tuple(name for name in self.needed if name in columns))

    def fitted(self, rows: Sequence[Mapping[str, Any]], *, kept: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows without the columns that a function does not take, and with None in those that are needed.

        Args:
            rows: of one batch.
            kept: columns that TRL itself reads.
        """
        columns = list(dict.fromkeys(column for row in rows for column in row))
        columns = [column for column in columns if column in kept or self._takes(column)]
        columns += [name for name in self.needed if name not in REWARD_KEYWORDS and name not in columns]
        return [{column: row.get(column) for column in columns} for row in rows]

    def _takes(self, column: str) -> bool:
        return column not in COLUMNS_TAKEN and (self.taken is None or column in self.taken)


def reward_columns(functions: Sequence[Any]) -> RewardColumns:
    """Return what the functions need and take; reward models take none."""
    needed: dict[str, None] = {}
    taken: frozenset[str] | None = None
    for function in functions:
        if isinstance(function, nn.Module):
            continue
        parameters = inspect.signature(function).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        needed |= dict.fromkeys(p.name for p in named if p.default is p.empty)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            names = frozenset(p.name for p in named)
            taken = names if taken is None else taken & names
    return RewardColumns(tuple(needed), taken)
