"""What an evaluation leaves: a table on the terminal, a JSON file of its scores, a JSON line of every completion."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from srpo_trl.evaluation.samples import Sample

STDERR = "_stderr"
# What transformers and TRL log beside the scores and says nothing of them.
NOT_SCORES = ("model_preparation_time", "samples_per_second", "steps_per_second", "num_tokens")


class Score(NamedTuple):
    """A score and its standard error over questions, None where it has none."""

    value: float
    standard_error: float | None


def paired(metrics: Mapping[str, float], prefix: str = "eval_") -> dict[str, Score]:
    """Return the scores among metrics, and the seconds they took, without `prefix`, each with its standard error."""
    names = [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)]
    return {
        name: Score(metrics[f"{prefix}{name}"], metrics.get(f"{prefix}{name}{STDERR}"))
        for name in names
        if not name.endswith(STDERR) and name not in NOT_SCORES
    }


def table_of(scores: Mapping[str, Score], title: str) -> Table:
    """Return a table with a line for each score."""
    table = Table(title=title, title_justify="left")
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("standard error", justify="right")
    for name, (value, standard_error) in scores.items():
        table.add_row(name, _written(value), "" if standard_error is None else _written(standard_error))
    return table


def completions_file(output: Path) -> Path:
    """Return where the completions of an evaluation lie whose scores are in `output`."""
    return output.with_suffix(".jsonl")


def write_report(
    output: Path,
    run: Mapping[str, Any],
    scores: Mapping[str, Score],
    samples: Iterable[Sample],
    prompts: Any,
) -> None:
    """Write scores to `output` and completions beside it.

    Args:
        output: a path that ends in `.json`; its folder is made.
        run: what was evaluated and how, for the reader.
        scores: by name.
        samples: in the order of their lines.
        prompts: by question.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    report = {**run, "scores": {name: score._asdict() for name, score in scores.items()}}
    output.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with completions_file(output).open("w", encoding="utf-8") as file:
        for sample in samples:
            line = {"prompt": prompts[sample.question], **asdict(sample)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _written(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
