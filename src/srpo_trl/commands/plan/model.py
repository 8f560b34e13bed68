"""A model from its config alone: built on the meta device, which holds no memory, adapter included."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import transformers
from peft import get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from trl import ModelConfig, get_peft_config

from srpo_trl.commands.plan.published import SIZES, PublishedSizes
from srpo_trl.data.smoke_model import TINY_RANDOM_QWEN3, build_byte_tokenizer
from srpo_trl.data.tiny_model import build_model

# bitsandbytes: values of 4 bits with one fp32 scale per 64; nested, scales of 8 bits with one fp32 per 256 of them.
_BYTES_4BIT, _BYTES_4BIT_NESTED, _BYTES_8BIT = 0.5 + 4 / 64, 0.5 + 1 / 64 + 4 / (64 * 256), 1.0


class Parameter(NamedTuple):
    """One parameter, without its values.

    Attributes:
        numel: number of elements.
        itemsize: bytes of one element as loaded; a fraction where quantized.
        is_trainable: whether it gets a gradient.
        unit: number of the repeated layer that it lies in; None outside of them.
    """

    numel: int
    itemsize: float
    is_trainable: bool
    unit: int | None


@dataclass(frozen=True)
class ModelShape:
    """What memory depends on of a model.

    Attributes:
        num_parameters: as published: without adapters, tied weights counted once.
        parameters: all of them, adapters included.
        vocab_size, hidden_size: of the LM head's weight.
        head_is_trainable: whether the LM head gets a gradient.
        head_is_tied: whether it is the embedding.
    """

    num_parameters: int
    parameters: tuple[Parameter, ...]
    vocab_size: int
    hidden_size: int
    head_is_trainable: bool
    head_is_tied: bool

    def frozen(self) -> "ModelShape":
        """Return the shape of the model where nothing of it trains."""
        parameters = tuple(p._replace(is_trainable=False) for p in self.parameters)
        return dataclasses.replace(self, parameters=parameters, head_is_trainable=False)


def load_config(model_config: ModelConfig, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return the model's config; nothing else of it is read. Where there is none to read, known sizes take its place.

    Raises:
        OSError: there is no such folder or hub model, or the hub cannot be reached.
        ValueError: the config is of no architecture that transformers knows.
    """
    name = str(model_config.model_name_or_path)
    if name == TINY_RANDOM_QWEN3:
        return build_model(build_byte_tokenizer(), max_position_embeddings=32768).config
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            name, revision=model_config.model_revision, trust_remote_code=trust_remote_code
        )
    except OSError:
        if name in SIZES:
            return PublishedSizes.of(name)
        raise
    return config


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
    model_class = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
    dtype = getattr(config, "dtype", None) or torch.float32
    if model_config.dtype not in (None, "auto"):
        dtype = getattr(torch, str(model_config.dtype))
    # SDPA's fused kernels keep the tensors that flash attention keeps.
    attention = "sdpa" if uses_flash_attention(model_config) else model_config.attn_implementation
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    with torch.device("meta"):
        model: nn.Module = (
            AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, **options)
            if model_class is None
            else model_class._from_config(config, **options)
        )
        if (peft_config := get_peft_config(model_config)) is not None:
            # PEFT makes float32 adapters. TRL lowers those of quantized models to bfloat16.
            model = get_peft_model(model, peft_config)
            if is_quantized(model_config) or adapters_in_base_dtype:
                adapter_dtype = torch.bfloat16 if is_quantized(model_config) else dtype
                for parameter in filter(lambda p: p.requires_grad, model.parameters()):
                    parameter.data = parameter.data.to(adapter_dtype)
    return model


def replace_by_fake(model: nn.Module, mode: FakeTensorMode, dtype: torch.dtype | None) -> None:
    """Replace a meta model's parameters and buffers by fake tensors, in place; what is shared stays shared.

    Args:
        model: as `build_without_memory` makes it.
        mode: that the fake tensors belong to.
        dtype: of the parameters; None: as they are.
    """
    made: dict[int, Any] = {}

    def fake(tensor: Tensor) -> Any:
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(torch.empty(tensor.shape, dtype=dtype or tensor.dtype), tensor.requires_grad)
        return torch.empty(tensor.shape, dtype=tensor.dtype)

    with mode:
        for module in model.modules():
            for store in (module._parameters, module._buffers):
                for name, tensor in store.items():
                    if tensor is not None:
                        if id(tensor) not in made:
                            made[id(tensor)] = fake(tensor)
                        store[name] = made[id(tensor)]


def uses_flash_attention(model_config: ModelConfig) -> bool:
    """Return whether the attention needs no mask, since padding is cut out before it."""
    return "flash" in (model_config.attn_implementation or "")


def is_quantized(model_config: ModelConfig) -> bool:
    """Return whether bitsandbytes quantizes the weights."""
    return bool(model_config.load_in_4bit or model_config.load_in_8bit)


def student_of(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator,return-value]


def shape_of(model: nn.Module, model_config: ModelConfig) -> ModelShape:
    """Return the shape of a model made by `build_without_memory`."""
    student = student_of(model)
    head, embedding = student.get_output_embeddings(), student.get_input_embeddings()
    layer_classes = set(student._no_split_modules or ())
    layers = [module for module in student.modules() if type(module).__name__ in layer_classes]
    units = {id(p): number for number, layer in enumerate(layers) for p in layer.parameters()}
    quantized = _quantized_weights(student, head) if is_quantized(model_config) else set()
    stored = _BYTES_4BIT_NESTED if model_config.use_bnb_nested_quant else _BYTES_4BIT
    stored = stored if model_config.load_in_4bit else _BYTES_8BIT
    parameters = tuple(
        Parameter(
            p.numel(), stored if id(p) in quantized else p.element_size(), p.requires_grad, units.get(id(p))
        )
        for p in model.parameters()
    )
    adapters = [p for n, p in model.named_parameters() if "lora_" in n or "modules_to_save" in n]
    return ModelShape(
        num_parameters=sum(p.numel for p in parameters) - sum(p.numel() for p in adapters),
        parameters=parameters,
        vocab_size=head.weight.shape[0],
        hidden_size=head.weight.shape[1],
        head_is_trainable=head.weight.requires_grad,
        head_is_tied=head.weight is embedding.weight,
    )


def _quantized_weights(student: PreTrainedModel, head: nn.Module) -> set[int]:
    """Return the identities of the weights that bitsandbytes quantizes: frozen linear layers, the LM head excepted."""
    of_the_head = set(head.modules())  # with the one that PEFT's copy stands for
    linear = [m for m in student.modules() if isinstance(m, nn.Linear) and m not in of_the_head]
    return {id(module.weight) for module in linear if not module.weight.requires_grad}
