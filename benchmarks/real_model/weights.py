"""The model to begin with: from the hub, from a folder, or from a GGUF file."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_tokenizer(model: str, gguf: str | None = None) -> Any:
    """Return the tokenizer; it pads on the left, as generation needs."""
    place = {} if gguf is None else {"gguf_file": gguf}
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left", **place)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model: str, gguf: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """Return a model that can be trained.

    Args:
        model: hub id or folder.
        gguf: name of the file in it that the weights are read from, dequantized.
        dtype: of the weights.
    """
    if gguf is None:
        return AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    held = AutoModelForCausalLM.from_pretrained(model, gguf_file=gguf, dtype=dtype)
    # transformers refuses to train a model that was read from GGUF, so its weights go into a new one.
    if hasattr(held.config, "quantization_config"):
        del held.config.quantization_config
    fresh = type(held)(held.config).to(dtype)
    fresh.load_state_dict(held.state_dict())
    fresh.generation_config = held.generation_config
    return fresh
