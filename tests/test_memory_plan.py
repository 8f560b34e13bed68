"""`srpo-trl plan` against what runs on CPUs really hold, and against itself.

Peaks: torch's profiler sees every allocation of a real run; plans of the same run are compared moment by moment.
Nothing here says how exact a plan is on a GPU.
"""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from trl import ModelConfig

from harness import tiny_model
from memory_probe import PROMPT, SIZES, profiled, trainer
from srpo_trl.memory_plan.engines import Engine
from srpo_trl.memory_plan.inputs import Run
from srpo_trl.memory_plan.moments import MOMENTS, plan_memory
from srpo_trl.memory_plan.passes import Passes

ROOT = Path(__file__).resolve().parents[1]
TRAINING_CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
ACCELERATE_CONFIGS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
LORA_TARGETS = ["q_proj", "v_proj"]


def the_run(training, *, sizes=None, engine=None, **model_options):
    model_config = ModelConfig(model_name_or_path="tiny", **model_options)
    model = tiny_model(**(SIZES | (sizes or {}))).config
    return Run(training, model_config, model, engine or Engine(), PROMPT, on_gpu=False, memory=None)


def planned(run):
    return plan_memory(run, Passes(), run.training.per_device_train_batch_size)


def increments(plan, moment):
    """What a moment's pass adds to what lay there before."""
    passing = {
        "key-value cache",
        "weights copied by autocast",
        "activations",
        "buffers of loss, sampling, update",
    }
    return sum(c.moments.get(moment, 0) for c in plan.components if c.name in passing)


# ------------------------------------------------------------------ against measured peaks

BFLOAT16 = {"dtype": torch.bfloat16, "bf16": True}
RUNS = {
    "autocast, checkpointing": {"bf16": True, "gradient_checkpointing": True},
    "LoRA": {"lora": True},
    "float32": {},
    "autocast": {"bf16": True},
    "bfloat16 weights": BFLOAT16,
    "bfloat16, base teacher, checkpointing": BFLOAT16
    | {"teacher_model_kind": "base", "gradient_checkpointing": True},
    "one micro-batch, untied, live teacher": {
        "sizes": {"tie_word_embeddings": False},
        "teacher_model_kind": "live",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
    },
    "LoRA under autocast, checkpointing": {"lora": True, "bf16": True, "gradient_checkpointing": True},
}
FAST = ("autocast, checkpointing", "LoRA")


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in RUNS])
def test_planned_peaks_are_the_measured_ones(name, tmp_path):
    options = dict(RUNS[name])
    lora, sizes = options.pop("lora", False), options.pop("sizes", None)
    dtype = options.pop("dtype", torch.float32)
    made = []

    def run():
        adapter = LoraConfig(r=2, target_modules=LORA_TARGETS) if lora else None
        made.append(trainer(tmp_path, sizes=sizes, dtype=dtype, peft_config=adapter, **options))
        made[0].train()

    measured = profiled(run)
    adapter_options = {"use_peft": True, "lora_r": 2, "lora_target_modules": LORA_TARGETS} if lora else {}
    plan = planned(
        the_run(made[0].args, sizes=sizes, dtype=str(dtype).removeprefix("torch."), **adapter_options)
    )
    assert set(measured) == set(MOMENTS)
    for moment, (peak, before) in measured.items():
        print(
            f"{name}: {moment} {plan.total(moment) / peak - 1:+.1%}",
            increments(plan, moment) / max(1, peak - before) - 1,
        )
