"""What `srpo-trl plan` says of a case of `benchmarks.step`; needs no device."""

import torch
from trl import ModelConfig

from benchmarks.step_rollouts import Case
from benchmarks.step_trainers import common_options, make_model
from srpo_trl import SRPOConfig
from srpo_trl.commands.plan.engines import Engine
from srpo_trl.commands.plan.phases import estimate_memory
from srpo_trl.commands.plan.run import RunSpec
from srpo_trl.commands.plan.step import FakeModels
from srpo_trl.methods import PAPER_DEFAULTS


def forecast(method: str, case: Case, device: torch.device) -> int:
    """Return the planned peak above the weights alone, in bytes."""
    on_gpu = device.type == "cuda"
    options = PAPER_DEFAULTS | common_options(case, device, "unused", 1)
    training = SRPOConfig(**(options | {"use_cpu": True}), method=method)  # a plan is made anywhere
    model = make_model(case, torch.device("meta"))
    weights = sum(p.numel() for p in model.parameters()) * (2 if on_gpu else 4)
    model_config = ModelConfig(model_name_or_path=case.shape, dtype="bfloat16" if on_gpu else "float32")
    run = RunSpec(training, model_config, model.config, Engine(), case.prompt_tokens, on_gpu, None)
    return estimate_memory(run, FakeModels(), case.micro_batch).peak - weights
