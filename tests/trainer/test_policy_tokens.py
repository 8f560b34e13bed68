"""Only the tokens that a policy loss trains go through TRL's fused head, and the numbers are those of scoring all."""

import copy

import pytest
import torch
import trl.trainer.utils
from torch.utils._python_dispatch import TorchDispatchMode
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from harness import make_trainer, relative_error, tiny_model, update
from srpo_trl.loss.head import lm_head_of
from srpo_trl.loss.ops import DistillationSpec
from srpo_trl.loss.student import DistillationRequest, DistillingModel, TeacherSide, add_distillation_head
from srpo_trl.rollout.batch import routed_batch, scored_tokens
from srpo_trl.seams import trl as trl_seams
from srpo_trl.seams.own_forward import use_own_weights

SCORING = trl.trainer.utils._ChunkedLogProbFunction
IDS = torch.tensor([[0, 6, 7, 8, 10, 11, 12], [6, 7, 8, 9, 13, 14, 0]])
MASK = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]])
NONE_BT = torch.zeros(2, 3, dtype=torch.bool)
FIRST_BT = torch.tensor([[True, True, True], [False, False, False]])
SECOND_BT = torch.tensor([[False, False, False], [True, True, False]])


@pytest.fixture
def scored_rows(monkeypatch):
    """The number of rows of each call of TRL's scoring function."""
    rows = []

    class Counting:
        @staticmethod
        def apply(hidden, *rest):
            rows.append(len(hidden))
            return SCORING.apply(hidden, *rest)

    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", Counting)
    return rows


def spy_on_batches(trainer):
    """The micro-batches that the trainer's loss is given."""
    batches, original = [], trainer._compute_loss

    def compute_loss(model, inputs):
        batches.append(inputs)
        return original(model, inputs)

    trainer._compute_loss = compute_loss
    return batches


@pytest.mark.parametrize(("method", "size"), [("srpo", 4), ("srpo", 1), ("sdpo_failed", 2), ("sdpo", 2)])
def test_the_head_scores_exactly_the_policys_tokens(tmp_path, scored_rows, method, size):
    trainer = make_trainer(
        tmp_path, method=method, per_device_train_batch_size=size, gradient_accumulation_steps=16 // size
    )
    batches = spy_on_batches(trainer)
    scored_rows.clear()
    trainer.train()
    policy = [int((scored_tokens(b) & routed_batch(b).is_policy_B.unsqueeze(1)).sum()) for b in batches]
    assert scored_rows == policy
    assert len(policy) == 16 // size
    assert (max(policy) > 0) == (method == "srpo")
    if size == 4:  # a micro-batch with rows of both kinds
        assert any(0 < int(routed_batch(b).is_policy_B.sum()) < size for b in batches)
    else:
        assert min(policy) == 0


def test_plain_grpo_keeps_trls_way(tmp_path, scored_rows):
    trainer = make_trainer(tmp_path, method="grpo")
    batches = spy_on_batches(trainer)
    trainer.train()
    assert scored_rows == [
        b["completion_ids"].shape[0] * (b["prompt_ids"].shape[1] + b["completion_ids"].shape[1] - 1)
        for b in batches
    ]


