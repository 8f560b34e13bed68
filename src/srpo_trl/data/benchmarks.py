"""The paper's five benchmarks as conversational, prompt-only datasets for TRL (SRPO, table 4).

The texts of a row's `system` and `prompt` are the paper's prompts and are kept byte for byte.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo_trl.data.jsonl import checked_rows, read_json_lines
from srpo_trl.rewards.grading import shorten
from srpo_trl.rewards.tool_use import parse_reference

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SPLITS = ("train", "test")
COLUMNS = ("system", "prompt", "answer")
LETTERS = ("A", "B", "C", "D")


def _check_letter(answer: str) -> None:
    if answer not in LETTERS:
        raise ValueError(f"{shorten(repr(answer))} is none of the letters {', '.join(LETTERS)}")


def _check_calls(answer: str) -> None:
    parse_reference(answer)


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lies in the published data, how many rows it has, and what its answers look like.

    Attributes:
        folders: names of its folder below the data's root; the first that exists is read.
        num_rows: rows of each split.
        check_answer: raises ValueError with the reason where a row's answer has the wrong form.
    """

    folders: tuple[str, ...]
    num_rows: dict[str, int]
    check_answer: Callable[[str], None]


BENCHMARKS: dict[str, Benchmark] = {
    "chemistry": Benchmark(("sciknoweval/chemistry",), {"train": 1890, "test": 210}, _check_letter),
    "physics": Benchmark(("sciknoweval/physics",), {"train": 720, "test": 80}, _check_letter),
    "biology": Benchmark(("sciknoweval/biology",), {"train": 450, "test": 50}, _check_letter),
    "materials": Benchmark(
        ("sciknoweval/material", "sciknoweval/materials"), {"train": 841, "test": 94}, _check_letter
    ),
    "tooluse": Benchmark(("tooluse",), {"train": 4046, "test": 68}, _check_calls),
}


def load_benchmark(
    name_or_path: str | Path,
    split: str = "train",
    *,
    data_dir: str | Path | None = None,
    benchmark: str | None = None,
    max_rows: int | None = None,
) -> "Dataset":
    """Rows of one split with columns `prompt` (messages), `answer` (text) and `benchmark` (name).

    Args:
        name_or_path: one of
            - a benchmark's name (a key of `BENCHMARKS`), read below `data_dir`;
            - a JSON-lines file, which is one split already;
            - anything else that `datasets.load_dataset` takes: a hub id or a local dataset folder.
        split: `train` or `test`; for `datasets.load_dataset`, any split that the dataset has.
        data_dir: the folder with the published layout (`sciknoweval/chemistry/train.json`, and so on); for
            `datasets.load_dataset`, its own `data_dir`.
        benchmark: which benchmark a file or a hub dataset is; None: the last part of its path that names one.
        max_rows: keep the first rows only; the rest of a file is then neither read nor checked.
    Raises:
        ValueError: an argument or a row is wrong; for a row, the message names the file and the line.
        FileNotFoundError: the file is missing; the message gives the layout expected.
    """
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows={max_rows!r} must be at least 1, or None for all rows.")
    given_name = None if benchmark is None else _name_of_folder(benchmark)
    if benchmark is not None and given_name is None:
        raise ValueError(f"benchmark={benchmark!r} is unknown; known are {_known_names()}.")
    source = str(name_or_path)
    name = _name_of_folder(source)
    if name is not None:
        if given_name not in (None, name):
            raise ValueError(f"benchmark={benchmark!r} contradicts {source!r}; leave it out.")
        path = _published_file(name, split, data_dir)
        return _from_file(path, name, split, max_rows)
    path = Path(source)
    if path.is_file() or path.suffix in (".json", ".jsonl"):
        if data_dir is not None:
            raise ValueError(
                f"data_dir={str(data_dir)!r} does not apply to the file {source!r}; leave it out."
            )
        if path.stem in SPLITS and split not in ("train", path.stem):
            raise ValueError(
                f"split={split!r} contradicts the file {source!r}; give the {split} split's own file."
            )
        return _from_file(path, given_name or _name_in_path(path.parts[:-1], source), path.stem, max_rows)
    if "/" not in source and not path.is_dir():
        raise ValueError(
            f"{source!r} is neither a known benchmark nor an existing file or folder; known benchmarks are "
            f"{_known_names()}, and a hub id has the form 'owner/name'."
        )
    parts = (*Path(source).parts, *Path(data_dir or "").parts)
    return _from_hub(source, split, data_dir, given_name or _name_in_path(parts, source), max_rows)


