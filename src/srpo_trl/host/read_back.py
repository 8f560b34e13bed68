"""A model's weights read back from a run's own checkpoint: all of them, under the names they were saved under.

`save_pretrained` changes names and shapes on the way out for some models (it writes the experts of a mixture one by
one, for example), `from_pretrained` changes them back, and `Trainer` reads its checkpoints without doing so. Keys that
do not fit are a warning there; the parameters behind them stay as they were before.
"""

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME, load_peft_weights
from peft.utils import WEIGHTS_NAME as ADAPTER_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from srpo_trl.host.manifest import BrokenCheckpointError
from srpo_trl.seams.trl import (
    LoadStateDictConfig,
    PrefixChange,
    convert_and_load_state_dict_in_model,
    get_model_conversion_mapping,
)

_NUM_NAMED = 5  # of the keys that do not fit
_CONVERSIONS = (
    "_weight_conversions"  # where from_pretrained leaves the conversions that a model's files were read with
)


def conversions_of(model: PreTrainedModel) -> list[Any]:
    """Return the changes of names and shapes whose reverse `save_pretrained` makes; empty for most models."""
    known = getattr(model, _CONVERSIONS, None)
    if known is None:  # made from a config: without what depends on the file that was read
        mapping = get_model_conversion_mapping(model, add_legacy=False)
        known = [conversion for conversion in mapping if not isinstance(conversion, PrefixChange)]
    return list(known)


def load_weights(model: nn.Module, folder: Path, load: Callable[[], None]) -> None:
    """Read a checkpoint's weights into a model that no engine shards.

    Args:
        load: transformers' own way; not taken by models whose names or shapes it would not change back.

    Raises:
        BrokenCheckpointError, FileNotFoundError: as `read_back` and `check_adapters`.
    """
    if isinstance(model, PreTrainedModel) and conversions_of(model):
        read_back(model, folder)
        return
    load()
    if isinstance(model, PeftModel):
        check_adapters(model, folder)


def read_back(model: PreTrainedModel, folder: Path) -> None:
    """Give the model's parameters and buffers, in place, the values that `save_pretrained` wrote to a folder.

    Raises:
        BrokenCheckpointError: a key is missing, unexpected, or of another shape; the model is as it was.
        FileNotFoundError: the folder holds no weights.
    """
    saved = _saved_weights(folder)
    own = conversions_of(model)
    problems = _load_converted(model, saved, own)
    if problems:  # written by a model that was itself read from files of another layout
        problems = _load_converted(model, saved, get_model_conversion_mapping(model)) and problems
    if problems:
        raise BrokenCheckpointError(keys_do_not_fit(folder, *problems))


def check_keys(model: nn.Module, folder: str, loaded: Any) -> None:
    """Raise unless all that is missing is a parameter that was saved under another name, or never is.

    Args:
        loaded: `missing_keys` and `unexpected_keys`, what `load_state_dict` returns.

    Raises:
        BrokenCheckpointError: some of the model's values were not read, or values were left over.
    """
    unread = _unread(_identities(model), set(loaded.missing_keys)) - _never_saved(model)
    left_over = set(loaded.unexpected_keys)
    if unread or left_over:
        raise BrokenCheckpointError(keys_do_not_fit(folder, unread, left_over))


def check_adapters(model: PeftModel, folder: Path) -> None:
    """Raise unless the adapters' values are those of their files; PEFT passes over keys that do not fit.

    The default adapter's file lies in the folder itself, another's in a folder of its name.

    Raises:
        BrokenCheckpointError: naming the keys.
        FileNotFoundError: there is no adapter.
    """
    places = {name: folder if name == "default" else folder / name for name in model.peft_config}
    files = (SAFETENSORS_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME)
    found = {name: place for name, place in places.items() if any((place / file).is_file() for file in files)}
    if not found:
        raise FileNotFoundError(f"{folder} holds no adapter of the model's: {', '.join(places)}.")
    for name, place in found.items():
        saved = load_peft_weights(str(place), device="cpu")
        values = get_peft_model_state_dict(model, adapter_name=name)
        missing, unexpected = set(values) - set(saved), set(saved) - set(values)
        missing |= {key for key in set(values) & set(saved) if not _agrees(saved[key], values[key])}
        if missing or unexpected:
            raise BrokenCheckpointError(keys_do_not_fit(place, missing, unexpected))


