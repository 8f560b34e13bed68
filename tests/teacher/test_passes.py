"""Hidden states that are aligned to completion tokens, with and without shared prompts, and the student's forward."""

import pytest
import torch

from harness import tiny_model
from srpo_trl.loss.head import lm_head_of
from srpo_trl.loss.ops import DistillationSpec, distillation_loss
from srpo_trl.loss.student import DistillationRequest, DistillingModel, TeacherSide, add_distillation_head
from srpo_trl.seams.trl import add_fused_lm_head
from srpo_trl.teacher.packing import TeacherRow, num_backbone_calls, plan_passes, row_layout
from srpo_trl.teacher.scoring import forward_rows

LAYOUTS = ["shared", "packed", "padded"]
ROWS = [
    TeacherRow((6, 7, 8, 9), (10, 11, 12)),
    TeacherRow((6, 7), (13,)),
    TeacherRow((6, 7, 8, 9), (14, 15, 16, 17, 18)),
    TeacherRow((6, 7, 8, 9), (19,)),
    TeacherRow((9, 8, 7, 6, 5), (10, 12)),
    TeacherRow((6, 7), (20, 21, 22)),
]


def one_by_one(model, row):
    """The obvious way: the whole sequence alone, and the logits that predict each completion token."""
    with torch.no_grad():
        logits = model(torch.tensor([row.prompt_ids + row.completion_ids])).logits[0]
    start = len(row.prompt_ids) - 1
    return logits[start : start + len(row.completion_ids)]


