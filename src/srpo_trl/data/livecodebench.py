"""LiveCodeBench (arXiv:2403.07974) as a conversational, prompt-only dataset for TRL, graded by `code_reward`."""

import base64
import io
import json
import pickle
import zlib
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from srpo_trl.data.jsonl import checked_rows, published_rows
from srpo_trl.rewards.grading import shorten

if TYPE_CHECKING:
    from datasets import Dataset

LIVECODEBENCH = "livecodebench"
LIVECODEBENCH_HUB_ID = "lighteval/code_generation_lite"
LIVECODEBENCH_CONFIG = "v6"  # the questions of the newest release alone
KEYS = ("question_content", "starter_code", "public_test_cases", "private_test_cases", "metadata")
STDIN_INSTRUCTION = (
    "Write a Python program that reads the input from standard input and prints the output. Put the whole program into "
    "one ```python block."
)
MOST_TESTS = 256 << 20  # bytes of one row's tests
FUNCTION_INSTRUCTION = "Complete this Python code. Put the whole program into one ```python block."


def load_livecodebench(
    split: str = "test",
    *,
    name_or_path: str | Path = LIVECODEBENCH_HUB_ID,
    config_name: str = LIVECODEBENCH_CONFIG,
    max_rows: int | None = None,
) -> "Dataset":
    """Rows of one split with columns `prompt` (messages), `answer` (tests for `code_reward`) and `benchmark`.

    Public and private tests count alike. The published dataset has the split `test` alone.

    Args:
        split: of the hub dataset.
        name_or_path: a hub id, a local folder, or a JSON-lines file in the published format.
        config_name: configuration of the hub dataset or folder, a release such as "v6".
        max_rows: keep the first rows only.
    Raises:
        ValueError: a row is wrong; the message names the source and the row.
        OSError: the source cannot be read.
    """
    from datasets import Dataset, Features, Value

    places = islice(published_rows(name_or_path, config_name, split), max_rows)
    built = list(checked_rows(places, _checked_row))
    if not built:
        raise ValueError(f"{name_or_path} has no rows.")
    text = Value("string")
    features = Features(
        prompt=[{"role": text, "content": text}],
        answer=Value("large_string"),  # tests of all rows together pass the 2 GiB of "string"
        benchmark=text,
    )
    return Dataset.from_list(built, features=features)


def livecodebench_row(row: dict[str, Any]) -> dict[str, Any]:
    """One row of the dataset from one published row.

    Raises:
        ValueError: a key is missing, or the tests cannot be read.
    """
    missing = [key for key in KEYS if key not in row]
    if missing:
        raise ValueError(f"missing key {', '.join(map(repr, missing))}; the row has {sorted(row)}")
    tests = [*_tests(row["public_test_cases"]), *_tests(row["private_test_cases"])]
    if not tests:
        raise ValueError("the row has no tests")
    question, starter = row["question_content"].strip(), row["starter_code"].strip()
    answer: dict[str, Any] = {"inputs": [], "outputs": []}
    if tests[0]["testtype"] == "functional":
        answer["fn_name"] = json.loads(row["metadata"])["func_name"]
        answer["inputs"] = [
            [json.loads(line) for line in test["input"].split("\n") if line.strip()] for test in tests
        ]
        answer["outputs"] = [json.loads(test["output"]) for test in tests]
        question += f"\n\n{FUNCTION_INSTRUCTION}\n\n```python\n{starter}\n```"
    else:
        answer["inputs"] = [test["input"] for test in tests]
        answer["outputs"] = [test["output"] for test in tests]
        question += f"\n\n{STDIN_INSTRUCTION}"
    prompt = [{"role": "user", "content": question}]
    return {"prompt": prompt, "answer": json.dumps(answer), "benchmark": LIVECODEBENCH}


def _checked_row(row: dict[str, Any]) -> dict[str, Any]:
    try:
        return livecodebench_row(row)
    except MemoryError as error:
        raise ValueError("the tests need more memory than there is") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(shorten(str(error))) from error


class _TextAlone(pickle.Unpickler):
    """Reads a pickle that holds text: data from elsewhere must not name what is called."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise ValueError(f"the tests name {module_name}.{global_name}, which data may not")


def _tests(published: str) -> list[dict[str, str]]:
    """Return tests from JSON text, or from that as private tests are published: pickled, compressed, in base 64."""
    try:
        tests = json.loads(published)
    except ValueError:
        try:
            tests = json.loads(_TextAlone(io.BytesIO(_decompressed(base64.b64decode(published)))).load())
        except (zlib.error, pickle.UnpicklingError, EOFError, IndexError) as error:
            raise ValueError(f"the tests {shorten(published)!r} cannot be read: {error}") from error
    return list(tests)


def _decompressed(data: bytes) -> bytes:
    """A few KB can stand for more than the memory holds."""
    reader = zlib.decompressobj()
    found = reader.decompress(data, MOST_TESTS)
    if reader.unconsumed_tail:
        raise ValueError(f"the tests are larger than {MOST_TESTS >> 20} MB")
    if not reader.eof:
        raise zlib.error("they end early")
    return found
