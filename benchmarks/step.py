"""Whole training steps, generation apart: SRPO's over GRPO's.

    python -m benchmarks.step                  on a GPU: Qwen3-0.6B and 1.7B shapes with random weights
    python -m benchmarks.step --device cpu     a tiny model

Both train on the same random completions, replayed by a `rollout_func`: the share of failed rollouts is exact, and
every failed one has a correct sibling. GRPO is `SRPOTrainer` with `method="grpo"`, which is `GRPOTrainer`.
"""

import random
import statistics
import string
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from benchmarks.common import random_qwen3, run
from benchmarks.measure import free_memory, seconds
from benchmarks.tables import Table
from srpo_trl import SRPOConfig, SRPOTrainer
from srpo_trl.data.smoke_model import build_byte_tokenizer
from srpo_trl.methods import PAPER_DEFAULTS

Method = Literal["grpo", "srpo"]

NUM_GENERATIONS = 10
RIGHT, WRONG = "r", "w"  # first letter of a completion
GPU_TOKENS_AT_ONCE = 32_768  # of a micro-batch's completions


class Case(NamedTuple):
    """What is trained."""

    shape: str
    num_tokens: int  # of each completion
    routed_percent: int
    num_rows: int  # rollouts of an optimizer step
    micro_batch: int


class Step(NamedTuple):
    """Seconds of a training step: all of it, and of that the teacher pass."""

    whole: float
    teacher: float