def score(model, rows, layout, max_tokens=1000):
    states = {}
    with torch.no_grad():
        for batch in plan_passes(rows, max_tokens=max_tokens, layout=layout):
            states |= dict(
                zip(batch, forward_rows(model.base_model, [rows[i] for i in batch], layout), strict=True)
            )
    return [states[i] for i in range(len(rows))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("max_tokens", [1, 12, 25, 1000])
def test_states_predict_the_completion_tokens(layout, max_tokens):
    model = tiny_model().eval()
    for row, state in zip(ROWS, score(model, ROWS, layout, max_tokens), strict=True):
        torch.testing.assert_close(model.lm_head(state), one_by_one(model, row), rtol=1e-4, atol=1e-4)


def count_tokens(model, rows, layout):
    num_tokens = 0

    def count(module, args, kwargs):
        nonlocal num_tokens
        num_tokens += kwargs["input_ids"].numel()

    handle = model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    score(model, rows, layout)
    handle.remove()
    return num_tokens


def test_each_layout_runs_the_tokens_it_should():
    model = tiny_model().eval()
    siblings = [TeacherRow(tuple(range(6, 26)), (7, 8, 9, 10))] * 7
    assert (
        count_tokens(model, siblings, "shared") == 20 + 7 * 3
    )  # the prompt once, completions without their end
    assert count_tokens(model, siblings, "padded") == 7 * 24
    assert count_tokens(model, ROWS, "packed") == sum(len(p) + len(c) for p, c in ROWS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_passes_keep_to_the_budget_and_cover_every_row(layout):
    passes = list(plan_passes(ROWS, max_tokens=18, layout=layout))
    assert sorted(i for batch in passes for i in batch) == list(range(len(ROWS)))
    for batch in passes:
        rows = [ROWS[i] for i in batch]
        lengths = [len(prompt) + len(completion) for prompt, completion in rows]
        num_tokens = {"packed": sum(lengths), "padded": max(lengths) * len(lengths)}
        prompts = {prompt for prompt, _ in rows}
        once = len(prompts) * max(map(len, prompts)) + len(rows) * max(
            len(completion) for _, completion in rows
        )
        num_tokens["shared"] = once if len(prompts) < len(rows) else num_tokens["padded"]
        assert num_tokens[layout] <= 18
    assert list(plan_passes([], max_tokens=18, layout=layout)) == []


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", [ROWS, ROWS[:2], [ROWS[1]] * 2, [ROWS[0]]])
def test_number_of_backbone_calls_is_known_before_the_pass(layout, rows):
    """Processes whose parameters are sharded agree on it."""
    model, calls = tiny_model().eval(), []
    model.base_model.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        forward_rows(model.base_model, rows, layout)
    assert len(calls) == num_backbone_calls(rows, layout)


def test_siblings_of_one_prompt_stay_in_one_pass_where_its_tokens_fit():
    siblings = [TeacherRow(tuple(range(6, 26)), (7, 8, 9, 10))] * 7
    assert [len(batch) for batch in plan_passes(siblings, max_tokens=20 + 7 * 4, layout="shared")] == [7]
    assert [len(batch) for batch in plan_passes(siblings, max_tokens=48, layout="padded")] == [2, 2, 2, 1]


def test_layout_follows_the_models_attention():
    model = tiny_model()
    assert row_layout(model) == "shared"
    windowed = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}
    model = tiny_model(**windowed, use_sliding_window=True)
    assert row_layout(model) == "padded"
    model.config._attn_implementation_internal = "flash_attention_2"
    assert row_layout(model) == "packed"
    model.config.layer_types = ["linear_attention", "full_attention"]  # its state would run from row to row
    assert row_layout(model) == "padded"


def test_lm_head_scales_as_the_architecture_does():
    model = tiny_model()
    assert lm_head_of(model).logit_scale == 1.0
    model.config.logits_scaling = 8.0  # Granite divides
    model.config.final_logit_softcapping = 30.0  # Gemma
    head = lm_head_of(model)
    assert (head.logit_scale, head.softcap) == (1 / 8, 30.0)
    assert head.weight_VD is model.lm_head.weight


def routed_forward(model, scored_BT, **fields):
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    add_distillation_head(model)
    teacher = tiny_model(seed=1)
    ids = torch.tensor([[0, 6, 7, 8, 10, 11, 12], [6, 7, 8, 9, 13, 14, 0]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]])
    num_distilled = int(scored_BT.sum())
    generator = torch.Generator().manual_seed(0)
    request = DistillationRequest(
        scored_BT=scored_BT,
        teachers=[
            TeacherSide(
                torch.randn(num_distilled, 32, generator=generator),
                lm_head_of(teacher),
                torch.rand(num_distilled, generator=generator),
            )
        ],
        old_logps_N=None,
        spec=DistillationSpec(topk=5),
    )
    policy_BT = torch.tensor([[True] * 3, [False] * 3])
    distilling = DistillingModel(model, request, policy_BT)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-3] = -100
    outputs = distilling(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    return outputs, distilling.result, request, ids, mask


def test_one_backbone_pass_serves_both_branches():
    model = tiny_model()
    passes = []
    model.base_model.register_forward_hook(lambda *_: passes.append(1))
    scored_BT = torch.tensor([[False, False, False], [True, True, False]])
    outputs, result, request, ids, mask = routed_forward(model, scored_BT)
    assert len(passes) == 1

    hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[:, -4:-1]
    expected = distillation_loss(
        hidden[scored_BT],
        lm_head_of(model),
        request.teachers[0].hidden_ND,
        request.teachers[0].head,
        ids[:, -3:][scored_BT],
        request.teachers[0].coefficient_N,
        spec=request.spec,
        backend="reference",
    )
    torch.testing.assert_close(result.loss, expected.loss)
    full = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    expected_logps = full[:, :-1].gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)[:, -3:]
    torch.testing.assert_close(outputs.log_probs[0, -3:], expected_logps[0])
    torch.testing.assert_close(result.student_logps_N, expected_logps[scored_BT].detach())
    assert not outputs.log_probs[1].any()  # not a policy row: not scored by TRL's head


def test_a_micro_batch_without_distilled_tokens_has_a_zero_gradient():
    model = tiny_model()
    _, result, _, _, _ = routed_forward(model, torch.zeros(2, 3, dtype=torch.bool))
    assert result.loss.item() == 0.0
    result.loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_forward_without_a_request_is_trls():
    model, plain = tiny_model(), tiny_model()
    add_fused_lm_head(model)
    add_distillation_head(model)
    ids = torch.tensor([[6, 7, 8]])
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=0, atol=0)
