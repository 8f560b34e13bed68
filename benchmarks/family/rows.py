"""What each method is given: the options of its recipe, and the teacher, columns or rollouts that it needs."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.learning.given import solutions
from benchmarks.learning.rows import ROWS
from benchmarks.learning.tasks import TASKS
from srpo_trl.commands.quickstart.prompts import TEMPLATES
from srpo_trl.commands.quickstart.task import Question, solution_pieces
from srpo_trl.methods import METHODS
from srpo_trl.teacher.templates import TeacherInformation

TASK = TASKS["quiz8w"]
NUM_SEEDS = 3  # each with a start of its own
ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "configs/methods"
RECIPE_STEPS = 300  # of a recipe's run; options that count its steps keep their share of a run
COUNTS_STEPS = ("at_step", "reverse_from_step", "decay_steps")

SIBLING = "sibling"
TEACHER = "teacher"
NOTHING = "-"
_SOLUTION = "solution"
# By the groups of docs/methods.md: what a method's teacher is, or is shown, in the words of benchmarks/METHODS.md.
GIVEN: dict[str, dict[str, str]] = {
    "The teacher is the same model": {
        "srpo": SIBLING,
        "grpo": NOTHING,
        "sdpo": SIBLING,
        "srpo_unweighted": SIBLING,
        "sdpo_failed": SIBLING,
        "sdpo_correct": SIBLING,
        "advantage_mix": SIBLING,
        "hdpo": _SOLUTION,
        "opsd": SIBLING,
        "pi_distill": SIBLING,
        "opsd_zhao": _SOLUTION,
        "paced": SIBLING,
        "sc_sdpo": SIBLING,
        "distil": "feedback",
        "decoupling": SIBLING,
        "many_faces": SIBLING,
        "sdpo_then_grpo": SIBLING,
        "rlsd": SIBLING,
        "tip": SIBLING,
        "va_opd": SIBLING,
        "cord": SIBLING,
        "selfci": "two solutions",
        "skill_sd": _SOLUTION,
        "trace": "solution, spans",
        "srpo_stable": SIBLING,
        "srpo_both": SIBLING,
        "ema_anchor": NOTHING,
    },
    "The teacher is another model": {
        **dict.fromkeys(("kdrl", "opd", "opd_then_rl", "rlad", "g_opd", "uni_opd", "scope"), TEACHER),
        **dict.fromkeys(("vopd", "vla_opd", "tcod"), TEACHER),
        "mad_opd": "two teachers",
        "erpd": "GRPO's model",
        "salsa": "average",
        "lightning": "teacher's rollouts",
    },
    "No teacher": {
        **dict.fromkeys(("clip_cov", "kl_cov", "negative_control", "dmpo", "rapo", "f_dpg"), NOTHING),
        **dict.fromkeys(("apo", "fg_expo", "eksft", "gtpo", "dgpo"), NOTHING),
        "dph_rl": "start's rollouts",
    },
}
# Why a method has no run of its own.
LEFT_OUT = {
    "pi_distill": "here it is `opsd`: its second half, samples of the teacher, is not in the package",
    "tcod": "here it is `opd`: it differs from the second turn of a rollout on, and these have one",
    "clip_cov": "here it is `grpo`: its recipe's share of 0.0002 of a step's 2,100 tokens is none",
    "kl_cov": "here it is `grpo`: it acts from the second update of a rollout batch on, and these have one",
}
# Methods that the learning study has rows of, and those rows.
STUDIED = {
    **{name: name for name in METHODS if ROWS.get(name, {}).get("method") == name},
    "srpo_unweighted": "srpo_beta0",
    "srpo_both": "both",
}
FIRST_STAGE = "grpo_first_stage"  # a row: GRPO, whose last model is ERPD's teacher

Columns = Callable[[Sequence[Question]], dict[str, list[str]]]


def own_options(method: str) -> dict[str, Any]:
    """Return what the method's recipe sets of its own, and what its docs ask for where it has none."""
    options: dict[str, Any] = {"method": method}
    recipe = RECIPES / f"{method}.yaml"
    if recipe.is_file():
        written = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        options |= {key: value for key, value in written.items() if key not in _OF_A_RUN}
    if "method_options" in options:
        options["method_options"] = {
            name: value * TASK.num_steps // RECIPE_STEPS if name in COUNTS_STEPS and value else value
            for name, value in options["method_options"].items()
        }
    return options | _OPTIONS.get(method, {})