class Clock(TrainerCallback):
    """Seconds of each optimizer step, generation, rewards and the teacher's EMA update included."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: list[float] = []
        self._device = device
        self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = seconds(self._device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(seconds(self._device) - self._start)


class TimedTrainer(SRPOTrainer):
    """Times its teacher pass; `srpo/seconds/teacher` does not wait for the device."""

    teacher_seconds: list[float]

    def _score(self, *args: Any) -> None:
        start = seconds(self.accelerator.device)
        super()._score(*args)
        self.teacher_seconds.append(seconds(self.accelerator.device) - start)


def replay(case: Case, tokenizer: PreTrainedTokenizerFast) -> Callable[[list, Any], dict[str, Any]]:
    """A `rollout_func` that gives each group random completions, the failed ones last."""
    letters = random.Random(0)
    num_failed = case.routed_percent * NUM_GENERATIONS // 100

    def completion(first: str) -> list[int]:
        text = first + "".join(letters.choices(string.ascii_lowercase, k=case.num_tokens - 2))
        return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]

    def rollout(prompts: list, trainer: Any) -> dict[str, Any]:
        texts = [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in prompts
        ]
        prompt_ids = tokenizer(texts)["input_ids"]
        is_failed = [i % NUM_GENERATIONS >= NUM_GENERATIONS - num_failed for i in range(len(prompts))]
        completion_ids = [completion(WRONG if failed else RIGHT) for failed in is_failed]
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    return rollout


def first_letter(completions: list, **kwargs: Any) -> list[float | None]:
    """1 where a completion begins with `RIGHT`, else 0."""
    return [float(completion[0]["content"].startswith(RIGHT)) for completion in completions]


def train(case: Case, method: Method, device: torch.device, *, num_steps: int) -> list[Step]:
    """Train a fresh model; the first step, which warms up, is left out."""
    tokenizer = build_byte_tokenizer()
    longest = 4 * case.num_tokens + 1024
    with tempfile.TemporaryDirectory() as folder:
        config = SRPOConfig(
            **PAPER_DEFAULTS,  # the same policy loss for both
            output_dir=folder,
            method=method,
            num_generations=NUM_GENERATIONS,
            per_device_train_batch_size=case.micro_batch,
            gradient_accumulation_steps=case.num_rows // case.micro_batch,
            max_completion_length=case.num_tokens,
            max_reprompt_length=case.num_tokens + 1024,
            gradient_checkpointing=True,
            max_steps=1 + num_steps,
            logging_steps=1,
            bf16=device.type == "cuda",
            use_cpu=device.type == "cpu",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        question = "Which of the following statements about the molecule is correct?"
        trainer = TimedTrainer(
            model=random_qwen3(case.shape, device, longest, pad_token_id=tokenizer.pad_token_id),
            reward_funcs=first_letter,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": question}]] * 64}),
            processing_class=tokenizer,
            rollout_func=replay(case, tokenizer),
        )
        trainer.teacher_seconds = []
        trainer.remove_callback(PrinterCallback)
        clock = Clock(device)
        trainer.add_callback(clock)
        trainer.train()
    teacher_seconds = trainer.teacher_seconds or [0.0] * len(clock.seconds)
    return [Step(*parts) for parts in zip(clock.seconds, teacher_seconds, strict=True)][1:]


def compare(case: Case, device: torch.device, *, num_steps: int, rounds: int) -> dict[str, Any]:
    """One row: GRPO and SRPO in turn, medians over all steps."""
    steps: dict[Method, list[Step]] = {"grpo": [], "srpo": []}
    ratios = []
    try:
        for _ in range(rounds):
            for method, taken in steps.items():
                taken += train(case, method, device, num_steps=num_steps)
                free_memory(device)
            ratios.append(_median(steps["srpo"][-num_steps:]) / _median(steps["grpo"][-num_steps:]))
    except torch.OutOfMemoryError:
        steps = {}
    if not steps:  # only now, as the error held on to what the step had made
        free_memory(device)
    row = {"model": case.shape, "tokens": case.num_tokens, "routed": f"{case.routed_percent} %"}
    if not steps:
        return row | dict.fromkeys(("GRPO s", "SRPO s", "ratio", "rounds", "teacher s"), "does not fit")
    return row | {
        "GRPO s": _median(steps["grpo"]),
        "SRPO s": _median(steps["srpo"]),
        "ratio": _median(steps["srpo"]) / _median(steps["grpo"]),
        "rounds": f"{min(ratios):.2f}-{max(ratios):.2f}" if rounds > 1 else "1",
        "teacher s": statistics.median(step.teacher for step in steps["srpo"]),
    }


def _median(steps: Sequence[Step]) -> float:
    return statistics.median(step.whole for step in steps)


NOTE = (
    "Seconds of an optimizer step: replayed rollouts, rewards, teacher pass, forward, backward, AdamW and the "
    'teacher\'s EMA update; "teacher s" is the teacher pass alone. Rounds: how many, or the lowest and highest ratio '
    "of the rounds GRPO, SRPO, GRPO, SRPO."
)


def tables(device: torch.device, quick: bool) -> Iterator[Table]:
    """The ratio at 40 % routed, then over routed share and tokens."""
    on_gpu = device.type == "cuda" and not quick
    num_steps = 1 if quick else 3 if on_gpu else 2

    def row(shape: str, num_tokens: int, percent: int, rounds: int = 1) -> dict[str, Any]:
        case = _case(shape, num_tokens, percent, device)
        return compare(case, device, num_steps=num_steps, rounds=rounds)

    shapes, num_tokens = (("Qwen3-0.6B", "Qwen3-1.7B"), 2048) if on_gpu else (("tiny",), 32 if quick else 128)
    first = [row(shape, num_tokens, 40, rounds=1 if quick else 2) for shape in shapes]
    yield Table("Training step, 40 % routed, gradient checkpointing", first, NOTE)
    if quick:
        return
    lengths = [1024 * 2**power for power in range(5)] if on_gpu else [64, 128]
    rows = [row(shapes[0], length, percent) for length in lengths for percent in (0, 20, 40, 60)]
    yield Table("Training step over routed share and tokens, gradient checkpointing", rows, NOTE)


def _case(shape: str, num_tokens: int, percent: int, device: torch.device) -> Case:
    if device.type != "cuda":
        return Case(shape, num_tokens, percent, NUM_GENERATIONS, NUM_GENERATIONS)
    num_rows = 2 * NUM_GENERATIONS
    fitting = [n for n in (1, 2, 4, 5, 10) if n * num_tokens <= GPU_TOKENS_AT_ONCE]
    return Case(shape, num_tokens, percent, num_rows, fitting[-1])


def main(argv: Sequence[str] | None = None) -> int:
    return run("Training steps: SRPO's over GRPO's.", (tables,), argv)


if __name__ == "__main__":
    sys.exit(main())
