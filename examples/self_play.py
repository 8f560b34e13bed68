"""Self-play in the small (R-Diverse, arXiv:2602.13103): a challenger writes sums, a solver answers them, in turns.

    python examples/self_play.py [--rounds 4]

Both are models of 0.2 million parameters that are made and taught to write here: no GPU, no download, a minute. In each
round the challenger is trained first, then the solver on what the challenger has written, both by GRPO.

- The challenger's reward is 1 - 2 |p - 1/2|, p the solver's pass rate on its task, less a penalty for repeating:

      P = gamma [max sim - tau_max]_+ + (1 - gamma) [mean sim - tau_mean]_+

  with the cosine similarities to the tasks of earlier rounds.
- The solver trains on tasks with p in [0.3, 0.8], and on earlier ones (a share of 0.3), rewarded by the answer.

What differs from the paper: tasks are sums of two digits with known answers, where theirs are the solver's majorities;
similarity is between digits and sums, where theirs is between embeddings of programs; each turn has its own optimizer.
It shows how two trainers take turns, not what is gained: a solver of this size gains a few percent at best.
"""

import argparse
import random
import re
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, PrinterCallback

from srpo_trl import SRPOConfig, SRPOTrainer
from srpo_trl.data.tiny_model import build_model, build_tokenizer

ASK = "+"  # what the challenger is prompted with
TASK = re.compile(r"(\d)\+(\d)")
GAMMA, TAU_MAX, TAU_MEAN = 0.5, 0.5, 0.25
LEAST, MOST, REPLAYED = 0.3, 0.8, 0.3
SAMPLES = 8  # of the solver, for a pass rate
ALL_TASKS = [f"{first}+{second}" for first in range(10) for second in range(10)]


class Round(NamedTuple):
    """What a round leaves.

    Attributes:
        valid: share of the written texts that are tasks.
        different: how many different ones.
        penalty: their mean P against the tasks of earlier rounds.
        trained_on: tasks that the solver was trained on.
        accuracy: the solver's mean pass rate on all 100 sums afterwards.
    """

    valid: float
    different: int
    penalty: float
    trained_on: int
    accuracy: float


def answer(task: str) -> str:
    """Return the sum in two digits."""
    return f"{sum(map(int, task.split('+'))):02d}"


def memory_penalties(tasks: Sequence[str], memory: Sequence[str]) -> list[float]:
    """Return P of each task, from 0 on; 0 where nothing is remembered."""
    if not tasks or not memory:
        return [0.0] * len(tasks)
    similarity_NM = _features(tasks) @ _features(memory).T
    over_max_N = (similarity_NM.max(1).values - TAU_MAX).clamp(min=0)
    over_mean_N = (similarity_NM.mean(1) - TAU_MEAN).clamp(min=0)
    return (GAMMA * over_max_N + (1 - GAMMA) * over_mean_N).tolist()


def _features(tasks: Sequence[str]) -> Tensor:
    """Return a unit vector of each task: its first digit, its second, its sum."""
    rows = torch.zeros(len(tasks), 39)
    for row, task in zip(rows, tasks, strict=True):
        first, second = map(int, task.split("+"))
        row[[first, 10 + second, 20 + first + second]] = 3**-0.5
    return rows


