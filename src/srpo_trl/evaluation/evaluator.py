"""Sampled evaluation: n samples of each question at an evaluation temperature, and their scores.

TRL generates and calls the reward functions, with transformers or vLLM, as in training; the loop, the progress bar,
callbacks and the choice of the best checkpoint are transformers'. No loss is computed.

Legend: B rows of this process, F reward functions, T completion positions.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_utils import has_length

from srpo_trl.evaluation.batches import PlannedSample, batch_by_tokens
from srpo_trl.evaluation.samples import AnswerParser, Sample, score_samples
from srpo_trl.evaluation.scores import mean_of_estimates, named, repeated_ngram_share
from srpo_trl.evaluation.temporary import temporarily_set
from srpo_trl.rewards.grading import GRADER_ERRORS, completion_text
from srpo_trl.runs.scores import Estimate

# TRL's means over batches beside those that `score_samples` takes over questions. Batches differ in size here, and
# every row is a group of its own.
TRLS_BATCH_MEANS = (
    "reward_std",
    "frac_reward_zero_std",
    *(f"completions/{statistic}_terminated_length" for statistic in ("mean", "min", "max")),
)


@dataclass(kw_only=True)
class Evaluator:
    """Plans the batches of an evaluation, keeps what was sampled in them, and scores it.

    Args:
        parser: how the reward functions let a text be read.
        judge: rewards (B, F), NaN where a function gave none -> the score (B,) that decides, bool (B,) of the rows
            that have one, bool (B,) of the correct rows.
        reward_names: of the F functions.
        end_tokens: token ids that may end a completion.
        num_samples: of each question.
        temperature, top_p: of sampling.
        tokens_per_batch: of one process's share of a batch.
        max_completion_length: in tokens.
        seed: of the random numbers of an evaluation, on this process.
        rank, num_processes: this process among those that share the work.

    Attributes:
        samples: of the last evaluation, of all processes, in the order of the questions.
    """

    parser: AnswerParser
    judge: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    reward_names: Sequence[str]
    end_tokens: Collection[int]
    num_samples: int
    temperature: float
    top_p: float
    tokens_per_batch: int
    max_completion_length: int
    seed: int
    rank: int = 0
    num_processes: int = 1
    samples: Sequence[Sample] = ()
    _taken: list[Sample] = field(default_factory=list)  # of this process, so far

    def batches(
        self, rows: Any, num_tokens: Callable[[dict[str, Any]], int], *, in_one: bool = False
    ) -> DataLoader[Any]:
        """Return this process's share of the batches: lists of (planned sample, row).

        Args:
            rows: a data set, or None; an iterable one is read to its end.
            num_tokens: of a row's prompt.
            in_one: draw everything together, for engines that schedule by themselves.
        Raises:
            ValueError: there are no rows.
        """
        questions = _Questions(rows)
        batches = batch_by_tokens(
            [num_tokens(row) for row in questions.rows],
            num_samples=self.num_samples,
            max_completion_length=self.max_completion_length,
            tokens_per_batch=None if in_one else self.tokens_per_batch,
            num_processes=self.num_processes,
        )
        shares = [batch[self.rank :: self.num_processes] for batch in batches]
        return DataLoader(questions, batch_sampler=shares, collate_fn=list)

    @contextmanager
    def sampling(self, trainer: Any, device: torch.device) -> Iterator[None]:
        """Begin an evaluation, during which `trainer` samples as it does.

        Training gets its parameters and random numbers back, also after an error.

        Args:
            trainer: a `GRPOTrainer`.
            device: on which it generates.
        """
        self._taken = []
        sampling = {"temperature": self.temperature, "top_p": self.top_p}
        with ExitStack() as stack:
            devices = [torch.cuda.current_device()] if device.type == "cuda" else []
            stack.enter_context(torch.random.fork_rng(devices=devices))
            if device.type == "mps":
                stack.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
            torch.manual_seed(self.seed)
            without_loss = {
                "num_generations_eval": 1,  # rows are planned one by one: a group has one
                "vllm_importance_sampling_correction": False,
                "mask_truncated_completions": False,
                "_get_per_token_logps_and_entropies": lambda *args, **kwargs: (None, None, None),
            }
            stack.enter_context(temporarily_set(trainer, **sampling, **without_loss))
            if trainer.use_vllm:
                vllm = trainer.vllm_generation
                options = {**vllm.generation_kwargs, **sampling}
                stack.enter_context(temporarily_set(vllm, **sampling, generation_kwargs=options))
            else:
                stack.enter_context(temporarily_set(trainer.generation_config, **sampling))
            yield

    def take(
        self,
        planned: Sequence[PlannedSample],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        tool_mask_BT: Tensor | None,
        rewards_BF: Tensor,
    ) -> None:
        """Keep the samples of a batch of B rows of this process, all but the padding.

        Args:
            planned: what each row was drawn for.
            completions: texts or messages.
            completion_ids: tokens, of any length.
            tool_mask_BT: 0 on tokens of tools; None: there are none.
            rewards_BF: NaN where a function gave none.
        """
        score_B, is_scored_B, is_correct_B = (verdict.tolist() for verdict in self.judge(rewards_BF))
        for row, plan in enumerate(planned):
            if plan.is_padding:
                continue
            ids, text = completion_ids[row], completion_text(completions[row])
            mask = [1] * len(ids) if tool_mask_BT is None else tool_mask_BT[row, : len(ids)].tolist()
            own_ids = [token for token, is_own in zip(ids, mask, strict=True) if is_own]
            rewards = [reward if math.isfinite(reward) else None for reward in rewards_BF[row].tolist()]
            self._taken.append(
                Sample(
                    question=plan.question,
                    text=text,
                    num_tokens=len(own_ids),
                    is_cut=ids[-1] not in self.end_tokens,
                    repeated_ngrams=repeated_ngram_share(own_ids),
                    rewards=dict(zip(self.reward_names, rewards, strict=True)),
                    score=score_B[row] if is_scored_B[row] else None,
                    is_correct=is_correct_B[row] if is_scored_B[row] else None,
                    answer=_read(self.parser.extract_answer, text),
                    follows_format=_read(self.parser.follows_format, text),
                )
            )

    def scores(
        self, gather_object: Callable[[list[Any]], list[Any]], trls_metrics: MutableMapping[str, Any]
    ) -> dict[str, float]:
        """Return the scores of the samples of all processes by name, and take what they stand for from TRL's metrics.

        A stable sort of the same list: every process has the same scores and takes the same checkpoint for the best.
        """
        self.samples = sorted(gather_object(self._taken), key=lambda sample: sample.question)
        has_answers = self.parser.extract_answer is not None
        scores = score_samples(self.samples, self.num_samples, has_answers=has_answers)
        for name in (*TRLS_BATCH_MEANS, *(f"rewards/{name}/std" for name in self.reward_names), *scores):
            trls_metrics.pop(name, None)
        return scores

    def mean_of(
        self, metrics: Mapping[str, float], data_sets: Iterable[str], prefix: str
    ) -> dict[str, float]:
        """Return the mean of the avg@n of several named data sets, under the name that one of them alone has."""
        average = f"avg@{self.num_samples}"
        names = [f"{prefix}_{data_set}_{average}" for data_set in data_sets]
        estimates = [
            Estimate(metrics[name], metrics.get(f"{name}_stderr")) for name in names if name in metrics
        ]
        return named(f"{prefix}_{average}", mean_of_estimates(estimates))


class _Questions(Dataset[tuple[PlannedSample, dict[str, Any]]]):
    """The rows of a data set by planned sample, so that a batch knows what it was drawn for."""

    def __init__(self, rows: Any) -> None:
        if rows is None:
            raise ValueError("There is nothing to evaluate on: give SRPOTrainer an eval_dataset.")
        self.rows: Any = rows if has_length(rows) else list(rows)
        if not len(self.rows):
            raise ValueError("eval_dataset has no rows: there is nothing to evaluate on.")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, planned: PlannedSample) -> tuple[PlannedSample, dict[str, Any]]:
        return planned, dict(self.rows[planned.question])


def _read(reader: Callable[[str], Any] | None, text: str) -> Any:
    """Return what a reward function reads in a text; None where it reads nothing, or breaks on an odd text."""
    try:
        return reader(text) if reader is not None else None
    except GRADER_ERRORS:
        return None
