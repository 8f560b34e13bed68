"""From graded rollouts to routes: correctness, demonstrations, teacher prompts and each rollout's route.

Everything that needs the whole group happens here, at rollout time, before TRL shuffles the rows; a group may lie
on several processes.

Legend: B rollouts of all processes, in order, P groups of G; F reward functions; n rollouts of this process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srpo_trl.methods import groups
from srpo_trl.methods.record import Graded, Method, Scored, is_distilled, is_policy
from srpo_trl.methods.routers import needs_context, scored_routes
from srpo_trl.rewards.correctness import judge_correctness
from srpo_trl.rollout.demonstrations import choose_demonstrations, demonstration_ranks, exchange_texts
from srpo_trl.rollout.distilled_fraction import sample_fraction
from srpo_trl.rollout.solved_prompts import SolvedPrompt, SolvedPrompts, prompt_key
from srpo_trl.seams.messages import Messages
from srpo_trl.teacher.context import (
    Completion,
    TeacherPrompt,
    TeacherPromptEncoder,
    Tool,
    demonstration_text,
    select_information,
)


@dataclass(frozen=True)
class GradedRollouts:
    """What this process knows of its rollouts, and where they lie among those of all processes.

    Attributes:
        prompts, completions, completion_ids: of this process's n rollouts.
        feedback: text per rollout, empty where there is none.
        references: reference answer per rollout, empty where there is none.
        tools: tool schemas per rollout.
        rewards_BF: every process's rewards, NaN where a function gave none.
        first_row: of this process among all.
    """

    prompts: Sequence[str | Messages]
    completions: Sequence[Completion]
    completion_ids: Sequence[Sequence[int]]
    feedback: Sequence[str]
    references: Sequence[str]
    tools: Sequence[list[Tool] | None]
    rewards_BF: Tensor
    first_row: int

    @property
    def own_rows(self) -> slice:
        """The rows of this process among those of all."""
        return slice(self.first_row, self.first_row + len(self.completions))


class RoutingOptions(NamedTuple):
    """What routing depends on beside the rollouts.

    Attributes:
        threshold: smallest score of a correct rollout.
        num_generations: G.
        sources: of what a teacher is shown, first available one first; see `select_information`.
        keep_thinking: demonstrations keep their <think> blocks.
        seed: with the step it decides which demonstration is chosen and which rollouts are within the share.
    """

    threshold: float
    num_generations: int
    sources: Sequence[str]
    keep_thinking: bool
    seed: int


class ContextPrompts(NamedTuple):
    """The teacher prompts of this process's n rollouts.

    Attributes:
        prompts: None where no context is needed, or there is none.
        num_too_long: rollouts whose teacher prompt could not hold any information.
        num_without_turn: rollouts whose prompt has no user turn, or none that the chat template renders once.
        earlier_ages: optimizer steps since the answer was sampled, of each earlier answer that is shown.
    """

    prompts: Sequence[TeacherPrompt | None]
    num_too_long: int
    num_without_turn: int
    earlier_ages: Sequence[int]


@dataclass(frozen=True)
class RoutedRollouts:
    """The routes of this process's n rollouts.

    Attributes:
        route_B: int64 of `Route` (here B = n).
        teacher_prompts: of the distilled rollouts, None elsewhere.
        is_correct_B, needs_teacher_B: bool.
        context: of all rollouts that need some, distilled or not.
        scored: all rollouts of all processes, as a method's `rows` sees them.
        has_failed_P: whether a whole group failed: something was scored and nothing correct. Of all processes.
        accuracy: share of correct rollouts among the scored ones of all processes; None where nothing was scored.
    """

    route_B: Tensor
    teacher_prompts: Sequence[TeacherPrompt | None]
    is_correct_B: Tensor
    needs_teacher_B: Tensor
    context: ContextPrompts
    scored: Scored
    has_failed_P: Sequence[bool]
    accuracy: float | None


def route_rollouts(
    rollouts: GradedRollouts,
    score_B: Tensor,
    method: Method,
    options: RoutingOptions,
    encoder: TeacherPromptEncoder,
    *,
    step: int,
    share: float = 1.0,
    solved_prompts: SolvedPrompts | None = None,
    gather: Callable[[Tensor], Tensor],
    gather_object: Callable[[list[Any]], list[Any]],
) -> RoutedRollouts:
    """Return the route and, where it is distilled, the teacher prompt of each of this process's rollouts.

    Args:
        rollouts: of this process.
        score_B: of all processes, from `correctness_score`.
        method: whose router is asked.
        options: see `RoutingOptions`.
        encoder: of teacher prompts.
        step: optimizer steps so far.
        share: of the rollouts that need context, how many may have some.
        solved_prompts: for the source "earlier"; takes this batch's correct answers.
        gather, gather_object: over all processes, in their order. Collectives: all ranks must call this.
    """
    score_PG = score_B.view(-1, options.num_generations)
    correctness = judge_correctness(score_PG, options.threshold)
    graded = Graded(score_PG, *correctness, torch.zeros_like(correctness.is_scored), step)
    needs_context_B = needs_context(method.route, graded).flatten()
    if share < 1.0:
        drawn_B = sample_fraction(len(needs_context_B), share, options.seed, step)
        needs_context_B &= drawn_B.to(needs_context_B.device)
    is_correct_B = correctness.is_correct.flatten()
    context = teacher_context(
        rollouts,
        is_correct_B,
        needs_context_B,
        options,
        encoder,
        step=step,
        solved_prompts=solved_prompts,
        gather=gather,
        gather_object=gather_object,
    )
    has_context = torch.tensor([int(prompt is not None) for prompt in context.prompts], device=score_B.device)
    graded = graded._replace(has_context_PG=gather(has_context).bool().view_as(score_PG))
    scored = Scored(scored_routes(method.route, graded), *graded)
    route_B = scored.route_PG.flatten()[rollouts.own_rows]
    shown = zip(context.prompts, is_distilled(route_B).tolist(), strict=True)
    return RoutedRollouts(
        route_B,
        [prompt if is_shown else None for prompt, is_shown in shown],
        is_correct_B[rollouts.own_rows],
        needs_context_B[rollouts.own_rows],
        context,
        scored,
        groups.has_failed(graded).flatten().tolist(),
        correctness.accuracy,
    )


def teacher_context(
    rollouts: GradedRollouts,
    is_correct_B: Tensor,
    needs_context_B: Tensor,
    options: RoutingOptions,
    encoder: TeacherPromptEncoder,
    *,
    step: int,
    solved_prompts: SolvedPrompts | None,
    gather: Callable[[Tensor], Tensor],
    gather_object: Callable[[list[Any]], list[Any]],
) -> ContextPrompts:
    """Return the teacher prompts of this process's rollouts that need context and have some.

    Args:
        is_correct_B, needs_context_B: bool, of all processes.
        others: see `route_rollouts`.
    """
    rows = rollouts.own_rows
    texts = demonstration_texts(rollouts, is_correct_B[rows].tolist(), options.keep_thinking)
    siblings = [""] * len(rollouts.completions)
    if any("sibling" in source for source in options.sources):
        ranks = demonstration_ranks(texts, rollouts.completion_ids, rollouts.first_row, options.seed, step)
        rank_B = gather(torch.tensor(ranks, dtype=torch.int64, device=needs_context_B.device))
        chosen_B = choose_demonstrations(rank_B, options.num_generations)
        siblings = exchange_texts(texts, chosen_B, needs_context_B, rows, gather_object)
    earlier = earlier_answers(rollouts, texts, solved_prompts, step, gather_object)
    needs_context = needs_context_B[rows].tolist()
    return encode_context(rollouts, needs_context, siblings, earlier, options.sources, encoder, step)


def demonstration_texts(
    rollouts: GradedRollouts, is_correct: Sequence[bool], keep_thinking: bool
) -> dict[int, str]:
    """Return each correct rollout of this process as the text of a demonstration, by its row among all.

    The text is empty where nothing is left.
    """
    return {
        rollouts.first_row + i: demonstration_text(completion, keep_thinking=keep_thinking)
        for i, completion in enumerate(rollouts.completions)
        if is_correct[i]
    }


def earlier_answers(
    rollouts: GradedRollouts,
    texts: dict[int, str],
    solved_prompts: SolvedPrompts | None,
    step: int,
    gather_object: Callable[[list[Any]], list[Any]],
) -> list[SolvedPrompt]:
    """Return a correct answer of an earlier step to each prompt, empty where there is none; take this step's."""
    nothing = SolvedPrompt("", step)
    if solved_prompts is None:
        return [nothing] * len(rollouts.prompts)
    keys = [prompt_key(prompt) for prompt in rollouts.prompts]
    earlier = [solved_prompts.recall(key) or nothing for key in keys]
    solved = {keys[row - rollouts.first_row]: text for row, text in texts.items() if text}
    solved_prompts.remember(gather_object(list(solved.items())), step)
    return earlier