class Player:
    """A model with its tokenizer; it is asked in a user's turn and goes on in its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, learning_rate: float) -> None:
        self.tokenizer, self.learning_rate = tokenizer, learning_rate
        self.model: PreTrainedModel = build_model(tokenizer, seed)

    def warm_up(self, pairs: Sequence[tuple[str, str]], steps: int) -> None:
        """Teach it to write the texts after the prompts, by maximum likelihood on random ones of the pairs."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        for _ in range(steps):
            texts = [self._asked(prompt) + text + "<|end|>" for prompt, text in random.choices(pairs, k=64)]
            batch = self.tokenizer(texts, return_tensors="pt", padding=True)
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            self.model(**batch, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def write(self, prompts: Sequence[str], samples: int) -> list[list[str]]:
        """Return so many sampled texts for each prompt."""
        batch = self.tokenizer([self._asked(p) for p in prompts], return_tensors="pt", padding=True)
        ids = self.model.generate(**batch, max_new_tokens=4, do_sample=True, num_return_sequences=samples)
        texts = self.tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return [texts[i : i + samples] for i in range(0, len(texts), samples)]

    def train(self, prompts: Sequence[str], rewards: Sequence[Any], steps: int) -> None:
        """Take so many optimizer steps."""
        rows = Dataset.from_dict({"prompt": [[{"role": "user", "content": prompt}] for prompt in prompts]})
        with tempfile.TemporaryDirectory() as folder:
            config = SRPOConfig(
                folder,
                method="grpo",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                max_completion_length=4,
                num_generations=8,
                per_device_train_batch_size=64,
                max_steps=steps,
                learning_rate=self.learning_rate,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            trainer = SRPOTrainer(
                self.model, list(rewards), config, train_dataset=rows, processing_class=self.tokenizer
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()

    def _asked(self, prompt: str) -> str:
        return f"<|user|>{prompt}<|end|><|assistant|>"


class Game:
    """A challenger, a solver, and the tasks so far."""

    def __init__(self, seed: int) -> None:
        random.seed(seed)
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        self.challenger, self.solver = Player(tokenizer, seed, 3e-4), Player(tokenizer, seed + 1, 5e-5)
        self.challenger.warm_up([(ASK, task) for task in ALL_TASKS], 100)
        self.solver.warm_up([(task, answer(task)) for task in ALL_TASKS], 120)
        self.memory: list[str] = []

    def pass_rates(self, tasks: Sequence[str]) -> list[float]:
        """Return the share of the solver's samples that answer each task rightly."""
        texts = self.solver.write(tasks, SAMPLES) if tasks else []
        return [own.count(answer(task)) / SAMPLES for task, own in zip(tasks, texts, strict=True)]

    def accuracy(self) -> float:
        """Return the solver's mean pass rate on all tasks."""
        return sum(self.pass_rates(ALL_TASKS)) / len(ALL_TASKS)

    def uncertainty_reward(self, completions: list[Any], **kwargs: Any) -> list[float]:
        """1 - 2 |p - 1/2| of each task; -1 of what is none."""
        texts = [completion[-1]["content"] for completion in completions]
        rates = iter(self.pass_rates([text for text in texts if TASK.fullmatch(text)]))
        return [1 - 2 * abs(next(rates) - 0.5) if TASK.fullmatch(text) else -1.0 for text in texts]

    def memory_reward(self, completions: list[Any], **kwargs: Any) -> list[float]:
        """-P of each task; 0 of what is none."""
        texts = [completion[-1]["content"] for completion in completions]
        penalties = iter(memory_penalties([text for text in texts if TASK.fullmatch(text)], self.memory))
        return [-next(penalties) if TASK.fullmatch(text) else 0.0 for text in texts]

    def answer_reward(self, prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float]:
        """1 for the right sum, else 0."""
        asked = [prompt[-1]["content"] for prompt in prompts]
        return [float(c[-1]["content"] == answer(task)) for task, c in zip(asked, completions, strict=True)]

    def play(self, steps: int) -> Round:
        """Play one round: the challenger's turn, then the solver's."""
        self.challenger.train([ASK] * 8, [self.uncertainty_reward, self.memory_reward], steps)
        (texts,) = self.challenger.write([ASK], 256)
        tasks = [text for text in texts if TASK.fullmatch(text)]
        written = list(dict.fromkeys(tasks))
        penalties = memory_penalties(written, self.memory)
        rates = self.pass_rates(written)
        chosen = [task for task, rate in zip(written, rates, strict=True) if LEAST <= rate <= MOST]
        replayed = min(len(self.memory), round(len(chosen) * REPLAYED / (1 - REPLAYED)))
        if chosen:
            shown = chosen + random.sample(self.memory, replayed)
            shown += random.choices(shown, k=max(0, 8 - len(shown)))
            self.solver.train(shown, [self.answer_reward], steps)
        self.memory += chosen
        return Round(
            len(tasks) / len(texts),
            len(written),
            sum(penalties) / max(1, len(penalties)),
            len(chosen) + replayed,
            self.accuracy(),
        )


def main(argv: Sequence[str] | None = None) -> list[Round]:
    """Play, print a line for each round, and return the rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each turn")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    game = Game(options.seed)
    print(f"The solver passes {game.accuracy():.0%} of all sums.")
    print("round  tasks written  different  penalty  trained on  solver")
    rounds = []
    for number in range(1, options.rounds + 1):
        rounds.append(game.play(options.steps))
        valid, different, penalty, trained_on, accuracy = rounds[-1]
        print(f"{number:5}{valid:15.0%}{different:11}{penalty:9.3f}{trained_on:12}{accuracy:8.0%}")
    return rounds


if __name__ == "__main__":
    main()
