"""YAML files with options, and the files that they build on."""

from pathlib import Path
from typing import Any

import yaml

BASE = "base"


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Return the options of a YAML file, on top of those of the file that its key `base` names, and so on.

    `base` is a path relative to the file that it stands in. An option that stands in both files has the value of the
    file that builds on the other. Values are replaced whole: mappings and lists are not merged.

    Raises:
        ValueError: a file cannot be read, is not YAML or not `option: value` lines, or builds on itself.
    """
    values: dict[str, Any] = {}
    file, label = Path(path), f"--config {path}"
    seen = [file.resolve()]
    while True:
        own = read_mapping(file, label)
        base = own.pop(BASE, None)
        values = own | values
        if base is None:
            return values
        if not isinstance(base, str):
            raise ValueError(f"{label}: {BASE}={base!r} must be the path of one YAML file.")
        file, label = file.parent / base, f"{label}, {BASE} {base}"
        if file.resolve() in seen:
            raise ValueError(f"{label}: the file builds on itself. Take `{BASE}` out of one of the files.")
        seen.append(file.resolve())


def read_mapping(file: Path, label: str) -> dict[str, Any]:
    """Return what a YAML file of `option: value` lines holds.

    Args:
        file: to read.
        label: what messages call it.
    Raises:
        ValueError: it cannot be read, is not YAML or holds something else.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{label} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{label} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not isinstance(values.get("env", {}), dict):
        raise ValueError(f"{label} must hold `option: value` lines (and `env:` `NAME: value` lines).")
    return values
