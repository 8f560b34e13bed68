"""`SRPOTrainer`: the steps of SRPO in order, around the steps of `trl.GRPOTrainer`.

    rollouts -> rewards -> routing -> teacher context -> teacher pass -> token weights -> loss -> metrics

TRL generates, calls the reward functions, computes advantages and the policy loss. The class below (`taught_rollouts`)
routes the graded rollouts and scores the routed ones with the teacher; this one adds the distillation loss. The
mathematics is in `routing`, `normalizers`, `losses` and `ops`.
"""

import functools
import textwrap
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from trl import GRPOTrainer

from srpo_trl.config import SRPOConfig
from srpo_trl.config.renamed import explains_unknown_arguments
from srpo_trl.host.arguments import bound_arguments
from srpo_trl.host.taught_rollouts import TaughtRolloutsGRPOTrainer
from srpo_trl.loss.gradient_norms import BranchGradients
from srpo_trl.loss.head import lm_head_of
from srpo_trl.loss.ops import DistillationSpec, Head
from srpo_trl.loss.step_totals import WindowTotals, distillation_coefficients, window_totals
from srpo_trl.loss.student import DistillationRequest, DistillingModel, add_distillation_head
from srpo_trl.rollout import batch as trl_batch
from srpo_trl.rollout.batch import RoutedBatch
from srpo_trl.runs.guards import GuardCallback
from srpo_trl.seams.liger import apply_liger_layers, check_liger_layers
from srpo_trl.seams.own_forward import use_own_weights
from srpo_trl.seams.parameters import shards_parameters
from srpo_trl.seams.trl import GRPO_CARD
from srpo_trl.teacher.prepared_student import prepare_student


class SRPOTrainer(TaughtRolloutsGRPOTrainer):
    """Trainer for Sample-Routed Policy Optimization (SRPO, arXiv:2604.02288).

    The constructor's parameters are exactly `trl.GRPOTrainer`'s; `args` is an `SRPOConfig`. With
    `routing="grpo"` it is `GRPOTrainer`, unless one of the extras (`srpo_trl.config.defaults`) is asked for.

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
        TypeError: `args` is not an `SRPOConfig`, or a keyword is no argument.
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

    @explains_unknown_arguments(SRPOConfig)  # type: ignore[misc]
    @functools.wraps(GRPOTrainer.__init__)
    def __init__(self, *given: Any, **keywords: Any) -> None:
        arguments = bound_arguments(given, keywords)
        args: SRPOConfig = arguments["args"]
        if args.routing == "grpo":  # the model card says what the model was trained with
            for name, value in GRPO_CARD.items():
                setattr(self, name, value)
        super().__init__(**arguments)
        use_own_weights(self._student)
        if args.liger_layers:
            check_liger_layers(self._student, args.device)
            apply_liger_layers(self._student)
        if args.guard_action != "off":
            self.add_callback(GuardCallback(str(args.guard_action), self._remedies()))
        if not self._is_routed:
            return
        self._spec = DistillationSpec(
            alpha=args.distillation_alpha,
            topk=args.distillation_topk,
            add_tail=args.distillation_add_tail,
            estimator=args.distillation_estimator,
            temperature=args.temperature,
            importance_clip=args.distillation_is_clip,
        )
        # Without routing both branches train a rollout, weighted per token; with routing each has weight 1.
        is_mix = args.routing == "advantage_mix"
        self._policy_weight = args.advantage_mix_lambda if is_mix else 1.0
        self._distillation_weight = 1.0 - args.advantage_mix_lambda if is_mix else 1.0
        add_distillation_head(self._student)
        self._teacher_layout = prepare_student(
            self._student,
            None if self.ref_model is None else self.accelerator.unwrap_model(self.ref_model),
            temperature=self.temperature,
            accelerator=self.accelerator,
            reads_images=self._is_vlm,
        )
        self._totals: WindowTotals | None = None
        self._branch_gradients = BranchGradients(self.model) if args.gradient_share_steps else None

    # ---------------------------------------------------------------- the pieces

    def _remedies(self) -> dict[str, Callable[[], None]]:
        """Return what the guards' actions do; `routing="grpo"` has nothing that they could act on."""
        if not self._is_routed:
            return {}
        return {
            "lower_distillation": self._share.lower,
            "freeze_teacher": lambda: self._teacher.freeze(),
            "reset_teacher": lambda: self._teacher.reset_to_student(),
        }

    @property
    def _whole_teacher_head(self) -> Head | None:
        """The teacher's head of the rollouts in use; None where it is the student's own and sharded."""
        if self._teacher_head is None and not shards_parameters(self.accelerator):
            return lm_head_of(self._student)
        return self._teacher_head

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
        self._hold_trainable()
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
        self._branch_losses = {"policy": policy_loss.detach(), "distilled": distillation_loss.detach()}
        self._sums.add(
            loss_policy=policy_loss,
            loss_distilled=distillation_loss,
            distilled_tokens=len(result.divergence_N),
            divergence=result.divergence_N,
            student_entropy=result.student_entropy_N,
            topk_mass=result.topk_mass_N,
            importance_ratio=result.importance_ratio_N,
        )
        step, mean_unnormalized_weight = self.state.global_step, self._totals.mean_unnormalized_weight
        self._rollout_log.add(
            step, inputs, routed, result, mean_unnormalized_weight, self._whole_teacher_head
        )
        interval = self.args.gradient_share_steps
        if self._branch_gradients is not None and interval and self.state.global_step % interval == 0:
            self._measure_gradients(self._branch_gradients, policy_loss, distillation_loss)
        return policy_loss + distillation_loss

    def _measure_gradients(
        self, gradients: BranchGradients, policy_loss: Tensor, distillation_loss: Tensor
    ) -> None:
        gradients.add(policy=policy_loss, distilled=distillation_loss)
        if not self._window:  # the optimizer step's last micro-batch
            norms = gradients.norms(lambda g: self.accelerator.reduce(g, reduction="mean"))
            self._sums.add(
                gradient_norm_policy=norms["policy"],
                gradient_norm_distilled=norms["distilled"],
                gradient_measurements=1,
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
        """Log TRL's metrics with those of `srpo_trl.logs.metrics` beside them."""
        if self._is_routed and self.model.training:
            logs.update(self._sums.drain(self._sum_over_processes, self.accelerator.device))
        if self._is_routed:
            self._rollout_log.fill_table(self._logs, self._sum_over_processes)
        super().log(logs, start_time)
