"""LoRA and QLoRA: the teacher is an average of the adapter on the base model that the student has, in memory once."""

import importlib.util

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from harness import LORA, flat_parameters, make_trainer, relative_error, tiny_model
from srpo_trl.teacher import TeacherWeights


def test_teacher_of_an_adapter_is_as_large_as_the_adapter(tmp_path):
    trainer = make_trainer(tmp_path, peft_config=LORA)
    trainer.train()
    adapter = {n: p.numel() for n, p in trainer.model.named_parameters() if "lora" in n}
    teacher = {n: v.numel() for n, v in trainer._teacher.state_dict().items()}
    assert teacher == adapter
    assert trainer.ref_model is None
    total = sum(p.numel() for p in trainer.model.parameters())
    assert sum(teacher.values()) < total / 20


def test_saved_modules_are_trained_and_averaged_with_the_adapter(tmp_path):
    """An adapter that starts as zero changes nothing: norms get the gradient of full fine-tuning."""
    full = make_trainer(tmp_path / "full")
    adapter = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"])
    trainer = make_trainer(tmp_path / "adapter", peft_config=adapter, teacher_update_rate=0.25)
    names = {n.replace("modules_to_save.default.", ""): n for n, _ in trainer.model.named_parameters()}
    name = names["base_model.model.model.norm.weight"]
    initial = trainer._teacher.state_dict()[name].clone()
    full.train()
    trainer.train()
    trained = dict(trainer.model.named_parameters())[name].detach()
    expected = full.model.model.norm.weight.detach()
    assert relative_error(trained - initial, expected - initial) < 1e-5
    teacher = trainer._teacher.state_dict()[name]
    torch.testing.assert_close(teacher, 0.75 * initial + 0.25 * trained)


REFUSED = {
    "head": (LoraConfig(target_modules=["q_proj", "lm_head"]), "target_modules=.* hold the LM head"),
    "saved head": (LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]), "modules_to_save"),
    "saved embeddings": (
        LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
        "modules_to_save",
    ),
    "prompt": (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "learns a prompt"),
}


@pytest.mark.parametrize(("adapter", "reason"), REFUSED.values(), ids=REFUSED)
def test_adapter_that_the_loss_would_not_read_is_refused_before_a_model_loads(tmp_path, adapter, reason):
    with pytest.raises(ValueError, match=reason):
        make_trainer(tmp_path, model=str(tmp_path / "no such model"), peft_config=adapter)


WRAPPED = {
    "pattern": LoraConfig(target_modules=r".*(q_proj|lm_head)"),
    "tokens of tied embeddings": LoraConfig(
        target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1, 2]}
    ),
    "tied embeddings": LoraConfig(target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True),
    "given by name": REFUSED["head"][0],
}


@pytest.mark.parametrize("adapter", WRAPPED.values(), ids=WRAPPED)
def test_wrapped_head_of_a_model_is_refused(tmp_path, adapter):
    with pytest.raises(ValueError, match=r"lm_head|LM head"):
        make_trainer(tmp_path, model=get_peft_model(tiny_model(), adapter))


def test_adapter_of_every_linear_layer_is_taken(tmp_path):
    make_trainer(tmp_path, peft_config=LoraConfig(r=2, target_modules="all-linear")).train()


def test_plain_grpo_takes_what_trl_takes(tmp_path):
    make_trainer(tmp_path, routing="grpo", peft_config=REFUSED["saved embeddings"][0])


needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}


def quantized_modules(model):
    from bitsandbytes.nn import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def keep_unpacked(model):
    """On CPUs with AVX512-BF16, bitsandbytes packs weights in a forward without gradient and never trains again."""
    for module in quantized_modules(model).values():
        module.support_avx512bf16_for_cpu = False


def set_adapter(model):
    """Same values in both models, in bfloat16 as TRL keeps the adapter of a quantized model."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).mul(0.1).bfloat16()


@needs_bitsandbytes
def test_qlora_makes_the_update_of_lora_on_the_rounded_weights(tmp_path):
    """Student and teacher: both run on the one quantized base."""
    from bitsandbytes.functional import dequantize_4bit

    folder = tmp_path / "model"
    tiny_model(hidden_size=64, head_dim=32).save_pretrained(folder)
    options = {"peft_config": LORA, "max_steps": 3, "learning_rate": 0.3}
    quantization = BitsAndBytesConfig(**FOUR_BITS)
    given = {"model": str(folder), "quantization_config": quantization}
    trainer = make_trainer(tmp_path / "qlora", **given, **options)
    keep_unpacked(trainer.model)

    rounded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, module in quantized_modules(trainer.model).items():
        name = name.removeprefix("base_model.model.").removesuffix(".base_layer")
        weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
        rounded.get_submodule(name).weight.data.copy_(weight)
    expected = make_trainer(tmp_path / "lora", model=rounded, **options)

    updates, teachers = [], []
    for run in (trainer, expected):
        set_adapter(run.model)
        before = flat_parameters(run.model)
        run.train()
        updates.append(flat_parameters(run.model) - before)
        teachers.append(torch.cat([v.double().flatten() for v in run._teacher.state_dict().values()]))
    assert quantized_modules(trainer.model)
    assert relative_error(*updates) < 1e-3
    assert relative_error(*teachers) < 1e-5
    assert trainer._teacher.num_ticks == 3
    assert {v.dtype for v in trainer._teacher.state_dict().values()} == {torch.float32}


def test_frozen_weights_of_any_kind_are_no_part_of_the_teacher():
    """As the packed integers of a quantized base: shared, never exchanged, not even read."""
    model = get_peft_model(tiny_model(), LORA)
    base = model.base_model.model.model.layers[0].self_attn.k_proj
    packed = torch.nn.Parameter(torch.randint(0, 255, (64, 1), dtype=torch.uint8), requires_grad=False)
    base.weight = packed
    teacher = TeacherWeights(model, "ema", 0.05)
    teacher.tick()
    with teacher.installed():
        assert base.weight is packed
    assert not [name for name in teacher.state_dict() if "k_proj" in name]
