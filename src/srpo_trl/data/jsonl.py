"""Published rows and where they stand: a strict reader of JSON lines, the hub, and errors that name the place."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

SHOWN_BYTES = 60


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    r"""Line number (from 1) and object of each line.

    Lines end at `\n` only: other line separators of Unicode may stand inside a JSON string.

    Args:
        path: a file in UTF-8.
    Raises:
        ValueError: a line is empty, not UTF-8, not JSON, or not an object.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            if not line.strip():
                raise ValueError(f"{place}: the line is empty; expected one JSON object per line.")
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{place}: not UTF-8 ({error}); the file is damaged or compressed."
                ) from error
            except (ValueError, RecursionError) as error:
                start = line[:SHOWN_BYTES].decode("utf-8", errors="replace").strip()
                raise ValueError(
                    f"{place}: not JSON ({error}); the line starts with {start!r}. Expected one JSON object "
                    "per line: the file was cut off here, or it is one JSON document over several lines."
                ) from error
            if not isinstance(row, dict):
                raise ValueError(f"{place}: {type(row).__name__} found; expected one JSON object per line.")
            yield number, row


def published_rows(
    name_or_path: str | Path, config_name: str, split: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and row of each row of a JSON-lines file, or of one split of a hub id or local folder.

    Raises:
        ValueError: a line of the file is wrong.
        OSError: the source cannot be read.
    """
    path = Path(name_or_path)
    if path.suffix in (".json", ".jsonl"):
        for number, row in read_json_lines(path):
            yield f"{path}, line {number}", row
        return
    from datasets import load_dataset

    for number, row in enumerate(load_dataset(str(name_or_path), config_name, split=split)):
        yield f"{name_or_path}, split {split}, row {number}", row


def checked_rows(
    places: Iterable[tuple[str, dict[str, Any]]], make_row: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """What `make_row` makes of each row; its ValueError names the place."""
    for place, row in places:
        try:
            yield make_row(row)
        except ValueError as error:
            raise ValueError(f"{place}: {error}.") from error
