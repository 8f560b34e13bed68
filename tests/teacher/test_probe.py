"""The probe of a model when the trainer is made: what is refused, what is mended, and that nothing else changes."""

import contextlib
import copy
import types

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
)

from harness import chat_dataset, logged, make_trainer, replay, tiny_model, tiny_moe_model, tiny_tokenizer
from srpo_trl.loss.student import add_distillation_head
from srpo_trl.seams.residence import residence
from srpo_trl.seams.trl import add_fused_lm_head
from srpo_trl.teacher.packing import row_layout
from srpo_trl.teacher.positions import give_positions, positions_of
from srpo_trl.teacher.probe import ModelProblemError, probe_model
from srpo_trl.teacher.probe_rows import probe_rows
from srpo_trl.teacher.scoring import forward_rows

CPU = torch.device("cpu")
TOKENIZER = tiny_tokenizer()
IDS = {
    "vocab_size": len(TOKENIZER),
    "pad_token_id": TOKENIZER.pad_token_id,
    "bos_token_id": TOKENIZER.eos_token_id,
    "eos_token_id": TOKENIZER.eos_token_id,
}


def probe(model, layout=None, temperature=1.0, **options):
    add_fused_lm_head(model, temperature=temperature)
    add_distillation_head(model)
    return probe_model(model, layout or row_layout(model), temperature=temperature, device=CPU, **options)


def gpt2(seed=0, **overrides):
    torch.manual_seed(seed)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**(sizes | IDS | overrides)))


def mamba(seed=0):
    torch.manual_seed(seed)
    return MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, **IDS))


# ------------------------------------------------------------------ the LM head


class OddHead(nn.Linear):
    """An LM head whose logits are a function of the product."""

    change: staticmethod

    def forward(self, hidden):
        return self.change(super().forward(hidden))


def with_head(change, dtype=torch.float32, seed=0):
    model = tiny_model(seed, tie_word_embeddings=False)
    model.lm_head.__class__ = type("Odd", (OddHead,), {"change": staticmethod(change)})
    return model.to(dtype)


CHANGES = {
    "scaled by 1.1": lambda logits: logits * 1.1,
    "scaled by 0.9": lambda logits: logits / 1.1,
    "capped at 30": lambda logits: 30 * torch.tanh(logits / 30),
    "its own bias": lambda logits: logits + torch.linspace(-3, 3, logits.shape[-1], dtype=logits.dtype),
    "turned about": lambda logits: logits.flip(-1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("change", CHANGES)
def test_a_head_that_is_not_its_product_is_refused(change, dtype):
    with pytest.raises(
        ModelProblemError, match=r"Qwen3ForCausalLM .* its own logits differ by .* GRPOTrainer"
    ):
        probe(with_head(CHANGES[change], dtype))


def test_a_softcap_is_seen_where_the_logits_are_small():
    model = with_head(CHANGES["capped at 30"])
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-3)
    with pytest.raises(ModelProblemError, match="its own logits differ"):
        probe(model)


def test_a_constant_that_is_added_to_all_logits_changes_no_probability():
    probe(with_head(lambda logits: logits + 5.0))


def test_logits_of_another_length_are_refused():
    with pytest.raises(ModelProblemError, match=r"logits have shape \(3, 17, 40\), those of its LM head"):
        probe(with_head(lambda logits: logits[..., :40]))


def test_scale_and_softcap_that_the_configuration_states_are_taken():
    model = with_head(lambda logits: 20 * torch.tanh(logits * 0.25 / 20))
    model.config.logit_scale, model.config.final_logit_softcapping = 0.25, 20.0
    assert probe(model).layout == "shared"


def test_a_fused_head_of_another_temperature_is_refused():
    model = tiny_model()
    add_fused_lm_head(model, temperature=0.5)
    add_distillation_head(model)
    with pytest.raises(ModelProblemError, match="TRL's fused LM head gives log-probabilities that differ"):
        probe_model(model, "shared", temperature=1.0, device=CPU)
    assert probe(tiny_model(), temperature=0.5).layout == "shared"


class ScaledHead(nn.Linear):
    """An LM head with a trained scale for each token, 1 before training."""

    def forward(self, hidden):
        return super().forward(hidden) * self.scale


def test_a_trained_scale_is_seen_before_it_is_trained():
    model = tiny_model(tie_word_embeddings=False)
    model.lm_head.__class__ = ScaledHead
    model.lm_head.scale = nn.Parameter(torch.ones(len(TOKENIZER)))
    with pytest.raises(ModelProblemError, match=r"its logits depend on lm_head.scale"):
        probe(model)
    model.lm_head.scale.requires_grad_(False)
    probe(model)


def test_parameters_that_logits_do_not_depend_on_are_none_of_its_business():
    model = tiny_model()
    model.value_head = nn.Linear(32, 1)
    probe(model)


def test_a_head_that_is_no_matrix_is_named():
    model = tiny_model(tie_word_embeddings=False)
    model.lm_head = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, len(TOKENIZER)))
    with pytest.raises(ValueError, match=r"Qwen3ForCausalLM has no LM head that is one matrix"):
        probe(model)


