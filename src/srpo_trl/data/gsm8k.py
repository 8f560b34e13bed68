r"""GSM8K (arXiv:2110.14168) as a conversational, prompt-only dataset for TRL: a task for models that are small.

Not a benchmark of the SRPO paper.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo_trl.data.jsonl import read_json_lines
from srpo_trl.rewards.grading import shorten

if TYPE_CHECKING:
    from datasets import Dataset

GSM8K = "gsm8k"
GSM8K_HUB_ID = "openai/gsm8k"
GSM8K_CONFIG = "main"
INSTRUCTION = (  # as the model cards of Qwen3 ask for mathematics
    "Please reason step by step, and put your final answer within \\boxed{}."
)

_FINAL_ANSWER = re.compile(r"####\s*(-?[0-9.,]*[0-9])")  # as in the data set's own grader


def load_gsm8k(
    split: str = "train",
    *,
    name_or_path: str | Path = GSM8K_HUB_ID,
    config_name: str = GSM8K_CONFIG,
    max_rows: int | None = None,
) -> "Dataset":
    """Rows of one split with columns `prompt` (messages), `answer` (the final number) and `benchmark` ("gsm8k").

    Args:
        split: `train` or `test`.
        name_or_path: a hub id, a local copy of the hub's folder, or a JSON-lines file with the keys `question` and
            `answer`, which is one split already.
        config_name: configuration of the hub dataset or folder.
        max_rows: keep the first rows only.
    Raises:
        ValueError: the split is unknown, or a row is wrong; the message names the source and the row.
        OSError: the source cannot be read.
    """
    path = Path(name_or_path)
    rows: Iterable[tuple[str, dict[str, Any]]]
    if path.suffix in (".json", ".jsonl"):
        rows = ((f"{path}, line {number}", row) for number, row in read_json_lines(path))
    else:
        from datasets import load_dataset

        published = load_dataset(str(name_or_path), config_name, split=split)
        rows = ((f"{name_or_path}, split {split}, row {number}", row) for number, row in enumerate(published))
    return _build(rows, str(name_or_path), max_rows)


def gsm8k_row(row: dict[str, Any]) -> dict[str, Any]:
    """One row of the dataset from one published row, whose answer ends in `#### ` and the final number.

    Raises:
        ValueError: a key is missing, a value is not text, or the answer has no final number.
    """
    question, solution = row.get("question"), row.get("answer")
    for key, value in (("question", question), ("answer", solution)):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(
                f"{key!r} is {shorten(repr(value))}, expected text; the row has the keys {sorted(row)}"
            )
    assert isinstance(question, str)
    assert isinstance(solution, str)
    final_answer = _FINAL_ANSWER.search(solution)
    if final_answer is None:
        raise ValueError(f"'answer' ends in {shorten(repr(solution[-20:]))}, expected '#### ' and a number")
    content = f"{question.strip()}\n\n{INSTRUCTION}"
    return {
        "prompt": [{"role": "user", "content": content}],
        "answer": final_answer[1].replace(",", ""),
        "benchmark": GSM8K,
    }


def _build(places: Iterable[tuple[str, dict[str, Any]]], source: str, max_rows: int | None) -> "Dataset":
    from datasets import Dataset

    rows = list(_checked(islice(places, max_rows)))
    if not rows:
        raise ValueError(f"{source} has no rows.")
    return Dataset.from_list(rows)


def _checked(places: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for place, row in places:
        try:
            yield gsm8k_row(row)
        except ValueError as error:
            raise ValueError(f"{place}: {error}.") from error
