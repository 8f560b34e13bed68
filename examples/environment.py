"""An environment whose error message the teacher reads, in the small: a door opens to whoever dials the right sum.

    python examples/environment.py [--steps 30]

A model of 0.2 million parameters, made and taught to call the tool here, is trained by SRPO: no GPU, no download, a
minute. A rollout has two turns of the model: it calls `dial` once, reads what comes back, and goes on. A wrong number
raises an error. The student reads that message when it is too late; the teacher reads it before the rollout, as the
environment's `feedback`, and so knows which number should have been dialed.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from srpo_trl import SRPOConfig, SRPOTrainer
from srpo_trl.data.tiny_model import build_model, build_tokenizer
from srpo_trl.teacher.templates import ContextTemplates, TeacherInformation

TASKS = [f"{first}+{second}" for first in range(10) for second in range(10) if first + second >= 10]
CALL_OPENS, CALL_CLOSES = '<call>{"name": "dial", "arguments": {"number": ', "}}</call>"
WORDS = (
    "<|tool|>",
    CALL_OPENS,
    CALL_CLOSES,
    "{'error': '",
    "'}",
    "Dialed ",
    ", needed ",
    "Nothing was dialed.",
)
FAILED_SHARE = 0.6  # of the calls that the model is taught to start with

# A turn ends with <|end|>, of the model and of the tool; calls are JSON, which `RESPONSE` finds again.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message.role + '|>' + message.content -}}"
    "{%- for call in message.tool_calls or [] -%}"
    '{{- \'<call>{"name": "\' + call.function.name + \'", "arguments": \' -}}'
    "{{- (call.function.arguments | tojson) + '}</call>' -}}"
    "{%- endfor -%}"
    "{{- '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open": "<call>",
            "close_pattern": "</call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|end\|>", "content": "text"},
    },
}


def code(task: str) -> int:
    """Return the number that opens the door."""
    return sum(map(int, task.split("+")))


class Door:
    """The environment. TRL makes one for each rollout, and uses it again for later ones.

    Attributes:
        feedback: what the teacher reads of a rollout that failed.
    """

    def reset(self, task: str, **columns: Any) -> None:
        """Begin a rollout; the arguments are the columns of its row."""
        self.code, self.is_open = code(task), False
        self.feedback: str | None = None

    def dial(self, number: int) -> str:
        """Dial a number.

        Args:
            number: The sum.

        Returns:
            Whether the door is open.
        """
        if number != self.code:
            self.feedback = f"Dialed {number}, needed {self.code}."
            raise ValueError(self.feedback)  # becomes the tool's result
        self.is_open = True
        return "Correct"

    def get_reward(self) -> float:
        """1 where the door is open."""
        if not self.is_open and self.feedback is None:
            self.feedback = "Nothing was dialed."
        return float(self.is_open)


class Result(NamedTuple):
    """What a run leaves.

    Attributes:
        opened: share of the rollouts that opened the door, by step.
        examples: of rollouts that did not, as `log_examples_steps` logs them.
    """

    opened: Sequence[float]
    examples: Sequence[dict[str, Any]]


def tool_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer with a tool's call and result in its vocabulary and its chat template."""
    tokenizer = build_tokenizer(WORDS)
    tokenizer.chat_template, tokenizer.response_template = CHAT_TEMPLATE, RESPONSE
    return tokenizer


def taught_model(
    tokenizer: PreTrainedTokenizerFast, templates: ContextTemplates, steps: int
) -> PreTrainedModel:
    """Return a model that calls the tool, often with a wrong number, and that can read feedback."""
    model: PreTrainedModel = build_model(tokenizer, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        pairs = [_lesson(random.choice(TASKS), templates) for _ in range(64)]
        batch = tokenizer([asked + done for asked, done in pairs], return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, (_, done) in zip(labels, pairs, strict=True):
            row[: -len(tokenizer(done)["input_ids"])] = -100
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def _lesson(task: str, templates: ContextTemplates) -> tuple[str, str]:
    """Return a prompt and what to write after it: the student's, or the teacher's with feedback in it."""
    wrong = random.choice([number for number in range(10, 19) if number != code(task)])
    error = f"Dialed {wrong}, needed {code(task)}."
    if random.random() < 0.5:
        turn = templates.user_turn(task, TeacherInformation(feedback=error))
        number, result = code(task), "Correct"
    elif random.random() < FAILED_SHARE:
        turn, number, result = task, wrong, f"{{'error': '{error}'}}"
    else:
        turn, number, result = task, code(task), "Correct"
    last = f"<|tool|>{result}<|end|><|assistant|>.<|end|>"
    return f"<|user|>{turn}<|end|><|assistant|>", f"{CALL_OPENS}{number}{CALL_CLOSES}<|end|>{last}"


def main(argv: Sequence[str] | None = None) -> Result:
    """Train, print how often the door opens and how the teacher corrects a rollout, and return both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps")
    parser.add_argument("--lessons", type=int, default=300, help="steps in which the model is taught before")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    random.seed(options.seed)
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        config = SRPOConfig(
            folder,
            teacher_context=["feedback"],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_completion_length=64,
            num_generations=8,
            per_device_train_batch_size=64,
            max_tool_calling_iterations=1,
            max_steps=options.steps,
            learning_rate=1e-3,
            seed=options.seed,
            logging_steps=1,
            log_examples_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        result = train(config, options.lessons)
    for example in result.examples[:2]:
        print(correction(example))
    last = result.opened[-10:]
    print(f"The door opened in {result.opened[0]:.0%} of the first step's rollouts,", end=" ")
    print(f"in {sum(last) / len(last):.0%} of the last {len(last)} steps'.")
    return result


def train(config: SRPOConfig, num_lessons: int) -> Result:
    """Return what a run with this configuration leaves."""
    tokenizer = tool_tokenizer()
    templates = ContextTemplates(config.reprompt_template, config.solution_template, config.feedback_template)
    rows = [{"prompt": [{"role": "user", "content": task}], "task": task} for task in TASKS]
    trainer = SRPOTrainer(
        taught_model(tokenizer, templates, num_lessons),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        environment_factory=Door,
    )
    trainer.train()
    opened = [log["rewards/Door/mean"] for log in trainer.state.log_history if "rewards/Door/mean" in log]
    lines = (Path(str(config.output_dir)) / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    return Result(opened, [record for record in map(json.loads, lines) if "tokens" in record])


def correction(example: dict[str, Any]) -> str:
    """Return in words what student and teacher read, and at which token they differ most."""
    position, choice, probability = example["teacher_choices"][0]
    return (
        f"The student read   {example['prompt']}\n"
        f"and the rollout is {''.join(example['tokens'])}\n"
        f"The teacher read   {example['feedback']}\n"
        f"and would write    {choice!r}, with probability {probability:.2f}, in the place of "
        f"{example['tokens'][position]!r}\n"
    )


if __name__ == "__main__":
    main()
