"""LoRA and QLoRA: the teacher is an average of the adapter on the base model that the student has, in memory once."""

import importlib.util

import pytest
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from harness import LORA, flat_parameters, logged, make_trainer, relative_error, tiny_model
from srpo_trl.loss.head import lm_head_of
from srpo_trl.teacher.weights import TeacherWeights


def test_teacher_of_an_adapter_is_as_large_as_the_adapter(tmp_path):
    trainer = make_trainer(tmp_path, peft_config=LORA)
    trainer.train()
    adapter = {n: p.numel() for n, p in trainer.model.named_parameters() if "lora" in n}
    teacher = {n: v.numel() for n, v in trainer.teacher.weights.state_dict().items()}
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
    initial = trainer.teacher.weights.state_dict()[name].clone()
    full.train()
    trainer.train()
    trained = dict(trainer.model.named_parameters())[name].detach()
    expected = full.model.model.norm.weight.detach()
    assert relative_error(trained - initial, expected - initial) < 1e-5
    teacher = trainer.teacher.weights.state_dict()[name]
    torch.testing.assert_close(teacher, 0.75 * initial + 0.25 * trained)


def saving(*modules, **options):
    return LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=list(modules), **options)


SAVED = {  # is the model tied; the adapter; what it trains, and whether the copies stay tied
    "embeddings": (False, saving("embed_tokens"), {"embed_tokens"}, False),
    "head": (False, saving("lm_head"), {"lm_head"}, False),
    "both": (False, saving("embed_tokens", "lm_head"), {"embed_tokens", "lm_head"}, False),
    "embeddings of a tied model": (True, saving("embed_tokens"), {"embed_tokens"}, False),
    "head of a tied model": (True, saving("lm_head"), {"lm_head"}, False),
    "both of a tied model": (True, saving("embed_tokens", "lm_head"), {"embed_tokens", "lm_head"}, False),
    "tied copies": (True, saving("embed_tokens", ensure_weight_tying=True), {"embed_tokens"}, True),
}


def only_saved_modules_train(trainer):
    """Leave LoRA's weights at their start, where they change nothing."""
    for name, parameter in trainer.model.named_parameters():
        if "lora" in name:
            parameter.requires_grad_(False)


def model_that_trains(modules, stays_tied):
    """The same weights without an adapter: the modules' own are trained."""
    model = tiny_model()
    if not stays_tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[-2] in modules)
    return model


def by_module(named):
    return {name.replace(".modules_to_save.default", "").split(".")[-2]: value for name, value in named}


def trained_by_module(trainer):
    return by_module((n, p.detach()) for n, p in trainer.model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        *((case, "ema") for case in SAVED),
        *((c, k) for c in ("both", "tied copies") for k in ("base", "live")),
    ],
)
def test_saved_embeddings_and_head_train_as_the_modules_themselves(tmp_path, case, kind):
    """Two rollout batches, each used twice: losses, weights and teacher are those of training without PEFT."""
    is_tied, adapter, modules, stays_tied = SAVED[case]
    options = {
        "max_steps": 4,
        "num_iterations": 2,
        "learning_rate": 0.3,
        "teacher_update_rate": 0.25,
        "teacher_model_kind": kind,
    }
    expected = make_trainer(tmp_path / "modules", model=model_that_trains(modules, stays_tied), **options)
    expected.train()
    base = tiny_model() if is_tied else model_that_trains(modules, stays_tied).requires_grad_(True)
    trainer = make_trainer(tmp_path / "adapter", model=base, peft_config=adapter, **options)
    only_saved_modules_train(trainer)
    before = trained_by_module(trainer)
    before = {name: value.clone() for name, value in before.items()}
    trainer.train()

    trained, wanted = trained_by_module(trainer), trained_by_module(expected)
    assert set(trained) == modules == set(wanted)
    for module in modules:
        assert relative_error(trained[module] - before[module], wanted[module] - before[module]) < 1e-4
    teacher = by_module(trainer.teacher.weights.state_dict().items())
    wanted_teacher = by_module(expected.teacher.weights.state_dict().items())
    assert set(teacher) == set(wanted_teacher) == (set() if kind == "live" else modules)
    for module, value in teacher.items():
        torch.testing.assert_close(value, wanted_teacher[module], rtol=1e-4, atol=1e-6)
    for name in ("loss", "srpo/distillation/divergence", "srpo/teacher/entropy"):
        assert logged(trainer, name) == pytest.approx(logged(expected, name), rel=1e-4)
    assert logged(trainer, "srpo/route/distilled_frac")[0] > 0


def test_head_is_the_adapters_copy_that_the_forward_uses():
    model = get_peft_model(tiny_model(), saving("embed_tokens", "lm_head"))
    model.add_adapter("second", saving("embed_tokens", "lm_head"))
    student = model.get_base_model()
    for name in ("second", "default"):
        model.set_adapter(name)
        assert lm_head_of(student).weight_VD is student.lm_head.modules_to_save[name].weight
    with model.disable_adapter():
        assert lm_head_of(student).weight_VD is student.lm_head.original_module.weight


