"""What all benchmarks have: options, the header with hardware, versions and commit, and random Qwen3 models."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.peers import QWEN3_VOCABULARY
from benchmarks.tables import Table, commit, environment, parser, report


class Options(NamedTuple):
    """What a benchmark is asked for.

    Attributes:
        device: that it runs on.
        quick: only whether it runs, at tiny sizes.
        before: a commit whose package is measured beside this tree's, where there is something to compare.
    """

    device: torch.device
    quick: bool = False
    before: str | None = None


Tables = Callable[[Options], Iterator[Table]]

# What differs between the published Qwen3 models; the rest is the same.
QWEN3_SHAPES: dict[str, dict[str, int]] = {
    "Qwen3-0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28},
    "Qwen3-1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28},
}
CPU_SHAPES = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 4096,
    },
    "small": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 32_768,
    },
}


def run(description: str, table_makers: Sequence[Tables], argv: Sequence[str] | None) -> int:
    """Print the tables that the makers give for the options in `argv`."""
    arguments = parser(description)
    arguments.add_argument("--before", metavar="COMMIT", help="measure loss and steps of this commit as well")
    given = arguments.parse_args(argv)
    options = Options(given.device, given.quick, given.before)
    tables = (table for make in table_makers for table in make(options))
    report(tables, environment(given.device) | {"commit": commit()}, given.json)
    return 0


def random_qwen3(shape: str, device: torch.device, longest: int, **overrides: Any) -> Qwen3ForCausalLM:
    """Return a Qwen3 model with random weights: bfloat16 on a GPU, float32 elsewhere.

    Args:
        shape: a key of `QWEN3_SHAPES` or of `CPU_SHAPES`.
        device: of the weights.
        longest: sequence that it must take.
        overrides: further fields of `Qwen3Config`.
    """
    fields: dict[str, Any] = {
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": QWEN3_VOCABULARY,
        "tie_word_embeddings": True,
        "max_position_embeddings": longest,
        "rope_theta": 1_000_000.0,
    }
    fields |= CPU_SHAPES.get(shape) or QWEN3_SHAPES[shape]
    torch.manual_seed(0)
    with device:
        model = Qwen3ForCausalLM(Qwen3Config(**(fields | overrides)))
    return model.bfloat16() if device.type == "cuda" else model
