"""A tokenizer, models and rewards that are made in code, without the package's own.

They import nothing from the package, whose modules may have other names in the tree that is measured.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

PAD, UNKNOWN, EOS = "<|pad|>", "<|unknown|>", "<|end|>"
SPECIAL = (PAD, UNKNOWN, EOS, "<|system|>", "<|user|>", "<|assistant|>")
# Digits and the words of the default templates: small enough for random answers to end before they are cut off.
PIECES = (
    *("0123456789+=#:.\n "),
    *("Correct", " solution", "Correctly", " solve", " the", " original", " question"),
    *("The", " following", " is", " feedback", " from", " your", " unsuccessful", " earlier", " attempt"),
    *(" wrong", " long"),
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer with a chat template."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *PIECES))}
    longest_first = sorted(PIECES, key=len, reverse=True)
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    pattern = "|".join("".join(f"\\x{{{ord(c):x}}}" for c in piece) for piece in longest_first)
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token=UNKNOWN,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=list(SPECIAL[3:]),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        chat_template=CHAT_TEMPLATE,
    )


def model(seed: int = 0) -> Qwen3ForCausalLM:
    """Return a random Qwen3 model that is sure enough of itself for teacher and student to differ visibly."""
    words = tokenizer()
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        dtype="float32",
    )
    torch.manual_seed(seed)
    return sharpened(Qwen3ForCausalLM(config))


def sharpened(random: Any) -> Any:
    """Multiply a model's matrices, in place, so that its answers depend on what it reads."""
    with torch.no_grad():
        for parameter in random.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12.0)
    return random


def dataset(num_prompts: int) -> Dataset:
    """Return sums to solve, with a reference answer each."""
    numbers = range(1, num_prompts + 1)
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": f"{n}+{n}"}] for n in numbers],
            "reference": [f"#{n}" if n % 2 else "" for n in numbers],
        }
    )


def by_ids(completion_ids: Sequence[Sequence[int]], log_extra: Callable, **_: Any) -> list[float]:
    """Score 1 for about three random completions of ten; half of the others get feedback."""
    scores = [float(sum(ids) % 10 < 3) for ids in completion_ids]
    log_extra(
        "feedback",
        [" wrong" if not s and sum(i) % 2 else None for s, i in zip(scores, completion_ids, strict=True)],
    )
    return scores


def by_length(completion_ids: Sequence[Sequence[int]], log_extra: Callable, **_: Any) -> list[float | None]:
    """Score short completions a little, the shortest not at all, and say of the others that they are long."""
    log_extra("feedback", [" long" if len(ids) > 6 else None for ids in completion_ids])
    return [None if len(ids) < 2 else 0.1 * (len(ids) < 8) for ids in completion_ids]


def by_text(completions: Sequence[Any], **_: Any) -> list[float]:
    """Score completions of any tokenizer, about four of ten."""
    return [float(sum(map(ord, c[-1]["content"])) % 5 < 2) for c in completions]


REWARDS: dict[str, Callable] = {"by_ids": by_ids, "by_length": by_length, "by_text": by_text}
