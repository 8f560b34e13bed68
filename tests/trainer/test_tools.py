"""Tool calls and environments under Qwen3's own chat template: several turns, re-scored with tool tokens visible."""

import json
from importlib.resources import files

import pytest
import torch
from datasets import Dataset

from harness import config, logged
from srpo_trl import SRPOTrainer
from srpo_trl.data.smoke_model import build_byte_tokenizer
from srpo_trl.data.tiny_model import build_model
from srpo_trl.methods.record import Route

QWEN3_TEMPLATE = files("trl").joinpath("chat_templates/qwen3.jinja").read_text()
NUM_GENERATIONS = 4


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first number.
        b: The second number.

    Returns:
        Their sum.
    """
    return a + b


class Calculator:
    """An environment whose tool it is to add, and which owns the reward."""

    def reset(self, **kwargs) -> str | None:
        self.calls = 0
        return " Use your tool."

    def add(self, a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: The first number.
            b: The second number.

        Returns:
            Their sum.
        """
        self.calls += 1
        return a + b

    def get_reward(self) -> float:
        """One where the tool was used."""
        return float(self.calls > 0)


def call(a, b):
    return f'<tool_call>\n{{"name": "add", "arguments": {{"a": {a}, "b": {b}}}}}\n</tool_call>'


SCRIPT = [call(2, 2), "I guess 5.", call(2, 2), "Maybe 3."]  # what the model says first, by rollout


def answer(completions, **kwargs):
    return [float("4" in c[-1]["content"]) for c in completions]


@pytest.fixture
def tokenizer():
    made = build_byte_tokenizer()
    made.chat_template = QWEN3_TEMPLATE
    return made


def scripted(trainer, tokenizer):
    """Stand in for sampling: each rollout's first turn from the script, then an answer from the tool's result."""

    def single_turn(prompt_ids, *args, **kwargs):
        texts = SCRIPT if len(prompt_ids) == NUM_GENERATIONS else ["It is 4."] * len(prompt_ids)
        return [[*tokenizer(t)["input_ids"], tokenizer.eos_token_id] for t in texts], None

    trainer._generate_single_turn = single_turn


def trained(tmp_path, tokenizer, method="srpo", **parameters):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "head_dim": 16}
    model = build_model(tokenizer, 0, **sizes, num_key_value_heads=1, max_position_embeddings=4096)
    args = config(
        tmp_path,
        method=method,
        per_device_train_batch_size=NUM_GENERATIONS,
        max_completion_length=400,
        log_completions=True,
        chat_template_kwargs={"enable_thinking": False},
    )
    trainer = SRPOTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": "What is 2+2?"}]]}),
        processing_class=tokenizer,
        **parameters,
    )
    scripted(trainer, tokenizer)
    seen = {}
    original = trainer._score

    def score(output, rollouts):
        original(output, rollouts)
        seen.update(output=output, rollouts=rollouts)

    trainer._score = score
    trainer.train()
    return trainer, seen


def check(trainer, seen, tokenizer):
    routes = seen["rollouts"].route_B.tolist()
    assert routes == [Route.POLICY, Route.DISTILLED, Route.POLICY, Route.DISTILLED]
    prompt = tokenizer.decode(list(seen["rollouts"].teacher_prompts[1].ids))
    assert (
        '"name": "add"' in prompt.split("<|im_start|>user")[0]
    )  # the tools' schemas stay in the system turn
    assert 'Tool call: add {"a": 2, "b": 2}\n\nTool result: 4\n\nIt is 4.' in prompt
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert logged(trainer, "srpo/distillation/divergence")[0] > 0


def test_tools(tmp_path, tokenizer):
    trainer, seen = trained(tmp_path, tokenizer, reward_funcs=answer, tools=[add])
    check(trainer, seen, tokenizer)
    mask, tools = seen["output"]["completion_mask"], seen["output"]["tool_mask"]
    assert (mask * (1 - tools))[0].sum() > 0  # the tool's tokens are there, and not scored


def test_environments_that_own_the_reward(tmp_path, tokenizer):
    trainer, seen = trained(tmp_path, tokenizer, environment_factory=Calculator)
    check(trainer, seen, tokenizer)
    assert "2+2? Use your tool." in tokenizer.decode(list(seen["rollouts"].teacher_prompts[1].ids))


def test_tool_tokens_reach_the_teacher_and_carry_no_loss(tmp_path, tokenizer):
    """With every rollout distilled, the teacher reads the tool's tokens; only the model's own have hidden states."""
    _, seen = trained(tmp_path, tokenizer, method="sdpo", reward_funcs=answer, tools=[add])
    output, rollouts = seen["output"], seen["rollouts"]
    assert rollouts.route_B.tolist() == [Route.DISTILLED] * 4
    text = tokenizer.decode(output["completion_ids"][0][output["completion_mask"][0].bool()])
    assert "<tool_response>\n4\n</tool_response>" in text
    assert json.loads(text.split("<tool_call>\n")[1].split("\n</tool_call>")[0])["name"] == "add"
    num_own = int((output["completion_mask"] * output["tool_mask"])[0].sum())
    assert len(output["srpo_teacher_hidden"][0]) == num_own < int(output["completion_mask"][0].sum())
    assert torch.isfinite(output["srpo_teacher_entropy"]).all()
