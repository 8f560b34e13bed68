r"""GSM8K (arXiv:2110.14168) as a conversational, prompt-only dataset for TRL: a task for models that are small.

Not a benchmark of the SRPO paper.
"""

import re
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo_trl.data.jsonl import checked_rows, published_rows
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
    from datasets import Dataset

    places = islice(published_rows(name_or_path, config_name, split), max_rows)
    rows = list(checked_rows(places, gsm8k_row))
    if not rows:
        raise ValueError(f"{name_or_path} has no rows.")
    return Dataset.from_list(rows)


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
