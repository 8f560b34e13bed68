"""`SRPOTrainer`: the steps of SRPO in order, around the steps of `trl.GRPOTrainer`.

    rollouts -> rewards -> routing -> teacher context -> teacher pass -> token weights -> loss -> metrics

TRL generates, calls the reward functions, computes advantages and the policy loss. This class routes the graded
rollouts, scores the routed ones with the teacher, and adds the distillation loss. The mathematics is in
`routing`, `normalizers`, `losses` and `ops`.
"""

import functools
import textwrap
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather, gather_object, is_peft_model
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from torch import Tensor, nn
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)

from srpo_trl import batch as trl_batch
from srpo_trl.base_trainers import checkpointing
from srpo_trl.batch import RoutedBatch
from srpo_trl.checks.argument_types import check_each_argument
from srpo_trl.checks.arguments import (
    check_arguments,
    check_correctness_reward,
    check_reference_model,
    default_config,
    refuse_unsupported,
)
from srpo_trl.checks.datasets import prompt_room
from srpo_trl.distillation_share import DistillationShare
from srpo_trl.earlier_answers import EarlierAnswers
from srpo_trl.evaluation.trainer import EvaluatingGRPOTrainer
from srpo_trl.gradient_share import BranchGradients
from srpo_trl.guards import GuardCallback
from srpo_trl.liger_layers import apply_liger_layers, check_liger_layers
from srpo_trl.lm_head import lm_head_of
from srpo_trl.logs.completions_table import NUMBER_COLUMN
from srpo_trl.logs.rollout_log import RolloutLog
from srpo_trl.losses import raw_entropy_weights
from srpo_trl.metrics import MetricSums
from srpo_trl.normalizers import WindowTotals, distillation_coefficients, window_totals
from srpo_trl.ops import DistillationSpec, Head
from srpo_trl.rollouts import (
    Group,
    RoutedRollouts,
    deciding_score,
    rollout_counts,
    route_rollouts,
    shown_to_teachers,
)
from srpo_trl.routing import ROUTE_NAMES, Route
from srpo_trl.sharding import release_gathered, shards_parameters
from srpo_trl.student_pass import DistillationRequest, DistillingModel, add_distillation_head
from srpo_trl.teacher import TeacherWeights
from srpo_trl.teacher_context import ContextTemplates, TeacherPromptEncoder
from srpo_trl.teacher_pass import ShardedBackbone, score_rollouts, teacher_head
from srpo_trl.trl_seams import EnvironmentFactory, RewardFunc, RolloutFunc

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

    from srpo_trl.config import SRPOConfig