def _agrees(saved: Tensor, value: Tensor) -> bool:
    if saved.shape != value.shape:
        return False
    return torch.allclose(saved.to(value.dtype), value.cpu(), rtol=0.0, atol=0.0, equal_nan=True)


def keys_do_not_fit(folder: Path | str, missing: Iterable[str], unexpected: Iterable[str]) -> str:
    """Return the message for keys of a checkpoint that are not the model's."""
    parts = []
    for kind, keys in (("missing or of another shape or value", missing), ("unexpected", unexpected)):
        ordered = sorted(keys)
        if ordered:
            more = ", ..." if len(ordered) > _NUM_NAMED else ""
            parts.append(f"{len(ordered)} {kind}: {', '.join(ordered[:_NUM_NAMED])}{more}")
    return (
        f"{folder} does not hold the model's parameters ({'; '.join(parts)}). What is missing would stay as it is in "
        "the model that was passed in. Resume with the model, adapter and package versions that the run was started "
        "with, or start a new run from the checkpoint by passing it as `model`."
    )


def _saved_weights(folder: Path) -> dict[str, Tensor]:
    """Return everything that a folder's weight files hold, in one file or in several."""
    names = [SAFE_WEIGHTS_NAME, WEIGHTS_NAME]
    for index in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        if (folder / index).is_file():
            names = sorted(
                set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
            )
    files = [folder / name for name in names if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no weights: neither {SAFE_WEIGHTS_NAME} nor an index of parts."
        )
    saved: dict[str, Tensor] = {}
    for file in files:
        is_safe = file.suffix == ".safetensors"
        saved |= load_file(file) if is_safe else torch.load(file, map_location="cpu", weights_only=True)
    return saved


def _load_converted(
    model: PreTrainedModel, saved: dict[str, Tensor], conversions: list[Any]
) -> tuple[set[str], set[str]] | None:
    """Convert and load; return the keys that are missing and left over, or None where all fit and are loaded."""
    config, identities = LoadStateDictConfig(weight_mapping=copy.deepcopy(conversions)), _identities(model)
    with _values_taken_in_place(model) as commit:
        info, _ = convert_and_load_state_dict_in_model(model, saved, config)
        missing = _unread(identities, set(info.missing_keys)) - _never_saved(model)
        missing |= {key for key, *_ in info.mismatched_keys}
        unexpected = set(info.unexpected_keys) | set(info.conversion_errors)
        if missing or unexpected:
            return missing, unexpected
        commit()
    return None


@contextmanager
def _values_taken_in_place(model: PreTrainedModel) -> Iterator[Any]:
    """Let the block put new parameters and buffers in place of the model's; give these the values if it commits.

    Optimizers, tied parameters and teachers hold on to the parameters themselves.
    """
    places: list[tuple[dict[str, Any], str, Tensor]] = [
        (store, name, tensor)
        for module in model.modules()
        for store in cast("list[dict[str, Any]]", [module._parameters, module._buffers])
        for name, tensor in store.items()
        if tensor is not None
    ]
    has_known, known = hasattr(model, _CONVERSIONS), getattr(model, _CONVERSIONS, None)
    new_values: list[tuple[Tensor, Tensor]] = []

    def commit() -> None:
        new_values.extend(
            (tensor, store[name]) for store, name, tensor in places if store[name] is not tensor
        )

    try:
        yield commit
    finally:
        for store, name, tensor in places:
            store[name] = tensor
        if has_known:
            setattr(model, _CONVERSIONS, known)
        elif hasattr(model, _CONVERSIONS):
            delattr(model, _CONVERSIONS)
    with torch.no_grad():
        for tensor, value in new_values:
            tensor.copy_(value)


def _identities(model: nn.Module) -> dict[str, int]:
    """Return what tells the model's saved tensors apart; tied parameters are one tensor under several names."""
    return {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}


def _unread(identities: dict[str, int], missing: set[str]) -> set[str]:
    """Return the missing keys that are no other name of a tensor that was read."""
    read = {identity for name, identity in identities.items() if name not in missing}
    return {name for name in missing if identities.get(name) not in read}


def _never_saved(model: nn.Module) -> set[str]:
    return set(getattr(model, "_keys_to_ignore_on_save", None) or ())
