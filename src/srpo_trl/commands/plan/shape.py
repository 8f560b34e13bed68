"""A model's parameters from its config alone: built on the meta device, which holds no memory, adapter included."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import transformers
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from trl import ModelConfig, get_peft_config

from srpo_trl.commands.smoke_model import TINY_RANDOM_QWEN3, build_byte_tokenizer
from srpo_trl.data.tiny_model import build_model

# bitsandbytes: values of 4 bits with one fp32 scale per 64; nested, scales of 8 bits with one fp32 per 256 of them.
_BYTES_4BIT, _BYTES_4BIT_NESTED = 0.5 + 4 / 64, 0.5 + 1 / 64 + 4 / (64 * 256)
_BYTES_8BIT = 1.0


class Parameter(NamedTuple):
    """One parameter, without its values.

    Attributes:
        numel: number of elements.
        itemsize: bytes of one element as loaded; a fraction where quantised.
        is_trainable: whether it gets a gradient.
        unit: number of the repeated layer that it lies in; None outside of them.
    """

    numel: int
    itemsize: float
    is_trainable: bool
    unit: int | None


@dataclass(frozen=True)
class ModelShape:
    """What the formulas need to know of a model.

    Attributes:
        model_type: the architecture's name.
        num_parameters: as published: without adapters, tied weights counted once.
        parameters: all of them, adapters included.
        vocab_size, hidden_size: of the LM head's weight.
        head_is_trainable: whether the LM head gets a gradient.
        head_is_tied: whether it is the embedding.
    """

    model_type: str
    num_parameters: int
    parameters: tuple[Parameter, ...]
    vocab_size: int
    hidden_size: int
    head_is_trainable: bool
    head_is_tied: bool

    @property
    def trainable(self) -> tuple[Parameter, ...]:
        """The parameters that get a gradient."""
        return tuple(p for p in self.parameters if p.is_trainable)


def load_config(model_config: ModelConfig, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return the model's config; nothing else of it is read.

    Raises:
        OSError: there is no such folder or hub model.
        ValueError: the config is of no architecture that transformers knows.
    """
    name = str(model_config.model_name_or_path)
    if name == TINY_RANDOM_QWEN3:
        return build_model(build_byte_tokenizer(), max_position_embeddings=32768).config
    return AutoConfig.from_pretrained(
        name, revision=model_config.model_revision, trust_remote_code=trust_remote_code
    )


def build_without_memory(
    config: PretrainedConfig,
    model_config: ModelConfig,
    *,
    adapters_in_base_dtype: bool = False,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Return the model on the meta device as the trainer would load it, PEFT's wrapper included.

    Args:
        config: of the model.
        model_config: dtype, attention and adapter.
        adapters_in_base_dtype: as TRL asks of PEFT under ZeRO-3, which cannot gather mixed dtypes.
        trust_remote_code: build a class from the model's own repository.
    """
    names = getattr(config, "architectures", None) or [""]
    model_class = getattr(transformers, names[0], None)
    options: dict[str, Any] = {
        "dtype": _dtype(model_config, config),
        "attn_implementation": traceable_attention(model_config.attn_implementation),
    }
    with torch.device("meta"):
        model: nn.Module = (
            AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, **options)
            if model_class is None
            else model_class._from_config(config, **options)
        )
        peft_config = get_peft_config(model_config)
        if peft_config is not None:
            # PEFT makes float32 adapters. TRL lowers those of quantised models to bfloat16.
            model = get_peft_model(model, peft_config)
            if model_config.load_in_4bit or model_config.load_in_8bit:
                _lower(model, torch.bfloat16)
            elif adapters_in_base_dtype:
                _lower(model, options["dtype"])
    return model


def _lower(model: nn.Module, dtype: torch.dtype) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def _dtype(model_config: ModelConfig, config: PretrainedConfig) -> torch.dtype:
    if model_config.dtype not in (None, "auto"):
        return getattr(torch, str(model_config.dtype))
    return getattr(config, "dtype", None) or torch.float32


def traceable_attention(name: str | None) -> str | None:
    """Return the attention that stands for `name`: SDPA's fused kernels keep the tensors that flash attention keeps."""
    return "sdpa" if uses_flash_attention(name) else name


def uses_flash_attention(name: str | None) -> bool:
    """Return whether the attention needs no mask, since padding is cut out before it."""
    return "flash" in (name or "")


def shape_of(model: nn.Module, model_config: ModelConfig) -> ModelShape:
    """Return the shape of a model made by `build_without_memory`."""
    student = student_of(model)
    head, embedding = student.get_output_embeddings(), student.get_input_embeddings()
    units = _units(student)
    quantised = _quantised(student, head) if model_config.load_in_4bit or model_config.load_in_8bit else set()
    stored = _BYTES_4BIT_NESTED if model_config.use_bnb_nested_quant else _BYTES_4BIT
    stored = stored if model_config.load_in_4bit else _BYTES_8BIT
    parameters = [
        Parameter(
            parameter.numel(),
            stored if id(parameter) in quantised else parameter.element_size(),
            parameter.requires_grad,
            units.get(id(parameter)),
        )
        for parameter in model.parameters()
    ]
    adapters = sum(
        p.numel() for name, p in model.named_parameters() if "lora_" in name or "modules_to_save" in name
    )
    return ModelShape(
        model_type=student.config.model_type,
        num_parameters=sum(p.numel for p in parameters) - adapters,
        parameters=tuple(parameters),
        vocab_size=head.weight.shape[0],
        hidden_size=head.weight.shape[1],
        head_is_trainable=head.weight.requires_grad,
        head_is_tied=head.weight is embedding.weight,
    )


def student_of(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator,return-value]


def _units(student: PreTrainedModel) -> dict[int, int]:
    """Return, by a parameter's identity, the number of the repeated layer it lies in."""
    layer_classes = set(student._no_split_modules or ())
    layers = [module for module in student.modules() if type(module).__name__ in layer_classes]
    return {id(p): number for number, layer in enumerate(layers) for p in layer.parameters()}


def _quantised(student: PreTrainedModel, head: nn.Module) -> set[int]:
    """Return the identities of the weights that bitsandbytes quantises: frozen linear layers, the LM head excepted."""
    of_the_head = set(head.modules())  # with the one that PEFT's copy stands for
    return {
        id(module.weight)
        for module in student.modules()
        if isinstance(module, nn.Linear) and module not in of_the_head and not module.weight.requires_grad
    }
