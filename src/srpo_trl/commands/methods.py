"""`srpo-trl methods`: every method, or one on a page of its own, as the methods themselves say."""

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from srpo_trl.methods import METHODS, factory_of, groups, routers, testing
from srpo_trl.methods.card import HEADING
from srpo_trl.methods.record import ROUTE_NAMES, TEACHER_CONTEXT, Graded, Method

EXIT_UNKNOWN = 2
_CONTEXT = "a correct rollout of the group, feedback, a reference, or a column's prompt"
_NEEDS_WIDTH = 13
_MODEL = "MODEL"  # in place of a folder or hub id
_OPTION = 0.5  # in place of any option of the configuration that a factory takes


class Description(NamedTuple):
    """What the docstrings of a method's file and of its factory say.

    Attributes:
        title, paper, sentence: of the file's first line, `TITLE (arXiv:ID): SENTENCE`; paper is "ours" where none is
            named, and "id unknown" where a paper's id could not be checked.
        paragraphs: of the factory's docstring; the last is `Source: ...`.
    """

    title: str
    paper: str
    sentence: str
    paragraphs: list[str]


def show_methods(argv: Sequence[str]) -> int:
    """Print the table of methods, or one method's page, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="srpo-trl methods",
        description="List the methods, or say what one trains, where it comes from and how it is chosen.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a method, or your own as module:factory")
    name = parser.parse_args(argv).name
    console = Console(highlight=False, markup=False, emoji=False)
    if name is None:
        console.print(_table())
        console.print(f"Context is what a teacher is shown: {_CONTEXT}.")
        console.print("srpo-trl methods NAME: formula, options, source, and the lines for a YAML file.")
        return 0
    try:
        factory = factory_of(name)
    except ValueError as error:
        print(f"srpo-trl methods: {error}", file=sys.stderr)
        return EXIT_UNKNOWN
    for line in _page(name, factory):
        console.print(line)
    return 0


def describe(factory: Callable[..., Method]) -> Description:
    """Return what a method says of itself."""
    first = (inspect.getdoc(inspect.getmodule(factory)) or "").partition("\n")[0]
    found = HEADING.fullmatch(first)
    paragraphs = [" ".join(part.split()) for part in (inspect.getdoc(factory) or "").split("\n\n")]
    if found is None:
        return Description(getattr(factory, "__name__", "a method"), "ours", first, paragraphs)
    return Description(found["title"], found["paper"] or "ours", found["sentence"], paragraphs)


def with_defaults(factory: Callable[..., Method]) -> Method:
    """Return the method with the defaults of its own options; those of the configuration have some value."""
    parameters = inspect.signature(factory).parameters.values()
    return factory(**{p.name: _OPTION for p in parameters if p.default is p.empty})


def trained_on(method: Method) -> str:
    """Return in words what trains a rollout, tried on groups of every kind at a run's start and late in it."""
    early, late = (_routes(method, testing.groups(step)) for step in testing.STEPS)
    parts = [early if early == late else f"{early}. Later {late}"]
    parts += ["own advantages"] * (method.advantages is not None)
    parts += ["a pull"] * (method.pull is not None)
    parts += ["own ratio"] * (method.anchor is not None)
    return "; ".join(parts)


def needs(method: Method) -> str:
    """Return in words what must be there for a method beside prompts and rewards."""
    graded = testing.groups(0)
    has_sibling = bool((routers.needs_context(method, graded) & ~groups.has_failed(graded)).any())
    shown = "context" if has_sibling else "feedback or a reference"
    models = _models(method)
    found = [f"teacher models {', '.join(models)}" if any(models) else "teacher model"] * bool(models)
    columns = method.columns
    found += [shown] * (TEACHER_CONTEXT in method.contexts)
    found += [f"column{'s' * (len(columns) > 1)} {', '.join(columns)}"] * bool(columns)
    found += ["stored rollouts"] * method.reads_stored
    found += ["spans of rollouts"] * method.spans
    return "; ".join(found) or "nothing"


def _models(method: Method) -> list[str]:
    """Return the names of the external teachers, each once; of one without a name ""."""
    return list(dict.fromkeys(scorer.model for scorer in method.scorers if scorer.weights == "external"))


def _routes(method: Method, graded: Graded) -> str:
    """Return which rollouts take which route, as `RULE: ROUTE; others: ROUTE`."""
    if not method.contexts:  # nothing that a scorer reads can be missing
        graded = graded._replace(has_context_PG=torch.ones_like(graded.has_context_PG))
    route_PG, correct_PG, shown_PG = method.route(graded), graded.is_correct_PG, graded.has_context_PG
    failed_group_PG = groups.has_failed(graded).expand_as(correct_PG)
    rules: Mapping[str, Tensor] = {
        "all": correct_PG | ~correct_PG,
        "correct": correct_PG,
        "failed": ~correct_PG,
        "whole group failed": failed_group_PG,
        "with context": shown_PG,
        "correct with context": correct_PG & shown_PG,
        "failed with context": ~correct_PG & shown_PG,
        "context and whole group failed": failed_group_PG & shown_PG,
    }
    left, parts = sorted(set(route_PG.flatten().tolist()), reverse=True), []
    for rule, mask_PG in rules.items():
        value = next((value for value in left if bool(((route_PG == value) == mask_PG).all())), None)
        if value is not None:
            parts.append(f"{rule}: {ROUTE_NAMES[value]}")
            left.remove(value)
    names = " or ".join(ROUTE_NAMES[value] for value in left)
    return "; ".join([*parts, *([f"{'others' if parts else 'by the group'}: {names}"] if left else [])])


def _table() -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("method", "paper"):
        table.add_column(column, no_wrap=True)
    table.add_column("trained on")
    table.add_column("needs", max_width=_NEEDS_WIDTH)
    for name, entry in METHODS.items():
        method, paper = with_defaults(entry.factory), describe(entry.factory).paper
        table.add_row(name, paper.removeprefix("arXiv:"), trained_on(method), needs(method))
    return table


def _page(name: str, factory: Callable[..., Method]) -> Iterator[str]:
    """Yield the lines about one method."""
    said = describe(factory)
    yield f"{said.title}, {said.paper}: {said.sentence}\n"
    for paragraph in said.paragraphs:
        yield paragraph + "\n"
    models: list[str] = []
    if name in METHODS:
        method = with_defaults(factory)
        models = _models(method)
        yield f"Trained on: {trained_on(method)}\nNeeds: {needs(method)}\n"
    parameters = inspect.signature(factory).parameters
    own = {option: p.default for option, p in parameters.items() if p.default is not p.empty}
    yield "With the defaults of its options, for `srpo-trl train --config`:\n"
    yield f"method: {name}"
    paths = json.dumps(dict.fromkeys(models, _MODEL)) if any(models) else _MODEL
    yield from [f"teacher_model: {paths}"] * bool(models)
    yield from ["method_options:"] * bool(own)
    for option, value in own.items():
        yield f"  {option}: {json.dumps(value, default=str)}"
    defaults = METHODS[name].defaults if name in METHODS else {}
    for option in (option for option in parameters if option not in own):
        value = defaults.get(option)
        yield f"# {option}: as the option has it" if value is None else f"{option}: {json.dumps(value)}"
