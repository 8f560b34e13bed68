"""Options of a command: from a YAML file and the command line into dataclasses, with every problem in one message."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from trl import TrlParser

from srpo_trl.commands.config_file import read_config_file
from srpo_trl.config.renamed import unknown_option

EXIT_WRONG_ARGUMENTS = 2  # argparse's own status for the same thing

Result = TypeVar("Result")


def parse_options(
    argv: Sequence[str],
    kinds: Sequence[type],
    *,
    prog: str,
    usage: str,
    defaults: dict[str, Any] | None = None,
) -> tuple[list[Any], list[str]]:
    """Parse a command line and the YAML file it names, and build one object of each dataclass.

    As in TRL's scripts, the YAML file's values replace the defaults, the command line's replace both, and
    `env:` in the YAML file sets environment variables. `TrlParser.parse_args_and_config` stops at the first
    dataclass that refuses its values; this continues and returns every problem.

    Args:
        argv: the command line, without the command.
        kinds: dataclasses; their fields are the options.
        prog: the command, as help shows it.
        usage: its usage line.
        defaults: of this command where they are not the dataclass's.
    Returns:
        One object of each kind, None where its values were refused, and the problems.
    Raises:
        SystemExit: for `--help`, or a value that cannot be read as its option's type.
    """
    kinds_for_parser: Any = tuple(kinds)  # TrlParser's annotation knows no dataclass types
    parser = TrlParser(kinds_for_parser, prog=prog, usage=usage, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML file with values for any option below.")
    config_file = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_file.add_argument("--config")
    path, arguments = config_file.parse_known_args(argv)
    problems: list[str] = []
    values: dict[str, Any] = {}
    if path.config is not None:
        values.update(*collect_error(problems, read_config_file, path.config))
    os.environ.update({name: str(value) for name, value in values.pop("env", {}).items()})

    parser.set_defaults_with_config(**(defaults or {}) | values)
    namespace, unread = parser.parse_known_args(arguments)
    problems += _unknown_options(values, unread, known={option.dest for option in parser._actions})
    for option in parser._actions:  # argparse checks choices on the command line only
        value = getattr(namespace, option.dest, None)
        if option.choices and value not in (None, *option.choices):
            problems.append(f"{option.dest}={value!r} is not one of {', '.join(map(repr, option.choices))}.")

    def built(kind: Any) -> Any:
        given = {f.name: getattr(namespace, f.name) for f in fields(kind) if f.init}
        return next(iter(collect_error(problems, kind, **given)), None)

    return [built(kind) for kind in kinds], problems


def collect_error(
    problems: list[str], function: Callable[..., Result], *args: Any, **kwargs: Any
) -> list[Result]:
    """Return `[function(...)]`, or `[]` with the message of its ValueError or OSError added to `problems`."""
    try:
        return [function(*args, **kwargs)]
    except (ValueError, OSError) as error:
        problems.append(str(error))
        return []


def exit_with_errors(prog: str, problems: Sequence[str]) -> int:
    """Write every problem to standard error, and return the exit status of wrong arguments."""
    items = ["- " + problem.replace("\n", "\n  ") for problem in problems]
    print("\n".join([f"{prog}: nothing was started, because", *items]), file=sys.stderr)
    return EXIT_WRONG_ARGUMENTS


def _unknown_options(values: dict[str, Any], unread: list[str], known: set[str]) -> Iterator[str]:
    """Yield the YAML keys and command-line words that belong to no option."""
    names = [name for name in values if name not in known]
    names += [word.removeprefix("--").split("=")[0] for word in unread if word.startswith("--")]
    yield from (unknown_option(name, known) for name in names if name not in known)
    if unread and not names:
        yield f"{' '.join(unread)!r} belongs to no option: write --option value."
