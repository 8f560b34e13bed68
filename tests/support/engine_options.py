"""How a process takes each engine on a machine without a GPU. Imported before accelerate is.

Left alone, accelerate runs DDP where there is no GPU and FSDP was asked for, and DeepSpeed keeps a tiny model whole.
"""

import os
from typing import NamedTuple


class Engine(NamedTuple):
    """What a run must find: the engine (ZeRO's with stage and offload), and whether it shards parameters."""

    name: str
    shards_parameters: bool


ENGINES = {
    "ddp": Engine("MULTI_CPU", False),
    "fsdp2": Engine("FSDP", True),
    "fsdp2_no_reshard": Engine("FSDP", True),
    "fsdp2_offload": Engine("FSDP", True),
    "fsdp2_sharded_files": Engine("FSDP", True),
    "zero1": Engine("DEEPSPEED 1", False),
    "zero1_offload": Engine("DEEPSPEED 1 optimizer", False),
    "zero2": Engine("DEEPSPEED 2", False),
    "zero2_offload": Engine("DEEPSPEED 2 optimizer", False),
    "zero3": Engine("DEEPSPEED 3", True),
    "zero3_offload": Engine("DEEPSPEED 3 optimizer param", True),
}

_FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
_FSDP2_CHANGES = {
    "fsdp2": {},
    # activation checkpointing's wrappers rename parameters
    "fsdp2_no_reshard": {"FSDP_RESHARD_AFTER_FORWARD": "false", "FSDP_ACTIVATION_CHECKPOINTING": "true"},
    "fsdp2_offload": {"FSDP_OFFLOAD_PARAMS": "true"},
    "fsdp2_sharded_files": {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"},
}


def engine_options(engine: str) -> dict:
    """Return what the training config needs for an engine, a key of `ENGINES` or "launched".

    "launched" is the engine that `accelerate launch` has written into the environment.
    """
    if engine.startswith("fsdp2"):
        os.environ.update(_FSDP2 | _FSDP2_CHANGES[engine])
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        _fsdp_on_cpu()
        # With use_cpu, accelerate would silently choose DDP.
        return {"use_cpu": False, "ddp_backend": "gloo"}
    if engine.startswith("zero"):
        _no_extension_at_start()
        _communication_from_the_start()
        return {"deepspeed": _zero(int(engine[4]), engine)}
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        _no_extension_at_start()
        return {}
    return {"ddp_find_unused_parameters": False}


def _fsdp_on_cpu() -> None:
    """Let accelerate take its FSDP path: it asks for a GPU engine before it looks for FSDP."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    from accelerate import state
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import CPUOffloadPolicy

    CPUOffloadPolicy.__init__.__defaults__ = (False,)  # pinned memory needs a GPU

    def prepare_backend(self, *args, **kwargs):
        return "gloo", DistributedType.MULTI_GPU

    state.PartialState._prepare_backend = prepare_backend


def _no_extension_at_start() -> None:
    """Spare the C++ extension of shared-memory collectives, which DeepSpeed would build at its first start on a CPU."""
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False


def _communication_from_the_start() -> None:
    """Start DeepSpeed's communication, as accelerate does on a GPU: a model that is loaded later is sharded by it."""
    import deepspeed

    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)


def _zero(stage: int, engine: str) -> dict:
    """A tiny model is really sharded, and prefetched, only below thresholds of its own size."""
    zero: dict = {"stage": stage, "overlap_comm": False, "contiguous_gradients": True}
    if stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 10_000,
            "stage3_max_live_parameters": 100_000,
            "stage3_max_reuse_distance": 100_000,
            "reduce_bucket_size": 50_000,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    if engine == "zero3_offload":
        zero["offload_param"] = {"device": "cpu", "pin_memory": False}
    if engine.endswith("offload"):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "zero_allow_untested_optimizer": True,
    }