def encode_context(
    rollouts: GradedRollouts,
    needs_context: Sequence[bool],
    siblings: Sequence[str],
    earlier: Sequence[SolvedPrompt],
    sources: Sequence[str],
    encoder: TeacherPromptEncoder,
    step: int,
) -> ContextPrompts:
    """Return the teacher prompt of each rollout that needs one and has something to show."""
    prompts: list[TeacherPrompt | None] = [None] * len(needs_context)
    num_too_long, num_without_turn, earlier_ages = 0, 0, []
    for i, is_needed in enumerate(needs_context):
        information = select_information(
            sources, siblings[i], rollouts.feedback[i], rollouts.references[i], earlier[i].text
        )
        if not (is_needed and information):
            continue
        prompts[i] = encoder.encode(rollouts.prompts[i], information, rollouts.tools[i])
        if prompts[i] is None:
            has_turn = encoder.has_place(rollouts.prompts[i], rollouts.tools[i])
            num_too_long, num_without_turn = num_too_long + has_turn, num_without_turn + (not has_turn)
        elif earlier[i].text and information.solution is earlier[i].text:
            earlier_ages.append(step - earlier[i].step)
    return ContextPrompts(prompts, num_too_long, num_without_turn, earlier_ages)


def rollout_counts(rollouts: RoutedRollouts) -> dict[str, float | Tensor]:
    """Return this process's counts of one rollout batch, by the names of `metrics.SUMS`."""
    takes_policy_B, takes_teacher_B = is_policy(rollouts.route_B), is_distilled(rollouts.route_B)
    prompts = [prompt for prompt in rollouts.teacher_prompts if prompt is not None]
    return {
        "rollout_batches": 1,
        "rollouts": len(rollouts.route_B),
        "rollouts_policy": takes_policy_B & ~takes_teacher_B,
        "rollouts_distilled": takes_teacher_B & ~takes_policy_B,
        "rollouts_both": takes_policy_B & takes_teacher_B,
        "rollouts_skipped": ~(takes_policy_B | takes_teacher_B),
        "rollouts_correct": rollouts.is_correct_B,
        "rollouts_needing_teacher": rollouts.needs_teacher_B,
        "teacher_prompts": len(prompts),
        "teacher_prompt_tokens": sum(len(prompt.ids) for prompt in prompts),
        "teacher_prompts_cut": sum(prompt.num_cut > 0 for prompt in prompts),
        "teacher_cut_tokens": sum(prompt.num_cut for prompt in prompts),
        "teacher_prompts_too_long": rollouts.context.num_too_long,
        "teacher_prompts_without_turn": rollouts.context.num_without_turn,
        "teacher_prompts_earlier": len(rollouts.context.earlier_ages),
        "teacher_earlier_age": sum(rollouts.context.earlier_ages),
    }


def context_record(rollouts: RoutedRollouts) -> list[dict[str, Any]]:
    """Return, per rollout of this process, whether it is correct and what its teacher is shown."""
    return [
        {"is_correct": is_correct, **(prompt.information._asdict() if prompt else {})}
        for is_correct, prompt in zip(rollouts.is_correct_B.tolist(), rollouts.teacher_prompts, strict=True)
    ]
