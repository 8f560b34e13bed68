"""Which parallel engine trains, and what it shards over how many processes: read from an accelerate config."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from srpo_trl.commands.config_file import read_mapping
from srpo_trl.commands.launch import profile_path

Kind = Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3"]

_DDP = {DistributedType[f"MULTI_{device}"] for device in ("GPU", "CPU", "XPU", "NPU", "HPU")}
# DeepSpeed's own, in elements.
_DEFAULT_BUCKET, _DEFAULT_LIVE, _DEFAULT_SUB_GROUP = 500_000_000, 1_000_000_000, 1_000_000_000


@dataclass(frozen=True)
class Engine:
    """How parameters, gradients and optimizer state lie on the processes; one process has one GPU.

    Attributes:
        kind: the engine.
        num_processes: over all machines.
        num_machines: they have the same number of processes each.
        reshards: FSDP2 frees a layer's gathered parameters after its forward.
        parameters_on_cpu: parameters, and with them gradients, optimizer state and teacher, lie in CPU memory.
        optimizer_on_cpu: the optimizer state does.
        reduce_bucket: ZeRO's elements of a gradient bucket; None: the hidden size squared.
        max_live: ZeRO-3's most elements of gathered parameters.
        sub_group: ZeRO-3's elements of one process that are updated at a time.
    """

    kind: Kind = "single"
    num_processes: int = 1
    num_machines: int = 1
    reshards: bool = True
    parameters_on_cpu: bool = False
    optimizer_on_cpu: bool = False
    reduce_bucket: int | None = _DEFAULT_BUCKET
    max_live: int = _DEFAULT_LIVE
    sub_group: int = _DEFAULT_SUB_GROUP

    @property
    def is_zero(self) -> bool:
        """Whether DeepSpeed runs, with weights of its own precision beside fp32 ones."""
        return self.kind in ("zero1", "zero2", "zero3")

    @property
    def shards_parameters(self) -> bool:
        """Whether a process holds its part of the parameters only."""
        return self.kind in ("fsdp2", "zero3")

    @property
    def processes_per_machine(self) -> int:
        """Processes that share one machine's CPU memory."""
        return self.num_processes // self.num_machines


def read_engine(path: str | None, num_processes: int | None = None) -> Engine:
    """Return the engine that an accelerate config file sets up; without a file, one process or DDP.

    Args:
        path: YAML file of `accelerate launch --config_file`, or a profile's name.
        num_processes: as `accelerate launch --num_processes` replaces the file's.
    Raises:
        ValueError: the file cannot be read, or every problem of what stands in it, in one message.
    """
    if path is None:
        return Engine("ddp" if (num_processes or 1) > 1 else "single", num_processes or 1)
    path = str(profile_path(path))
    if "distributed_type" not in read_mapping(Path(path), f"--accelerate_config {path}"):
        raise ValueError(
            f"{path} names no distributed_type. Give a file for accelerate launch --config_file."
        )
    config = load_config_from_file(path)
    count = num_processes or config.num_processes
    problems = [
        f"{name}={value!r} must be a whole number of at least 1."
        for name, value in (("num_processes", count), ("num_machines", config.num_machines))
        if not isinstance(value, int) or value < 1
    ]
    if not problems and count % config.num_machines:
        problems.append(
            f"num_processes={count} cannot be shared out evenly over {config.num_machines} machines."
        )
    options: dict[str, Any] = {}
    try:
        options = _engine_options(config, Path(path).parent)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError(f"{path}: " + " ".join(problems))
    if options["kind"] == "ddp" and count == 1:
        options["kind"] = "single"
    return Engine(num_processes=count, num_machines=config.num_machines, **options)


def _engine_options(config: Any, folder: Path) -> dict[str, Any]:
    kind = config.distributed_type
    if kind == DistributedType.NO:
        return {"kind": "single"}
    if kind in _DDP:
        return {"kind": "ddp"}
    if kind == DistributedType.FSDP:
        given = config.fsdp_config
        if int(given.get("fsdp_version", 1)) != 2:
            raise ValueError("only FSDP version 2 is planned, as it is trained. Set fsdp_version: 2.")
        reshards, on_cpu = (
            given.get("fsdp_reshard_after_forward", True),
            bool(given.get("fsdp_offload_params")),
        )
        return {
            "kind": "fsdp2",
            "reshards": bool(reshards),
            "parameters_on_cpu": on_cpu,
            "optimizer_on_cpu": on_cpu,
        }
    if kind == DistributedType.DEEPSPEED:
        return _zero_options(config.deepspeed_config, folder)
    raise ValueError(f"distributed_type={kind!s} is not planned; NO, MULTI_GPU, FSDP and DEEPSPEED are.")


def _zero_options(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """DeepSpeed's options, from accelerate's own keys or from the JSON file that they name."""
    zero: dict[str, Any] = {
        "stage": given.get("zero_stage"),
        "offload_optimizer": {"device": given.get("offload_optimizer_device")},
        "offload_param": {"device": given.get("offload_param_device")},
    }
    if "deepspeed_config_file" in given:
        name = given["deepspeed_config_file"]
        found = [path for path in (Path(name), folder / name) if path.exists()]
        if not found:
            raise ValueError(f"deepspeed_config_file {name!r} does not exist.")
        zero = json.loads(found[0].read_text(encoding="utf-8")).get("zero_optimization", {})
    names = ("offload_optimizer", "offload_param")
    devices = {name: str((zero.get(name) or {}).get("device") or "none") for name in names}
    problems = [
        f"{name} to {device!r} is not planned; cpu and none are."
        for name, device in devices.items()
        if device not in ("cpu", "none")
    ]
    if zero.get("stage") not in (1, 2, 3):
        problems.insert(0, f"ZeRO stage {zero.get('stage')!r} is not planned; 1, 2 and 3 are.")
    if problems:
        raise ValueError(" ".join(problems))
    bucket = zero.get("reduce_bucket_size", _DEFAULT_BUCKET)
    live = zero.get("stage3_max_live_parameters", _DEFAULT_LIVE)
    return {
        "kind": f"zero{zero['stage']}",
        "optimizer_on_cpu": devices["offload_optimizer"] == "cpu",
        "parameters_on_cpu": zero["stage"] == 3 and devices["offload_param"] == "cpu",
        "reduce_bucket": None if bucket == "auto" else int(bucket),
        "max_live": _DEFAULT_LIVE if live == "auto" else int(live),
        "sub_group": int(zero.get("sub_group_size", _DEFAULT_SUB_GROUP)),
    }
