"""From graded rollouts to routes, where a group lies on two processes."""

import math

import pytest
import torch

from srpo_trl.data.tiny_model import build_tokenizer
from srpo_trl.methods import routers
from srpo_trl.methods.record import Method, Route, Scorer
from srpo_trl.methods.srpo import srpo
from srpo_trl.rollout.graded import GradedRollouts, RoutingOptions, rollout_counts, route_rollouts
from srpo_trl.rollout.solved_prompts import SolvedPrompts
from srpo_trl.teacher.context import TeacherPromptEncoder
from srpo_trl.teacher.templates import ContextTemplates

TOKENIZER = build_tokenizer()
TEMPLATES = ContextTemplates(
    "{prompt}{solution}{feedback}", " {successful_previous_attempt}", " {feedback_raw}"
)
ENCODER = TeacherPromptEncoder(TOKENIZER, TEMPLATES, 1000, None, {})
CHAT = [{"role": "user", "content": "2+2"}]
ANSWERS = ["4", "5", "6", "7"]


def rows(own, feedback, columns):
    """The rollouts of one process, of a group of four."""
    return GradedRollouts(
        prompts=[CHAT] * len(ANSWERS[own]),
        completions=[[{"role": "assistant", "content": text}] for text in ANSWERS[own]],
        completion_ids=[tuple(TOKENIZER(text)["input_ids"]) for text in ANSWERS[own]],
        feedback=feedback[own],
        references=[""] * len(ANSWERS[own]),
        tools=[None] * len(ANSWERS[own]),
        rewards_BF=torch.zeros(4, 1),
        first_row=own.start,
        columns=columns,
    )


def route(method, score, own=slice(0, 4), feedback=("",) * 4, gather=lambda own: own, **options):
    sources = options.pop("sources", ["feedback"])
    return route_rollouts(
        rows(own, list(feedback), options.pop("columns", {})),
        torch.tensor(score),
        method,
        RoutingOptions(0.5, 4, sources, keep_thinking=False, seed=0),
        ENCODER,
        step=options.pop("step", 0),
        gather=gather,
        gather_object=lambda objects: objects,
        **options,
    )


def whole_group(graded):
    """Distill a group if there is something to show for all of it."""
    return torch.where(graded.has_context_PG.all(1, keepdim=True), 2, 1).expand_as(graded.is_correct_PG)


@pytest.mark.parametrize(("others", "expected"), [([1, 1], Route.DISTILLED), ([1, 0], Route.POLICY)])
def test_a_router_sees_the_context_of_all_processes(others, expected):
    found = route(
        Method(whole_group),
        [0.0] * 4,
        own=slice(0, 2),
        feedback=("no",) * 4,
        gather=lambda own: torch.cat([own, torch.tensor(others)]),
    )
    assert found.route_B.tolist() == [expected] * 2
    assert [prompt is not None for prompt in found.teacher_prompts] == [expected == Route.DISTILLED] * 2
    assert all(prompt is not None for prompt in found.contexts["teacher"].prompts)


def test_context_is_there_where_each_scorer_has_a_prompt():
    method = Method(routers.policy, (Scorer(distils=False), Scorer("hint", context="hint", distils=False)))
    columns = {"hint": [None, "think", "think", "think"]}
    found = route(method, [0.0] * 4, feedback=("no", "no", "", "no"), columns=columns)
    assert found.graded.has_context_PG.tolist() == [[False, True, False, True]]
    assert found.is_rescored_B.tolist() == [False, True, False, True]


def test_counts_of_a_batch():
    found = route(srpo(1.0), [1.0, 0.0, 0.0, math.nan], feedback=("no", "no", "", "no"))
    counts = {name: float(torch.as_tensor(value).sum()) for name, value in rollout_counts(found).items()}
    names = ("policy", "distilled", "both", "skipped", "correct", "needing_teacher")
    assert [counts[f"rollouts_{name}"] for name in names] == [2, 1, 0, 1, 1, 2]
    assert counts["teacher_prompts"] == 1
    assert (found.has_failed_P, found.accuracy) == ([False], 1 / 3)


def test_a_share_of_0_takes_all_context_away():
    found = route(srpo(1.0), [0.0] * 4, feedback=("no",) * 4, share=0.0)
    assert found.route_B.tolist() == [Route.POLICY] * 4
    assert not found.needs_teacher_B.any()


def test_an_earlier_answer_is_shown_with_its_age_and_this_steps_is_kept():
    solved = SolvedPrompts(4)
    options = {"solved_prompts": solved, "sources": ["earlier"]}
    first = route(srpo(1.0), [1.0, 0.0, 0.0, 0.0], step=3, **options)
    assert first.route_B.tolist() == [Route.POLICY] * 4
    later = route(srpo(1.0), [0.0] * 4, step=5, **options)
    assert later.route_B.tolist() == [Route.DISTILLED] * 4
    assert later.contexts["teacher"].earlier_ages == [2] * 4
    assert later.teacher_prompts[0].information.solution == "4"
