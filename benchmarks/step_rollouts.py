"""What the trainers of `benchmarks.step` train on: replayed rollouts, of which an exact share has failed."""

import random
import string
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import PreTrainedTokenizerFast

RIGHT, WRONG = "r", "w"  # first letter of a completion
_QUESTION = "Which of the following statements about the molecule is correct?"
_TEMPLATE_TOKENS = 32  # of the chat template around a question


class Case(NamedTuple):
    """What is trained.

    Attributes:
        shape: of the model, see `benchmarks.common`.
        num_tokens: of each completion.
        routed_percent: rollouts of a group that have failed.
        num_rows: rollouts of an optimizer step.
        micro_batch: rollouts of a micro-batch.
        num_generations: rollouts of a group.
        vocabulary: of the model; None: the shape's.
        prompt_tokens: of each prompt, about.
    """

    shape: str
    num_tokens: int
    routed_percent: int
    num_rows: int
    micro_batch: int
    num_generations: int = 10
    vocabulary: int | None = None
    prompt_tokens: int = 96


class Replay:
    """Gives each group random completions, the failed ones last; every trainer of a case sees the same ones."""

    def __init__(self, case: Case, tokenizer: PreTrainedTokenizerFast) -> None:
        self._case, self._tokenizer = case, tokenizer
        self._letters = random.Random(0)

    def completions(self, num_rows: int) -> list[list[int]]:
        """Return the token ids of the next completions, whole groups of them."""
        size = self._case.num_generations
        num_failed = self._case.routed_percent * size // 100
        return [self._completion(WRONG if i % size >= size - num_failed else RIGHT) for i in range(num_rows)]

    def _completion(self, first: str) -> list[int]:
        text = first + "".join(self._letters.choices(string.ascii_lowercase, k=self._case.num_tokens - 2))
        return [*self._tokenizer(text)["input_ids"], self._tokenizer.eos_token_id]

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Be a `rollout_func` of `GRPOTrainer`."""
        texts = [
            self._tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False)
            for p in prompts
        ]
        completion_ids = self.completions(len(prompts))
        prompt_ids = self._tokenizer(texts)["input_ids"]
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


def first_letter(completions: list[Any], **kwargs: Any) -> list[float | None]:
    """1 where a completion begins with `RIGHT`, else 0."""
    return [float(completion[0]["content"].startswith(RIGHT)) for completion in completions]


def questions(case: Case) -> Dataset:
    """Prompts of about the case's length, each group's its own."""
    num_filling = max(0, case.prompt_tokens - _TEMPLATE_TOKENS - len(_QUESTION))
    texts = [f"{number:02} {_QUESTION}{'.' * num_filling}" for number in range(64)]
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in texts]})
