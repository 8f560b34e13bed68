"""Reference answers of a dataset's rows as text."""

from collections.abc import Mapping
from typing import Any


def reference_text(row: Mapping[str, Any], column: str | None) -> str:
    """Return what a row holds in the column, as text; empty where it holds nothing (None, NaN, no such column).

    A number is text, 0 too; an array or a tensor, as a format may give one, is the Python value that it holds.
    """
    value: Any = row.get(column) if column is not None else None
    if hasattr(value, "tolist"):
        value = value.tolist()
    return "" if value is None or value != value else str(value)
