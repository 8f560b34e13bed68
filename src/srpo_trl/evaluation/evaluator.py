"""`GRPOTrainer` whose `evaluate` draws n samples of each question at an evaluation temperature, and scores them.

TRL generates and calls the reward functions, with transformers or vLLM, as in training; the loop, the progress bar,
callbacks and the choice of the best checkpoint are transformers'. No loss is computed.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from srpo_trl.evaluation.batches import batch_by_tokens
from srpo_trl.evaluation.samples import Sample, answer_parser, score_samples
from srpo_trl.evaluation.sampling import Questions, SampleCollector, temporarily_set
from srpo_trl.evaluation.scores import Estimate, mean_of_estimates, named
from srpo_trl.rewards.grading import completion_text
from srpo_trl.rollout.step_window import StepWindowGRPOTrainer

if TYPE_CHECKING:
    from srpo_trl.config import SRPOConfig

# TRL's means over batches beside those that `score_samples` takes over questions. Batches differ in size here, and
# every row is a group of its own.
TRLS_BATCH_MEANS = (
    "reward_std",
    "frac_reward_zero_std",
    *(f"completions/{statistic}_terminated_length" for statistic in ("mean", "min", "max")),
)


class EvaluatingGRPOTrainer(StepWindowGRPOTrainer):
    """`GRPOTrainer` with sampled evaluation; without `SRPOConfig.samples_evaluation` it is GRPOTrainer's.

    Attributes:
        evaluated_samples: of the last evaluation, of all processes, in the order of the questions.
    """

    args: "SRPOConfig"
    eval_dataset: Any
    num_generations_eval: int
    max_completion_length: int
    evaluated_samples: Sequence[Sample] = ()
    _collector: SampleCollector | None = None  # of the evaluation that runs

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return this process's share of the batches; `eval_dataset` is None, a data set, or the name of one."""
        if not self.args.samples_evaluation:
            return super().get_eval_dataloader(eval_dataset)
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        elif eval_dataset is None:
            eval_dataset = self.eval_dataset
        if eval_dataset is None:
            raise ValueError("There is nothing to evaluate on: give SRPOTrainer an eval_dataset.")
        questions = Questions(eval_dataset)
        schedules_itself = self.use_vllm or self.use_transformers_continuous_batching
        batches = batch_by_tokens(
            self._prompt_lengths(questions.rows),
            num_samples=self.num_generations_eval,
            max_completion_length=self.max_completion_length,
            tokens_per_batch=None if schedules_itself else self.args.eval_tokens_per_batch,
            num_processes=self.accelerator.num_processes,
        )
        shares = [
            batch[self.accelerator.process_index :: self.accelerator.num_processes] for batch in batches
        ]
        return DataLoader(questions, batch_sampler=shares, collate_fn=list)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Return the batches of `predict`, which samples as `evaluate` does."""
        if not self.args.samples_evaluation:
            return super().get_test_dataloader(test_dataset)
        return self.get_eval_dataloader(test_dataset)

    def _prompt_lengths(self, rows: Any) -> list[int]:
        """Return the tokens of each prompt, without images; 0 where an environment is to write it."""
        if self.environment_factories is not None:
            return [0] * len(rows)
        return [self._num_tokens(row) for row in rows]

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Return every score under `eval_...`; of several named data sets also the mean of their avg@n."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        data_sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if not (self.args.samples_evaluation and isinstance(data_sets, dict)):
            return metrics
        average = f"avg@{self.num_generations_eval}"
        names = [f"{metric_key_prefix}_{data_set}_{average}" for data_set in data_sets]
        estimates = [
            Estimate(metrics[name], metrics.get(f"{name}_stderr")) for name in names if name in metrics
        ]
        means = named(f"{metric_key_prefix}_{average}", mean_of_estimates(estimates))
        self.log(dict(means))
        return metrics | means

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Run transformers' loop over the samples, and add their scores to its metrics."""
        if not self.args.samples_evaluation:
            return super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        num_samples = self.num_generations_eval
        self._collector = collector = self._new_collector()
        try:
            with self._evaluation_sampling():
                output = super().evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
                )
        finally:
            self._collector = None
        # A stable sort of the same list: every process has the same scores and takes the same checkpoint for the best.
        self.evaluated_samples = sorted(gather_object(collector.samples), key=lambda sample: sample.question)
        has_answers = collector.reading.extract_answer is not None
        scores = score_samples(self.evaluated_samples, num_samples, has_answers=has_answers)
        for name in (*TRLS_BATCH_MEANS, *(f"rewards/{name}/std" for name in self.reward_func_names), *scores):
            self._metrics["eval"].pop(name, None)
        assert output.metrics is not None
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in scores.items()})
        return output

    def _new_collector(self) -> SampleCollector:
        named = zip(self.reward_func_names, self.reward_funcs, strict=True)
        deciding = [function for name, function in named if name == self.args.correctness_reward]
        return SampleCollector(
            answer_parser([*deciding, *self.reward_funcs]),
            reward_names=self.reward_func_names,
            reward_weights_F=self.reward_weights,
            correctness_reward=self.args.correctness_reward,
            threshold=self.args.success_reward_threshold,
        )

    @contextmanager
    def _evaluation_sampling(self) -> Iterator[None]:
        """Sample as evaluation does; training gets its parameters and random numbers back, also after an error."""
        args = self.args
        sampling = {"temperature": args.eval_temperature, "top_p": args.eval_top_p}
        with ExitStack() as stack:
            devices = [torch.cuda.current_device()] if self.accelerator.device.type == "cuda" else []
            stack.enter_context(torch.random.fork_rng(devices=devices))
            torch.manual_seed(args.seed + self.accelerator.process_index)
            # Rows are planned one by one: a group has one. No loss is made of them, so no importance ratio either.
            one_by_one = {"num_generations_eval": 1, "vllm_importance_sampling_correction": False}
            stack.enter_context(temporarily_set(self, **sampling, **one_by_one))
            if self.use_vllm:
                options = {**self.vllm_generation.generation_kwargs, **sampling}
                stack.enter_context(
                    temporarily_set(self.vllm_generation, **sampling, generation_kwargs=options)
                )
            else:
                stack.enter_context(temporarily_set(self.generation_config, **sampling))
            yield

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Draw and score one batch of samples; there is no loss."""
        if self._collector is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        planned, rows = zip(*inputs, strict=True)
        self._prepare_inputs(list(rows))
        self._collector.keep(planned)
        return None, None, None

    # ---------------------------------------------------------------- what TRL's steps hand over

    def _generate(self, prompts: list) -> Any:
        generated = super()._generate(prompts)
        if self._collector is not None:
            self.model.eval()  # generation in continuous batches leaves it in training mode
            _, completion_ids, tool_mask, *_ = generated
            ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
            self._collector.take_tokens(completion_ids, tool_mask, ends)
        return generated

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        rewards_BF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._collector is not None:
            first_row = self.accelerator.process_index * len(prompts)
            own_rewards_BF = rewards_BF[first_row : first_row + len(prompts)]
            self._collector.take_rewards(list(map(completion_text, completions)), own_rewards_BF)
        return rewards_BF

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """Return nothing during evaluation: these log-probabilities would be a loss's."""
        if self._collector is not None:
            return None, None, None
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)