OPTIONS = [
    {},
    {"num_iterations": 2, "max_steps": 2},
    {"importance_sampling_level": "sequence"},
    {"loss_type": "vespo"},
    {"top_entropy_quantile": 0.5},
    {"entropy_coef": 0.1, "cast_lm_head_to_fp32": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_update_is_that_of_scoring_every_position(tmp_path, monkeypatch, scored_rows, options):
    def model():
        return tiny_model(tie_word_embeddings="cast_lm_head_to_fp32" not in options)

    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, **options}
    few = update(make_trainer(tmp_path / "few", model=model(), **options))
    num_few = sum(scored_rows)
    monkeypatch.setattr(trl_seams, "_EAGER_DEVICES", ())
    scored_rows.clear()
    every = update(make_trainer(tmp_path / "every", model=model(), **options))
    assert sum(scored_rows) > 1.5 * num_few
    assert few.any()
    assert relative_error(few, every) < 1e-5


def test_what_is_known_of_a_tools_tokens_changes_nothing(tmp_path, monkeypatch, scored_rows):
    """A tool's text can be as unlikely as it likes: TRL's head does not score it, and no ratio of it overflows."""
    generate = GRPOTrainer._generate_and_score_completions

    def updated(folder, logp):
        def with_tools(self, inputs):
            output = generate(self, inputs)
            output["tool_mask"] = output["completion_mask"].clone()
            output["tool_mask"][:, 1] = 0
            output["old_per_token_logps"][:, 1] = logp
            return output

        monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", with_tools)
        trainer = make_trainer(folder, num_iterations=2, max_steps=2)
        batches = spy_on_batches(trainer)
        scored_rows.clear()
        change = update(trainer)
        own = [int((scored_tokens(b) & routed_batch(b).is_policy_B.unsqueeze(1)).sum()) for b in batches]
        assert scored_rows[-2:] == own
        return change

    likely, unlikely = updated(tmp_path / "likely", -1.0), updated(tmp_path / "unlikely", -500.0)
    assert likely.any()
    assert torch.equal(likely, unlikely)


# ------------------------------------------------------------------ micro-batches that lack one branch


class Products(TorchDispatchMode):
    """Counts products with a matrix of the head's size, and the zeros that are made of it."""

    def __init__(self, head):
        super().__init__()
        self.head, self.products, self.zeros = tuple(head.shape), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        shapes = [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
        if func in (torch.ops.aten.mm.default, torch.ops.aten.mm.out, torch.ops.aten.addmm_.default):
            self.products += any(self.head[0] in shape for shape in shapes)
        if func in (torch.ops.aten.zeros.default, torch.ops.aten.zeros_like.default):
            self.zeros += tuple(result.shape) == self.head
        return result


def with_heads(model):
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    use_own_weights(model, scores_labelled_only=True)
    add_distillation_head(model)
    return model


def policy_alone(model, policy_BT):
    """The policy's log-probabilities, from a forward without a distillation loss."""
    labels = IDS.masked_fill(~torch.nn.functional.pad(policy_BT, (4, 0)), -100)
    return model(input_ids=IDS, attention_mask=MASK, labels=labels, fused_lm_head=True).log_probs


def distilling_model(model, policy_BT, distilled_BT):
    with_heads(model)
    num_distilled = int(distilled_BT.sum())
    request = DistillationRequest(
        scored_BT=distilled_BT,
        teachers=[
            TeacherSide(
                torch.randn(num_distilled, 32, generator=torch.Generator().manual_seed(0)),
                lm_head_of(tiny_model(seed=1)),
                torch.ones(num_distilled),
            )
        ],
        old_logps_N=None,
        spec=DistillationSpec(topk=5),
    )
    return DistillingModel(model, request, policy_BT)


def run(model, policy_BT, distilled_BT):
    """The policy's log-probabilities and the distillation's loss."""
    distilling = distilling_model(model, policy_BT, distilled_BT)
    labels = IDS.masked_fill(MASK == 0, -100)
    labels[:, :-3] = -100
    outputs = distilling(input_ids=IDS, attention_mask=MASK, labels=labels, fused_lm_head=True)
    return outputs.log_probs, distilling.result.loss


def test_without_policy_tokens_its_head_makes_no_product_and_no_zeros():
    model = with_heads(tiny_model(tie_word_embeddings=False))
    with Products(model.lm_head.weight) as made:
        log_probs = policy_alone(model, NONE_BT)
        log_probs.sum().backward()
    assert (made.products, made.zeros) == (0, 0)
    assert not log_probs.any()
    backbone = [p for name, p in model.named_parameters() if name != "lm_head.weight"]
    assert all(p.grad is not None and not p.grad.any() for p in backbone)  # for engines that wait for each
    assert model.lm_head.weight.grad is None


def test_the_products_are_counted():
    model = with_heads(tiny_model(tie_word_embeddings=False))
    with Products(model.lm_head.weight) as made:
        policy_alone(model, FIRST_BT).sum().backward()
    assert made.products == 4  # of logits, of logits again, and two gradients
    assert made.zeros == 1


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("policy_BT", "distilled_BT"),
    [(NONE_BT, NONE_BT), (FIRST_BT, NONE_BT), (NONE_BT, SECOND_BT), (FIRST_BT, SECOND_BT)],
    ids=["neither", "policy alone", "distilled alone", "both"],
)
def test_every_parameter_has_its_gradient(policy_BT, distilled_BT, is_tied):
    """Of each branch's own; zeros, not none, where there is neither: engines average what all ranks have."""
    model = tiny_model(tie_word_embeddings=is_tied)
    parts = [copy.deepcopy(model), copy.deepcopy(model)]
    log_probs, loss = run(model, policy_BT, distilled_BT)
    (log_probs.sum() + loss).backward()
    run(parts[0], policy_BT, NONE_BT)[0].sum().backward()
    run(parts[1], NONE_BT, distilled_BT)[1].backward()
    policy, distilled = [dict(part.named_parameters()) for part in parts]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        alone = [p.grad for p in (policy[name], distilled[name]) if p.grad is not None]
        torch.testing.assert_close(parameter.grad, sum(alone))
    has_tokens = bool(policy_BT.any() or distilled_BT.any())
    assert bool(model.get_output_embeddings().weight.grad.any()) == has_tokens


def test_without_distilled_tokens_the_head_has_the_policys_gradient_alone():
    model = tiny_model(tie_word_embeddings=False)
    _, loss = run(model, FIRST_BT, NONE_BT)
    loss.backward()
    assert loss == 0
    assert model.lm_head.weight.grad is None


def test_a_frozen_head_takes_no_gradient():
    model = tiny_model(tie_word_embeddings=False)
    model.lm_head.weight.requires_grad_(False)
    for policy_BT in (NONE_BT, FIRST_BT):
        log_probs, loss = run(copy.deepcopy(model), policy_BT, SECOND_BT)
        (log_probs.sum() + loss).backward()
    assert model.lm_head.weight.grad is None


def test_a_copy_scores_with_its_own_head():
    model = tiny_model(tie_word_embeddings=False)
    before, _ = run(model, FIRST_BT, NONE_BT)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    again = policy_alone(twin, FIRST_BT)
    torch.testing.assert_close(again, before, rtol=0, atol=0)


def test_other_devices_keep_trls_way():
    assert all(trl_seams._is_eager(torch.device(name)) for name in ("cpu", "cuda", "cuda:1", "mps", "xpu"))
    assert not any(trl_seams._is_eager(torch.device(name)) for name in ("xla", "meta", "privateuseone"))
