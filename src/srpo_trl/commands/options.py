"""Options of a command: from a YAML file and the command line into dataclasses, with every problem in one message."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from trl import TrlParser

from srpo_trl.commands.config_file import config_chain, merged
from srpo_trl.commands.help import show_help
from srpo_trl.commands.launch import LAUNCHED, PROFILE, launcher_options, split_config, split_words
from srpo_trl.config.former import IDLE, taken_over
from srpo_trl.config.ranges import described
from srpo_trl.config.renamed import FORMER, unknown_option

EXIT_WRONG_ARGUMENTS = 2  # argparse's own status for the same thing
# Options that hold a path in which ~ is the home folder; transformers does the same for output_dir.
PATHS = (
    "model_name_or_path",
    "reward_model_name_or_path",
    "dataset_name",
    "data_dir",
    "resume_from_checkpoint",
)

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class CollectingParser(TrlParser):
    """Notes every value that is not of its option's type, where argparse ends at the first.

    Attributes:
        wrong: what is wrong, by option.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.wrong: dict[str, str] = {}
        super().__init__(*args, **kwargs)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            annotations = {n: a for kind in self.dataclass_types for n, a in get_type_hints(kind).items()}
            annotation = annotations.get(action.dest)
            required = f" must be {described(annotation)}" if annotation else f": {error.message}"
            self.wrong[action.dest] = f"{action.dest}={arg_string!r}{required}."
            return None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Leave choices to `parse_options`, which looks at the file's values as well."""


def parse_options(
    argv: Sequence[str],
    kinds: Sequence[type],
    *,
    prog: str,
    usage: str,
    defaults: dict[str, Any] | None = None,
    hidden: Sequence[str] = (),
) -> tuple[list[Any], list[str]]:
    """Parse a command line and the YAML file it names, and build one object of each dataclass.

    As in TRL's scripts, the YAML file's values replace the defaults, the command line's replace both, and
    `env:` in the YAML file sets environment variables. `TrlParser.parse_args_and_config` stops at the first
    dataclass that refuses its values; this continues and returns every problem. Former options that mean the same
    today are taken, and logged. Options of accelerate's launcher are left to `read_launch`.

    Args:
        argv: the command line, without the command.
        kinds: dataclasses; their fields are the options.
        prog: the command, as help shows it.
        usage: its usage line.
        defaults: of this command where they are not the dataclass's.
        hidden: groups of options that `--help` leaves out.
    Returns:
        One object of each kind, None where its values were refused, and the problems; of an unreadable file that alone.
    Raises:
        SystemExit: for `--help`, or an option without its value.
    """
    kinds_for_parser: Any = tuple(kinds)  # TrlParser's annotation knows no dataclass types
    parser = CollectingParser(kinds_for_parser, prog=prog, usage=usage, allow_abbrev=False)
    parser.add_argument(
        "--config", metavar="FILE", help="Recipe, or YAML file, with values for any option below."
    )
    show_help(argv, parser, kinds, defaults or {}, hidden)
    path, arguments = split_config(split_words(argv)[1])
    problems: list[str] = []
    chain = [{}] if path is None else collect_error(problems, config_chain, path)
    if problems:
        return [None] * len(kinds), problems
    known = {option.dest for option in parser._actions} | {"num_processes", PROFILE}
    values, arguments = _with_todays_names(chain[0], arguments, known)
    os.environ.update({name: str(value) for name, value in values.pop("env", {}).items()})
    values = {name: value for name, value in values.items() if name not in launcher_options()}
    own_defaults = {option.dest: option.default for option in parser._actions} | (defaults or {})
    parser.set_defaults_with_config(**(defaults or {}) | values)
    namespace, unread = parser.parse_known_args(arguments)
    problems += [
        *_unknown_options(values, unread, known),
        *parser.wrong.values(),
        *_corrected(namespace, parser, own_defaults),
    ]
    told = {*values, *(defaults or {}), *_named(arguments)}  # alone, since a log tells what was set

    def built(kind: Any) -> Any:
        given = {f.name: getattr(namespace, f.name) for f in fields(kind) if f.init and f.name in told}
        return next(iter(collect_error(problems, kind, **given)), None)

    return [built(kind) for kind in kinds], problems


def _named(arguments: Sequence[str]) -> set[str]:
    """Return the options that words of a command line name."""
    words = [word.removeprefix("--").split("=")[0] for word in arguments if word.startswith("--")]
    return {name.replace("-", "_") for name in words} | {word.removeprefix("no_") for word in words}


def _corrected(
    namespace: argparse.Namespace, parser: CollectingParser, defaults: dict[str, Any]
) -> Iterator[str]:
    """Put defaults in place of wrong values, whose problems have been told, and expand paths; yield wrong choices."""
    for option in parser._actions:
        value = getattr(namespace, option.dest, None)
        is_no_choice = option.choices and value not in (None, *option.choices)
        if is_no_choice and option.dest not in parser.wrong:
            yield f"{option.dest}={value!r} is not one of {', '.join(map(repr, option.choices or ()))}."
        if is_no_choice or option.dest in parser.wrong:
            setattr(namespace, option.dest, defaults[option.dest])
        elif option.dest in PATHS and isinstance(value, str):
            setattr(namespace, option.dest, os.path.expanduser(value))


def _with_todays_names(
    chain: dict[Path, dict[str, Any]], arguments: list[str], known: set[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the files' values and the command line with former options under today's names.

    Each file is translated by itself: whichever name a file uses, it wins over the one that it builds on.
    """
    former = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in sorted({*FORMER, *IDLE} - known):
        former.add_argument(f"--{name}", f"--{name.replace('_', '-')}", nargs="?", const="true")
    given, rest = former.parse_known_args(arguments)
    names = [word[2:].partition("=")[0].replace("-", "_") for word in rest if word.startswith("--")]
    todays = dict.fromkeys(name for name in names if name in known)
    on_line, notices = taken_over(todays | vars(given), known)
    rest += [w for name, value in on_line.items() if name not in todays for w in (f"--{name}", value)]
    for file, own in chain.items():
        chain[file], more = taken_over(own, known)
        notices += more
    if os.environ.get("RANK", "0") == "0" and LAUNCHED not in os.environ:  # which has told them
        for notice in dict.fromkeys(notices):
            logger.warning(notice)
    return merged(chain), rest


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
