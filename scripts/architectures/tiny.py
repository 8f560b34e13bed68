"""Every causal language model of transformers, built tiny: sizes by the names that configurations give them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

MOST_PARAMETERS = 40_000_000
MODEL_TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

# What a size is called, in all configurations together.
_NAMES: dict[float, tuple[str, ...]] = {
    32: (
        *("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_size", "backbone_hidden_size"),
        *("lru_width", "dim_model_base", "word_embed_proj_dim", "input_embedding_size", "embedding_dim"),
        *("output_embedding_size", "moe_intermediate_size", "shared_expert_intermediate_size"),
        *("moe_shared_expert_intermediate_size", "shared_intermediate_size", "expert_ffn_hidden_size"),
        *("shared_experts_intermediate_size", "prefix_dense_intermediate_size", "router_hidden_size"),
        *("attention_hidden_size", "hidden_size_per_layer_input", "global_hidden_size"),
    ),
    64: (
        *("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dff", "dim_ff", "d_inner"),
        *("feed_forward_size", "ffn_hidden_size", "n_inner", "dense_intermediate_size", "mamba_d_ssm"),
        "intermediate_size_mlp",
    ),
    512: (
        *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"),
        "max_target_positions",
    ),
    2: (
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"),
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
        *("encoder_attention_heads", "attention_heads", "num_key_value_heads", "num_kv_heads"),
        *("num_decoder_layers", "num_encoder_layers", "num_decoder_attention_heads"),
        *("num_encoder_attention_heads", "num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"),
        *("swa_num_attention_heads", "swa_num_key_value_heads", "n_mamba_heads", "linear_num_heads"),
        *("linear_num_key_heads", "linear_num_value_heads", "index_n_heads", "altup_num_inputs"),
        "num_blocks",
    ),
    4: (
        *("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "zero_expert_num"),
        *("mamba_n_heads", "mamba_num_heads"),
    ),
    16: (
        *("head_dim", "dim_head", "kv_channels", "attention_head_size", "d_head", "swa_head_dim"),
        *("linear_head_dim", "linear_key_head_dim", "linear_value_head_dim", "attention_head_dim"),
        *("mamba_d_head", "mamba_head_dim", "index_head_dim", "v_head_dim", "qk_nope_head_dim"),
        *("qk_rope_head_dim", "q_lora_rank", "kv_lora_rank", "o_lora_rank", "rotary_dim", "laurel_rank"),
        *("local_attn_chunk_length", "lsh_attn_chunk_length", "hc_lowrank", "mamba_d_state", "state_size"),
        *("ssm_state_size", "gated_norm_rank", "loop_gate_rank", "pronunciation_embed_dim"),
        *("shape_embed_dim", "query_pre_attn_scalar", "adapter_rank"),
    ),
    1: (
        *("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
        *("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "num_mtp_layers"),
        *("num_nextn_predict_layers", "n_groups", "mamba_n_groups", "mamba_ngroups", "num_hidden_groups"),
    ),
    8: ("mamba_chunk_size", "chunk_size"),
    0.0: (
        *("attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout"),
        *("activation_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "emb_pdrop"),
        *("decoder_layerdrop", "encoder_layerdrop", "layerdrop", "dropout_p", "resid_dropout"),
        *("embed_dropout", "residual_dropout", "embedding_dropout", "mlp_dropout", "router_jitter_noise"),
        *("input_jitter_noise", "local_attention_probs_dropout_prob", "lsh_attention_probs_dropout_prob"),
    ),
}
_SIZES = {name: size for size, names in _NAMES.items() for name in names}

# What an architecture needs beside that, to be built at all or to be a causal model.
FULL, LINEAR, SLIDING = "full_attention", "linear_attention", "sliding_attention"
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": [LINEAR, FULL]},
    "mamba2": {"num_heads": 4},
    "qwen3_5_moe_text": {"layer_types": [LINEAR, FULL]},
    "qwen3_5_text": {"layer_types": [LINEAR, FULL]},
    "qwen3_next": {"layer_types": [LINEAR, FULL]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 3},
    "zaya": {"num_experts_per_tok": 1},
    "cohere_compass_text": {
        "layer_types": [SLIDING, FULL],
        "rope_parameters": {name: {"rope_type": "default", "rope_theta": 1e4} for name in (SLIDING, FULL)},
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 0,
        "layer_types": [SLIDING, FULL] * 2,
        "vocab_size_per_layer_input": 44,
    },
    "gemma4_text": {"vocab_size_per_layer_input": 44, "layer_types": [SLIDING, FULL]},
    "inkling2_loop_text": {"unpadded_vocab_size": 44},
    "inkling2_text": {"unpadded_vocab_size": 44},
    "lfm2_moe": {"layer_types": ["conv", FULL]},
    "mpt": {"attn_config": {"attn_pdrop": 0}},
    "qwen4_exp_text": {
        "layer_types": [LINEAR, FULL],
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": 64,
    },
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "local"],
        "hidden_size": 32,
    },
    "xlstm": {"chunk_size": 64},
    "zamba2": {"num_hidden_layers": 6, "layer_types": ["mamba", "mamba", "hybrid"] * 2},
}


def tiny_config(model_type: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    """Return the architecture's configuration with tiny sizes and the tokenizer's special tokens."""
    tokens = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
    }
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]
    # Of a multimodal configuration, the part that the language model is built from.
    config_class = getattr(model_class, "config_class", None) or CONFIG_MAPPING[model_type]
    overrides = OVERRIDES.get(model_type, OVERRIDES.get(config_class.model_type, {}))
    return _shrunk(config_class, tokens, overrides)


def _shrunk(
    config_class: type[PreTrainedConfig], tokens: Mapping[str, Any], overrides: Mapping[str, Any]
) -> PreTrainedConfig:
    names = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    values = {name: value for name, value in ({**_SIZES, **tokens}).items() if name in names}
    for name, part in getattr(config_class, "sub_configs", {}).items():
        if name in names and hasattr(part, "__dataclass_fields__") and name not in overrides:
            values[name] = _shrunk(part, tokens, overrides.get(f"{name}.", {})).to_dict()
    if "router_aux_loss_coef" in names:  # the balancing loss is TRL's own
        values["router_aux_loss_coef"] = 0.0
    if "is_decoder" in names:
        values["is_decoder"] = True
    given = {name: value for name, value in overrides.items() if not name.endswith(".")}
    return config_class(**(values | given))


def tiny_model(model_type: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Return a random model of the architecture, in float32, without dropout, unsure of no token.

    Raises:
        ValueError: it has more than `MOST_PARAMETERS` parameters.
    """
    config = tiny_config(model_type, tokenizer)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    model = model_class(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # random initial weights make near-uniform attention and logits
                spread = parameter.float().std()
                fan_in = parameter[0].numel()
                if spread > 0:
                    parameter.mul_(1.5 * fan_in**-0.5 / spread)
            else:  # gains of 1 and biases of 0 hide what they do
                parameter.add_(0.1 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model
