"""The names of `METHODS`: of SRPO's own comparison, and of the family around it, and what each needs. No trainer."""

import inspect
from typing import Any

from srpo_trl.methods import METHODS, VARIANTS

PAPER = tuple(dict.fromkeys(options["method"] for options in VARIANTS.values()))
FAMILY = tuple(name for name in METHODS if name not in PAPER)


def needs(name: str, folder: Any = "teacher") -> dict[str, Any]:
    """Return the options without which a method is refused; every external teacher is the model in one folder."""
    factory = METHODS[name].factory
    given = {"entropy_weight_beta": 1.0, "advantage_mix_lambda": 0.5}
    method = factory(**{n: given[n] for n in inspect.signature(factory).parameters if n in given})
    external = [scorer for scorer in method.scorers if scorer.weights == "external"]
    models = {scorer.model or "teacher": str(folder) for scorer in external}
    return {"teacher_model": models} if models else {}


def columns(name: str) -> tuple[str, ...]:
    """Return the dataset columns that the method's scorers read."""
    return {"skill_sd": ("skill",), "trace": ("label",), "selfci": ("utility", "privacy")}.get(name, ())
