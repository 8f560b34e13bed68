"""g: two steps with vLLM in the training process, and the ratios between its probabilities and the student's."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback

from benchmarks.common import random_qwen3
from benchmarks.gpu.sections import Part, Row, Setting
from srpo_trl import SRPOConfig, SRPOTrainer
from srpo_trl.data.smoke_model import build_byte_tokenizer

NUM_STEPS = 2
COMPLETION = 64  # tokens
MOST_OFF = 0.1  # of a mean importance ratio from 1
NOTE = (
    "A model of the shape with random weights, sampled by vLLM in colocate mode. The importance ratio compares vLLM's "
    "probability of each sampled token with the student's: 1 but for rounding, where vLLM has the student's weights "
    "and is asked for the right probabilities. The second step shows whether the update reached vLLM."
)


def parts(setting: Setting) -> list[Part]:
    """One run."""
    shape = "tiny" if setting.tiny else "Qwen3-0.6B"
    rows = partial(two_steps, shape, torch.device(setting.device))
    return [Part("two steps", f"vLLM, colocate, {shape} shape", rows, NOTE)]


def two_steps(shape: str, device: torch.device) -> Iterator[Row]:
    """Make model and trainer, and train."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = build_byte_tokenizer()
        model = random_qwen3(shape, device, 2048, pad_token_id=tokenizer.pad_token_id)
        dtype = str(model.dtype).removeprefix("torch.")
        model.save_pretrained(folder)  # from which vLLM reads the shape
        tokenizer.save_pretrained(folder)
        del model
        prompts = [[{"role": "user", "content": f"Say {number}."}] for number in range(16)]
        trainer = SRPOTrainer(
            model=folder,
            reward_funcs=has_an_e,
            args=_config(Path(folder) / "run", device, dtype),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        yield from ratio_rows(trainer.state.log_history)


def has_an_e(completions: list[Any], **kwargs: Any) -> list[float | None]:
    """A reward that random text sometimes gets."""
    return [float("e" in completion[0]["content"]) for completion in completions]


def _config(folder: Path, device: torch.device, dtype: str) -> SRPOConfig:
    return SRPOConfig(
        output_dir=str(folder),
        use_vllm=True,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=0.3,
        model_init_kwargs={"dtype": dtype},
        use_cpu=device.type == "cpu",
        bf16=device.type == "cuda",
        num_generations=8,
        per_device_train_batch_size=16,
        max_completion_length=COMPLETION,
        learning_rate=1e-4,
        max_steps=NUM_STEPS,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def ratio_rows(log: list[dict[str, Any]]) -> Iterator[Row]:
    """One row a step: the ratios, the loss, and whether they are what they are to be."""
    prefix = "sampling/importance_sampling_ratio"
    for entry in log:
        if f"{prefix}/mean" not in entry:
            continue
        mean = entry[f"{prefix}/mean"]
        yield {
            "step": entry.get("step", ""),
            "ratio, least": entry[f"{prefix}/min"],
            "ratio, mean": mean,
            "ratio, largest": entry[f"{prefix}/max"],
            "loss": entry["loss"],
            "generation s": entry.get("srpo/seconds/generation", ""),
            "verdict": "ok" if abs(mean - 1) <= MOST_OFF else "OFF",
        }
