"""What routes the rollouts of a run: a method with its options, and what it remembers from batch to batch."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from srpo_trl.methods.record import Method
from srpo_trl.rewards.correctness_watch import CorrectnessWatch, decision_note
from srpo_trl.rollout.distilled_fraction import DistilledFraction
from srpo_trl.rollout.graded import GradedRollouts, RoutedRollouts, RoutingOptions, route_rollouts
from srpo_trl.rollout.solved_prompts import SolvedPrompts
from srpo_trl.teacher.context import TeacherPromptEncoder
from srpo_trl.teacher.places import check_first_prompt
from srpo_trl.teacher.templates import ContextTemplates


class Router:
    """Routes graded rollouts, batch after batch.

    Args:
        method: whose router is asked.
        args: an `SRPOConfig`: threshold, sources, seed and schedule.
        encoder: of teacher prompts.
        num_generations: G.
        reward_names, reward_weights: of the reward functions.
        tell: called with a note for the user, which may be empty.

    Attributes:
        fraction: of the rollouts that need context, how many may have some.
        solved_prompts: for the source "earlier"; None where it is not asked for.
        watch: looks for rewards that the threshold does not fit.
        share: of the last batch, from `fraction`.
    """

    def __init__(
        self,
        method: Method,
        args: Any,
        encoder: TeacherPromptEncoder,
        *,
        num_generations: int,
        reward_names: Sequence[str],
        reward_weights: Sequence[float],
        tell: Callable[[str], None],
    ) -> None:
        decision = (args.correctness_reward, args.success_reward_threshold)
        tell(decision_note(reward_names, reward_weights, *decision))
        self.watch = CorrectnessWatch(reward_names, *decision)
        self.fraction = DistilledFraction(
            args.distilled_frac_hold_steps,
            args.distilled_frac_decay_steps,
            args.distilled_frac_until_accuracy,
        )
        uses_earlier = "earlier" in args.teacher_context
        self.solved_prompts = SolvedPrompts(args.earlier_answers_kept) if uses_earlier else None
        self.share = 1.0
        self._method, self._encoder, self._tell = method, encoder, tell
        self._options = RoutingOptions(
            threshold=args.success_reward_threshold,
            num_generations=num_generations,
            sources=args.teacher_context,
            keep_thinking=not args.remove_thinking_from_demonstration,
            seed=args.seed,
        )

    def route(
        self,
        graded: GradedRollouts,
        score_B: Tensor,
        step: int,
        *,
        gather: Callable[[Tensor], Tensor],
        gather_object: Callable[[list[Any]], list[Any]],
    ) -> RoutedRollouts:
        """Return routes and teacher prompts of this process's rollouts, and learn from them. A collective.

        Args:
            graded: this process's rollouts.
            score_B: of all processes.
            step: optimizer steps so far.
            gather, gather_object: over all processes, in their order.
        """
        self.share = self.fraction.at(step)
        self._tell(self.watch.observe(score_B.tolist()))
        rollouts = route_rollouts(
            graded,
            score_B,
            self._method,
            self._options,
            self._encoder,
            step=step,
            share=self.share,
            solved_prompts=self.solved_prompts,
            gather=gather,
            gather_object=gather_object,
        )
        if rollouts.accuracy is not None:
            self.fraction.observe(rollouts.accuracy)
        return rollouts


def prompt_encoder(
    args: Any, first_prompt: Any, *, max_length: int | None, **given: Any
) -> TeacherPromptEncoder:
    """Return the encoder of teacher prompts, which has a place for what the first prompt's teacher is shown.

    Args:
        args: an `SRPOConfig`: templates and lengths.
        first_prompt: of the training data; None where it is not known.
        max_length: for which the model's context has room; None: any.
        given: tokenizer, chat template and processor; see `TeacherPromptEncoder`.
    """
    limits = [limit for limit in (args.max_reprompt_length, max_length) if limit is not None]
    encoder = TeacherPromptEncoder(
        templates=ContextTemplates(args.reprompt_template, args.solution_template, args.feedback_template),
        max_length=min(limits),
        **given,
    )
    check_first_prompt(first_prompt, encoder)
    return encoder