# ------------------------------------------------------------------ padding


def alone(model, ids):
    with torch.no_grad():
        return model.base_model(input_ids=ids.unsqueeze(0)).last_hidden_state[0]


def largest_difference_by_padding(trainer, watched):
    """Train, and compare each row that the watched model reads with the row alone."""
    seen = []

    def keep(_module, _positional, named, output):
        reads_a_cache = named.get("cache") is not None or named.get("past_key_values") is not None
        if (named["attention_mask"][:, 0] == 0).any() and not reads_a_cache:
            seen.append(
                (named["input_ids"], named["attention_mask"].bool(), output.last_hidden_state.detach())
            )

    handle = watched.base_model.register_forward_hook(keep, with_kwargs=True)
    trainer.train()
    handle.remove()
    watched.eval()
    return [
        float((alone(watched, ids[mask]) - hidden[mask]).abs().max())
        for ids_BT, mask_BT, hidden_BTD in seen
        for ids, mask, hidden in zip(ids_BT, mask_BT, hidden_BTD, strict=True)
    ]


PROMPTS = (("1+1", ["2#2", "33;12", "0", "4"]), ("2+2+2+2+2+2+2", ["8", "14#14", "9", "8;8"]))


def trainer_on_gpt2(folder, model, **options):
    defaults = {"learning_rate": 0.0, "per_device_train_batch_size": 8}
    return make_trainer(
        folder,
        model=model,
        train_dataset=chat_dataset(PROMPTS),
        rollout_func=replay(TOKENIZER, PROMPTS),
        **(defaults | options),
    )


NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


def test_learned_positions_do_not_count_padding(tmp_path, caplog):
    model = gpt2(**NO_DROPOUT)
    trainer = trainer_on_gpt2(tmp_path, model)
    assert "GPT2LMHeadModel counts positions from a row's padding on" in caplog.text
    differences = largest_difference_by_padding(trainer, model)
    assert len(differences) >= 8
    assert max(differences) < 1e-4


def test_nor_do_those_of_the_reference_model(tmp_path):
    folder = tmp_path / "model"
    gpt2(**NO_DROPOUT).save_pretrained(folder)
    trainer = trainer_on_gpt2(tmp_path, str(folder), beta=0.1)
    differences = largest_difference_by_padding(trainer, trainer.ref_model)
    assert len(differences) >= 8
    assert max(differences) < 1e-4


def test_positions_count_a_rows_own_tokens():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert positions_of(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]


