"""What a run leaves behind, as one flat table: key to number, text or tensor.

Keys are paths: `log/3/srpo/loss/sdpo`, `files/checkpoint-3/optimizer.pt/state/0/exp_avg`. A measured time or amount of
memory, which differs from run to run, is recorded as `VARIES`: that it is there, and not what it was.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

VARIES = "(varies)"
_VARYING = re.compile(r"seconds|runtime|per_second|/memory/|elapsed|step_time|/versions/")
_NEVER_VARYING = re.compile(r"^fields/|/options/")
# Files whose contents follow from others, or hold times and folders: of them the name alone is recorded.
_NAME_ONLY = re.compile(
    r"trainer_state\.json|training_args\.bin|tokenizer.*|.*manifest.*|README\.md|.*\.html"
)

Values = dict[str, Any]


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of nested mappings and sequences; sequences of many whole numbers become one tensor."""
    if not isinstance(value, Mapping) and _VARYING.search(key) and not _NEVER_VARYING.search(key):
        yield key, VARIES
    elif isinstance(value, Mapping | list | tuple | set | frozenset) and not value:
        yield key, "(empty)"
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from flat(inner, f"{key}/{name}" if key else str(name))
    elif isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        if len(items) > 16 and all(type(item) is int for item in items):
            yield key, torch.tensor(items)
        else:
            for index, inner in enumerate(items):
                yield from flat(inner, f"{key}/{index}")
    elif isinstance(value, Tensor):
        yield key, value.detach().cpu().clone()
    elif isinstance(value, bool | int | float | str) or value is None:
        yield key, value
    elif hasattr(value, "tolist"):  # NumPy's arrays and numbers
        yield from flat(value.tolist(), key)
    elif hasattr(value, "__dict__"):
        yield from flat(vars(value), key)
    else:
        yield key, repr(value)


def of_trainer(trainer: Any) -> Values:
    """Return all logs and every parameter that trains."""
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    return dict(flat(trainer.state.log_history, "log")) | dict(flat(trained, "weights"))


def of_folder(folder: Path) -> Values:
    """Return the names of all files below a folder, and the contents of those that hold numbers."""
    values: Values = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = f"files/{path.relative_to(folder)}"
        values[name] = "(a file)"
        if not _NAME_ONLY.fullmatch(path.name):
            values |= {key: value for key, value in flat(contents(path), name) if key != name}
    return {key: _without(folder, value) for key, value in values.items()}


def contents(path: Path) -> Any:
    """Return what a file holds; an empty table where it is of no known kind."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix in (".pt", ".pth"):
        return torch.load(path, map_location="cpu", weights_only=False)  # this very run has written it
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if path.suffix == ".parquet":
        return pd.read_parquet(path).to_dict("list")
    if path.suffix == ".csv":
        return pd.read_csv(path, float_precision="round_trip").to_dict("list")
    return {}


def _without(folder: Path, value: Any) -> Any:
    """Take the run's temporary folder out of a text."""
    return value.replace(str(folder), "FOLDER") if isinstance(value, str) else value
