"""`GRPOTrainer` whose rollout batches come routed, and scored by the teacher where they are to be distilled.

    rollouts -> rewards -> routing -> teacher context -> teacher pass

TRL generates, calls the reward functions and computes advantages. The teacher lives here: its passes, its ticks, and
its part of a checkpoint.
"""

import functools
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather, gather_object, is_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from srpo_trl.evaluation.evaluator import EvaluatingGRPOTrainer
from srpo_trl.host import checkpoints as checkpointing
from srpo_trl.host.arguments import check_correctness_reward, refuse_adapted_head, refuse_unsupported
from srpo_trl.host.datasets import max_prompt_length
from srpo_trl.host.rows import first_row
from srpo_trl.host.step_boundary import AtStepEnd
from srpo_trl.logs.completions_table import NUMBER_COLUMN
from srpo_trl.logs.metrics import MetricSums
from srpo_trl.logs.rollout_log import RolloutLog
from srpo_trl.loss.head import STUDENT_HEAD, TeacherHead, lm_head_of
from srpo_trl.methods.record import ROUTE_NAMES, is_distilled
from srpo_trl.rewards.correctness import correctness_score
from srpo_trl.rewards.correctness_watch import CorrectnessWatch, decision_note
from srpo_trl.rollout import batch as trl_batch
from srpo_trl.rollout.batch_counter import (
    BatchOptions,
    RolloutBatchCounter,
    resume_note,
    resumed_micro_batches,
)
from srpo_trl.rollout.distilled_fraction import DistilledFraction
from srpo_trl.rollout.feedback import feedback_texts, joined_feedback
from srpo_trl.rollout.graded import (
    GradedRollouts,
    RoutedRollouts,
    RoutingOptions,
    context_record,
    rollout_counts,
    route_rollouts,
)
from srpo_trl.rollout.references import reference_text
from srpo_trl.rollout.solved_prompts import SolvedPrompts
from srpo_trl.seams.parameters import local_shard, release_gathered, shards_parameters
from srpo_trl.teacher.context import ContextTemplates, TeacherPromptEncoder, whole_characters
from srpo_trl.teacher.heads import HeadsInUse
from srpo_trl.teacher.packing import Layout
from srpo_trl.teacher.places import check_first_prompt
from srpo_trl.teacher.scoring import ShardedBackbone, rescore_rollouts, teacher_head
from srpo_trl.teacher.weights import TeacherWeights

if TYPE_CHECKING:
    from srpo_trl.config import SRPOConfig

logger = logging.getLogger(__name__)


