"""Weights read back from a run's own checkpoint are those that it had, or it is refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    JambaConfig,
    JambaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from harness import LORA, flat_parameters, make_trainer, tiny_model, tiny_moe_model
from srpo_trl.host.manifest import MANIFEST_FILE, BrokenCheckpointError
from srpo_trl.host.read_back import check_adapters, conversions_of, read_back

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
MAMBA = {"mamba_d_state": 4, "mamba_dt_rank": 2, "attn_layer_offset": 1, "attn_layer_period": 2}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}

MODELS = {
    "plain": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
    "tied": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True)),
    "OLMoE": lambda: OlmoeForCausalLM(OlmoeConfig(**SIZES, **EXPERTS)),
    "Qwen3-MoE, tied": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, **EXPERTS, moe_intermediate_size=8, tie_word_embeddings=True)
    ),
    "Mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)),
    "Jamba": lambda: JambaForCausalLM(JambaConfig(**SIZES, **EXPERTS, **MAMBA, use_mamba_kernels=False)),
    "LLaVA": lambda: LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**VISION, image_size=8, patch_size=4),
            text_config=Qwen3Config(**SIZES, head_dim=8),
        )
    ),
}
CONVERTED = {"OLMoE", "Qwen3-MoE, tied", "Mixtral", "Jamba", "LLaVA"}


def filled(make, seed, dtype=torch.float32):
    """A model whose values are all drawn at random, so that one that is not read shows."""
    torch.manual_seed(seed)
    model = make().to(dtype)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_()
    return model


def assert_same(model, expected):
    values = model.state_dict()
    assert set(values) == set(expected)
    for name, value in expected.items():
        assert torch.equal(values[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "4KB"}], ids=["one file", "parts"])
@pytest.mark.parametrize("name", MODELS)
def test_what_was_saved_is_read_back_in_place(tmp_path, name, shards, dtype):
    saved = filled(MODELS[name], 0, dtype)
    saved.save_pretrained(tmp_path, **shards)
    assert (tmp_path / "model.safetensors.index.json").is_file() == bool(shards)
    model = filled(MODELS[name], 1, dtype)
    assert bool(conversions_of(model)) == (name in CONVERTED)
    parameters = list(model.parameters())
    read_back(model, tmp_path)
    assert_same(model, saved.state_dict())
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]  # the optimizer's own
    assert "_weight_conversions" not in vars(model)


@pytest.mark.parametrize("name", sorted(CONVERTED))
def test_a_model_that_was_read_from_a_file_reads_and_is_read_as_well(tmp_path, name):
    filled(MODELS[name], 0).save_pretrained(tmp_path / "first")
    loaded = type(MODELS[name]()).from_pretrained(tmp_path / "first")
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.normal_()
    loaded.save_pretrained(tmp_path / "second")
    expected = {name: value.clone() for name, value in loaded.state_dict().items()}
    again = type(loaded).from_pretrained(tmp_path / "first")
    made = filled(MODELS[name], 1)
    for model in (again, made):
        read_back(model, tmp_path / "second")
        assert_same(model, expected)


def test_parameters_keep_types_of_their_own(tmp_path):
    saved, model = (filled(MODELS["OLMoE"], seed, torch.bfloat16) for seed in (0, 1))
    for each in (saved, model):
        each.lm_head.float()
    with torch.no_grad():
        saved.lm_head.weight.normal_()
    saved.save_pretrained(tmp_path)
    read_back(model, tmp_path)
    assert model.lm_head.weight.dtype == torch.float32
    assert_same(model, saved.state_dict())


@pytest.mark.parametrize("name", ["plain", "OLMoE"])
def test_other_parameters_are_refused_and_the_model_stays(tmp_path, name):
    filled(MODELS[name], 0).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    values = load_file(file)
    taken = values.pop(next(name for name in values if "layers.1" in name and "proj" in name))
    save_file(values | {"model.extra.weight": taken}, file, metadata={"format": "pt"})
    model = filled(MODELS[name], 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BrokenCheckpointError, match=r"missing .*1 unexpected: model\.extra\.weight"):
        read_back(model, tmp_path)
    assert_same(model, before)


# ------------------------------------------------------------------ runs

STEPS = {
    "save_strategy": "steps",
    "save_steps": 1,
    "max_steps": 3,
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
}


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_a_resumed_mixture_of_experts_ends_as_the_run_that_never_stopped(tmp_path, adapter):
    whole = make_trainer(tmp_path, model=tiny_moe_model(), peft_config=adapter, **STEPS)
    whole.train()
    resumed = make_trainer(tmp_path, model=tiny_moe_model(), peft_config=adapter, **STEPS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert torch.equal(flat_parameters(resumed.model), flat_parameters(whole.model))


def test_the_best_mixture_of_experts_is_loaded_whole(tmp_path):
    trainer = make_trainer(tmp_path, model=tiny_moe_model(), **STEPS | {"max_steps": 1})
    trainer.train()
    trained = flat_parameters(trainer.model)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    trainer._read_best()
    assert torch.equal(flat_parameters(trainer.model), trained)


def edited(checkpoint, file, edit):
    """Change the values of a checkpoint's file as one would on purpose: without the list of files."""
    values = load_file(checkpoint / file)
    save_file(edit(values), checkpoint / file, metadata={"format": "pt"})
    (checkpoint / MANIFEST_FILE).unlink()