def test_positions_are_given_where_none_are():
    model, seen = gpt2().eval(), []
    give_positions(model)
    model.base_model.register_forward_pre_hook(
        lambda _m, _a, k: seen.append(k.get("position_ids")), with_kwargs=True
    )
    ids = torch.tensor([[0, 6, 7], [6, 7, 8]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    model(input_ids=ids, attention_mask=mask)
    assert seen[-1].tolist() == [[0, 0, 1], [0, 1, 2]]
    model(input_ids=ids, attention_mask=mask, position_ids=mask)
    assert seen[-1].tolist() == mask.tolist()
    model(input_ids=ids)
    assert seen[-1] is None


def test_a_copy_of_the_model_keeps_its_positions():
    model = gpt2().eval()
    give_positions(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(2.0)
    ids, mask = torch.tensor([[0, 0, 6, 7]]), torch.tensor([[0, 0, 1, 1]])
    found = copied.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[0, 2:]
    torch.testing.assert_close(found, alone(copied, ids[0, 2:]))


def test_rotary_positions_are_left_alone(tmp_path):
    trainer = make_trainer(tmp_path)
    assert not trainer.model.base_model._forward_pre_hooks


def test_padding_that_position_ids_do_not_mend_is_refused():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 64}
    config = BartConfig(**sizes, **IDS, is_decoder=True, is_encoder_decoder=False, init_std=0.3)
    with pytest.raises(
        ModelProblemError, match=r"BartForCausalLM .* padding on the left.* GRPOTrainer pads the same way"
    ):
        probe(BartForCausalLM(config))


def test_a_model_that_sees_later_tokens_is_refused():
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.3,
        use_bidirectional_attention=True,
        **IDS,
    )
    with pytest.raises(ModelProblemError, match=r"Gemma3ForCausalLM .* with the tokens after it"):
        probe(Gemma3ForCausalLM(config))


# ------------------------------------------------------------------ layouts of the teacher's rows


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_a_layout_that_is_right_is_kept(layout):
    assert probe(tiny_model(), layout).layout == layout


@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_rows_that_would_leak_into_each_other_are_padded(layout):
    """A state that runs along the sequence runs from row to row where rows are packed."""
    assert probe(mamba(), layout).layout == "padded"


def test_the_trainer_takes_the_layout_that_was_found(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("srpo_trl.teacher.prepared_student.row_layout", lambda _: "packed")
    trainer = make_trainer(tmp_path, model=mamba())
    assert "teacher rows in layout 'packed'" in caplog.text
    layouts = []
    monkeypatch.setattr(
        "srpo_trl.teacher.scoring.forward_rows",
        lambda *args: layouts.append(args[2]) or forward_rows(*args),
    )
    trainer.train()
    assert set(layouts) == {"padded"}


# ------------------------------------------------------------------ precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_layers", [2, 24])
def test_rounding_of_half_precision_is_no_fault(dtype, num_layers):
    for seed in range(3):
        found = probe(tiny_model(seed, dtype, num_hidden_layers=num_layers))
        assert found == ("shared", False)


def test_mixed_precision_is_no_fault():
    model = tiny_model(num_hidden_layers=24)
    assert probe(model, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16)) == ("shared", False)


def test_learned_positions_are_seen_in_half_precision():
    assert probe(gpt2().to(torch.bfloat16)).needs_positions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mixture_of_experts_is_right(dtype):
    model = tiny_moe_model()
    model.config.output_router_logits = False
    assert probe(model.to(dtype)) == ("shared", False)


def test_weights_that_have_diverged_are_not_its_to_judge():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    probe(model)


# ------------------------------------------------------------------ what it leaves, and when it runs


def test_the_model_is_left_as_it_was():
    model = gpt2()  # with dropout
    model.transformer.h[0].eval()
    model.transformer.register_buffer("count", torch.zeros(1))

    def count(module, _inputs):
        module.count += 1

    handle = model.transformer.register_forward_pre_hook(count)
    modes = {name: module.training for name, module in model.named_modules()}
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = len(model.transformer._forward_hooks)
    state = torch.get_rng_state()
    probe(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(model.transformer._forward_hooks) == hooks
    handle.remove()


def test_random_numbers_of_the_run_do_not_depend_on_it(tmp_path, monkeypatch):
    torch.manual_seed(3)
    make_trainer(tmp_path / "probed", model=gpt2())
    with_probe = torch.get_rng_state()
    monkeypatch.setattr("srpo_trl.trainer.prepare_student", lambda *_, **__: "shared")
    torch.manual_seed(3)
    make_trainer(tmp_path / "not probed", model=gpt2())
    assert torch.equal(with_probe, torch.get_rng_state())


@pytest.mark.parametrize("method", ["srpo", "sdpo", "advantage_mix"])
def test_every_routing_that_distils_is_probed(tmp_path, method):
    with pytest.raises(ValueError, match="its own logits differ"):
        make_trainer(tmp_path, model=with_head(CHANGES["scaled by 1.1"]), method=method)


def test_grpo_is_grpo_trainer(tmp_path):
    make_trainer(tmp_path, model=with_head(CHANGES["scaled by 1.1"]), method="grpo")


def test_tokens_are_ordinary_and_fit():
    model = gpt2(n_positions=16)
    rows = probe_rows(model)
    special = {TOKENIZER.pad_token_id, TOKENIZER.eos_token_id}
    assert all(not special & set(row) and max(row) < len(TOKENIZER) for row in rows)
    assert max(map(len, rows)) <= 16
    assert rows.long[: len(rows.short)] == rows.short
    probe(model)
    few = types.SimpleNamespace(**IDS, max_position_embeddings=512, to_dict=lambda: IDS)
    few.get_text_config = lambda: few
    small = types.SimpleNamespace(config=few, get_input_embeddings=lambda: nn.Embedding(4, 2))
    assert all(max(row) < 4 for row in probe_rows(small))


def test_layers_come_to_the_device_one_after_the_other(monkeypatch):
    model, present, most = tiny_model().eval(), [], []
    names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}

    @contextlib.contextmanager
    def record(tensors, device):
        assert device == torch.device("cuda")
        those = {names[id(tensor)] for tensor in tensors}
        present.append(those)
        most.append(len(present))
        try:
            yield
        finally:
            present.remove(those)

    monkeypatch.setattr("srpo_trl.seams.residence._present", record)
    during = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: during.append([*present]))
    hooks = [len(layer._forward_hooks) for layer in model.model.layers]
    with residence(model, torch.device("cuda"))(), torch.no_grad():
        assert {"model.embed_tokens.weight", "model.norm.weight"} < present[0]
        model(input_ids=torch.ones(1, 3, dtype=torch.int64), use_cache=False)
    assert not present
    assert max(most) == 2  # what is in no layer, and one layer
    for number, (_, layer) in enumerate(during):
        expected = {name for name in names.values() if name.startswith(f"model.layers.{number}.")}
        assert layer == expected
    with pytest.raises(TypeError), residence(model, torch.device("cuda"))(), torch.no_grad():
        model.model.layers[0]()
    assert not present
    assert [len(layer._forward_hooks) for layer in model.model.layers] == hooks
    assert residence(model, CPU) is contextlib.nullcontext


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_the_engine_has_left_on_the_host_is_probed_on_the_gpu(dtype):
    model, device = tiny_model(dtype=dtype), torch.device("cuda")
    before = [(p.data_ptr(), p.device) for p in (*model.parameters(), *model.buffers())]
    add_fused_lm_head(model)
    add_distillation_head(model)
    away = residence(model, device)
    assert probe_model(model, "shared", temperature=1.0, device=device, resident=away) == ("shared", False)
    assert [(p.data_ptr(), p.device) for p in (*model.parameters(), *model.buffers())] == before
    odd = with_head(CHANGES["scaled by 1.1"], dtype)
    add_fused_lm_head(odd)
    add_distillation_head(odd)
    with pytest.raises(ModelProblemError, match="its own logits differ"):
        probe_model(odd, "shared", temperature=1.0, device=device, resident=residence(odd, device))


def test_it_says_nothing_of_a_model_that_is_right(tmp_path, caplog):
    trainer = make_trainer(tmp_path)
    assert not [record for record in caplog.records if record.name.startswith("srpo_trl.prepared")]
    trainer.train()
    assert len(logged(trainer, "loss")) == 1


# ------------------------------------------------------------------ compiled models


def _compiled(model):
    return torch.compile(model, backend="eager")


def _compiled_in_place(model):
    model.compile(backend=_refuse_to_compile)
    return model


def _refuse_to_compile(*_arguments):
    raise AssertionError("compiled for the probe")


@pytest.mark.parametrize("compiled", [_compiled, _compiled_in_place])
def test_a_compiled_model_is_probed_without_compiling(tmp_path, compiled):
    """The probe's hooks end a trace, and its shapes would each be compiled for."""
    trainer = make_trainer(tmp_path, model=compiled(tiny_model()))
    if compiled is _compiled:
        trainer.train()
        plain = make_trainer(tmp_path, model=tiny_model())
        plain.train()
        assert logged(trainer, "loss") == pytest.approx(logged(plain, "loss"), abs=1e-6)
