"""The same rollouts give the same update however they are cut into micro-batches, windows and rows."""

import pytest
import torch

from harness import (
    relative_error,
    update_of,
)

# per-device batch, accumulation steps, generation steps: 16 rollouts of one optimizer step each
SPLITS = [
    (16, 1, 1),
    (8, 2, 2),
    (4, 4, 4),
    (2, 8, 8),
    (1, 16, 16),
    (4, 4, 1),
    (4, 4, 2),
    (8, 2, 1),
    (2, 8, 2),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return update_of(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("split", SPLITS[1:], ids=str)
def test_update_does_not_depend_on_the_split(tmp_path, whole, split):
    assert relative_error(update_of(tmp_path, split), whole) < 1e-5


def test_update_does_not_depend_on_padding(tmp_path, whole):
    assert relative_error(update_of(tmp_path, (4, 4, 4), pad_to_multiple_of=24), whole) < 1e-5


@pytest.mark.parametrize("turn", [1, 3])
def test_update_does_not_depend_on_the_order_of_a_group(tmp_path, whole, turn):
    assert relative_error(update_of(tmp_path, (4, 4, 4), turn=turn), whole) < 1e-5


@pytest.mark.parametrize("method", ["sdpo", "sdpo_failed", "advantage_mix"])
def test_every_routing_is_invariant(tmp_path, method):
    options = {"method": method, "entropy_weight_beta": 1.0}
    whole = update_of(tmp_path, **options)
    assert relative_error(update_of(tmp_path, (2, 8, 8), **options), whole) < 1e-5


@pytest.mark.parametrize("options", [{"num_iterations": 2, "max_steps": 2}, {"max_steps": 4}], ids=str)
def test_several_optimizer_steps_are_invariant(tmp_path, options):
    whole = update_of(tmp_path, learning_rate=0.1, **options)
    assert relative_error(update_of(tmp_path, (4, 4, 4), learning_rate=0.1, **options), whole) < 1e-5


def test_a_rollout_batch_over_several_optimizer_steps_is_invariant(tmp_path):
    coarse = update_of(tmp_path, (8, 1, 2), max_steps=2, learning_rate=0.1)
    fine = update_of(tmp_path, (2, 4, 8), max_steps=2, learning_rate=0.1)
    assert relative_error(fine, coarse) < 1e-5


class DenseLogProbs:
    """TRL's fused LM head in plain float64 operations: TRL's own computes in float32 whatever it is given."""

    @staticmethod
    def apply(hidden, weight, bias, targets, temperature, *_):
        logps = ((hidden @ weight.T) / temperature).log_softmax(-1)
        entropy = -(logps.exp() * logps).sum(-1)
        return logps.gather(1, targets.unsqueeze(1)).squeeze(1), entropy, None, None, None


@pytest.mark.parametrize("split", [(4, 4, 4), (1, 16, 16), (4, 4, 1)], ids=str)
def test_update_is_invariant_to_float64_precision(tmp_path, monkeypatch, split):
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", DenseLogProbs)
    whole = update_of(tmp_path, dtype=torch.float64)
    assert relative_error(update_of(tmp_path, split, dtype=torch.float64), whole) < 1e-10
