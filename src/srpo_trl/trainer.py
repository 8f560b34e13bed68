"""`SRPOTrainer`: an optimizer step in eight steps, around those of `trl.GRPOTrainer`.

    sample -> grade -> route -> context -> score -> count -> loss -> update

The mathematics is elsewhere: routes and weights in `methods`, prompts and passes in `teacher`, the loss in `loss`.
"""

import time
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from torch import Tensor, nn
from trl import GRPOTrainer

from srpo_trl.config import SRPOConfig
from srpo_trl.config.renamed import explains_unknown_arguments
from srpo_trl.host.arguments import bound_arguments, refuse_adapted_head
from srpo_trl.host.callbacks import TrainingClock
from srpo_trl.host.datasets import max_prompt_length
from srpo_trl.host.objects import check_supported, checkpoint_parts
from srpo_trl.host.step_boundary import AtStepEnd
from srpo_trl.host.trainer import HostTrainer
from srpo_trl.logs.metrics import MetricSums, distance_sums, gradient_sums, loss_sums, teacher_sums
from srpo_trl.logs.rollout_log import RolloutLog
from srpo_trl.loss.gradient_norms import BranchGradients
from srpo_trl.loss.step_totals import WindowTotals
from srpo_trl.loss.student import (
    DistillationRequest,
    DistillingModel,
    add_distillation_head,
    distillation_spec,
)
from srpo_trl.methods.card import card_of
from srpo_trl.methods.record import route_names
from srpo_trl.rollout import batch as trl_batch
from srpo_trl.rollout.batch_counter import BatchOptions, RolloutBatchCounter
from srpo_trl.rollout.coefficients import joint_weight, step_totals, sum_of_weights, teacher_sides
from srpo_trl.rollout.graded import RoutedRollouts, context_record, rollout_counts
from srpo_trl.rollout.policy_branch import PolicyBranch
from srpo_trl.rollout.router import Router, prompt_encoder
from srpo_trl.rollout.scorers import score_rollouts
from srpo_trl.rollout.step_window import StepWindow
from srpo_trl.teacher.external import load_external
from srpo_trl.teacher.in_use import TeacherInUse
from srpo_trl.teacher.prepared_student import prepare_student


