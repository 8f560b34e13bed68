"""A copy of the trained model is a model of its own: it computes with the weights that it holds."""

import copy
import gc
import io
import weakref

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import LoraConfig
from torch.optim.swa_utils import AveragedModel
from trl import GRPOConfig, GRPOTrainer

from harness import (
    LORA,
    chat_dataset,
    config,
    contains_answer,
    make_trainer,
    replay,
    tiny_model,
    tiny_tokenizer,
)
from srpo_trl import SRPOTrainer

IDS = torch.tensor([[5, 6, 7]])
SAVED = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
TRAINED = {
    "plain": {},
    "grpo": {"method": "grpo"},
    "adapter": {"peft_config": LORA},
    "saved head": {"peft_config": SAVED},
    "bfloat16": {"bf16": True},
    "bfloat16 adapter": {"bf16": True, "peft_config": LORA},
    "checkpointing": {"gradient_checkpointing": True},
    "float32 head": {"cast_lm_head_to_fp32": True, "is_tied": False},
    "float32 saved head": {"cast_lm_head_to_fp32": True, "peft_config": SAVED, "is_tied": False},
    "float32 head, grpo": {"cast_lm_head_to_fp32": True, "method": "grpo", "is_tied": False},
}


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits.float()


@torch.no_grad()
def last_hidden_state(model):
    return model(input_ids=IDS, output_hidden_states=True).hidden_states[-1]


@torch.no_grad()
def without_weights(model):
    for parameter in model.parameters():
        parameter.zero_()
    return model


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("options", TRAINED.values(), ids=TRAINED)
def test_a_copy_computes_with_its_own_weights(tmp_path, options):
    options = dict(options)
    trainer = make_trainer(
        tmp_path, model=tiny_model(tie_word_embeddings=options.pop("is_tied", True)), **options
    )
    trainer.train()
    trained = trainer.model.eval()
    expected = logits(trained)
    for twin in (copy.deepcopy(trained), AveragedModel(trained).module):
        torch.testing.assert_close(logits(twin), expected, rtol=0, atol=0)
        base = twin.get_base_model() if hasattr(twin, "peft_config") else twin
        with torch.no_grad():
            base.get_output_embeddings().weight.zero_()
        assert logits(twin).abs().max() == 0
        assert last_hidden_state(without_weights(twin)).abs().max() == 0
        torch.testing.assert_close(logits(trained), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options", [{}, {"method": "grpo"}, {"bf16": True}], ids=["srpo", "grpo", "bfloat16"]
)
def test_a_model_read_back_from_a_file_computes_with_its_own_weights(tmp_path, options):
    trainer = make_trainer(tmp_path, **options)
    trainer.train()
    expected = logits(trainer.model.eval())
    twin = through_a_file(trainer.model)
    torch.testing.assert_close(logits(twin), expected, rtol=0, atol=0.05 if "bf16" in options else 0)
    without_weights(trainer.model)
    assert logits(twin).abs().max() > 0
    assert logits(without_weights(twin)).abs().max() == 0


def test_a_copy_is_made_before_training_and_trains_nothing_of_the_first(tmp_path):
    trainer = make_trainer(tmp_path)
    twin = copy.deepcopy(trainer.model).eval()
    expected = logits(twin)
    trainer.train()
    torch.testing.assert_close(logits(twin), expected, rtol=0, atol=0)
    assert (logits(trainer.model.eval()) - expected).abs().max() > 0


@pytest.mark.parametrize("adapter", [LORA, SAVED], ids=["adapter", "saved head"])
def test_an_adapter_is_merged_on_a_copy(tmp_path, adapter):
    trainer = make_trainer(tmp_path, peft_config=adapter, max_steps=2)
    trainer.train()
    expected = logits(trainer.model.eval())
    merged = copy.deepcopy(trainer.model).merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert logits(without_weights(merged)).abs().max() == 0
    torch.testing.assert_close(logits(trainer.model), expected, rtol=0, atol=0)


def test_a_copy_generates_from_its_own_weights(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    twin = copy.deepcopy(trainer.model).eval()
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(twin.generate(IDS, **options), trainer.model.eval().generate(IDS, **options))
    with torch.no_grad():
        twin.model.norm.weight.neg_()  # logits of the other sign
    generated = twin.generate(IDS, **options)[0, IDS.shape[1]]
    assert generated == logits(trainer.model)[0, -1].argmin()


def test_a_copys_fused_head_is_its_own(tmp_path):
    trainer = make_trainer(tmp_path)
    twin = without_weights(copy.deepcopy(trainer.model))
    with torch.no_grad():
        outputs = twin(input_ids=IDS, labels=IDS, fused_lm_head=True)
    expected = torch.full((1, 2), -float(torch.tensor(twin.config.vocab_size).log()))
    torch.testing.assert_close(outputs.log_probs, expected)


def test_a_copy_keeps_no_other_model_in_memory(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    first = weakref.ref(trainer.model.get_output_embeddings().weight)
    twin = copy.deepcopy(trainer.model)
    del trainer
    gc.collect()
    assert first() is None
    logits(twin)


def test_a_hook_on_the_model_is_copied_with_it(tmp_path):
    """As `device_map` puts one there: it has replaced the forward before TRL does."""
    model = tiny_model()
    add_hook_to_module(model, AlignDevicesHook(execution_device="cpu"))
    trainer = make_trainer(tmp_path, model=model)
    trainer.train()
    expected = logits(trainer.model.eval())
    twin = copy.deepcopy(trainer.model)
    torch.testing.assert_close(logits(twin), expected, rtol=0, atol=0)
    assert logits(without_weights(twin)).abs().max() == 0


def test_a_model_that_another_trainer_had_before_is_its_own_too(tmp_path):
    tokenizer, model = tiny_tokenizer(), tiny_model()
    given = {
        "model": model,
        "reward_funcs": contains_answer,
        "train_dataset": chat_dataset(),
        "processing_class": tokenizer,
        "rollout_func": replay(tokenizer),
    }
    options = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "num_generations": 4,
    }
    GRPOTrainer(args=GRPOConfig(per_device_train_batch_size=16, **options), **given)
    trainer = SRPOTrainer(args=config(tmp_path), **given)
    trainer.train()
    assert logits(without_weights(copy.deepcopy(trainer.model))).abs().max() == 0
