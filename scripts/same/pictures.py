"""A LLaVA model of a few thousand parameters with its processor, both made in code, and images to show it."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pixels
from tiny import sharpened
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

IMAGE_SIZE, PATCH_SIZE = 8, 4
IMAGE_TOKEN = "<image>"
PAD, EOS = "<|endoftext|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{{- '<image>' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def processor() -> LlavaProcessor:
    """Return a processor with one token for each byte."""
    special = (PAD, "<|im_start|>", EOS, IMAGE_TOKEN)
    tokens = (*sorted(pre_tokenizers.ByteLevel.alphabet()), *special)
    inner = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=inner,
            pad_token=PAD,
            eos_token=EOS,
            additional_special_tokens=list(special),
            padding_side="left",
            clean_up_tokenization_spaces=False,
        ),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,  # CLIP's class token, which the strategy "default" leaves out again
    )


def model() -> LlavaForConditionalGeneration:
    """Return a random model whose answers depend on its image."""
    words = processor().tokenizer
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **sizes, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, projection_dim=32
        ),
        text_config=Qwen3Config(
            **sizes,
            vocab_size=len(words),
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        ),
        image_token_id=words.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return sharpened(LlavaForConditionalGeneration(config)).float()


def dataset() -> Dataset:
    """Return four questions: on two images each the first half, on one each the second."""
    rng = np.random.default_rng(0)
    images = [
        [
            Pixels.fromarray(rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8))
            for _ in range(n)
        ]
        for n in (2, 2, 1, 1)
    ]
    rows = {"prompt": [[{"role": "user", "content": f"what {i}"}] for i in range(4)], "images": images}
    message = {"role": Value("string"), "content": Value("string")}
    return Dataset.from_dict(rows, features=Features(prompt=List(message), images=List(Image())))
