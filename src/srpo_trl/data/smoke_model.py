"""A Qwen3 model with random weights and a byte-level tokenizer, to check the machinery without a download.

`model_name_or_path: tiny-random-qwen3` in a config makes `srpo-trl train` write this model into its output
folder and load it from there, as it would load any other.
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from srpo_trl.data.tiny_model import build_model

TINY_RANDOM_QWEN3 = "tiny-random-qwen3"

PAD_TOKEN = "<|endoftext|>"
EOS_TOKEN = "<|im_end|>"
SPECIAL_TOKENS = (PAD_TOKEN, "<|im_start|>", EOS_TOKEN)

# Qwen3's turns, without its tool and thinking-history branches. As there, `enable_thinking=False` opens the
# answer with an empty thinking block.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\n' -}}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}"
    "{{- '<think>\n\n</think>\n\n' -}}"
    "{%- endif -%}"
    "{%- endif -%}"
)


def build_byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer without merges: one token per UTF-8 byte, nothing to train."""
    tokens = (*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL_TOKENS)
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        additional_special_tokens=list(SPECIAL_TOKENS),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def save_tiny_random_qwen3(folder: Path, seed: int = 0) -> Path:
    """Write the tiny model and its tokenizer to `folder`, as a hub model lies on disk, and return `folder`.

    Args:
        folder: created where missing; files of an earlier call are replaced by the same ones.
        seed: of the random weights.
    """
    tokenizer = build_byte_tokenizer()
    model = build_model(tokenizer, seed=seed, max_position_embeddings=32768)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
