"""A tokenizer and a Qwen3-architecture model of 0.2 million parameters, both made in code."""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

_PAD_TOKEN = "<|pad|>"
UNKNOWN_TOKEN = "<|unknown|>"
_EOS_TOKEN = "<|end|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
TINY_SPECIAL_TOKENS = (_PAD_TOKEN, UNKNOWN_TOKEN, _EOS_TOKEN, *ROLE_TOKENS)

# Everything the task, its feedback and the default teacher templates are written with. A word that follows a
# space carries it, so that decoding is plain concatenation and gives the text back character for character.
SYMBOLS = (*"0123456789", *"+=;#:.", " ", "\n")
WORDS = (
    *("Correct", " solution", "Correctly", " solve", " the", " original", " question"),
    *("The", " following", " is", " feedback", " from", " your", " unsuccessful", " earlier", " attempt"),
    *("No", " answer", " after", " wrong"),
)

_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def build_tokenizer(extra_tokens: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer with a chat template, that gives its vocabulary's text back exactly.

    No token is the concatenation of others, and text is split at the longest match: any sequence of ordinary ids
    decodes to a text that encodes to the same ids.

    Args:
        extra_tokens: further pieces of text that become one token each.
    Returns:
        A tokenizer with `<|end|>` as end of sequence, a pad token of its own and left padding.
    """
    pieces = list(dict.fromkeys((*SYMBOLS, *WORDS, *extra_tokens)))
    vocabulary = {token: index for index, token in enumerate((*TINY_SPECIAL_TOKENS, *pieces))}
    longest_first = sorted(pieces, key=len, reverse=True)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex("|".join(_escape(piece) for piece in longest_first)), behavior="isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN_TOKEN,
        eos_token=_EOS_TOKEN,
        pad_token=_PAD_TOKEN,
        additional_special_tokens=list(ROLE_TOKENS),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        chat_template=_CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, **config_overrides: Any
) -> Qwen3ForCausalLM:
    """Return a randomly initialized fp32 Qwen3 model for `tokenizer`; the global random state is left alone.

    Args:
        tokenizer: gives the vocabulary size and the special token ids.
        seed: of the initial weights.
        config_overrides: `Qwen3Config` fields, in place of the ones below.
    """
    config: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "intermediate_size": 256,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(Qwen3Config(**(config | config_overrides)))


def _escape(piece: str) -> str:
    """`piece` as a regular expression that matches it literally, for the tokenizer's Oniguruma syntax."""
    return "".join(f"\\x{{{ord(character):x}}}" for character in piece)
