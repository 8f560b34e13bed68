"""What the quickstart says of its runs: sentences from curves, and a failed answer from logged examples."""

import io

import pytest
from rich.console import Console

from srpo_trl.commands.curves import CurveSet
from srpo_trl.commands.quickstart.answer import clearest, print_answer, read_answers, wrong_shares
from srpo_trl.commands.quickstart.summary import sentences, start_hint, steps_to
from srpo_trl.commands.quickstart.task import solution_pieces
from srpo_trl.runs.scores import LearningCurve, Point

SHOWN = "so fine 3+3=06;well now 5+9=14;so so 1+2=04;here thus 3+1=04;#04446"
FAILED = "so well 3+3=06;well now 5+9=14;okay so 1+2=04;here thus 3+1=09;#09446"
DIGITS = (34, 38)  # of FAILED that are wrong


def curve(*scores: float) -> LearningCurve:
    points = tuple(Point(10 * i, float(i), score) for i, score in enumerate(scores))
    return LearningCurve(points, points[-1].step, points[-1].seconds, is_finished=True)


def example(answer=FAILED, on_wrong=0.5, step=1, solution=SHOWN):
    """Return a logged example: each wrong digit has the given divergence, each first word .2 with weight .25."""
    tokens = [*solution_pieces(answer), "<|end|>"]
    divergence, weight = [0.0] * len(tokens), [1.0] * len(tokens)
    for position in DIGITS:
        divergence[position] = on_wrong
    divergence[1], weight[1] = 0.2, 0.25
    return {
        "step": step,
        "is_correct": False,
        "prompt": "<|user|>3153+1293<|end|><|assistant|>",
        "solution": solution,
        "feedback": "",
        "tokens": tokens,
        "divergence": divergence,
        "weight": weight,
        "teacher_entropy": [0.0] * len(tokens),
        "student_probability": [0.5] * len(tokens),
        "teacher_choices": [[34, "4", 0.99], [38, "4", 0.98], [1, "fine ", 0.4], [2, "3", 1.0]],
    }


@pytest.mark.parametrize(
    ("alone", "shown", "words"),
    [
        (0.0, 0.0, "too weak: 0.0%"),
        (0.04, 0.9, "too weak: 4.0%"),
        (0.2, 0.25, "25.0% right with a solution shown"),
    ],
)
def test_a_start_that_gives_a_teacher_little_to_do_is_named(alone, shown, words):
    hint = start_hint(alone, shown)
    assert hint is not None
    assert words in hint
    assert "--warmup_steps" in hint


def test_a_good_start_has_no_hint():
    assert start_hint(0.18, 0.99) is None


def test_steps_to_a_level_are_read_between_evaluations():
    assert steps_to(curve(0.2, 0.6, 1.0), 0.8) == pytest.approx(15)
    assert steps_to(curve(0.2, 0.8, 0.1, 0.9), 0.8) == 10
    assert steps_to(curve(0.2, 0.7), 0.8) is None
    assert steps_to(curve(0.9, 0.7), 0.8) == 0


def test_sentences_have_the_runs_own_numbers():
    curves = CurveSet(
        "accuracy",
        {
            "GRPO": {0: curve(0.2, 0.5, 0.9), 1: curve(0.2, 0.6, 0.7)},
            "SDPO": {0: curve(0.2, 0.8, 0.3), 1: curve(0.2, 0.8, 0.5)},
        },
    )
    ways, ends = sentences(curves, [], 400)
    assert ways == (
        "Accuracy 0.6: GRPO after 11 steps, SDPO after 7 steps; "
        "0.8: GRPO after 18 steps (1 of 2 seeds), SDPO after 10 steps."
    )
    assert ends == (
        "After 20 steps: GRPO 0.800 ± 0.100, SDPO 0.400 ± 0.100, fallen from 0.800 at step 10 "
        "(means of 2 seeds; standard error of one evaluation up to 0.025)."
    )


def test_third_sentence_says_where_the_correction_lies():
    answers = read_answers([example()])
    # 2 of 43 tokens; 1.0 of 1.05 nats, weighted
    assert wrong_shares(answers) == pytest.approx((2 / 43, 1 / 1.05))
    (*_, third) = sentences(CurveSet("accuracy", {"SRPO": {0: curve(0.2, 0.3)}}), answers, 4)
    assert "5% of the tokens are wrong digits" in third
    assert "SRPO 95% of its correction" in third


def test_answers_of_another_form_or_with_nothing_wrong_are_left_out():
    shorter, other_form = (
        example(answer=FAILED[:-1]),
        example(answer=FAILED.replace("so well 3", "3so well ")),
    )
    only_words = example(answer=SHOWN.replace("here ", "okay "))
    assert read_answers([shorter, other_form, only_words, {"step": 3}]) == []
    (answer,) = read_answers([example()])
    assert answer.question == "3153+1293"
    assert answer.wrong == list(DIGITS)


def test_clearest_answer_is_printed_with_its_corrections():
    records = [example(on_wrong=0.1, step=1), example(on_wrong=0.6, step=2), example(on_wrong=0.3, step=3)]
    answers = read_answers(records)
    answer = clearest(answers)
    assert answer.step == 2
    assert answer.strongest() == list(
        DIGITS
    )  # the word's correction is another choice, too, but has no color
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor")
    print_answer(answer, len(answers), console)
    output = console.file.getvalue()
    assert "‘9’ to ‘4’ (0.60), ‘9’ to ‘4’ (0.60)" in output
    blamed, corrected = (line for line in output.split("\n") if "\x1b[" in line and line.count("=") >= 4)
    assert blamed.count("48;2;120;180;240m") == 42  # every token
    assert corrected.count("48;2;") == 2  # the wrong digit and its copy
