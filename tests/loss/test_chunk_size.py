"""How much memory the operators take by what is free, where the caller sets no bound."""

import pytest
import torch

from srpo_trl.loss.ops import DistillationSpec, Head, chunk_size, distillation_loss
from srpo_trl.loss.ops.chunk_size import chunk_bound, default_chunk_bytes
from srpo_trl.loss.ops.plan import plan_distillation

MIB, GIB = 2**20, 2**30
VOCABULARY = 151_936
SUPPORT, FULL = DistillationSpec(topk=100), DistillationSpec(topk=None)


def tokens_at_once(free, spec, num_tokens=100_000, hidden_size=1024, vocab_size=VOCABULARY):
    """How many tokens a chunk really has."""
    bound = chunk_bound(free, 4 * vocab_size, vocab_size, spec)
    sides = (
        torch.empty(num_tokens, hidden_size, device="meta"),
        Head(torch.empty(vocab_size, hidden_size, device="meta")),
    )
    plan = plan_distillation(*sides, *sides, torch.float32, spec, bound)
    assert plan.temporary_bytes <= bound
    return plan.chunk_tokens


@pytest.mark.parametrize("spec", [SUPPORT, FULL], ids=["support", "full"])
def test_about_4096_tokens_where_memory_allows(spec):
    assert 3400 <= tokens_at_once(80 * GIB, spec) <= 4608
    assert chunk_bound(10**18, 4 * VOCABULARY, VOCABULARY, spec) == chunk_bound(
        80 * GIB, 4 * VOCABULARY, VOCABULARY, spec
    )


@pytest.mark.parametrize("spec", [SUPPORT, FULL], ids=["support", "full"])
@pytest.mark.parametrize("free", [2 * GIB, 5 * GIB, 8 * GIB, 16 * GIB])
def test_its_logits_are_at_most_a_quarter_of_what_is_free(free, spec):
    matrices = 1 if spec is SUPPORT else 2
    bound = chunk_bound(free, 4 * VOCABULARY, VOCABULARY, spec)
    logits = (bound - 32 * MIB) * 8 // 9
    assert logits <= free // 4
    assert 2 * logits > free // 4 or logits == 4096 * matrices * 4 * VOCABULARY
    num_tokens = logits / (matrices * 4 * VOCABULARY)
    assert num_tokens in (128, 256, 512, 1024, 2048, 4096)  # halved: a little less free changes no bit


@pytest.mark.parametrize("free", [0, -(2**30), 64 * MIB])
def test_few_tokens_where_nothing_is_left(free):
    assert 100 <= tokens_at_once(free, SUPPORT) <= 160


def test_a_support_as_large_as_the_vocabulary_is_the_full_one():
    full = chunk_bound(80 * GIB, 400, 100, FULL)
    assert chunk_bound(80 * GIB, 400, 100, DistillationSpec(topk=100)) == full
    assert chunk_bound(80 * GIB, 400, 100, DistillationSpec(topk=99)) < full


def test_what_is_free_on_the_device_decides(monkeypatch):
    hidden, head = torch.zeros(2, 4), Head(torch.zeros(30_000, 4))
    bounds = {}
    for free in (100 * GIB, 1 * GIB):
        monkeypatch.setattr(chunk_size, "_free_bytes", lambda device, free=free: free)
        bounds[free] = default_chunk_bytes(hidden, head, torch.float32, SUPPORT)
    assert bounds[100 * GIB] == chunk_bound(100 * GIB, 120_000, 30_000, SUPPORT)
    assert bounds[1 * GIB] < bounds[100 * GIB]
    trained = Head(torch.zeros(30_000, 4, requires_grad=True))
    monkeypatch.setattr(chunk_size, "_free_bytes", lambda device: GIB)
    assert default_chunk_bytes(hidden, trained, torch.float32, SUPPORT) == chunk_bound(
        GIB - 480_000, 120_000, 30_000, SUPPORT
    )
    monkeypatch.setattr(chunk_size, "_free_bytes", lambda device: 4 * 512 * 120_000)
    assert default_chunk_bytes(hidden, trained, torch.float32, SUPPORT) < default_chunk_bytes(
        hidden, head, torch.float32, SUPPORT
    )
    monkeypatch.undo()
    assert 0 < chunk_size._free_bytes(torch.device("cpu")) < 2**50


def test_a_bound_of_the_callers_is_taken_instead(monkeypatch):
    def never(*_):
        raise AssertionError("asked what is free")

    monkeypatch.setattr(chunk_size, "_free_bytes", never)
    hidden, head = torch.randn(6, 4), Head(torch.randn(50, 4))
    arguments = (hidden, head, hidden + 0.1, head, torch.zeros(6, dtype=torch.int64), torch.ones(6))
    options = {"spec": DistillationSpec(topk=5), "backend": "chunked"}
    assert distillation_loss(*arguments, **options, chunk_bytes=10_000).loss.isfinite()
    with pytest.raises(AssertionError, match="asked what is free"):
        distillation_loss(*arguments, **options)
