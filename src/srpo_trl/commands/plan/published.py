"""Sizes of the models that the recipes name, for a machine that has neither their config.json nor the hub."""

from typing import Any

from transformers import Qwen3Config

_ALL: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "dtype": "bfloat16",
    "vocab_size": 151936,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
_LARGER = {"num_hidden_layers": 36, "num_attention_heads": 32}
SIZES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-0.6B": {"hidden_size": 1024, "intermediate_size": 3072},
    "Qwen/Qwen3-1.7B": {"hidden_size": 2048, "intermediate_size": 6144},
    "Qwen/Qwen3-4B": _LARGER | {"hidden_size": 2560, "intermediate_size": 9728},
    "Qwen/Qwen3-8B": _LARGER
    | {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
}


class PublishedSizes(Qwen3Config):
    """The config of a published model as far as memory depends on it."""

    @classmethod
    def of(cls, name: str) -> "PublishedSizes":
        """Return those of a model of `SIZES`."""
        return cls(**_ALL | SIZES[name] | {"name_or_path": name})