def test_a_resumed_run_has_the_copies_of_the_student_and_of_the_teacher(tmp_path):
    options = {"peft_config": saving("embed_tokens", "lm_head"), "learning_rate": 0.3, "max_steps": 3}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    saves = options | {"save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path / "run", **(saves | {"max_steps": 2})).train()
    resumed = make_trainer(tmp_path / "run", **saves)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert torch.equal(flat_parameters(resumed.model), flat_parameters(whole.model))
    held, wanted = resumed.teacher.weights.state_dict(), whole.teacher.weights.state_dict()
    assert held.keys() == wanted.keys()
    assert all(torch.equal(held[name], wanted[name]) for name in wanted)


def test_reference_adapter_of_a_trained_adapter_stays_as_it_is(tmp_path):
    """TRL adds it, copies of embeddings and head included, where a KL penalty is asked for."""
    model = get_peft_model(tiny_model(), saving("embed_tokens", "lm_head"))
    trainer = make_trainer(tmp_path, model=model, beta=0.1, max_steps=2)
    reference = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if ".ref" in n}
    assert any("lm_head" in name for name in reference)
    trainer.train()
    parameters = dict(trainer.model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in reference.items())
    assert set(trainer.teacher.weights.state_dict()) == {n for n, p in parameters.items() if p.requires_grad}
    assert not set(reference) & set(trainer.teacher.weights.state_dict())
    assert logged(trainer, "kl")[-1] > 0


TUNERS = {
    "dora": LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
    "biases": LoraConfig(r=2, target_modules=["q_proj"], bias="all"),
    "biases of the adapter": LoraConfig(r=2, target_modules=["q_proj"], bias="lora_only"),
    "lora of untied embeddings": LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]),
    "tokens": LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1, 7]}),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "vera": VeraConfig(r=2, target_modules=["q_proj"]),
    "norms": LNTuningConfig(target_modules=["norm"], modules_to_save=["lm_head"]),
}


@pytest.mark.parametrize("adapter", TUNERS.values(), ids=TUNERS)
def test_every_tuner_trains_and_the_teacher_is_an_average_of_all_that_it_trains(tmp_path, adapter):
    model = tiny_model(tie_word_embeddings=False, attention_bias=True)
    model.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)  # with a bias
    trainer = make_trainer(
        tmp_path, model=model, peft_config=adapter, max_steps=3, learning_rate=0.1, teacher_update_rate=0.25
    )
    trainable = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    expected = {name: value.double() for name, value in trainable.items()}
    tick = trainer.teacher.weights.update

    def follow(num_updates):
        assert num_updates == 1
        parameters = dict(trainer.model.named_parameters())
        for name in expected:
            expected[name] = 0.75 * expected[name] + 0.25 * parameters[name].detach().double()
        return tick(num_updates)

    trainer.teacher.weights.update = follow
    trainer.train()
    parameters, teacher = dict(trainer.model.named_parameters()), trainer.teacher.weights.state_dict()
    assert teacher.keys() == trainable.keys()
    assert all(not torch.equal(parameters[name], trainable[name]) for name in trainable)
    for name, value in teacher.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7)


REFUSED = {
    "head": (LoraConfig(target_modules=["q_proj", "lm_head"]), "target_modules=.* hold the LM head"),
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


def test_adapter_in_a_model_that_peft_does_not_wrap_is_looked_at(tmp_path):
    """As after `PreTrainedModel.add_adapter`: the layers are in, and TRL sees no adapter."""
    model = tiny_model()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "lm_head"]), model)
    with pytest.raises(ValueError, match="wraps the LM head"):
        make_trainer(tmp_path, model=model)
    other = tiny_model()
    inject_adapter_in_model(LORA, other)
    trainer = make_trainer(tmp_path, model=other)
    trainer.train()
    assert trainer.teacher.weights.state_dict()
    assert all("lora" in name for name in trainer.teacher.weights.state_dict())


def test_adapter_of_every_linear_layer_is_taken(tmp_path):
    make_trainer(tmp_path, peft_config=LoraConfig(r=2, target_modules="all-linear")).train()


def test_plain_grpo_takes_what_trl_takes(tmp_path):
    make_trainer(tmp_path, method="grpo", peft_config=REFUSED["prompt"][0])


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
        teachers.append(torch.cat([v.double().flatten() for v in run.teacher.weights.state_dict().values()]))
    assert quantized_modules(trainer.model)
    assert relative_error(*updates) < 1e-3
    assert relative_error(*teachers) < 1e-5
    assert trainer.teacher.weights.num_updates == 3
    assert {v.dtype for v in trainer.teacher.weights.state_dict().values()} == {torch.float32}


def test_frozen_weights_of_any_kind_are_no_part_of_the_teacher():
    """As the packed integers of a quantized base: shared, never swapped, not even read."""
    model = get_peft_model(tiny_model(), LORA)
    base = model.base_model.model.model.layers[0].self_attn.k_proj
    packed = torch.nn.Parameter(torch.randint(0, 255, (64, 1), dtype=torch.uint8), requires_grad=False)
    base.weight = packed
    teacher = TeacherWeights(model, "ema", 0.05)
    teacher.update()
    with teacher.swapped_in():
        assert base.weight is packed
    assert not [name for name in teacher.state_dict() if "k_proj" in name]