class SRPOTrainer(EvaluatingGRPOTrainer):
    """Trainer for Sample-Routed Policy Optimization (SRPO, arXiv:2604.02288).

    The constructor's parameters are exactly `trl.GRPOTrainer`'s; `args` is an `SRPOConfig`. With
    `routing="grpo"` it is `GRPOTrainer`.

    Example:

    ```python
    from srpo_trl import SRPOConfig, SRPOTrainer
    from srpo_trl.data import load_benchmark
    from srpo_trl.rewards import multiple_choice_reward

    trainer = SRPOTrainer(
        model="Qwen/Qwen3-0.6B",
        reward_funcs=multiple_choice_reward,
        args=SRPOConfig(output_dir="chemistry", chat_template_kwargs={"enable_thinking": False}),
        train_dataset=load_benchmark("chemistry", data_dir="data"),
    )
    trainer.train()
    ```

    Raises:
        TypeError: `args` is not an `SRPOConfig`.
        ValueError: arguments that do not fit together, all in one message, before a model is loaded.
    """

    _tag_names = ["trl", "srpo"]  # noqa: RUF012
    _name = "SRPO"
    _paper = {  # noqa: RUF012
        "title": "Unifying Group-Relative and Self-Distillation Policy Optimization via Sample Routing",
        "id": "2604.02288",
        "citation": textwrap.dedent("""\
            @article{li2026unifying,
                title  = {{Unifying Group-Relative and Self-Distillation Policy Optimization via Sample Routing}},
                author = {Gengsheng Li and Tianyu Yang and Junfeng Fang and Mingyang Song and Mao Zheng and
                          Haiyun Guo and Dan Zhang and Jinqiao Wang and Tat-Seng Chua},
                year   = 2026,
                eprint = {arXiv:2604.02288},
            }"""),
    }

    args: "SRPOConfig"
    model: PreTrainedModel
    num_generations: int
    _buffered_inputs: Any  # TRL's micro-batches of the rollouts in use, or None
    chat_template_kwargs: dict[str, Any]

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: "SRPOConfig | None" = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset
        | IterableDataset
        | DatasetDict
        | IterableDatasetDict
        | dict[str, Dataset | IterableDataset]
        | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (
            None,
            None,
        ),
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
        tools: list[Callable] | None = None,
        rollout_func: RolloutFunc | None = None,
        environment_factory: EnvironmentFactory | dict[str, EnvironmentFactory] | None = None,
    ) -> None:
        arguments = {
            "model": model,
            "reward_funcs": reward_funcs,
            "train_dataset": train_dataset,
            "eval_dataset": eval_dataset,
            "processing_class": processing_class,
            "reward_processing_classes": reward_processing_classes,
            "callbacks": callbacks,
            "optimizers": optimizers,
            "quantization_config": quantization_config,
            "peft_config": peft_config,
            "tools": tools,
            "rollout_func": rollout_func,
            "environment_factory": environment_factory,
        }
        check_each_argument(arguments)
        args = default_config(model) if args is None else args
        check_arguments(
            args, reward_funcs, train_dataset, eval_dataset, environment_factory, rollout_func, peft_config
        )
        check_reference_model(args, model, peft_config)
        self._is_routed = self._has_step_window = args.routing != "grpo"
        self._redrawn_frac = args.redraw_failed_frac
        super().__init__(args=args, **arguments)
        if args.liger_layers:
            check_liger_layers(self._student, args.device)
            apply_liger_layers(self._student)
        if not self._is_routed:
            return
        check_correctness_reward(args, self.reward_func_names)
        refuse_unsupported(args, self.model, self.accelerator, self._is_vlm)
        self._spec = DistillationSpec(
            alpha=args.distillation_alpha,
            topk=args.distillation_topk,
            add_tail=args.distillation_add_tail,
            mode=args.distillation_mode,
            temperature=args.temperature,
            importance_clip=args.distillation_is_clip,
        )
        # Without routing both branches train a rollout, weighted per token; with routing each has weight 1.
        is_mix = args.routing == "advantage_mix"
        self._policy_weight = args.advantage_mix_lambda if is_mix else 1.0
        self._distillation_weight = 1.0 - args.advantage_mix_lambda if is_mix else 1.0
        add_distillation_head(self._student)
        self._teacher_head: Head | None = None  # of the rollouts in use; None: the student's own, frozen
        self._encoder = self._teacher_prompt_encoder()
        self._share = DistillationShare(
            args.distillation_hold_steps, args.distillation_decay_steps, args.distillation_until_accuracy
        )
        self._earlier_answers = (
            EarlierAnswers(args.earlier_answers_kept) if "earlier" in args.teacher_context else None
        )
        self._rollouts: RoutedRollouts | None = None  # of the rollout batch being generated
        self._totals: WindowTotals | None = None
        self._sums = MetricSums()
        self._rollout_log = RolloutLog(args, self.accelerator, self._tokenizer)
        self._branch_gradients = (
            BranchGradients([p for p in self.model.parameters() if p.requires_grad])
            if args.gradient_share_steps
            else None
        )
        self.add_callback(_TeacherTick(self))
        if args.guard_action != "off":
            remedies = {
                "lower_distillation": self._share.lower,
                "freeze_teacher": lambda: self._teacher.freeze(),
                "resynchronise_teacher": lambda: self._teacher.resynchronise(),
            }
            self.add_callback(GuardCallback(args.guard_action, remedies))

    # ---------------------------------------------------------------- the pieces

    @property
    def _student(self) -> PreTrainedModel:
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if is_peft_model(model) else model

    @functools.cached_property
    def _teacher(self) -> TeacherWeights:
        """Made at first use, which comes after the engine has sharded the model and before it has trained."""
        return TeacherWeights(
            self.model,
            self.args.teacher_model_kind,
            self.args.teacher_update_rate,
            release_gathered=lambda: release_gathered(self.model, self.accelerator),
            device=self.accelerator.device,
        )

    def _teacher_prompt_encoder(self) -> TeacherPromptEncoder:
        args = self.args
        room = prompt_room(self._student.config, args.max_completion_length)
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
    def _whole_teacher_head(self) -> Head | None:
        """The teacher's head of the rollouts in use; None where it is the student's own, frozen and sharded."""
        if self._teacher_head is None and not shards_parameters(self.accelerator):
            return lm_head_of(self._student)
        return self._teacher_head

    @property
    def _rollout_batch_ends(self) -> bool:
        """Whether every rollout generated so far has been trained on as often as it is to be."""
        return self._step % (self._steps_per_generation * self.num_iterations) == 0

    @property
    def _steps_per_generation(self) -> int:
        assert self.args.steps_per_generation is not None  # set by GRPOConfig
        return self.args.steps_per_generation

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
        earlier = self._pending_extra_logs.get(column)
        if self._is_routed and column == "feedback" and earlier:
            values = ["\n".join(filter(None, texts)) for texts in zip(earlier, values, strict=True)]
            self._pending_extra_logs[column] = []
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
        routes = [ROUTE_NAMES[Route(r)] for r in self._rollouts.route_B.tolist()]
        numbers_B = self._rollout_log.begin(self._step, len(prompts))
        self._pending_extra_logs |= {"route": routes, NUMBER_COLUMN: numbers_B.tolist()}
        return rewards_BF

    # ---------------------------------------------------------------- routing and teacher context

    def _route(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any, rewards_BF: Tensor
    ) -> RoutedRollouts:
        num_rows = len(prompts)
        args = self.args
        feedback = self._pending_extra_logs.get("feedback") or [None] * num_rows
        if len(feedback) != num_rows:
            raise ValueError(
                f"log_extra('feedback', texts) got {len(feedback)} texts for {num_rows} rollouts; give one text, "
                "or None, per completion."
            )
        if self.environment_factories is not None:
            tools = [self._env_tools[name] for name in self._batch_environments]
        else:
            tools = [self.tools] * num_rows
        column = args.reference_column
        share = self._share.at(self.state.global_step)
        rollouts = route_rollouts(
            Group(
                prompts=prompts,
                completions=completions,
                completion_ids=completion_ids_list,
                feedback=[text or "" for text in feedback],
                references=[str(row[column] or "") if column else "" for row in inputs],
                tools=tools,
                rewards_BF=rewards_BF,
                first_row=self.accelerator.process_index * num_rows,
            ),
            deciding_score(rewards_BF, self.reward_weights, self.reward_func_names, args.correctness_reward),
            args,
            self._encoder,
            num_generations=self.num_generations,
            step=self.state.global_step,
            share=share,
            earlier_answers=self._earlier_answers,
            gather=gather,
            gather_object=gather_object,
        )
        if self._train_sampler is not None:
            self._train_sampler.report(rollouts.has_failed_P)
        if rollouts.accuracy is not None:
            self._share.observe(rollouts.accuracy)
        self._sums.add(**rollout_counts(rollouts), distillation_share=share)
        return rollouts

    # ---------------------------------------------------------------- teacher pass

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
        distilled_BT = trl_batch.scored_tokens(output) & (rollouts.route_B >= Route.DISTILL).unsqueeze(1)
        scores = score_rollouts(
            self._student,
            self._teacher,
            self.accelerator.autocast(),
            rollouts.teacher_prompts,
            trl_batch.completion_rows(output),
            distilled_BT,
            max_tokens=self.args.teacher_tokens_per_pass,
            temperature=self.args.temperature,
            on_host=self.args.teacher_states_on_host,
            vision=trl_batch.vision_rows(output) if self._is_vlm else None,
            sharded=(
                ShardedBackbone(self.model, self._student, self.accelerator.device)
                if shards_parameters(self.accelerator)
                else None
            ),
            max_over_processes=self._max_over_processes,
        )
        self._teacher_head = scores.head
        entropy_N = scores.entropy_N
        entropy_BT = torch.zeros(distilled_BT.shape, dtype=entropy_N.dtype, device=entropy_N.device)
        entropy_BT[distilled_BT] = entropy_N
        trl_batch.add_routing(output, rollouts.route_B, entropy_BT, scores.hidden)
        shown = shown_to_teachers(rollouts) if self._rollout_log.keeps_shown else None
        trl_batch.add_rollouts(output, self._rollout_log.numbers_B, shown)
        raw_weight_N = raw_entropy_weights(entropy_N, self.args.entropy_weight_beta)
        self._sums.add(
            teacher_tokens=len(entropy_N),
            teacher_entropy=entropy_N,
            raw_weight=raw_weight_N,
            raw_weight_squared=raw_weight_N**2,
        )

    # ---------------------------------------------------------------- the optimizer step's totals

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        start = time.perf_counter()
        micro_batch = super()._prepare_inputs(generation_batch)
        if self._is_routed and self.model.training:  # rollouts are not the loss's time: see training_step
            self._sums.add(seconds_loss=start - time.perf_counter())
        return micro_batch

    def _window_opened(self, window: list[trl_batch.TrlBatch]) -> None:
        """Take the totals of the optimizer step, over its micro-batches and processes."""
        self._totals = window_totals(
            [trl_batch.routed_batch(micro_batch) for micro_batch in window],
            self.args.entropy_weight_beta,
            self._sum_over_processes,
        )
        self._sums.add(optimizer_steps=1)

    # ---------------------------------------------------------------- loss

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Train on one micro-batch; what is not spent on rollouts is counted as the loss's time."""
        if not self._is_routed:
            return super().training_step(model, inputs, num_items_in_batch)
        with self._sums.timed("seconds_loss"):
            return super().training_step(model, inputs, num_items_in_batch)

    def _compute_loss(self, model: nn.Module, inputs: trl_batch.TrlBatch) -> Tensor:
        """Return `sum(z_grpo * l_grpo) + sum(z_sdpo * w * l_sdpo)` over one joint denominator (SRPO, section 3.3)."""
        if not trl_batch.is_routed(inputs):
            return super()._compute_loss(model, inputs)
        assert self._totals is not None
        routed = trl_batch.routed_batch(inputs)
        distilling = DistillingModel(model, self._distillation_request(routed), routed.is_policy_B)
        # TRL divides by num_items * accumulation / steps_per_generation / processes; the window has its own count.
        rescaling = self._steps_per_generation / self.current_gradient_accumulation_steps
        policy_inputs = trl_batch.policy_inputs(
            inputs, routed, self._totals.num_routed_tokens * rescaling, self._policy_weight
        )
        policy_loss = super()._compute_loss(distilling, policy_inputs)
        result = distilling.result
        assert result is not None
        distillation_loss = result.loss.to(policy_loss.dtype)
        self._branch_losses = {"grpo": policy_loss.detach(), "sdpo": distillation_loss.detach()}
        self._sums.add(
            loss_grpo=policy_loss,
            loss_sdpo=distillation_loss,
            distilled_tokens=len(result.divergence_N),
            divergence=result.divergence_N,
            student_entropy=result.student_entropy_N,
            topk_mass=result.topk_mass_N,
            importance_ratio=result.importance_ratio_N,
        )
        step, mean_raw_weight = self.state.global_step, self._totals.mean_raw_weight
        self._rollout_log.add(step, inputs, routed, result, mean_raw_weight, self._whole_teacher_head)
        interval = self.args.gradient_share_steps
        if self._branch_gradients is not None and interval and self.state.global_step % interval == 0:
            self._measure_gradients(self._branch_gradients, policy_loss, distillation_loss)
        return policy_loss + distillation_loss

    def _measure_gradients(
        self, gradients: BranchGradients, policy_loss: Tensor, distillation_loss: Tensor
    ) -> None:
        gradients.add(grpo=policy_loss, sdpo=distillation_loss)
        if not self._window:  # the optimizer step's last micro-batch
            norms = gradients.norms(lambda g: self.accelerator.reduce(g, reduction="mean"))
            self._sums.add(
                gradient_norm_grpo=norms["grpo"], gradient_norm_sdpo=norms["sdpo"], gradient_measurements=1
            )

    def _distillation_request(self, routed: RoutedBatch) -> DistillationRequest:
        assert self._totals is not None
        distilled_BT = routed.distilled_BT
        return DistillationRequest(
            scored_BT=distilled_BT,
            teacher_hidden_ND=torch.cat(list(routed.teacher_hidden)).to(
                distilled_BT.device, non_blocking=True
            ),
            teacher_head=self._teacher_head,
            coefficient_N=distillation_coefficients(
                routed,
                self._totals,
                self.args.entropy_weight_beta,
                self._distillation_weight,
                self.accelerator.num_processes,
            ),
            old_logps_N=None if routed.old_logps_BT is None else routed.old_logps_BT[distilled_BT],
            spec=self._spec,
        )

    # ---------------------------------------------------------------- metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log TRL's metrics with those of `srpo_trl.metrics` beside them."""
        if self._is_routed and self.model.training:
            logs.update(self._sums.drain(self._sum_over_processes, self.accelerator.device))
        if self._is_routed:
            self._rollout_log.fill_table(self._logs, self._sum_over_processes)
        super().log(logs, start_time)

    # ---------------------------------------------------------------- teacher ticks and checkpoints

    def _tick_teacher(self) -> None:
        """Move the teacher once per rollout batch, after its last optimizer step (SDPO), unless that was skipped."""
        self._sums.add(nonfinite_steps=self._is_nonfinite_step)
        if self._step_was_skipped or not self._rollout_batch_ends:
            return
        distance = self._teacher.tick()
        if distance is not None:
            self._sums.add(
                teacher_squared_distance=distance.squared_distance,
                student_squared_norm=distance.squared_student_norm,
            )

    def _save_run_state(self, folder: Path) -> None:
        """Save the teacher, the counters and the rollouts that are still to be trained on."""
        if not self._is_routed:
            return
        has_rollouts = not self._rollout_batch_ends and not self.args.save_only_model
        if has_rollouts:
            assert self._buffered_inputs is not None
            head = self._teacher_head if self.args.teacher_model_kind == "live" else None
            rollouts = checkpointing.SavedRollouts(
                self._buffered_inputs, head and (head.weight_VD, head.bias_V)
            )
            checkpointing.save_rollouts(folder, self.accelerator.process_index, rollouts)
        self._teacher.save(folder, writes=self.args.should_save)
        if self.args.should_save:
            epoch, sampler = self.state.epoch or 0.0, self._train_sampler
            state = checkpointing.RunState(
                self._step,
                self.accelerator.num_processes,
                has_rollouts,
                self._share.state(),
                None if sampler is None else sampler.state(is_inside_epoch=epoch != int(epoch)),
            )
            checkpointing.save_state(folder, state)
            if self._earlier_answers is not None:
                self._earlier_answers.save(folder)

    def _load_run_state(self, folder: Path) -> None:
        if not self._is_routed:
            return
        state = checkpointing.load_state(folder)
        self._teacher.load(folder)
        self._share.restore(state.distillation_share)
        if self._train_sampler is not None and state.prompts is not None:
            self._train_sampler.restore(state.prompts)
        if self._earlier_answers is not None:
            self._earlier_answers.load(folder)
        self._step, self._buffered_inputs = state.micro_step, None
        if state.has_rollouts:
            state.check_processes(folder, self.accelerator.num_processes)
            rollouts = checkpointing.load_rollouts(
                folder, self.accelerator.process_index, self.accelerator.device
            )
            self._buffered_inputs = rollouts.batches
            self._teacher_head = teacher_head(self._student, self._teacher)
            if rollouts.live_head is not None:
                assert self._teacher_head is not None
                weight_VD, bias_V = rollouts.live_head
                self._teacher_head = self._teacher_head._replace(weight_VD=weight_VD, bias_V=bias_V)


class _TeacherTick(TrainerCallback):
    """Tells the trainer that an optimizer step is done."""

    def __init__(self, trainer: SRPOTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the teacher move, before the step is logged or saved."""
        self._trainer._tick_teacher()
