"""`srpo-trl plan` against what runs on CPUs really hold, phase by phase.

In one process torch's profiler sees every allocation of a real run; two processes sum up their living storages
(memory_probe.py). The table of docs/memory.md is what `--log-cli-level=INFO` shows.
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from trl import ModelConfig

from harness import config, tiny_model
from memory_probe import PROMPT, ROWS, SIZES, STEP, note_routes, profiled, trainer
from srpo_trl.commands.plan.engines import Engine
from srpo_trl.commands.plan.estimate import FORWARD, PHASES, TEACHER
from srpo_trl.commands.plan.losses import LossBytes, LossSizes
from srpo_trl.commands.plan.phases import estimate_memory
from srpo_trl.commands.plan.run import RunSpec
from srpo_trl.commands.plan.step import FakeModels

PROBE = Path(__file__).parents[1] / "support" / "memory_probe.py"
TOLERANCE = 0.15
TEACHER_TOLERANCE = (
    0.2  # of sharded weights: a plan has all rollouts distilled, these runs have three of four
)
LORA_TARGETS = ["q_proj", "v_proj"]
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
SMALL_BUFFERS = {"reduce_bucket": 50_000, "max_live": 100_000}  # as the probe sets them
ENGINES = {
    "ddp": Engine("ddp", 2),
    "fsdp2": Engine("fsdp2", 2),
    "fsdp2_no_reshard": Engine("fsdp2", 2, reshards=False),
    "zero1": Engine("zero1", 2, **SMALL_BUFFERS),
    "zero2": Engine("zero2", 2, **SMALL_BUFFERS),
    "zero3": Engine("zero3", 2, **SMALL_BUFFERS),
}


def planned(training, engine=None, *, sizes=None, **model_options):
    model_config = ModelConfig(model_name_or_path="tiny", **model_options)
    model = tiny_model(**(SIZES | (sizes or {}))).config
    run = RunSpec(training, model_config, model, engine or Engine(), PROMPT, on_gpu=False, memory=None)
    return estimate_memory(run, FakeModels(), run.training.per_device_train_batch_size)


def plan_for_routes(monkeypatch, routes):
    """Let plans have the tokens of each loss as the run's micro-batches have them."""
    both = LossSizes.both

    def of_routes(self, policy_tokens, distilled_tokens, spec):
        assert all(policy <= policy_tokens and distilled <= distilled_tokens for policy, distilled in routes)
        held = [both(self, *tokens, spec) for tokens in set(map(tuple, routes))]
        return LossBytes(*map(max, zip(*held, strict=True)))

    monkeypatch.setattr(LossSizes, "both", of_routes)


def errors(name, measured, plan):
    """Relative error of each phase's total."""
    assert set(measured) == set(PHASES)
    found = {phase: plan.total(phase) / measured[phase][0] - 1 for phase in PHASES}
    logging.getLogger(__name__).info(
        "| %s | %.1f | %.1f | %s |",
        name,
        max(peak for peak, _ in measured.values()) / 2**20,
        plan.peak / 2**20,
        " | ".join(f"{100 * error:+.1f} %" for error in found.values()),
    )
    return found


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in RUNS])
def test_planned_peaks_are_the_measured_ones(name, tmp_path, monkeypatch):
    """Planned for the routes that the run has; a plan by itself has all rows of the policy and all distilled."""
    options = dict(RUNS[name])
    lora, sizes = options.pop("lora", False), options.pop("sizes", None)
    dtype = options.pop("dtype", torch.float32)
    made, routes = [], []

    def run():
        adapter = LoraConfig(r=2, target_modules=LORA_TARGETS) if lora else None
        made.append(trainer(tmp_path, sizes=sizes, dtype=dtype, peft_config=adapter, **options))
        note_routes(made[0], routes)
        made[0].train()

    measured = profiled(run)
    adapter_options = {"use_peft": True, "lora_r": 2, "lora_target_modules": LORA_TARGETS} if lora else {}
    plan_for_routes(monkeypatch, routes)
    plan = planned(made[0].args, sizes=sizes, dtype=str(dtype).removeprefix("torch."), **adapter_options)
    found = errors(name, measured, plan)
    assert max(map(abs, found.values())) <= TOLERANCE, found
    # what the forward and its losses add to what lay there before, weights and optimizer left out
    peak, before = measured[FORWARD]
    passing = sum(
        component.phases.get(FORWARD, 0)
        for component in plan.components
        if component.name
        in ("activations", "weights copied by autocast", "buffers of loss, sampling, update")
    )
    assert passing == pytest.approx(peak - before, rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_planned_peaks_of_engines_are_the_measured_ones(name, tmp_path, monkeypatch):
    """Planned for the routes of the first process, whose storages are measured."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command += [str(PROBE), name, "4", "bf16", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert measured["mixed_precision"] == "bf16"
    options = ROWS | STEP | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    plan_for_routes(monkeypatch, measured["routes"])
    plan = planned(config(tmp_path, **options, bf16=True), ENGINES[name], dtype="float32")
    found = errors(name, measured["phases"], plan)
    assert 0 <= found.pop(TEACHER) <= TEACHER_TOLERANCE
    assert max(map(abs, found.values())) <= TOLERANCE, found
