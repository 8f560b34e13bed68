"""From the options `method`, `method_options` and `routing` to the method that the trainer executes."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

import torch

from srpo_trl.config.ranges import value_problems
from srpo_trl.methods import METHODS, factory_of, testing
from srpo_trl.methods.record import (
    ROUTE_NAMES,
    Distance,
    Graded,
    Method,
    Scorer,
    ScorerWeights,
    is_distilled,
    is_policy,
)
from srpo_trl.methods.routers import ROUTERS

_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def make_method(name: Any, method_options: Any, routing: Any, options: Mapping[str, Any]) -> Method:
    """Return the method of these options.

    Args:
        name: a key of `METHODS`, or "module:factory".
        method_options: the factory's keyword arguments, a mapping or JSON.
        routing: a key of `ROUTERS`, which takes the place of the method's router; None: none does.
        options: other options. A parameter of the factory with one of their names takes its value.
    Raises:
        ValueError: what was given, what is required, and what to do; a line for each problem.
    """
    readers: list[tuple[Callable[[Any], Any], Any]]
    readers, read, problems = (
        [(factory_of, name), (method_arguments, method_options), (_router, routing)],
        [],
        [],
    )
    for reader, value in readers:
        try:
            read.append(reader(value))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    factory, given, router = read
    arguments = _arguments(factory, given, options)
    try:
        method = factory(**arguments)
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError(f"method={name!r} with method_options={given!r} cannot be made: {error}") from error
    if not isinstance(method, Method):
        raise ValueError(
            f"method={name!r} makes a {type(method).__name__}; an srpo_trl.methods.record.Method is required."
        )
    if router is not None:
        method = method._replace(route=router)
    problem = _problem(method)
    if problem:
        raise ValueError(f"method={name!r} with routing={routing!r} {problem}")
    return method


def method_arguments(method_options: Any) -> dict[str, Any]:
    """Return the option `method_options` as a dictionary, sorted by name; on the command line it is JSON.

    Raises:
        ValueError: it is no mapping from names to values.
    """
    try:
        given = json.loads(method_options) if isinstance(method_options, str) else method_options or {}
    except ValueError as error:
        raise ValueError(f"method_options={method_options!r} is not JSON: {error}") from error
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"method_options={method_options!r} must be a mapping from names to values.")
    return dict(sorted(given.items()))


def _arguments(
    factory: Callable[..., Any], given: dict[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    parameters = inspect.signature(factory).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    takes_any, called = inspect.Parameter.VAR_KEYWORD in kinds, getattr(factory, "__name__", "the factory")
    own = [n for n, p in parameters.items() if n not in options and p.kind not in _VARIABLE]
    for name in given:
        if name in options and (name in parameters or takes_any):
            raise ValueError(
                f"method_options has {name!r}, which is an option of its own. Give {name}=... instead."
            )
        if name not in own and not takes_any:
            takes = f"it takes {', '.join(own)}" if own else "it takes none"
            raise ValueError(f"method_options has {name!r}, which {called}() does not take; {takes}.")
    missing = [n for n in own if n not in given and parameters[n].default is inspect.Parameter.empty]
    if missing:
        raise ValueError(f"method_options lacks {', '.join(missing)}, which {called}() needs.")
    wrong = _wrong_values(factory, given)
    if wrong:
        raise ValueError("\n".join(f"method_options: {problem}" for problem in wrong))
    return given | {name: options[name] for name in parameters if name in options}


def _wrong_values(factory: Callable[..., Any], given: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with values by the factory's own annotations, as far as these can be checked."""
    try:
        hints = get_type_hints(factory)
    except (NameError, TypeError, AttributeError):  # of the user's own, or a factory that is no function
        return []
    try:
        return list(value_problems(given, {n: hints[n] for n in given if n in hints}, {}).values())
    except TypeError:
        return []


def _router(routing: Any) -> Callable[[Graded], torch.Tensor] | None:
    if routing is None:
        return None
    if isinstance(routing, str) and routing in ROUTERS:
        return ROUTERS[routing]
    if isinstance(routing, str) and routing in METHODS:
        raise ValueError(f"routing={routing!r} is a method, not a router. Give method={routing!r}.")
    raise ValueError(f"routing={routing!r} is not one of {', '.join(map(repr, ROUTERS))}, or None.")


def _problem(method: Method) -> str:
    """Return what does not fit within a method, tried on groups of each kind; empty where all does."""
    if problem := _problem_of_scorers(method.scorers) or _problem_of_functions(method):
        return problem
    distills = has_policy = False
    for step in testing.STEPS:
        graded = testing.groups(step)
        route_PG = method.route(graded)
        if not _are_routes(route_PG, graded.is_correct_PG.shape):
            return "has a router that does not give a Route for each rollout, (P, G) int64 of 0 to 3."
        distills |= bool(is_distilled(route_PG).any())
        has_policy |= bool(is_policy(route_PG).any())
    if method.distilling and not distills:
        return (
            "scores rollouts with a teacher and distills none. Give a router that distills, or method='grpo'."
        )
    if distills and not method.distilling:
        return "distills rollouts that no teacher scores. Leave routing out, or give a method with a scorer."
    for name in ("advantages", "pull", "anchor"):
        if getattr(method, name) is not None and not has_policy:
            return f"has {name}, and no rollout takes the policy loss. Give a router that lets some take it."
    for step in testing.STEPS:
        try:
            method.divergence_at(step)
        except (TypeError, ValueError) as error:
            return f"has a divergence that cannot be: {error}"
    return ""


def _problem_of_functions(method: Method) -> str:
    for name in ("route", "rows", "weights", "strength", "advantages", "pull", "anchor"):
        value = getattr(method, name)
        if not callable(value) and not (value is None and name not in ("route", "strength")):
            return f"has {name}={value!r}; a function is required."
    return ""


def _problem_of_scorers(scorers: Sequence[Scorer]) -> str:
    if not isinstance(scorers, tuple) or not all(isinstance(scorer, Scorer) for scorer in scorers):
        return f"has scorers that are {scorers!r}; a tuple of srpo_trl.methods.record.Scorer is required."
    cached = [scorer.name for scorer in scorers if scorer.weights == "cached"]
    known: list[str] = []
    for scorer in scorers:
        if not scorer.name.isidentifier() or scorer.name in known:
            return f"has a scorer with the name {scorer.name!r}; each needs one of its own, which is an identifier."
        if scorer.weights not in get_args(ScorerWeights):
            return f"has a scorer with weights={scorer.weights!r}; they are one of {get_args(ScorerWeights)}."
        if scorer.distils and scorer.weights not in ("teacher", "external"):
            return f"distils to the {scorer.weights} weights. Set distils=False, or take teacher_model_kind for it."
        if scorer.distance not in get_args(Distance):
            return f"has a scorer with distance={scorer.distance!r}; it is one of {get_args(Distance)}."
        if scorer.against is not None and {scorer.name, scorer.against} & set(cached):
            return f"compares the scorer {scorer.name!r} with {scorer.against!r}, but stored ones have no distribution."
        if scorer.against is not None and scorer.against not in known:
            return f"has a scorer against {scorer.against!r}; it must be one of those before it: {known}."
        if scorer.against is not None and scorer.distils:
            return f"has the scorer {scorer.name!r} against another, which needs distils=False."
        known.append(scorer.name)
    return ""


def _are_routes(found: Any, shape: torch.Size) -> bool:
    is_placed = isinstance(found, torch.Tensor) and found.shape == shape and found.dtype == torch.int64
    return is_placed and bool(((found >= 0) & (found < len(ROUTE_NAMES))).all())