class SRPOTrainer(HostTrainer):
    """Trainer for Sample-Routed Policy Optimization (SRPO, arXiv:2604.02288) and the methods of `srpo_trl.methods`.

    The constructor's parameters are exactly `trl.GRPOTrainer`'s; `args` is an `SRPOConfig`. A method that only has
    TRL's policy loss makes it `GRPOTrainer`, unless one of the extras is asked for by name.

    ```python
    trainer = SRPOTrainer(
        "Qwen/Qwen3-0.6B",
        reward_funcs=multiple_choice_reward,
        args=SRPOConfig("chemistry", chat_template_kwargs={"enable_thinking": False}),
        train_dataset=load_benchmark("chemistry", data_dir="data"),
    )
    trainer.train()
    ```

    Raises:
        TypeError: `args` is not an `SRPOConfig`, or a keyword is no argument.
        ValueError: arguments that do not fit together, all in one message, before a model is loaded.
    """

    @explains_unknown_arguments(SRPOConfig)  # type: ignore[misc]
    @wraps(GRPOTrainer.__init__)
    def __init__(self, *given: Any, **keywords: Any) -> None:
        arguments = bound_arguments(given, keywords)
        args: SRPOConfig = arguments["args"]
        self._method, self._is_plain = args.method_record, args.method_record.is_plain
        vars(self).update({} if self._is_plain else card_of(args.method))
        super().__init__(**arguments)
        if not self._is_plain:
            self._prepare_rollouts(args)
            self._prepare_teacher(args)

    def _prepare_rollouts(self, args: SRPOConfig) -> None:
        check_supported(self)
        self._window, self._sums = StepWindow(), MetricSums()
        self.timed = self._sums.timed
        self._batches = BatchOptions.of(
            args, self.num_generations, self.accelerator.num_processes, self.train_dataset
        )
        self._counter = RolloutBatchCounter(self._batches.micro_batches_per_rollout_batch)
        self._rollout_log = RolloutLog(args, self.accelerator, self._tokenizer)
        self._router = Router(
            self._method,
            args,
            prompt_encoder(
                args,
                self.first_prompt if self.environment_factories is None else None,
                max_length=max_prompt_length(self.student.config, args.max_completion_length),
                tokenizer=self._tokenizer,
                chat_template=self.chat_template,
                chat_template_kwargs=self.chat_template_kwargs,
                processor=self.processing_class if self._is_vlm else None,
            ),
            num_generations=self.num_generations,
            reward_names=self.reward_func_names,
            reward_weights=self.reward_weights.tolist(),
            tell=self.tell,
        )

    def _prepare_teacher(self, args: SRPOConfig) -> None:
        add_distillation_head(self.student)
        self.teacher = TeacherInUse(
            lambda: self.model,
            lambda: self.student,
            self.accelerator,
            args,
            prepare_student(
                self.student,
                None if self.ref_model is None else self.accelerator.unwrap_model(self.ref_model),
                temperature=self.temperature,
                accelerator=self.accelerator,
                reads_images=self._is_vlm,
            ),
            batch_number=lambda: self._counter.number_of(self._step),
            num_steps=lambda: self._counter.num_steps,
            check_student=refuse_adapted_head,
            external=load_external(args, self.student.config, self._tokenizer, self.accelerator),
        )
        every = args.gradient_share_steps
        self._gradients = BranchGradients(self.model, every) if every else None
        self._totals: WindowTotals  # of the optimizer step, from `_count`
        self.add_callback(AtStepEnd(lambda: self._update()))  # before the step is logged or saved
        if args.run_log:
            TrainingClock.of(self)  # last of the callbacks: the update's time counts
        self.log_sources.append(self._drain)
        self.checkpoints.parts += checkpoint_parts(
            self,
            self._counter,
            self._batches,
            self.teacher,
            self._router.solved_prompts,
            distilled_fraction=self._router.fraction,
            correctness=self._router.watch,
            prompts=self.prompt_order,
        )

    def _remedies(self) -> dict[str, Callable[[], None]]:
        return {
            "lower_distillation": lambda: self._router.fraction.lower(),
            "freeze_teacher": lambda: self.teacher.weights.freeze(),
            "reset_teacher": lambda: self.teacher.weights.reset_to_student(),
        }

    # ---------------------------------------------------------------- 1 sample: the step's rollouts

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Draw the batches of an optimizer step."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if not self._is_plain:
            self._window.begin(batches)
        return batches, num_items

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Return the next micro-batch; at the start of an optimizer step, all of the step's are prepared."""
        if self._is_plain or not self.model.training:
            return super()._prepare_inputs(generation_batch)
        start, first = time.perf_counter(), self._step
        prepare: Callable[[Any], trl_batch.TrlBatch] = super()._prepare_inputs

        def prepared(position: int, batch: Any) -> trl_batch.TrlBatch:
            self._step = first + position  # TRL's count of micro-batches decides when it generates
            return prepare(batch)

        micro_batch = self._window.next(prepared, self._count)
        self._step = first
        self._sums.add(seconds_loss=start - time.perf_counter())  # within `training_step`, and not the loss's
        return micro_batch

    # ---------------------------------------------------------------- 2 grade: `HostTrainer._calculate_rewards`

    def _generate_and_score_completions(self, inputs: Any) -> trl_batch.TrlBatch:
        """Return TRL's rollout batch with routes, the teacher's entropies and its hidden states added."""
        self.is_training = is_training = self.model.training
        began = time.perf_counter()
        output: trl_batch.TrlBatch = super()._generate_and_score_completions(self.rows.fit(inputs))
        if self._evaluator is not None:
            self.model.train(is_training)  # generation in continuous batches leaves it in training mode
        if self._is_plain:
            return output
        if not is_training:
            nothing = [None] * len(self.graded.prompts)
            self.add_columns(route=nothing, **dict.fromkeys(self._rollout_log.columns(), nothing))
            return output
        self._sums.add(
            seconds_generation=self.rewards_began - began,
            seconds_rewards=self.rewards_ended - self.rewards_began,
        )
        with self._sums.timed("seconds_teacher"):
            rollouts = self._route()
            self._score(output, rollouts)
        return output

    # ---------------------------------------------------------------- 3 route, 4 context

    def _route(self) -> RoutedRollouts:
        """Return what trains each rollout, and what its teacher is shown."""
        score_B, step = self.judge.score(self.graded.rewards_BF), self.state.global_step
        rollouts = self._router.route(self.graded, score_B, step, gather=gather, gather_object=gather_object)
        self.prompt_order.report(rollouts.has_failed_P)
        self._sums.add(**rollout_counts(rollouts), distilled_fraction=self._router.share)
        num_rows = len(rollouts.route_B)
        first = self._counter.take_rollouts(num_rows * self.accelerator.num_processes)
        self._rollout_log.begin(first, num_rows)
        self.add_columns(route=route_names(rollouts.route_B), **self._rollout_log.columns())
        return rollouts

    # ---------------------------------------------------------------- 5 score

    def _score(self, output: trl_batch.TrlBatch, rollouts: RoutedRollouts) -> None:
        """Add what the method's scorers say of the student's own tokens to TRL's rollout batch."""
        score_rollouts(
            output,
            self._method,
            rollouts,
            self.teacher,
            self.accelerator.autocast,
            gather,
            self.graded,
            teacher_column=self.args.teacher_column,
            reads_images=self._is_vlm,
        )
        shown = context_record(rollouts) if self._rollout_log.keeps_shown else None
        trl_batch.add_rollouts(output, self._rollout_log.numbers_B, shown)
        made = trl_batch.routed_batch(output)
        weight_BT = sum_of_weights(self._method, made.tokens(self.state.global_step))
        self._sums.add(**teacher_sums(made.teacher_entropy_BT, weight_BT, made.distilled_BT))

    # ---------------------------------------------------------------- 6 count

    def _count(self, window: list[trl_batch.TrlBatch]) -> None:
        """Take the totals of the optimizer step, over its micro-batches and processes."""
        routed, step = list(map(trl_batch.routed_batch, window)), self.state.global_step
        self._totals = step_totals(routed, self._method, step, self.sum_over_processes)
        self._sums.add(optimizer_steps=1, pulled_steps=self._method.pull is not None)

    # ---------------------------------------------------------------- 7 loss

    def _compute_loss(self, model: nn.Module, inputs: trl_batch.TrlBatch) -> Tensor:
        """Return `sum(z_grpo * l_grpo) + sum(z_sdpo * w * l_sdpo)` over one joint denominator (SRPO, section 3.3)."""
        if not trl_batch.is_routed(inputs):
            return super()._compute_loss(model, inputs)  # type: ignore[no-any-return]
        self.teacher.hold_trainable()
        routed, step = trl_batch.routed_batch(inputs), self.state.global_step
        # TRL divides by num_items * accumulation / steps_per_generation / processes; the window has its own count.
        rescaling = self._batches.steps_per_generation / self.current_gradient_accumulation_steps
        num_items = self._totals.num_routed_tokens * rescaling
        branch = PolicyBranch(self._method, routed, inputs, num_items, step)
        distilling = DistillingModel(model, self._request(routed), routed.policy_BT, branch.take)
        policy_loss: Tensor = super()._compute_loss(distilling, branch.inputs)
        result = distilling.result
        losses = branch.losses(policy_loss, result.loss, self._totals, self.accelerator.num_processes)
        self.part_losses = {name: loss.detach() for name, loss in losses.items()}
        self._sums.add(**loss_sums(losses, result))
        weights = partial(joint_weight, routed, self._method, step, self._totals)
        head = next(map(self.teacher.whole_head, routed.distilling), None)
        self._rollout_log.add(step, inputs, routed, result, weights, head)
        if self._gradients is not None and self._gradients.wants(step):
            self._gradients.add(**losses)
            if self._window.is_used_up:
                average = partial(self.accelerator.reduce, reduction="mean")
                self._sums.add(**gradient_sums(self._gradients.norms(average)))
        return sum(losses.values(), start=torch.zeros_like(policy_loss))

    def _request(self, routed: trl_batch.RoutedBatch) -> DistillationRequest:
        distilled_BT, step = routed.distilled_BT, self.state.global_step
        processes = self.accelerator.num_processes
        return DistillationRequest(
            distilled_BT,
            teacher_sides(routed, self._method, step, self._totals, processes, self.teacher.head),
            None if routed.old_logps_BT is None else routed.old_logps_BT[distilled_BT],
            distillation_spec(self.args, step),
        )

    # ---------------------------------------------------------------- 8 update

    def _update(self) -> None:
        """Update the teacher once per rollout batch, after its last optimizer step (SDPO), unless that was skipped."""
        finite = self.finite_steps
        self._sums.add(nonfinite_steps=finite is not None and finite.is_nonfinite)
        num_complete = self._counter.take_complete(self._step)
        self.teacher.forget_used()
        if num_complete and not (finite is not None and finite.was_skipped):
            self._sums.add(**distance_sums(self.teacher.update(num_complete)))

    def _drain(self, is_training: bool) -> dict[str, float]:
        """Return the metrics of the steps since the last log, and fill TRL's table; a collective."""
        metrics = self._sums.drain(self.sum_over_processes, self.accelerator.device) if is_training else {}
        self._rollout_log.fill_table(self._logs, self.sum_over_processes)
        return metrics
