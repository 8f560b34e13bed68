"""From graded rollouts to routes: correctness, demonstrations, teacher prompts and each rollout's route.

Everything that needs the whole group happens here, at rollout time, before TRL shuffles the rows; a group may lie
on several processes.

Legend: B rollouts of all processes, in order, P groups of G; F reward functions; n rollouts of this process.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srpo_trl.methods import groups
from srpo_trl.methods.record import TEACHER_CONTEXT, Graded, Method, is_distilled, is_policy
from srpo_trl.methods.routers import is_rescored, needs_context, scored_routes
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

LOGPS_COLUMN = "teacher_logps"  # of stored rollouts, a list for each


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
        columns: of the dataset, a value per rollout by name: prompts that scorers read, names of teachers.
    """

    prompts: Sequence[str | Messages]
    completions: Sequence[Completion]
    completion_ids: Sequence[Sequence[int]]
    feedback: Sequence[str]
    references: Sequence[str]
    tools: Sequence[list[Tool] | None]
    rewards_BF: Tensor
    first_row: int
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)

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
    """The prompts of one context for this process's n rollouts.

    Attributes:
        prompts: None where no context is needed, or there is none.
        num_too_long: rollouts whose teacher prompt could not hold any information.
        num_without_turn: rollouts whose prompt has no user turn, or none that the chat template renders once.
        earlier_ages: optimizer steps since the answer was sampled, of each earlier answer that is shown.
    """

    prompts: Sequence[TeacherPrompt | None]
    num_too_long: int = 0
    num_without_turn: int = 0
    earlier_ages: Sequence[int] = ()


@dataclass(frozen=True)
class RoutedRollouts:
    """The routes of this process's n rollouts.

    Attributes:
        route_B: int64 of `Route` (here B = n).
        is_correct_B: bool.
        needs_teacher_B: bool, would be scored after a prompt that is not the student's, if there is one.
        is_rescored_B: bool, is scored by the method's scorers.
        contexts: by the names of `Scorer.context`, of all rollouts that need some, distilled or not.
        graded, route_PG: all rollouts of all processes.
        accuracy: share of correct rollouts among the scored ones of all processes; None where nothing was scored.
    """

    route_B: Tensor
    is_correct_B: Tensor
    needs_teacher_B: Tensor
    is_rescored_B: Tensor
    contexts: Mapping[str, ContextPrompts]
    graded: Graded
    route_PG: Tensor
    accuracy: float | None

    @property
    def has_failed_P(self) -> Sequence[bool]:
        """Whether a whole group failed: something was scored and nothing correct. Of all processes."""
        failed: list[bool] = groups.has_failed(self.graded).flatten().tolist()
        return failed

    @property
    def teacher_prompts(self) -> Sequence[TeacherPrompt | None]:
        """Those of the first context, of rollouts that are scored after it, None elsewhere."""
        prompts = next(
            (context.prompts for context in self.contexts.values()), [None] * len(self.is_correct_B)
        )
        shown = zip(prompts, self.is_rescored_B.tolist(), strict=True)
        return [prompt if is_shown else None for prompt, is_shown in shown]


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
    """Return the route and, where it is scored, the teacher prompt of each of this process's rollouts.

    Args:
        rollouts: of this process.
        score_B: of all processes, from `correctness_score`.
        method: whose router is asked.
        options, encoder: see their classes.
        step: optimizer steps so far.
        share: of the rollouts that need context, how many may have some.
        solved_prompts: for the source "earlier"; takes this batch's correct answers.
        gather, gather_object: over all processes. Collectives: all ranks must call this.
    """
    score_PG, rows = score_B.view(-1, options.num_generations), rollouts.own_rows
    correctness = judge_correctness(score_PG, options.threshold)
    graded = Graded(score_PG, *correctness, torch.zeros_like(correctness.is_scored), step)
    drawn_B = sample_fraction(len(score_B), share, options.seed, step).to(score_B.device)
    needs_context_B = needs_context(method, graded).flatten() & drawn_B
    contexts = {
        name: teacher_context(
            rollouts,
            correctness.is_correct.flatten(),
            needs_context_B,
            options,
            encoder,
            step=step,
            solved_prompts=solved_prompts,
            gather=gather,
            gather_object=gather_object,
        )
        if name == TEACHER_CONTEXT
        else column_context(rollouts, needs_context_B[rows].tolist(), name, encoder)
        for name in method.contexts
    }
    has_context = needs_context_B[rows] & _are_there(method, contexts.values(), rollouts, score_B.device)
    graded = graded._replace(has_context_PG=gather(has_context.int()).bool().view_as(score_PG))
    route_PG = scored_routes(method.route, graded)
    return RoutedRollouts(
        route_PG.flatten()[rows],
        correctness.is_correct.flatten()[rows],
        needs_context_B[rows] & bool(contexts),
        has_context & is_rescored(method, route_PG).flatten()[rows],
        contexts,
        graded,
        route_PG,
        correctness.accuracy,
    )


def _are_there(
    method: Method, contexts: Iterable[ContextPrompts], rollouts: GradedRollouts, device: torch.device
) -> Tensor:
    """Return which of this process's rollouts have what every scorer reads, (n,) bool."""
    there = [[prompt is not None for prompt in context.prompts] for context in contexts]
    there += [[bool(logps) for logps in rollouts.columns[LOGPS_COLUMN]]] if method.reads_stored else []
    return torch.tensor([[True] * len(rollouts.completions), *there], device=device).all(0)


def column_context(
    rollouts: GradedRollouts, needs_context: Sequence[bool], column: str, encoder: TeacherPromptEncoder
) -> ContextPrompts:
    """Return the prompts that a dataset column holds as a whole, of this process's rollouts that need one."""
    values = rollouts.columns[column]
    prompts = [
        encoder.encode_whole(values[i], rollouts.prompts[i], rollouts.tools[i]) if is_needed else None
        for i, is_needed in enumerate(needs_context)
    ]
    given = zip(values, needs_context, prompts, strict=True)
    return ContextPrompts(prompts, sum(bool(v) and n and p is None for v, n, p in given))


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
    contexts = rollouts.contexts.values()
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
        "teacher_prompts_too_long": sum(context.num_too_long for context in contexts),
        "teacher_prompts_without_turn": sum(context.num_without_turn for context in contexts),
        "teacher_prompts_earlier": sum(len(context.earlier_ages) for context in contexts),
        "teacher_earlier_age": sum(sum(context.earlier_ages) for context in contexts),
    }


def context_record(rollouts: RoutedRollouts) -> list[dict[str, Any]]:
    """Return, per rollout of this process, whether it is correct and what its teacher is shown."""
    return [
        {"is_correct": is_correct, **(prompt.information._asdict() if prompt else {})}
        for is_correct, prompt in zip(rollouts.is_correct_B.tolist(), rollouts.teacher_prompts, strict=True)
    ]
