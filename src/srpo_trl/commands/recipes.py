"""`srpo-trl recipes`: the training recipes that the package brings, for `--config NAME`."""

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from srpo_trl.commands.config_file import (
    config_chain,
    engine_profiles,
    merged,
    nearest,
    recipes,
    recipes_folder,
)

PROG = "srpo-trl recipes"
_EXIT_WRONG_ARGUMENTS = 2
_FOLDERS = (
    "configs",
    "recipes",
    "small",
    "paper",
    "methods",
)  # in the table's order; the first two are the root
_WIDTH = 118  # of the table, where the output is no terminal


class Recipe(NamedTuple):
    """One line of the table."""

    name: str
    summary: str
    model: str
    gpu: str


def show_recipes(argv: Sequence[str] | None = None) -> int:
    """List the recipes, print one, or copy one with the files that it builds on; return the exit status."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="List the recipes that --config takes by name, print one, or copy it to change it.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this recipe")
    parser.add_argument(
        "--copy", type=Path, metavar="DIR", help="copy it, with the files that it builds on, into this folder"
    )
    given = parser.parse_args(argv)
    if given.name is None:
        if given.copy is not None:
            parser.error("--copy needs the NAME of a recipe.")
        _print_table()
        return 0
    known = recipes() | engine_profiles()
    file = known.get(Path(given.name).name)
    if file is None:
        print(f"{PROG}: no recipe is called {given.name!r}.{nearest(given.name, known)}", file=sys.stderr)
        return _EXIT_WRONG_ARGUMENTS
    try:
        if given.copy is not None:
            return _copy(file, given.copy)
        sys.stdout.write(file.read_text(encoding="utf-8"))
    except OSError as error:
        print(f"{PROG}: {error.filename}: {error.strerror}.", file=sys.stderr)
        return _EXIT_WRONG_ARGUMENTS
    except ValueError as error:  # of a file that somebody has added
        print(f"{PROG}: {file}: {error}", file=sys.stderr)
        return _EXIT_WRONG_ARGUMENTS
    return 0


def _described(name: str, file: Path) -> Recipe:
    """Return the recipe's line of the table, from its options and the comments at the head of its files."""
    try:
        chain = config_chain(file)
    except ValueError as error:  # of a file that somebody has added
        return Recipe(name, str(error), "", "")
    heads = [_head(file) for file in chain]
    summary = re.split(r", one GPU|: |(?<!al)\. ", heads[0])[0].removesuffix(".")
    return Recipe(name, summary, *_needs(merged(chain), " ".join(heads)))


def _needs(values: dict[str, Any], heads: str) -> tuple[str, str]:
    """Return the model, and the GPUs that the comments name."""
    model = str(values.get("model_name_or_path", ""))
    if values.get("use_cpu"):
        return model, "none"
    memory = re.search(r"GPUs? of (\d+ GB)", heads)
    number = re.search(r"(\d+) GPUs", heads)
    words = [f"{number[1]} x" if number else "", memory[1] if memory else ""]
    return model, " ".join(filter(None, words))


def _head(file: Path) -> str:
    """Return the comment at the head of a file as one line."""
    lines = file.read_text(encoding="utf-8").splitlines()
    length = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.lstrip("# ") for line in lines[:length])


def _print_table() -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    table = Table("recipe", "what it is", "model", "GPU", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    folder = ""
    for name, file in sorted(recipes().items(), key=lambda item: (*_place(item[1].parent.name), item[0])):
        if file.parent.name != folder:
            table.add_section()
        folder = file.parent.name
        table.add_row(*map(escape, _described(name, file)))
    console.print(table)
    console.print(f"Engines for --accelerate_config: {', '.join(engine_profiles())}", soft_wrap=True)
    for line in (
        "srpo-trl train --config NAME           train with it; any option can follow",
        "srpo-trl recipes NAME                  print the file",
        "srpo-trl recipes NAME --copy DIR       copy it, to change it",
    ):
        console.print(line, soft_wrap=True)


def _place(folder: str) -> tuple[int, str]:
    """Return what sorts a folder: ours in the table's order, then others by name."""
    return (_FOLDERS.index(folder) if folder in _FOLDERS else len(_FOLDERS)), folder


def _copy(file: Path, folder: Path) -> int:
    """Copy a file and those it builds on; nothing where one of them is there already.

    Raises:
        OSError: the folder cannot be made or written to.
        ValueError: a file cannot be read, or builds on one that lies elsewhere.
    """
    files = [file] if file in engine_profiles().values() else list(config_chain(file))
    targets = {f: folder / f.resolve().relative_to(recipes_folder().resolve()) for f in files}
    if there := [str(target) for target in targets.values() if target.exists()]:
        print(f"{PROG}: {', '.join(there)} exists. Give another folder.", file=sys.stderr)
        return _EXIT_WRONG_ARGUMENTS
    for source, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        print(target)
    return 0