def without_one(values):
    return {name: value for name, value in values.items() if name != sorted(values)[3]}


def with_one_more(values):
    return values | {"base_model.model.more.lora_A.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize("edit", [without_one, with_one_more], ids=["missing", "unexpected"])
@pytest.mark.parametrize("kind", ["full", "sharded", "lora", "experts"])
def test_keys_that_do_not_fit_stop_a_resume(tmp_path, kind, edit):
    options = STEPS | {"max_steps": 1}
    model = tiny_moe_model if kind == "experts" else tiny_model
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"]) if kind == "lora" else None
    make_trainer(tmp_path, model=model(), peft_config=adapter, **options).train()
    checkpoint = tmp_path / "checkpoint-1"
    if kind == "sharded":
        shard(checkpoint)
        edited(checkpoint, "model-00001-of-00001.safetensors", edit)
        shard_index(checkpoint)
    else:
        edited(checkpoint, "adapter_model.safetensors" if adapter else "model.safetensors", edit)
    trainer = make_trainer(tmp_path, model=model(1), peft_config=adapter, **options | {"max_steps": 2})
    with pytest.raises(BrokenCheckpointError, match="does not hold the model's parameters"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 0


def shard(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00001.safetensors")
    shard_index(checkpoint)


def shard_index(checkpoint):
    names = load_file(checkpoint / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["default", "policy"])
def test_an_adapter_is_looked_for_where_it_is_saved(tmp_path, name):
    model = get_peft_model(tiny_model(), LORA, adapter_name=name)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "policy").is_dir() == (name == "policy")
    check_adapters(model, tmp_path)
    parameter = next(value for key, value in model.named_parameters() if "lora_A" in key)
    with torch.no_grad():
        parameter.add_(1.0)
    with pytest.raises(BrokenCheckpointError, match=r"1 missing or of another shape or value: .*lora_A"):
        check_adapters(model, tmp_path)
    with pytest.raises(FileNotFoundError, match=f"holds no adapter of the model's: {name}"):
        check_adapters(model, tmp_path / "elsewhere")


def test_tied_weights_in_parts_are_no_missing_keys(tmp_path):
    options = STEPS | {"max_steps": 2}
    whole = make_trainer(tmp_path / "run", model=tiny_model(tie_word_embeddings=True), **options)
    whole.train()
    assert whole.model.lm_head.weight is whole.model.model.embed_tokens.weight
    copied = Path(shutil.copytree(tmp_path / "run" / "checkpoint-1", tmp_path / "checkpoint-1"))
    shard(copied)
    (copied / MANIFEST_FILE).unlink()
    for checkpoint in (tmp_path / "run" / "checkpoint-1", copied):
        resumed = make_trainer(tmp_path / "run", model=tiny_model(tie_word_embeddings=True), **options)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert torch.equal(flat_parameters(resumed.model), flat_parameters(whole.model))
