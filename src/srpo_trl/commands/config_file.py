"""YAML files with options, the files that they build on, and the recipes that the package brings."""

from collections.abc import Collection
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml

BASE = "base"
ENGINES = "accelerate"  # the recipes' folder of files for accelerate's launcher


def recipes_folder() -> Path:
    """Return the folder of the recipes: in the installed package, or configs/ of a clone."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "configs"


def recipes() -> dict[str, Path]:
    """Return the training recipes by name, which is the file's without folder and ending."""
    found = sorted(recipes_folder().rglob("*.yaml"))
    return {file.stem: file for file in found if file.parent.name != ENGINES}


def engine_profiles() -> dict[str, Path]:
    """Return the files for accelerate's launcher by name."""
    return {file.stem: file for file in sorted((recipes_folder() / ENGINES).glob("*.yaml"))}


def config_path(name: str | Path, folder: Path | None = None) -> Path:
    """Return the file that `name` names: a path, or else a recipe, such as smoke_cpu or paper/srpo.

    Args:
        name: as it was given.
        folder: that paths are relative to; None: the working directory.
    Raises:
        ValueError: it is no file, and no recipe either.
    """
    file = (folder or Path()) / name
    try:
        if file.exists() and not file.is_dir():  # a pipe is no regular file, and can be read as well
            return file
    except OSError as error:  # of a name that no file can have
        raise ValueError(f"cannot be read: {error.strerror}.") from error
    stem, known = Path(name).name.removesuffix(".yaml"), recipes()
    found = known.get(stem)
    if found and str(name) in (stem, f"{found.parent.name}/{stem}"):
        return found
    if found:
        raise ValueError(
            f"cannot be read: No such file. Did you mean the recipe {stem}, without folder and .yaml?"
        )
    if file.suffix in (".yaml", ".yml"):
        return file  # whoever opens it says what is wrong
    raise ValueError(
        f"is neither a file nor a recipe.{nearest(stem, known)} `srpo-trl recipes` lists the recipes."
    )


def nearest(name: str, known: Collection[str]) -> str:
    """Return the question whether one of the names most like `name` was meant; empty where none is like it."""
    near = get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Return the options of a YAML file, on top of those of the file that its key `base` names, and so on.

    `path` and `base` are paths, `base` relative to the file that it stands in, or names of recipes. An option that
    stands in both files has the value of the file that builds on the other. Values are replaced whole: mappings and
    lists are not merged.

    Raises:
        ValueError: a file cannot be read, is not YAML or not `option: value` lines, or builds on itself.
    """
    return merged(config_chain(path))


def merged(chain: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """Return the options of files that build on each other, without the key `base`."""
    values: dict[str, Any] = {}
    for own in chain.values():
        values = own | values
    return {option: value for option, value in values.items() if option != BASE}


def config_chain(path: str | Path) -> dict[Path, dict[str, Any]]:
    """Return what stands in a YAML file and in each file that it builds on, itself first.

    Raises:
        ValueError: as for `read_config_file`.
    """
    chain: dict[Path, dict[str, Any]] = {}
    name, folder, label = str(path), None, f"--config {path}"
    while True:
        try:
            file = config_path(name, folder)
        except ValueError as error:
            raise ValueError(f"{label} {error}") from error
        if file.resolve() in (known.resolve() for known in chain):
            raise ValueError(f"{label}: the file builds on itself. Take `{BASE}` out of one of the files.")
        chain[file] = read_mapping(file, label)
        base = chain[file].get(BASE)
        if base is None:
            return chain
        if not isinstance(base, str):
            raise ValueError(f"{label}: {BASE}={base!r} must be the path of one YAML file, or a recipe.")
        folder = file.parent if file.is_file() else None  # what a pipe brings stands in no folder
        name, label = base, f"{label}, {BASE} {base}"


def read_mapping(file: Path, label: str) -> dict[str, Any]:
    """Return what a YAML file of `option: value` lines holds.

    Args:
        file: to read.
        label: what messages call it.
    Raises:
        ValueError: it cannot be read, is not YAML or holds something else.
    """
    try:
        values = yaml.safe_load(_text(file))
    except OSError as error:
        raise ValueError(f"{label} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date that no calendar has
        raise ValueError(f"{label} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not isinstance(values.get("env", {}), dict):
        raise ValueError(f"{label} must hold `option: value` lines (and `env:` `NAME: value` lines).")
    for name in values:
        if not isinstance(name, str):
            raise ValueError(f"{label}: the key {name!r} must be text, the name of an option.")
    for name, value in values.get("env", {}).items():
        if not isinstance(name, str) or not name or set(name) & {"=", "\0"}:
            raise ValueError(f"{label}: env has the name {name!r}; it must be text, without '='.")
        if isinstance(value, dict | list) or "\0" in str(value):
            raise ValueError(f"{label}: env has {name}={value!r}; it must be text or a number.")
    return values


def _text(file: Path) -> str:
    """Return what a file holds; a pipe, which can be read once, is read by the first call."""
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = file.stat()
    return _text_of_pipe(file, found.st_dev, found.st_ino)


@cache
def _text_of_pipe(file: Path, *_identity: int) -> str:
    return file.read_text(encoding="utf-8")
