"""A row's run with all that the row is given."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning.rollouts import with_references
from benchmarks.learning.rows import RESCUED, ROWS, SUPERVISED
from benchmarks.learning.run import Given, Run, train
from benchmarks.learning.supervised import train_supervised
from srpo_trl.commands.quickstart.task import Question


def do(run: Run, study: Path) -> None:
    """Train the run of a row and write its result."""
    options = ROWS[run.row]
    if run.row == SUPERVISED:
        train_supervised(run, study)
    elif run.row in RESCUED:
        train(run, study, Given(options, rollout_func=with_references(run)))
    elif "reference_column" in options:
        train(run, study, Given(options, columns=solutions))
    else:
        train(run, study, Given(options))


def solutions(questions: Sequence[Question]) -> dict[str, list[str]]:
    """Return the column of right solutions."""
    return {"solution": [question.demonstration for question in questions]}
