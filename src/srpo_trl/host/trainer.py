"""`HostTrainer`: `GRPOTrainer` with the plain objects that make its runs safe; it knows no method.

Checkpoints that appear whole, checked rows and reward functions, steps that stay finite, sampled evaluation, logs that
a report reads. An override asks one of these objects, and is `GRPOTrainer`'s where the object is not there.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, gather_object, is_peft_model
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput
from trl import GRPOTrainer

from srpo_trl.config import SRPOConfig
from srpo_trl.config.teachers import unknown_teacher
from srpo_trl.evaluation.samples import Sample
from srpo_trl.evaluation.temporary import temporarily_set
from srpo_trl.host import objects
from srpo_trl.host.callbacks import GuardCallback, RunLogCallback, TrainingClock, peak_memory, run_facts
from srpo_trl.host.console import print_lines
from srpo_trl.host.datasets import check_size
from srpo_trl.host.finite_steps import FiniteSteps
from srpo_trl.host.model_card import CARD_FILE, CARD_TAG, complete_card, hub_data_set
from srpo_trl.host.prompt_rows import EXCLUDED, with_image_lists
from srpo_trl.host.read_back import check_keys, load_weights
from srpo_trl.host.rewards.feedback import FEEDBACK_COLUMN
from srpo_trl.host.rollout_func import CheckedRolloutFunc
from srpo_trl.host.rows import first_row, reference_text
from srpo_trl.rollout.batch import ADVICE
from srpo_trl.rollout.graded import LOGPS_COLUMN, GradedRollouts
from srpo_trl.rollout.scorers import SPANS
from srpo_trl.runs.log import LOG_FILE, NONFINITE_FOLDER
from srpo_trl.seams.evaluated import forget_evaluation
from srpo_trl.seams.liger import apply_liger_layers, check_liger_layers
from srpo_trl.seams.own_forward import use_own_weights

logger = logging.getLogger(__name__)

Timed = Callable[[str], AbstractContextManager[Any]]


class HostTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` that owns what a run needs around its method.

    Attributes:
        checkpoints: of `output_dir`; a subclass adds the parts that it saves.
        prompt_order: of the training data; learns which groups failed.
        rows: of each batch, fitted to what can be sampled for.
        finite_steps: decides whether the optimizer steps; None: it always does.
        graded: the rollouts that were graded last, in training or evaluation.
        log_sources: functions whose values join each log; given whether it is one of training.
        part_losses: of the micro-batch under way, () each and detached, by name.
        timed: takes the time of a block under a name.
        is_training: whether the rollouts at hand are made to train on; generation can change the model's own mode.
    """

    args: SRPOConfig
    model: Any
    train_dataset: Any
    eval_dataset: Any
    environment_factories: Any
    environments: Any
    tools: Any
    num_generations: int
    num_generations_eval: int
    max_completion_length: int
    reward_funcs: Any
    graded: GradedRollouts
    log_completions: bool
    _generate: Any
    _logs: Any
    _metrics: Any
    _pending_extra_logs: Any

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        args, output_dir = self.args, Path(str(self.args.output_dir))
        use_own_weights(self.student, scores_labelled_only=not args.method_record.is_plain)
        if args.liger_layers:
            check_liger_layers(self.student, args.device)
            apply_liger_layers(self.student)
        self.timed: Timed = lambda name: nullcontext()
        self.log_sources: list[Callable[[bool], dict[str, float]]] = []
        self.part_losses: dict[str, Tensor] = {}
        self._table_step = -1  # of the last table of completions
        self.is_training = True
        self.checkpoints, self.prompt_order = objects.checkpoints(self), objects.prompt_order(self)
        self._rewards = objects.rewards(self)
        self.reward_funcs = self._rewards.functions
        row = first_row(self.train_dataset, drops_unused=False) or {}
        self.first_prompt = row.get("prompt")
        self.rows = objects.prompt_rows(self, self._rewards.columns, row)
        if self.rollout_func is not None:
            self.rollout_func = CheckedRolloutFunc(self.rollout_func, self._tokenizer.eos_token_id)
        if self._is_vlm:
            self._generate = with_image_lists(self._generate)
        self.judge = objects.judge(self)
        self._evaluator = objects.evaluator(self, self.judge) if args.samples_evaluation else None
        self.finite_steps: FiniteSteps | None = None
        if args.max_nonfinite_steps is not None:
            folder = output_dir / NONFINITE_FOLDER
            self.finite_steps = FiniteSteps(args.max_nonfinite_steps, folder, self.accelerator, ADVICE)
        if args.run_log:
            device = self.accelerator.device
            clock = TrainingClock.of(self)
            print_lines(self.callback_handler.callbacks, clock)
            facts = run_facts(args, self.model.config, device, self.accelerator.num_processes)
            self.add_callback(RunLogCallback(output_dir / LOG_FILE, facts, clock))
            self.log_sources.append(
                lambda is_training: {**clock.drain(), **peak_memory(device)} if is_training else {}
            )
        if args.guard_action != "off":
            self.add_callback(GuardCallback(str(args.guard_action), self._remedies()))

    # ---------------------------------------------------------------- the objects

    def _remedies(self) -> dict[str, Callable[[], None]]:
        """Return what the guards' actions do, by action."""
        return {}

    # ---------------------------------------------------------------- what subclasses ask

    @property
    def student(self) -> PreTrainedModel:
        """The transformers model inside all wrappers."""
        model = self.accelerator.unwrap_model(self.model)
        student: PreTrainedModel = model.get_base_model() if is_peft_model(model) else model
        return student

    def tell(self, note: str) -> None:
        """Warn on one process, where there is anything to tell."""
        if note and self.accelerator.is_main_process:
            logger.warning(note)

    def sum_over_processes(self, tensor: Tensor) -> Tensor:
        """Return the sum of all processes' tensors; a collective."""
        summed: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return summed

    def add_columns(self, **columns: list[Any]) -> None:
        """Add columns of this process's rollouts to TRL's completions table; a collective."""
        for name, values in columns.items():
            self._logs["extra"][name].extend(gather_object(values))

    @property
    def evaluated_samples(self) -> Sequence[Sample]:
        """The samples of the last evaluation, of all processes, in the order of the questions."""
        return () if self._evaluator is None else self._evaluator.samples

    # ---------------------------------------------------------------- a run, and its checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train` does; True resumes from the newest checkpoint of `output_dir` that is whole.

        "auto" does too, and begins anew where there is none.

        Raises:
            FolderInUseError: another run trains in `output_dir`.
            BrokenCheckpointError: the checkpoint is not whole, or holds other parameters than the model.
            ValueError: it cannot be resumed by this launch, or there is none.
            FileNotFoundError: it was written by another trainer.
        """
        readers: dict[str, Any] = {
            "_load_from_checkpoint": self._read_checkpoint,
            "_load_best_model": self._read_best,
        }
        if self.model_wrapped is self.model:
            forget_evaluation(self.accelerator, self.model)
        with self.checkpoints.run(resume_from_checkpoint) as checkpoint, temporarily_set(self, **readers):
            return super().train(checkpoint, *args, **kwargs)

    def _read_checkpoint(self, folder: str, model: nn.Module | None = None) -> None:
        self._read_weights(folder, partial(super()._load_from_checkpoint, folder, model))

    def _read_best(self) -> None:
        best = str(self.state.best_model_checkpoint)
        self.checkpoints.check_whole(best, to_resume=False)
        self._read_weights(best, super()._load_best_model)

    def _read_weights(self, folder: str, load: Callable[[], None]) -> None:
        """Read weights with transformers' `load`, and raise where it warns; engines read files of their own."""
        with temporarily_set(self, _issue_warnings_after_load=partial(check_keys, self.model, folder)):
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                load()
            else:
                load_weights(self.model, Path(folder), load)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self.checkpoints.load(checkpoint)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[Any]:
        """Return a sampler like TRL's, of enough rows for a batch; evaluation alone needs none."""
        rows = self.train_dataset if dataset is None else dataset
        batch_size: Any = self.args.generation_batch_size
        check_size(len(rows), batch_size, self.num_generations)
        return self.prompt_order.sampler_like(super()._get_train_sampler(dataset))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train to the end of an epoch; not at all where the run is over, as one resumed from its last checkpoint is.

        `Trainer` asks only after a step whether it was the last, and so would take one too many.
        """
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        is_resumed = kwargs["epoch"] == kwargs["epochs_trained"]
        num_skipped = kwargs["steps_trained_in_current_epoch"] if is_resumed else 0
        self.prompt_order.begin_epoch(kwargs["epoch"], num_skipped, self._step)
        super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Log, evaluate and save; then save what was put off to here, and stop where a signal asks for it."""
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if self.checkpoints.is_due(self.state, self.control):
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint into a staging folder, then give it its name in one rename; at the end of a step."""
        if self.checkpoints.puts_off(self.state.global_step):
            return
        with (
            self.checkpoints.staging(self.state) as folder,
            temporarily_set(
                self, _get_output_dir=lambda trial: folder, _push_from_checkpoint=lambda folder: None
            ),
        ):
            super()._save_checkpoint(model, trial)
        if self.args.push_to_hub:
            self._push_from_checkpoint(self.checkpoints.path_of(self.state.global_step))

    def _finalize_training(self, *args: Any) -> Any:
        """Return TRL's result; with `save_total_limit=1` it would remove the last checkpoint unless it is the best."""
        if self.args.load_best_model_at_end:
            self.checkpoints.find_best(self.state)
        limit = self.args.save_total_limit if self.args.method_record.is_plain else None
        with temporarily_set(self.args, save_total_limit=limit):
            result = super()._finalize_training(*args)
        if (Path(str(self.args.output_dir)) / CARD_FILE).is_file():
            self.create_model_card()  # the one of the last checkpoint knows nothing of the end
        return result

    def create_model_card(  # type: ignore[override]  # TRL's signature
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None
    ) -> None:
        """Write TRL's model card with what the run has logged so far, by default with the data set's hub id."""
        folder = Path(str(self.args.output_dir))
        name = model_name or (self.hub_model_id or folder.name).split("/")[-1]
        all_tags = [CARD_TAG, *([tags] if isinstance(tags, str) else tags or ())]
        super().create_model_card(name, dataset_name or hub_data_set(self.train_dataset), all_tags)
        if self.is_world_process_zero():
            complete_card(folder / CARD_FILE, self.hub_model_id or name, objects.run_summary(self))

    # ---------------------------------------------------------------- rollouts and steps

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """Return TRL's rewards of all processes, NaN in the place of rows that were left out; keep `graded`."""
        self.rewards_began = time.perf_counter()
        rows = self.rows.whole(inputs)
        rewards_BF = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        if not self.args.method_record.is_plain:
            rewards_BF = torch.where(rewards_BF.isfinite(), rewards_BF, torch.nan)
        rewards_BF, excluded_frac = self.rows.without_excluded(rewards_BF, gather)
        if excluded_frac:
            self._metrics["train" if self.is_training else "eval"][EXCLUDED].append(excluded_frac)
        feedback = self._rewards.take_feedback(self.environments)
        is_joined = not self.args.method_record.is_plain  # else TRL has taken it itself
        if feedback is not None or (is_joined and FEEDBACK_COLUMN in self._logs["extra"]):
            self._log_completion_extra(FEEDBACK_COLUMN, feedback or [None] * len(prompts))
        names = self._batch_environments if self.environment_factories is not None else None
        self.graded = GradedRollouts(
            prompts=prompts,
            completions=completions,
            completion_ids=completion_ids_list,
            feedback=[text or "" for text in feedback or [None] * len(prompts)],
            references=[reference_text(row, self.args.reference_column) for row in rows],
            tools=[self.tools] * len(prompts) if names is None else [self._env_tools[name] for name in names],
            rewards_BF=rewards_BF,
            first_row=self.accelerator.process_index * len(prompts),
            columns={
                **{name: [row.get(name) for row in rows] for name in (*self.args.read_columns, LOGPS_COLUMN)},
                SPANS: list(self._pending_extra_logs.get(SPANS, ())),
            },
        )
        chosen = self.graded.columns.get(self.args.teacher_column or "", ()) if self.is_training else ()
        if problem := unknown_teacher(self.args.teacher_column, chosen, self.args.teacher_models):
            raise ValueError(problem)
        self.rewards_ended = time.perf_counter()
        return rewards_BF

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return TRL's loss; where it is not finite, one whose gradient is NaN."""
        loss: Tensor = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.finite_steps is None or not self.model.training:
            return loss
        return self.finite_steps.guard(loss, inputs, self.part_losses)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Train on one micro-batch."""
        with self.timed("seconds_loss"):
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.finite_steps is not None:
            self.finite_steps.inspect(self.model)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the norm of the gradient, and decide on it whether the optimizer steps."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if self.finite_steps is not None:
            self.finite_steps.decide(grad_norm, self.state.global_step + 1)
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log TRL's metrics with those of every source beside them."""
        for source in self.log_sources:
            logs |= source(self.model.training)
        with temporarily_set(self, log_completions=self.log_completions and self._is_table_due()):
            super().log(logs, start_time)

    def _is_table_due(self) -> bool:
        """Whether TRL's table of completions goes with this log: the first one, and every so many steps after it."""
        every, step = self.args.log_completions_steps, self.state.global_step
        if every is None or step == self._table_step:  # an evaluation has its own table
            return True
        is_due: bool = step // every > self._table_step // every
        self._table_step = step if is_due else self._table_step
        return is_due

    # ---------------------------------------------------------------- evaluation

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return this process's share of the batches; `eval_dataset` is None, a data set, or the name of one."""
        if self._evaluator is None:
            return super().get_eval_dataloader(eval_dataset)
        rows = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        rows = self.eval_dataset if rows is None else rows
        schedules_itself = self.use_vllm or self.use_transformers_continuous_batching
        return self._evaluator.batches(rows, self.rows.num_tokens, in_one=schedules_itself)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Return the batches of `predict`, which samples as `evaluate` does."""
        is_sampled = self._evaluator is not None
        return (self.get_eval_dataloader if is_sampled else super().get_test_dataloader)(test_dataset)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Return every score under `eval_...`; of several named data sets also the mean of their avg@n."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        data_sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if self._evaluator is None or not isinstance(data_sets, dict):
            return metrics
        means = self._evaluator.mean_of(metrics, data_sets, metric_key_prefix)
        self.log(dict(means))
        return metrics | means

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Run transformers' loop over the samples, and add their scores to its metrics."""
        if self._evaluator is None:
            return super().evaluation_loop(*args, **kwargs)
        with self._evaluator.sampling(self, self.accelerator.device):
            output: EvalLoopOutput = super().evaluation_loop(*args, **kwargs)
        scores = self._evaluator.scores(gather_object, self._metrics["eval"])
        prefix = kwargs.get("metric_key_prefix", "eval")
        named = {f"{prefix}_{name}": value for name, value in scores.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Draw and score one batch of samples, without a loss; or take TRL's step."""
        if self._evaluator is None:
            return super().prediction_step(model, inputs, *args, **kwargs)
        planned, rows = zip(*inputs, strict=True)
        batch, graded = self._prepare_inputs(list(rows)), self.graded
        own_rewards_BF = graded.rewards_BF[graded.first_row :][: len(rows)]
        self._evaluator.take(
            planned, graded.completions, graded.completion_ids, batch.get("tool_mask"), own_rewards_BF
        )
        return None, None, None