_OF_A_RUN = ("base", "output_dir", "teacher_model")  # of a recipe
_OPTIONS: dict[str, dict[str, Any]] = {
    "hdpo": {"reference_column": "solution"},
    "opsd_zhao": {"reference_column": "solution"},
    "skill_sd": {"teacher_update_rate": 1.0},
    "trace": {"teacher_update_rate": 1.0, "teacher_update_interval": 10},
}


def external_models(method: str) -> list[str]:
    """Return the names of the other models that score for a method; "" names the only one."""
    if method in STUDIED:
        return []
    entry = METHODS[method]
    taken = {
        name: entry.defaults[name]
        for name in inspect.signature(entry.factory).parameters.keys() & entry.defaults
    }
    scorers = entry.factory(**taken, **own_options(method).get("method_options", {})).scorers
    return [scorer.model for scorer in scorers if scorer.weights == "external"]


def columns(method: str) -> Columns:
    """Return what makes the columns that a method reads."""
    return _COLUMNS.get(method, lambda questions: {})


def _with_solution(question: Question, solution: str) -> str:
    """Return the user's turn that the warm-up has taught to read: the question and a right solution."""
    return TEMPLATES.user_turn(question.prompt, TeacherInformation(solution=solution))


def _prompts(name: str) -> Columns:
    return lambda questions: {name: [_with_solution(each, each.demonstration) for each in questions]}


def _two_prompts(questions: Sequence[Question]) -> dict[str, list[str]]:
    first, second = _prompts("utility")(questions), [_with_solution(each, each.shown) for each in questions]
    return first | {"privacy": second}


_COLUMNS: Mapping[str, Columns] = {
    "hdpo": solutions,
    "opsd_zhao": solutions,
    "skill_sd": _prompts("skill"),
    "trace": _prompts("label"),
    "selfci": _two_prompts,
}


def feedback(prompts: list[str], texts: list[str], answers: list[str]) -> dict[str, list[Any]]:
    """Return feedback in the tokenizer's words: which products of a quiz are wrong, none where all are right."""
    return {"feedback": [_wrong_products(*each) for each in zip(prompts, texts, answers, strict=True)]}


def _wrong_products(prompt: str, text: str, answer: str) -> str:
    if TASK.is_right(text, answer):
        return ""
    given = ["".join(piece for piece in solution_pieces(part) if len(piece) == 1) for part in text.split(";")]
    wanted = answer.split(";")[:-1]
    given += [""] * len(wanted)
    wrong = [
        product
        for product, *pair in zip(prompt.split(";"), given, wanted, strict=False)
        if pair[0] != pair[1]
    ]
    return "".join(f"{product} is wrong." for product in wrong) or "No answer."


def spans_of_digits(prompts: list[str], texts: list[str], answers: list[str]) -> dict[str, list[Any]]:
    """Return the spans of each text's digits, in tokens: what decides whether it is right."""
    return {"spans": [digit_spans(text) for text in texts]}


def digit_spans(text: str) -> list[tuple[int, int]]:
    """Return first and end of each run of digits of a text, counted in the tokenizer's tokens."""
    spans: list[tuple[int, int]] = []
    for place, piece in enumerate(solution_pieces(text)):
        if piece.isdigit():
            first = spans.pop()[0] if spans and spans[-1][1] == place else place
            spans.append((first, place + 1))
    return spans


EXTRAS = {"distil": feedback, "trace": spans_of_digits}