class TaughtRolloutsGRPOTrainer(EvaluatingGRPOTrainer):
    """`GRPOTrainer` whose batches of rollouts hold routes and what the teacher says; with plain GRPO they are TRL's."""

    args: "SRPOConfig"
    model: PreTrainedModel
    num_generations: int
    _teacher_layout: Layout
    _buffered_inputs: Any  # TRL's micro-batches of the rollouts in use, or None
    chat_template_kwargs: dict[str, Any]

    def __init__(self, *, args: "SRPOConfig", **kwargs: Any) -> None:
        self._is_routed = self._has_step_window = not args.method_record.is_plain
        self._lists_files = self._is_routed  # with plain GRPO a checkpoint has GRPOTrainer's files
        self._resampled_frac = args.resample_failed_frac
        super().__init__(args=args, **kwargs)
        if not self._is_routed:
            return
        self._method = args.method_record
        check_correctness_reward(args, self.reward_func_names)
        names, decision = self.reward_func_names, (args.correctness_reward, args.success_reward_threshold)
        self._tell(decision_note(names, self.reward_weights.tolist(), *decision))
        self._correctness_watch = CorrectnessWatch(names, *decision)
        refuse_unsupported(args, self.model, self.accelerator, self._is_vlm)
        self._counter = RolloutBatchCounter(self._batch_options.micro_batches_per_rollout_batch)
        self._heads = HeadsInUse()
        self._encoder = self._teacher_prompt_encoder()
        if self.environment_factories is None:
            row = first_row(self.train_dataset, drops_unused=False) or {}
            check_first_prompt(row.get("prompt"), self._encoder)
        self._share = DistilledFraction(
            args.distilled_frac_hold_steps,
            args.distilled_frac_decay_steps,
            args.distilled_frac_until_accuracy,
        )
        self._earlier_answers = (
            SolvedPrompts(args.earlier_answers_kept) if "earlier" in args.teacher_context else None
        )
        self._rollouts: RoutedRollouts | None = None  # of the rollout batch being generated
        self._sums = MetricSums()
        self._rollout_log = RolloutLog(args, self.accelerator, self._tokenizer)
        self.add_callback(AtStepEnd(lambda: self._update_teacher()))  # before the step is logged or saved

    # ---------------------------------------------------------------- the pieces

    @property
    def _student(self) -> PreTrainedModel:
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if is_peft_model(model) else model

    @functools.cached_property
    def _teacher(self) -> TeacherWeights:
        """Made at first use, which comes after the engine has sharded the model and before it has trained."""
        refuse_adapted_head(self._student)  # a callback can have added an adapter
        return TeacherWeights(
            self.model,
            self.args.teacher_model_kind,
            self.args.teacher_update_rate,
            release_gathered=lambda: release_gathered(self.model, self.accelerator),
            device=self.accelerator.device,
        )

    def _teacher_prompt_encoder(self) -> TeacherPromptEncoder:
        args = self.args
        room = max_prompt_length(self._student.config, args.max_completion_length)
        return TeacherPromptEncoder(
            tokenizer=self._tokenizer,
            templates=ContextTemplates(
                args.reprompt_template, args.solution_template, args.feedback_template
            ),
            max_length=args.max_reprompt_length if room is None else min(args.max_reprompt_length, room),
            chat_template=self.chat_template,
            chat_template_kwargs=self.chat_template_kwargs,
            processor=self.processing_class if self._is_vlm else None,  # type: ignore[arg-type]
        )

    @property
    def _batch_options(self) -> BatchOptions:
        """What micro-batches and rollout batches are counted in."""
        data = self.train_dataset
        return BatchOptions.of(
            self.args,
            num_generations=self.num_generations,
            num_processes=self.accelerator.num_processes,
            num_prompts=len(data) if hasattr(data, "__len__") else None,
        )

    @property
    def _teacher_head(self) -> TeacherHead:
        """The teacher's head of the micro-batch in hand."""
        return self._heads.of(self._counter.number_of(self._step))

    @property
    def _teacher_state(self) -> tuple[int, int]:
        """A name for the teacher's present weights; the live teacher's change with every optimizer step."""
        is_live = self.args.teacher_model_kind == "live"
        return self._teacher.num_updates, self._counter.num_steps if is_live else 0

    @property
    def _steps_per_generation(self) -> int:
        assert self.args.steps_per_generation is not None  # set by GRPOConfig
        return self.args.steps_per_generation

    def _tell(self, note: str) -> None:
        """Warn on one process, where there is anything to tell."""
        if note and self.accelerator.is_main_process:
            logger.warning(note)

    def _sum_over_processes(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def _max_over_processes(self, number: int) -> int:
        return int(gather(torch.tensor([number], device=self.accelerator.device)).max())

    # ---------------------------------------------------------------- rollouts and rewards

    def _generate(self, prompts: list) -> Any:
        if not (self._is_routed and self.model.training):
            return super()._generate(prompts)
        with self._sums.timed("seconds_generation"):
            return super()._generate(prompts)

    def _log_completion_extra(self, column: str, values: list) -> None:
        """Take a column from a reward function; feedback of several functions is joined rollout by rollout."""
        values = [whole_characters(value) if isinstance(value, str) else value for value in values]
        if self._is_routed and column == "feedback":
            values = joined_feedback(self._pending_extra_logs.pop(column, None), values)
        super()._log_completion_extra(column, values)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """Return TRL's rewards, and route the rollouts that they grade."""
        if not self._is_routed:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        with self._sums.timed("seconds_rewards") if self.model.training else nullcontext():
            rewards_BF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        rewards_BF = torch.where(rewards_BF.isfinite(), rewards_BF, torch.nan)
        if not self.model.training:
            self._pending_extra_logs |= {column: [None] * len(prompts) for column in ("route", NUMBER_COLUMN)}
            return rewards_BF
        with self._sums.timed("seconds_teacher"):
            self._rollouts = self._route(inputs, prompts, completions, completion_ids_list, rewards_BF)
        routes = [ROUTE_NAMES[route] for route in self._rollouts.route_B.tolist()]
        first = self._counter.take_rollouts(len(prompts) * self.accelerator.num_processes)
        numbers_B = self._rollout_log.begin(first, len(prompts))
        self._pending_extra_logs |= {"route": routes, NUMBER_COLUMN: numbers_B.tolist()}
        return rewards_BF

    def _route(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any, rewards_BF: Tensor
    ) -> RoutedRollouts:
        args, num_rows = self.args, len(prompts)
        tools: list[Any] = [self.tools] * num_rows
        if self.environment_factories is not None:
            tools = [self._env_tools[name] for name in self._batch_environments]
        share = self._share.at(self.state.global_step)
        score_B = correctness_score(
            rewards_BF, self.reward_weights, self.reward_func_names, args.correctness_reward
        )
        self._tell(self._correctness_watch.observe(score_B.tolist()))
        rollouts = route_rollouts(
            GradedRollouts(
                prompts=prompts,
                completions=completions,
                completion_ids=completion_ids_list,
                feedback=feedback_texts(self._pending_extra_logs.get("feedback"), num_rows),
                references=[reference_text(row, args.reference_column) for row in self._whole_rows(inputs)],
                tools=tools,
                rewards_BF=rewards_BF,
                first_row=self.accelerator.process_index * num_rows,
            ),
            score_B,
            self._method,
            RoutingOptions(
                threshold=args.success_reward_threshold,
                num_generations=self.num_generations,
                sources=args.teacher_context,
                keep_thinking=not args.remove_thinking_from_demonstration,
                seed=args.seed,
            ),
            self._encoder,
            step=self.state.global_step,
            share=share,
            solved_prompts=self._earlier_answers,
            gather=gather,
            gather_object=gather_object,
        )
        if self._train_sampler is not None:
            self._train_sampler.report(rollouts.has_failed_P)
        if rollouts.accuracy is not None:
            self._share.observe(rollouts.accuracy)
        self._sums.add(**rollout_counts(rollouts), distilled_fraction=share)
        return rollouts

    def _generate_and_score_completions(self, inputs: Any) -> trl_batch.TrlBatch:
        """Return TRL's rollout batch with routes, teacher entropies and teacher hidden states added."""
        output = super()._generate_and_score_completions(inputs)
        if not self._is_routed or not self.model.training:
            return output
        assert self._rollouts is not None
        rollouts, self._rollouts = self._rollouts, None
        with self._sums.timed("seconds_teacher"):
            self._score_with_teacher(output, rollouts)
        return output

    def _score_with_teacher(self, output: trl_batch.TrlBatch, rollouts: RoutedRollouts) -> None:
        distilled_BT = trl_batch.scored_tokens(output) & is_distilled(rollouts.route_B).unsqueeze(1)
        scores = rescore_rollouts(
            self._student,
            self._teacher,
            self.accelerator.autocast(),
            rollouts.teacher_prompts,
            trl_batch.completion_rows(output),
            distilled_BT,
            student=self._student,
            layout=self._teacher_layout,
            max_tokens=self.args.teacher_tokens_per_pass,
            temperature=self.args.temperature,
            on_cpu=self.args.teacher_states_on_cpu,
            vision=trl_batch.vision_rows(output) if self._is_vlm else None,
            sharded=(
                ShardedBackbone(self.model, self._student, self.accelerator.device)
                if shards_parameters(self.accelerator)
                else None
            ),
            max_over_processes=self._max_over_processes,
        )
        self._heads.add(self._counter.number_of(self._step), scores.head, self._teacher_state)
        entropy_BT = scores.entropy_N.new_zeros(distilled_BT.shape)
        entropy_BT[distilled_BT] = scores.entropy_N
        trl_batch.add_routing(output, rollouts.route_B, entropy_BT, scores.hidden)
        shown = context_record(rollouts) if self._rollout_log.keeps_shown else None
        trl_batch.add_rollouts(output, self._rollout_log.numbers_B, shown)
        tokens = trl_batch.routed_batch(output).tokens(self.state.global_step)
        raw_weight_N = self._method.raw_weights(tokens)[distilled_BT]
        self._sums.add(
            teacher_tokens=len(scores.entropy_N),
            teacher_entropy=scores.entropy_N,
            raw_weight=raw_weight_N,
            raw_weight_squared=raw_weight_N**2,
        )

    def _hold_trainable(self) -> None:
        """Let the teacher keep what a callback has made trainable, before it moves; of the rollouts in use, too."""
        if not self._teacher.hold_trainable():
            return
        refuse_adapted_head(self._student)
        self._heads.keep_apart_from(
            local_shard(tensor) for tensor in lm_head_of(self._student)[:2] if tensor is not None
        )
        self._heads.give_own(teacher_head(self._student, self._teacher, self._student))

    # ---------------------------------------------------------------- teacher ticks and checkpoints

    def _update_teacher(self) -> None:
        """Move the teacher once per rollout batch, after its last optimizer step (SDPO), unless that was skipped."""
        self._sums.add(nonfinite_steps=self._is_nonfinite_step)
        num_complete = self._counter.take_complete(self._step)
        self._heads.forget_before(self._counter.number_of(self._step))
        if self._step_was_skipped or not num_complete:
            return
        self._heads.keep_apart_from(self._teacher.state_dict().values())
        distance = self._teacher.update(num_complete)
        if distance is not None:
            self._sums.add(
                teacher_squared_distance=distance.squared_distance,
                student_squared_norm=distance.squared_student_norm,
            )

    def _save_run_state(self, folder: Path) -> None:
        """Save the teacher, the counters and the rollouts that are still to be trained on."""
        if not self._is_routed:
            return
        has_rollouts = self._counter.is_under_way(self._step) and not self.args.save_only_model
        if has_rollouts:
            assert self._buffered_inputs is not None
            past_head = self._heads.past(self._counter.number_of(self._step), self._teacher_state)
            rollouts = checkpointing.SavedRollouts(self._buffered_inputs, past_head)
            checkpointing.save_rollouts(folder, self.accelerator.process_index, rollouts)
        self._teacher.save(folder, writes=self.args.should_save)
        if self.args.should_save:
            epoch, sampler = self.state.epoch or 0.0, self._train_sampler
            state = checkpointing.RunState(
                self._step,
                self._batch_options,
                self._counter.num_rollouts,
                checkpointing.engine_of(self.accelerator),
                has_rollouts,
                self._share.state(),
                self._correctness_watch.state(),
                None if sampler is None else sampler.state(is_inside_epoch=epoch != int(epoch)),
            )
            checkpointing.save_state(folder, state)
            if self._earlier_answers is not None:
                self._earlier_answers.save(folder)

    def _check_run_state(self, folder: Path) -> None:
        if self._is_routed:
            checkpointing.load_state(folder).check(folder, self.accelerator, self._batch_options)

    def _load_run_state(self, folder: Path) -> None:
        if not self._is_routed:
            return
        state = checkpointing.load_state(folder)
        self._teacher.load(folder)
        self._share.restore(state.distilled_fraction)
        self._correctness_watch.restore(state.correctness)
        if self._train_sampler is not None and state.prompts is not None:
            self._train_sampler.restore(state.prompts)
        if self._earlier_answers is not None:
            self._earlier_answers.load(folder)
        self._resume_count(state)
        self._buffered_inputs = None
        if state.has_rollouts:
            rollouts = checkpointing.load_rollouts(
                folder, self.accelerator.process_index, self.accelerator.device
            )
            self._buffered_inputs = rollouts.batches
            head = teacher_head(self._student, self._teacher, self._student)
            if (
                head is STUDENT_HEAD and rollouts.head is not None
            ):  # frozen now, and not when they were scored
                head = lm_head_of(self._student)
            self._heads.restore(self._counter.number_of(self._step), head, self._teacher_state, rollouts.head)

    def _resume_count(self, state: checkpointing.RunState) -> None:
        """Go on counting rollout batches where the checkpoint stopped, in today's options."""
        saved, now = state.counted_in, self._batch_options
        self._step = resumed_micro_batches(state.micro_step, saved, now, has_rollouts=state.has_rollouts)
        self._counter = RolloutBatchCounter(
            now.micro_batches_per_rollout_batch, self._step, state.num_rollouts
        )
        self._tell(resume_note(saved, now, self._counter.number_of(self._step)))
