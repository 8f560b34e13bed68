"""Tiny trainers on given rollouts, shared by the trainer's tests."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from srpo_trl import SRPOConfig, SRPOTrainer
from srpo_trl.data.tiny_model import build_model, build_tokenizer

NUM_GENERATIONS = 4
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])

# (prompt, its completions): right ones hold a "#", unscorable ones a "=". Lengths differ a lot on purpose.
ROLLOUTS = (
    ("1+1", ["2#2", "33;12", "0", "4;4;4;4;4;4;4"]),  # one right
    ("2+2", ["4#4", "4;#4 the answer", "9", "8;8"]),  # two right
    ("3+3", ["7", "1;2;3;4", "5;5", "9 wrong"]),  # all failed
    ("4+4", ["8#8", "=", "8#8;8;8;8", "7;7;7"]),  # one that nothing scores
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Qwen3ForCausalLM:
    """A random model that is sure enough of itself for teacher and student to differ visibly."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "head_dim": 16}
    model = build_model(tiny_tokenizer(), seed, **(sizes | {"num_key_value_heads": 1} | overrides))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return model.to(dtype)


def tiny_moe_model(seed: int = 0) -> Qwen3MoeForCausalLM:
    """A random model with four experts in each of its two layers, two of which a token takes."""
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        output_router_logits=True,
        router_aux_loss_coef=0.01,
    )
    return Qwen3MoeForCausalLM(config)


def contains_answer(completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
    """1 where the completion holds a "#", nothing where it holds a "=", else 0."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [None if "=" in text else float("#" in text) for text in texts]


def replay(
    tokenizer: PreTrainedTokenizerFast,
    rollouts: Sequence[tuple[str, Sequence[str]]] = ROLLOUTS,
    turn: int = 0,
) -> Callable[[list, SRPOTrainer], dict[str, Any]]:
    """A `rollout_func` that gives each prompt its completions; `turn` rotates them within their group."""
    completions = {prompt: list(answers[turn:]) + list(answers[:turn]) for prompt, answers in rollouts}

    def rollout(prompts: list, trainer: SRPOTrainer) -> dict[str, Any]:
        first = trainer.accelerator.process_index * len(prompts)
        prompt_ids, completion_ids = [], []
        for row, prompt in enumerate(prompts, start=first):
            text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            answer = completions[text][row % trainer.num_generations]
            prompt_ids.append(
                tokenizer(prompt)["input_ids"]
                if isinstance(prompt, str)
                else tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
            )
            completion_ids.append([*tokenizer(answer)["input_ids"], tokenizer.eos_token_id])
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    return rollout


def chat_dataset(rollouts: Sequence[tuple[str, Sequence[str]]] = ROLLOUTS, **columns: list) -> Dataset:
    prompts = [[{"role": "user", "content": prompt}] for prompt, _ in rollouts]
    return Dataset.from_dict({"prompt": prompts, **columns})


def config(output_dir: Any, **options: Any) -> SRPOConfig:
    """One optimizer step of plain gradient descent over all of `ROLLOUTS`, unless told otherwise."""
    defaults: dict[str, Any] = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "num_generations": NUM_GENERATIONS,
        "per_device_train_batch_size": 16,
        "max_completion_length": 16,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "shuffle_dataset": False,
        "distillation_topk": 5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    return SRPOConfig(**(defaults | options))


def make_trainer(output_dir: Any, *, model: Any = None, **options: Any) -> SRPOTrainer:
    """A trainer on `ROLLOUTS`; options named as the trainer's parameters go there, the others to the config."""
    tokenizer = options.pop("processing_class", None) or tiny_tokenizer()
    parameters = {
        "reward_funcs": contains_answer,
        "train_dataset": chat_dataset(),
        "rollout_func": replay(tokenizer),
        "processing_class": tokenizer,
    }
    optional = (
        "peft_config",
        "quantization_config",
        "callbacks",
        "tools",
        "eval_dataset",
        "environment_factory",
    )
    for name in (*optional, *parameters):
        if name in options:
            parameters[name] = options.pop(name)
    return SRPOTrainer(
        model=tiny_model() if model is None else model, args=config(output_dir, **options), **parameters
    )


def flat_parameters(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().double().reshape(-1) for p in model.parameters() if p.requires_grad])


def update(trainer: SRPOTrainer) -> Tensor:
    """Train, and return the change of all trainable parameters as one vector."""
    before = flat_parameters(trainer.model)
    trainer.train()
    return flat_parameters(trainer.model) - before


def update_of(tmp_path, split=(16, 1, 1), dtype=torch.float32, turn=0, **options):
    """The update by `ROLLOUTS`, cut into (rows of a micro-batch, micro-batches of a step, of a rollout batch)."""
    size, accumulation, generation = split
    trainer = make_trainer(
        tmp_path,
        model=tiny_model(dtype=dtype),
        rollout_func=replay(tiny_tokenizer(), turn=turn),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=generation,
        **options,
    )
    return update(trainer)


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


def logged(trainer: SRPOTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def all_rows() -> list[tuple[str, str]]:
    return list(itertools.chain.from_iterable([(p, a) for a in answers] for p, answers in ROLLOUTS))