def benchmark_row(row: dict[str, Any], name: str) -> dict[str, Any]:
    """One row of the dataset from one published row.

    A `system` that is null, empty or the string "None" makes no system message.

    Raises:
        ValueError: a key is missing, a value has the wrong type, or the answer the wrong form.
    """
    missing_keys = [key for key in COLUMNS if key not in row]
    if missing_keys:
        raise ValueError(f"missing key {', '.join(map(repr, missing_keys))}; the row has {sorted(row)}")
    system, prompt, answer = (row[key] for key in COLUMNS)
    if system is not None and not isinstance(system, str):
        raise ValueError(f"'system' is {type(system).__name__}, expected text or null")
    for key, value in (("prompt", prompt), ("answer", answer)):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{key!r} is {shorten(repr(value))}, expected text that is not empty")
    try:
        BENCHMARKS[name].check_answer(answer)
    except ValueError as error:
        raise ValueError(f"'answer' does not fit {name}: {error}") from error
    messages = [] if system in (None, "", "None") else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": prompt})
    return {"prompt": messages, "answer": answer, "benchmark": name}


def _from_file(path: Path, name: str, split: str, max_rows: int | None) -> "Dataset":
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected JSON lines, one question a line.")
    places = ((f"{path}, line {number}", row) for number, row in read_json_lines(path))
    return _build(places, str(path), name, split, max_rows)


def _from_hub(
    source: str, split: str, data_dir: str | Path | None, name: str, max_rows: int | None
) -> "Dataset":
    from datasets import load_dataset

    published = load_dataset(source, data_dir=None if data_dir is None else str(data_dir), split=split)
    missing_columns = [column for column in COLUMNS if column not in published.column_names]
    if missing_columns:
        raise ValueError(
            f"{source}, split {split}: missing column {', '.join(map(repr, missing_columns))}; it has "
            f"{published.column_names}. A {name} dataset has the columns {', '.join(map(repr, COLUMNS))}."
        )
    places = ((f"{source}, split {split}, row {number}", row) for number, row in enumerate(published))
    return _build(places, f"{source}, split {split}", name, split, max_rows)


def _build(
    places: Iterable[tuple[str, dict[str, Any]]], source: str, name: str, split: str, max_rows: int | None
) -> "Dataset":
    from datasets import Dataset

    rows = list(checked_rows(islice(places, max_rows), partial(benchmark_row, name=name)))
    if not rows:
        raise ValueError(f"{source} has no rows.")
    num_published = BENCHMARKS[name].num_rows.get(split)
    if max_rows is None and num_published not in (None, len(rows)):
        logger.warning(
            "%s has %d rows, the paper's %s split of %s has %d: results are not comparable with the paper's.",
            source,
            len(rows),
            split,
            name,
            num_published,
        )
    return Dataset.from_list(rows)


def _published_file(name: str, split: str, data_dir: str | Path | None) -> Path:
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; known are {', '.join(map(repr, SPLITS))}.")
    folders = BENCHMARKS[name].folders
    if data_dir is None:
        raise ValueError(
            f"{name!r} needs data_dir, the folder that holds {folders[0]}/{split}.json; or give a JSON-lines "
            "file or a hub id in its place."
        )
    candidates = [Path(data_dir) / folder / f"{split}.json" for folder in folders]
    for path in candidates:
        if path.is_file():
            return path
    layout = " or ".join(str(path) for path in candidates)
    raise FileNotFoundError(f"the {split} split of {name} is missing: expected {layout}.")


def _name_of_folder(folder: str) -> str | None:
    """Benchmark of a name or of the last part of its published folder (`material` is `materials`)."""
    for name, known in BENCHMARKS.items():
        if folder == name or folder in (path.rpartition("/")[2] for path in known.folders):
            return name
    return None


def _name_in_path(parts: Iterable[str], source: str) -> str:
    names = [name for part in parts if (name := _name_of_folder(part)) is not None]
    if not names:
        raise ValueError(
            f"{source!r} does not say which benchmark it is; pass benchmark=..., one of {_known_names()}."
        )
    return names[-1]


def _known_names() -> str:
    return ", ".join(map(repr, BENCHMARKS))
