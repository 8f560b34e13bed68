"""The token ids that a model is probed with."""

from typing import Any, NamedTuple

from transformers import PreTrainedModel

PROMPT, COMPLETION, PADDING = 4, 5, 8  # tokens; the longest row has all of them


class ProbeRows(NamedTuple):
    """Three rows: `short` is how `long` begins, `other` has another prompt."""

    long: list[int]
    short: list[int]
    other: list[int]


def probe_rows(model: PreTrainedModel) -> ProbeRows:
    """Return rows of ordinary tokens that fit the model's vocabulary and context."""
    config = model.config.get_text_config()
    size = min(num_embeddings(model), getattr(config, "vocab_size", None) or 2**31)
    special = _special_tokens(model.config)
    ordinary = [i for i in range(size) if i not in special] or list(range(size))
    room = getattr(config, "max_position_embeddings", None) or 2**31
    padding = max(1, min(PADDING, room - PROMPT - COMPLETION - 1))
    length = PROMPT + COMPLETION + padding
    stride = max(1, len(ordinary) // (length + PROMPT + 1))
    tokens = [ordinary[(7 + i * stride) % len(ordinary)] for i in range(length + PROMPT)]
    long, prompt = tokens[:length], tokens[length:]
    return ProbeRows(long, long[: PROMPT + COMPLETION], [*prompt[: PROMPT // 2], *long[-COMPLETION:]])


def num_embeddings(model: PreTrainedModel) -> int:
    """Return how many token ids the model can read."""
    embeddings: Any = model.get_input_embeddings()
    return int(getattr(embeddings, "num_embeddings", None) or model.config.get_text_config().vocab_size)


def _special_tokens(config: Any) -> set[int]:
    values = [
        value for name, value in config.to_dict().items() if name.endswith(("_token_id", "_token_index"))
    ]
    text = config.get_text_config()
    values += [getattr(text, f"{name}_token_id", None) for name in ("pad", "eos", "bos")]
    return {
        i for value in values for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)
    }
