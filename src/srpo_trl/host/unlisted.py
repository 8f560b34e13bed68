"""What can be told of a checkpoint without a list of its files, as `GRPOTrainer` and earlier versions write them."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

# Files that torch.save wrote; it writes zip archives, whose directory of contents comes last.
_TORCH_FILE = re.compile(
    r"(optimizer|scheduler|scaler)\.(pt|bin)|rng_state.*\.pth|(pytorch|adapter)_model.*\.bin|srpo_rollouts_.*\.pt"
)
_WEIGHTS = (
    *("model*.safetensors", "pytorch_model*", "adapter_model*", "*/adapter_model*"),
    "global_step*",  # DeepSpeed's
)
OF_SRPO = ("srpo_state.json", "srpo_teacher.safetensors")  # written together, unless with plain GRPO
_WRITTEN_WITH_EVERY_MODEL = "training_args.bin"


def flaw_without_manifest(folder: Path, *, to_resume: bool) -> str:
    """Return what is wrong with a checkpoint, with the file's name; empty where nothing can be seen.

    Files that are cut off and parts of weights that are missing show; a file changed inside does not. With `to_resume`
    the optimizer's state, the schedule's and the random states must be there, where a trainer wrote the folder.
    """
    state = folder / TRAINER_STATE_NAME
    if not state.is_file():
        return f"{TRAINER_STATE_NAME} is missing"
    for path in sorted(folder.iterdir()):
        if path.is_file() and (flaw := _flaw_of_file(path)):
            return flaw
    if not (to_resume and (folder / _WRITTEN_WITH_EVERY_MODEL).is_file()):
        return ""
    return _missing_parts(folder) or _missing_of_srpo(folder)


def _flaw_of_file(path: Path) -> str:
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            if path.name == TRAINER_STATE_NAME and not isinstance(content, dict):
                return f"{path.name} holds no trainer's state"
            return _missing_shard(path, content) if path.name.endswith(".index.json") else ""
        if path.suffix == ".safetensors":
            return "" if _is_whole_safetensors(path) else f"{path.name} is cut off or no safetensors file"
        if _TORCH_FILE.fullmatch(path.name) and not zipfile.is_zipfile(path):
            return f"{path.name} is cut off or no file of torch.save"
    except (OSError, ValueError) as error:
        return f"{path.name} is cut off or cannot be read ({error!r})"
    return ""


def _missing_shard(index: Path, content: Any) -> str:
    shards = sorted(set(content.get("weight_map", {}).values())) if isinstance(content, dict) else []
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    return f"{missing[0]} is missing, which {index.name} lists" if missing else ""


def _is_whole_safetensors(path: Path) -> bool:
    """Whether the file is as long as its header says."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= path.stat().st_size:
            return False
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return path.stat().st_size == 8 + length + max(ends, default=0)


def _missing_parts(folder: Path) -> str:
    is_deepspeed = any(folder.glob("global_step*"))
    parts = {
        "optimizer.pt": is_deepspeed or any(folder.glob("*optimizer*")),
        "scheduler.pt": is_deepspeed or (folder / "scheduler.pt").is_file(),
        "rng_state.pth": any(folder.glob("rng_state*.pth")),
    }
    missing = [name for name, is_there in parts.items() if not is_there]
    if len(missing) == len(parts):
        return "it holds the model alone, without the optimizer's state (as with save_only_model=True)"
    if missing:
        return f"{missing[0]} is missing"
    has_weights = any(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    return "" if has_weights else "model.safetensors is missing, and there are no other weights"


def _missing_of_srpo(folder: Path) -> str:
    """Return which file of SRPO's is missing where there are others."""
    if not any(folder.glob("srpo_*")):
        return ""
    missing = [name for name in OF_SRPO if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    state = json.loads((folder / OF_SRPO[0]).read_text(encoding="utf-8"))
    has_rollouts = isinstance(state, dict) and state.get("has_rollouts")
    if has_rollouts and not any(folder.glob("srpo_rollouts_rank*.pt")):
        return "srpo_rollouts_rank0.pt is missing"
    return ""
