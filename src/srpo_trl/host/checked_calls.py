"""`GRPOTrainer` that checks what goes into generation and what rollout and reward functions give back, and samples
in evaluation.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather, gather_object
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel

from srpo_trl.evaluation.evaluator import Evaluator
from srpo_trl.evaluation.samples import Sample, answer_parser
from srpo_trl.host.datasets import check_rows, check_size, max_prompt_length
from srpo_trl.host.logged import LoggedGRPOTrainer
from srpo_trl.host.prompt_rows import EXCLUDED, PromptRows, with_image_lists
from srpo_trl.host.rewards.calls import Rewards
from srpo_trl.host.rollout_func import CheckedRolloutFunc
from srpo_trl.host.rows import first_row, reference_text
from srpo_trl.methods.routers import judge_correctness
from srpo_trl.rollout.graded import GradedRollouts, correctness_score

if TYPE_CHECKING:
    from srpo_trl.config import SRPOConfig


class CheckedCallsGRPOTrainer(LoggedGRPOTrainer):
    """`LoggedGRPOTrainer` with checked rows, completions and scores, and sampled evaluation where it is asked for.

    Attributes:
        graded: the rollouts of the last batch, of training or of evaluation.

    Raises:
        ValueError: rows that cannot be sampled for, as far as they can be seen when the trainer is made.
    """

    args: "SRPOConfig"
    model: PreTrainedModel
    train_dataset: Any
    eval_dataset: Any
    environment_factories: Any
    tools: Any
    graded: GradedRollouts
    num_generations: int
    num_generations_eval: int
    max_completion_length: int
    reward_funcs: Any
    _generate: Any
    _is_routed: bool
    _metrics: Any
    _pending_extra_logs: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        row = first_row(self.train_dataset, drops_unused=False) or {}
        self.first_prompt = row.get("prompt")
        self._rewards = Rewards(
            self.reward_funcs,
            self.reward_func_names,
            self.args.reward_timeout,
            self.reward_weights.tolist(),
            joins_feedback=self._is_routed,
        )
        self.reward_funcs = self._rewards.functions
        columns, has_rollout_func = self._rewards.columns, self.rollout_func is not None
        self._rows = PromptRows(
            lambda prompt: self._tokenize_prompts([prompt])[0][0],
            columns.needing_only(row) if has_rollout_func else columns,  # it adds the others itself
            self.args.reference_column,
            reads_images=self._is_vlm,
            is_sampled=not has_rollout_func,
            has_environments=self.environment_factories is not None,
            max_length=max_prompt_length(self.model.config, self.max_completion_length)
            if self._is_routed
            else None,
        )
        check_rows(
            self.train_dataset,
            self.eval_dataset,
            row,
            self._rows,
            processing_class=self.processing_class,
            chat_template=self.chat_template,
            environments=None if self.environment_factories is None else list(self.environment_factories),
        )
        if self.rollout_func is not None:
            self.rollout_func = CheckedRolloutFunc(self.rollout_func, self._tokenizer.eos_token_id)
        if self._is_vlm:
            self._generate = with_image_lists(self._generate)
        self._evaluator = self._new_evaluator() if self.args.samples_evaluation else None
        self._mode = "train"

    def _new_evaluator(self) -> Evaluator:
        args: Any = self.args
        named = zip(self.reward_func_names, self.reward_funcs, strict=True)
        deciding = [function for name, function in named if name == args.correctness_reward]
        return Evaluator(
            parser=answer_parser([*deciding, *self.reward_funcs]),
            judge=self._judge,
            reward_names=self.reward_func_names,
            end_tokens={*self.eos_token_ids, self._tokenizer.pad_token_id},
            num_samples=self.num_generations_eval,
            temperature=args.eval_temperature,
            top_p=args.eval_top_p,
            tokens_per_batch=args.eval_tokens_per_batch,
            max_completion_length=self.max_completion_length,
            seed=args.seed + self.accelerator.process_index,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )

    def _judge(self, rewards_BF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        score_B = correctness_score(
            rewards_BF, self.reward_weights, self.reward_func_names, self.args.correctness_reward
        )
        return score_B, *judge_correctness(score_B, self.args.success_reward_threshold)

    @property
    def evaluated_samples(self) -> Sequence[Sample]:
        """The samples of the last evaluation, of all processes, in the order of the questions."""
        return () if self._evaluator is None else self._evaluator.samples

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[Any]:
        """Return TRL's sampler of training rows, of which there are enough for a batch; evaluation alone needs none."""
        batch_size: Any = self.args.generation_batch_size
        check_size(len(self.train_dataset if dataset is None else dataset), batch_size, self.num_generations)
        return super()._get_train_sampler(dataset)

    # ---------------------------------------------------------------- batch by batch

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """Return TRL's rollout batch of rows that can be sampled for."""
        is_training = self.model.training
        self._mode = "train" if is_training else "eval"
        output = super()._generate_and_score_completions(self._rows.fit(inputs))
        if self._evaluator is not None:
            self.model.train(is_training)  # generation in continuous batches leaves it in training mode
        return output

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """Return TRL's rewards of all processes, NaN in the place of rows that were left out; keep `graded`."""
        rows = self._rows.whole(inputs)
        rewards_BF = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        rewards_BF, excluded_frac = self._rows.without_excluded(rewards_BF, gather)
        if excluded_frac:
            self._metrics[self._mode][EXCLUDED].append(excluded_frac)
        feedback = self._rewards.take_feedback()
        if feedback is not None:
            self._log_completion_extra("feedback", feedback)
        has_environments = self.environment_factories is not None
        self.graded = GradedRollouts(
            prompts=prompts,
            completions=completions,
            completion_ids=completion_ids_list,
            feedback=[text or "" for text in feedback or [None] * len(prompts)],
            references=[reference_text(row, self.args.reference_column) for row in rows],
            tools=[self._env_tools[name] for name in self._batch_environments]
            if has_environments
            else [self.tools] * len(prompts),
            rewards_BF=rewards_BF,
            first_row=self.accelerator.process_index * len(prompts),
        )
        return rewards_BF

    # ---------------------------------------------------------------- evaluation

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return this process's share of the batches; `eval_dataset` is None, a data set, or the name of one."""
        if self._evaluator is None:
            return super().get_eval_dataloader(eval_dataset)
        rows = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        rows = self.eval_dataset if rows is None else rows
        schedules_itself = self.use_vllm or self.use_transformers_continuous_batching
        return self._evaluator.batches(rows, self._rows.num_tokens, in_one=schedules_itself)

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

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Run transformers' loop over the samples, and add their scores to its metrics."""
        if self._evaluator is None:
            return super().evaluation_loop(*args, **kwargs)
        with self._evaluator.sampling(self, self.accelerator.device):
            output: Any = super().evaluation_loop(*args, **kwargs)
        scores = self._evaluator.scores(gather_object, self._metrics["eval"])
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics.update({f"{prefix}_{name}": value for name, value in scores.items()})
        return output

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
