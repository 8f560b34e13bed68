"""Teachers that are models of their own: which there are, and whether they are what the method asks for."""

import json
from collections.abc import Iterable, Iterator, Mapping
from os.path import expanduser
from typing import Any

from srpo_trl.methods.record import Method, Scorer

_ONLY = "teacher"  # name of a teacher that is given without one


def named_models(teacher_model: Any) -> dict[str, str]:
    """Return the option `teacher_model` as paths by name; of one path alone the name is "teacher".

    Raises:
        ValueError: it is neither a path nor a mapping from names to paths, nor one as JSON.
    """
    if teacher_model is None:
        return {}
    given = teacher_model
    if isinstance(given, str) and given:
        if not given.lstrip().startswith("{"):
            return {_ONLY: expanduser(given)}
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ValueError(f"teacher_model={teacher_model!r} is not JSON: {error}") from error
    if not isinstance(given, Mapping) or not all(
        isinstance(s, str) and s for pair in given.items() for s in pair
    ):
        raise ValueError(f"teacher_model={teacher_model!r} must be a path, or a mapping from names to paths.")
    return {name: expanduser(path) for name, path in given.items()}


def read_columns(
    method: str, method_record: Method, reference_column: str | None, teacher_column: str | None
) -> dict[str, str]:
    """Return the dataset columns that are read beside the prompt, each with what reads it."""
    named = {"reference_column": reference_column, "teacher_column": teacher_column}
    return {
        **{context: f"the context {context!r} of method={method!r}" for context in method_record.columns},
        **{column: f"{name}={column!r}" for name, column in named.items() if column is not None},
    }


def unknown_teacher(teacher_column: str | None, names: Iterable[Any], teachers: Iterable[str]) -> str:
    """Return which of a column's values names no teacher, and what it must be; empty where all do."""
    known = list(teachers)
    wrong = [name for name in names if name not in known]
    if not wrong:
        return ""
    return f"teacher_column={teacher_column!r} holds {wrong[0]!r}; it must name one of {', '.join(map(repr, known))}."


def readable_teachers(teacher_model: Any) -> Iterator[str]:
    """Yield whether `teacher_model` is no path and no mapping to paths."""
    try:
        named_models(teacher_model)
    except ValueError as error:
        yield str(error)


def external_teachers(
    method: str, method_record: Method, teacher_model: Any, teacher_column: str | None
) -> Iterator[str]:
    """Yield what does not fit between the method's scorers, `teacher_model` and `teacher_column`."""
    if list(readable_teachers(teacher_model)):
        return
    models = named_models(teacher_model)
    scorers = [scorer for scorer in method_record.scorers if scorer.weights == "external"]
    if models and not scorers:
        yield f"teacher_model={teacher_model!r} is read by no scorer of method={method!r}. Leave it out."
    if scorers and not models:
        yield (
            f"method={method!r} scores with an external teacher, but teacher_model is None. Give the path of a model "
            "with the same tokenizer."
        )
    unknown = [scorer.model for scorer in scorers if scorer.model and scorer.model not in models]
    if unknown and models:
        yield (
            f"method={method!r} has scorers of the models {', '.join(map(repr, unknown))}, but teacher_model has "
            f"{', '.join(map(repr, models))}. Give these names to paths in teacher_model."
        )
    yield from _chosen_by_row(
        method, [scorer for scorer in scorers if not scorer.model], models, teacher_column
    )


def _chosen_by_row(
    method: str, scorers: list[Scorer], models: Mapping[str, str], teacher_column: str | None
) -> Iterator[str]:
    if len(models) > 1 and scorers and teacher_column is None:
        yield (
            f"teacher_model has {len(models)} models, and a scorer of method={method!r} names none of them. Give the "
            "dataset column that names each row's teacher as teacher_column."
        )
    if teacher_column is not None and not (scorers and len(models) > 1):
        yield (
            f"teacher_column={teacher_column!r} chooses among several teachers; give these in teacher_model, with a "
            "method whose external scorer names none."
        )
    if teacher_column is not None and any(scorer.distils for scorer in scorers):
        yield (
            f"method={method!r} distils over whole distributions, of one model for all rows, but teacher_column="
            f"{teacher_column!r}. Take a method of the sampled token, such as one that only pulls, or one teacher."
        )
