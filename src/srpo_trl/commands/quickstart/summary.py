"""What a quickstart's runs came to, in sentences with their own numbers."""

from collections.abc import Mapping, Sequence

from srpo_trl.commands.curves import CurveSet
from srpo_trl.commands.quickstart.answer import FailedAnswer, wrong_shares
from srpo_trl.commands.quickstart.task import EXPLAINED_METHOD
from srpo_trl.methods import GRPO, METHODS
from srpo_trl.runs.scores import LearningCurve, estimate

LEVELS = (0.6, 0.8)  # of accuracy, the ways to which are compared
FALL = 0.1  # from the best accuracy to the last, above which it is told
WEAK_START = 0.05  # with 8 rollouts a question, two groups of three have no correct one
TEACHER_LEAD = 1.5
CAVEAT = (
    "The task was built to have what answers of real models have (firmly held wrong facts, free wording) and was "
    "picked among nine; other starts (--seed) give other curves. More: "
    "https://srpo-trl.github.io/srpo-trl/quickstart.html"
)


def start_hint(alone: float, shown: float) -> str | None:
    """Return why a start with these accuracies, alone and with a solution shown, gives a teacher little to do."""
    if alone < WEAK_START:
        return (
            f"The start is too weak: {alone:.1%} of its answers are right, so most groups have no correct answer to "
            "show a teacher, and nothing can be distilled. Give more --warmup_steps."
        )
    if shown < TEACHER_LEAD * alone:
        return (
            f"The start's teacher knows little more than its student: {shown:.1%} right with a solution shown, "
            f"{alone:.1%} alone. Give more --warmup_steps."
        )
    return None


def steps_to(curve: LearningCurve, level: float) -> float | None:
    """Return after how many steps a curve reaches the level, read between evaluations; None: it does not."""
    for before, after in zip(curve.points, curve.points[1:], strict=False):
        if before.score < level <= after.score:
            return before.step + (after.step - before.step) * (level - before.score) / (
                after.score - before.score
            )
    return 0.0 if curve.points[0].score >= level else None


def sentences(curves: CurveSet, answers: Sequence[FailedAnswer], num_questions: int) -> list[str]:
    """Return what the runs came to.

    Args:
        curves: by method's title and seed.
        answers: that were logged of the method that is explained.
        num_questions: of an evaluation.
    """
    seeds = "one seed" if curves.num_seeds == 1 else f"means of {curves.num_seeds} seeds"
    ways = [
        f"{level:g}: " + ", ".join(f"{name} {_way(runs, level)}" for name, runs in curves.curves.items())
        for level in LEVELS
    ]
    ends = [f"{name} {_end(runs)}" for name, runs in curves.curves.items()]
    last = max(curve.num_steps for runs in curves.curves.values() for curve in runs.values())
    error = 0.5 / num_questions**0.5
    found = [
        f"Accuracy {'; '.join(ways)}.",
        f"After {last} steps: {', '.join(ends)} ({seeds}; standard error of one evaluation up to {error:.3f}).",
    ]
    if answers:
        tokens, correction = wrong_shares(answers)
        found.append(
            f"In {len(answers)} failed answers that were logged {tokens:.0%} of the tokens are wrong digits: "
            f"{METHODS[GRPO].title} puts that share of its penalty on them, {METHODS[EXPLAINED_METHOD].title} "
            f"{correction:.0%} of its correction."
        )
    return found


def _way(runs: Mapping[int, LearningCurve], level: float) -> str:
    reached = [steps for curve in runs.values() if (steps := steps_to(curve, level)) is not None]
    if not reached:
        return "not reached"
    some = "" if len(reached) == len(runs) else f" ({len(reached)} of {len(runs)} seeds)"
    return f"after {sum(reached) / len(reached):.0f} steps{some}"


def _end(runs: Mapping[int, LearningCurve]) -> str:
    found = estimate([curve.points[-1].score for curve in runs.values()])
    assert found is not None
    bests = [best for curve in runs.values() if (best := curve.best()) is not None]
    best = max(bests, key=lambda point: point.score, default=None)
    fell = best is not None and best.score - found.mean > FALL
    return found.text() + (f", fallen from {best.score:.3f} at step {best.step}" if best and fell else "")
