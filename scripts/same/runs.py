"""The rows that train: each returns its logs, weights and files."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pictures
import sampler
import tiny
from peft import LoraConfig
from recording import Values, of_folder, of_trainer
from renamed import options_for
from rows import Row

from srpo_trl import SRPOConfig, SRPOTrainer

SHARED: Mapping[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "num_generations": 4,
    "max_completion_length": 12,
    "max_steps": 3,
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "max_grad_norm": 1.0,
    "weight_decay": 0.1,
    "distillation_topk": 8,
    "teacher_update_rate": 0.3,
    "logging_steps": 1,
    "log_completions": True,
    "save_strategy": "steps",
    "save_steps": 3,
    "report_to": [],
    "disable_tqdm": True,
    "seed": 3,
}


def config(row: Row, folder: Path, **more: Any) -> SRPOConfig:
    """Return the row's options under the names that this tree has."""
    known = {field.name for field in fields(SRPOConfig)}
    options = options_for(known, {**SHARED, **row.options, **more})
    return SRPOConfig(output_dir=str(folder), **options)


def trainer(row: Row, folder: Path, more: Mapping[str, Any] = {}, **parameters: Any) -> SRPOTrainer:
    """Return a trainer of the tiny model, or of what `parameters` give in its place."""
    given: dict[str, Any] = {
        "model": None,
        "reward_funcs": [tiny.REWARDS[name] for name in row.rewards],
        "train_dataset": None,
        "processing_class": None,
        "peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"]) if row.lora else None,
    } | parameters
    given["model"] = tiny.model() if given["model"] is None else given["model"]
    given["train_dataset"] = given["train_dataset"] or tiny.dataset(row.num_prompts)
    given["processing_class"] = given["processing_class"] or tiny.tokenizer()
    return SRPOTrainer(args=config(row, folder, **more), **given)


def finished(run: SRPOTrainer, folder: Path) -> Values:
    return of_trainer(run) | of_folder(folder)


def run(row: Row, folder: Path) -> Values:
    """Train."""
    training = trainer(row, folder)
    training.train()
    return finished(training, folder)


def from_disk(row: Row, folder: Path) -> Values:
    """Train a model that TRL loads by its folder, as a reference model wants it."""
    model_folder = folder.with_name(f"model-of-{row.name}")
    tiny.model().save_pretrained(model_folder)
    training = trainer(row, folder, model=str(model_folder))
    training.train()
    return finished(training, folder)


def resumed(row: Row, folder: Path) -> Values:
    """Train to the end, and once more from the checkpoint in the middle."""
    trainer(row, folder).train()
    second = trainer(row, folder)
    second.train(resume_from_checkpoint=str(folder / f"checkpoint-{row.options['save_steps']}"))
    return finished(second, folder)


def evaluated(row: Row, folder: Path) -> Values:
    """Evaluate between training steps and after them."""
    more = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 12}
    training = trainer(row, folder, more, eval_dataset=tiny.dataset(3))
    training.train()
    training.evaluate()
    return finished(training, folder)


def nonfinite(row: Row, folder: Path) -> Values:
    """Train with a loss that is not a number in the second step."""
    training = trainer(row, folder)
    compute = training.compute_loss

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        loss = compute(*args, **kwargs)
        return loss * math.nan if training.state.global_step == 1 else loss

    training.compute_loss = spoiled
    training.train()
    return finished(training, folder)


def vllm(row: Row, folder: Path) -> Values:
    """Train on what a stand-in for vLLM samples."""
    with sampler.in_place_of_vllm(tiny.model(seed=1), tiny.tokenizer().eos_token_id, max_length=12):
        training = trainer(row, folder, {"use_vllm": True})
        training.train()
    return finished(training, folder)


def vision(row: Row, folder: Path) -> Values:
    """Train a vision-language model."""
    processor = pictures.processor()
    image_id = processor.tokenizer.convert_tokens_to_ids(pictures.IMAGE_TOKEN)
    training = trainer(
        row,
        folder,
        {
            "generation_kwargs": {"suppress_tokens": [image_id]},
            "log_completions": False,
        },  # a sampled one would want an image
        model=pictures.model(),
        processing_class=processor,
        train_dataset=pictures.dataset(),
        reward_funcs=[tiny.by_text],
    )
    training.train()
    return finished(training, folder)


RUNS: dict[str, Callable[[Row, Path], Values]] = {
    "run": run,
    "from_disk": from_disk,
    "resumed": resumed,
    "evaluated": evaluated,
    "nonfinite": nonfinite,
    "vllm": vllm,
    "vision": vision,
}
