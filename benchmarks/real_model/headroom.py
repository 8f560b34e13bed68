"""Is there anything to learn: accuracy, mixed groups, and the teacher beside the student; measured before training."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks.real_model.sampling import Prompts, completion_tokens, sample
from benchmarks.real_model.task import Question, is_right
from srpo_trl.runs.scores import estimate

NUM_GENERATIONS = 8
SAMPLES_SHOWN = 4  # of the teacher, for each question
MARGIN = 0.1  # by which the teacher's accuracy is to be above the student's


class Share(NamedTuple):
    """A mean over questions and its standard error."""

    mean: float
    error: float


def share(value: Sequence[float]) -> str:
    """Return a `Share`, or what JSON has made of it, as text."""
    return f"{value[0]:.3f} ± {value[1]:.3f}"


def accuracy(model: Any, prompts: Prompts, questions: Sequence[Question]) -> Share:
    """Return the share of questions that one completion answers rightly."""
    texts = _sampled(model, prompts, [prompts.student(q) for q in questions], questions)
    return _mean([is_right(text, q.answer) for text, q in zip(texts, questions, strict=True)])


def measure(model: Any, prompts: Prompts, questions: Sequence[Question]) -> dict[str, Share]:
    """Return accuracies and the share of mixed groups, those in which some rollouts are right and some wrong.

    Only in a mixed group is there a correct sibling for a failed rollout, and do rewards differ. The teacher is shown
    the group's first right rollout, and it and the student are compared on the questions of mixed groups.
    """
    asked = [prompts.student(q) for q in questions for _ in range(NUM_GENERATIONS)]
    groups = _split(_sampled(model, prompts, asked, questions), NUM_GENERATIONS)
    right = [[is_right(text, q.answer) for text in texts] for q, texts in zip(questions, groups, strict=True)]
    mixed = [index for index, row in enumerate(right) if 0 < sum(row) < NUM_GENERATIONS]
    shown = [
        prompts.teacher(questions[index], groups[index][right[index].index(True)].strip())
        for index in mixed
        for _ in range(SAMPLES_SHOWN)
    ]
    taught = _split(_sampled(model, prompts, shown, questions), SAMPLES_SHOWN)
    teacher = [
        fmean(is_right(text, questions[index].answer) for text in texts)
        for index, texts in zip(mixed, taught, strict=True)
    ]
    return {
        "student": _mean([fmean(row) for row in right]),
        "mixed": _mean([0 < sum(row) < NUM_GENERATIONS for row in right]),
        "student_on_mixed": _mean([fmean(right[index]) for index in mixed]),
        "teacher_on_mixed": _mean(teacher),
    }


def reason_to_refuse(facts: Mapping[str, Any]) -> str | None:
    """Return why nothing can be learned from a start of which `measure` says this; None where something can."""
    if facts["mixed"][0] == 0:
        return (
            f"no group of {NUM_GENERATIONS} rollouts is mixed: the start is right in {share(facts['student'])} of its "
            "answers, so there is no correct sibling to show to a teacher, and no two rewards of a group differ. Give "
            "another --level or more --warmup_examples."
        )
    student, teacher = facts["student_on_mixed"], facts["teacher_on_mixed"]
    if teacher[0] < student[0] + MARGIN:
        return (
            f"the teacher has nothing to teach: with a correct sibling shown it is right in {share(teacher)} of its "
            f"answers, the student in {share(student)} on the same questions, and {MARGIN} more are required. Give "
            "another --level or more --warmup_examples, which teach the model to use what it is shown."
        )
    return None


def describe(facts: Mapping[str, Any]) -> list[str]:
    """Return what was measured before training, as lines."""
    examples = facts["warmup_examples"]
    return [
        f"Questions of level {facts['level']}, sampled at temperature 1, standard errors over questions:",
        f"- the model as it is: right {share(facts['base'])}",
        f"- the start, {f'after a warm-up on {examples} examples' if examples else 'the same'}: right "
        f"{share(facts['student'])}, mixed groups {share(facts['mixed'])}",
        f"- on the questions of mixed groups: the student {share(facts['student_on_mixed'])}, the teacher with a "
        f"correct sibling shown {share(facts['teacher_on_mixed'])}",
    ]


def _sampled(
    model: Any, prompts: Prompts, asked: Sequence[Sequence[int]], questions: Sequence[Question]
) -> list[str]:
    return sample(model, prompts.tokenizer, asked, completion_tokens(prompts.tokenizer, questions))


def _split(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def _mean(values: Sequence[float]) -> Share:
    found = estimate([float(value) for value in values])
    return Share(math.nan, math.nan) if found is None else Share(found.mean, found.standard_error or 0.0)
