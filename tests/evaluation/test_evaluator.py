"""The evaluator: batches of samples, what is kept of them, and their scores; no trainer."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch

from srpo_trl.evaluation.batches import PlannedSample
from srpo_trl.evaluation.evaluator import Evaluator
from srpo_trl.evaluation.samples import AnswerParser
from srpo_trl.evaluation.temporary import temporarily_set

END = 0
NAN = math.nan


def judge(rewards_BF):
    """The first function decides; half a point is right."""
    score_B = rewards_BF[:, 0]
    return score_B, score_B.isfinite(), score_B >= 0.5


def evaluator(**options):
    given = {
        "parser": AnswerParser(None, None),
        "judge": judge,
        "reward_names": ["first", "second"],
        "end_tokens": {END},
        "num_samples": 2,
        "temperature": 0.6,
        "top_p": 0.95,
        "tokens_per_batch": 100,
        "max_completion_length": 10,
        "seed": 3,
    }
    return Evaluator(**(given | options))


def stand_in(**attributes):
    """Everything of a trainer that sampling reads or sets."""
    given = {
        "temperature": 1.0,
        "top_p": 1.0,
        "num_generations_eval": 2,
        "vllm_importance_sampling_correction": True,
        "mask_truncated_completions": True,
        "use_vllm": False,
        "generation_config": SimpleNamespace(temperature=1.0, top_p=1.0, top_k=5),
    }
    return SimpleNamespace(**(given | attributes))


# ------------------------------------------------------------------ batches


ROWS = [{"prompt": "a"}, {"prompt": "bbb"}, {"prompt": "cc"}]


def drawn(loader):
    return [[(plan.question, plan.is_padding, row["prompt"]) for plan, row in batch] for batch in loader]


def test_batches_are_lists_of_planned_samples_and_rows():
    def num_tokens(row):
        return len(row["prompt"])

    one = [(1, False, "bbb"), (1, False, "bbb"), (2, False, "cc"), (2, False, "cc")]
    one += [(0, False, "a")] * 2
    for rows in (ROWS, iter(ROWS)):
        assert drawn(evaluator().batches(rows, num_tokens)) == [one]
    assert drawn(evaluator(tokens_per_batch=26).batches(ROWS, num_tokens)) == [one[:2], one[2:4], one[4:]]
    assert drawn(evaluator(tokens_per_batch=26).batches(ROWS, num_tokens, in_one=True)) == [one]
    shares = [drawn(evaluator(rank=rank, num_processes=4).batches(ROWS, num_tokens))[0] for rank in range(4)]
    assert [len(share) for share in shares] == [2] * 4
    together = [row for pair in zip(*shares, strict=True) for row in pair]
    assert together == [*one, (0, True, "a"), (0, True, "a")]


def test_nothing_to_evaluate_on_is_an_error():
    with pytest.raises(ValueError, match="give SRPOTrainer an eval_dataset"):
        evaluator().batches(None, len)
    with pytest.raises(ValueError, match="eval_dataset has no rows"):
        evaluator().batches(iter(()), len)


# ------------------------------------------------------------------ samples and scores


def test_samples_of_a_batch():
    """Tokens of tools count for nothing; padding is left out; infinity is no reward."""
    reads = AnswerParser(lambda text: text.strip("#") or None, lambda text: text[9])
    taken = evaluator(parser=reads)
    with taken.sampling(stand_in(), torch.device("cpu")):
        taken.take(
            [PlannedSample(1), PlannedSample(0), PlannedSample(0, is_padding=True)],
            ["#2", [{"role": "assistant", "content": "#"}], "#3"],
            [[7, 8, 7, 8, 7, 8, 9], [5, 6, END], [1, END]],
            torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1], [1] * 7]),
            torch.tensor([[0.5, math.inf], [NAN, 1.0], [1.0, 1.0]]),
        )
    taken.scores(lambda samples: samples, {})
    unscored, right = taken.samples
    assert (right.question, right.text, right.num_tokens, right.is_cut) == (1, "#2", 6, True)
    assert right.repeated_ngrams == pytest.approx(1 / 3)
    assert (right.score, right.is_correct, right.answer, right.follows_format) == (0.5, True, "2", None)
    assert right.rewards == {"first": 0.5, "second": None}
    assert (unscored.question, unscored.num_tokens, unscored.is_cut) == (0, 3, False)
    assert (unscored.score, unscored.is_correct, unscored.answer) == (None, None, None)
    assert unscored.rewards == {"first": None, "second": 1.0}


def take(taken, question, *rewards):
    num_rows = len(rewards)
    rewards_BF = torch.tensor([[reward, 0.0] for reward in rewards])
    ids = [[4, END]] * num_rows
    taken.take([PlannedSample(question)] * num_rows, ["#"] * num_rows, ids, None, rewards_BF)


def test_scores_are_of_all_processes_and_of_this_evaluation():
    taken, other = evaluator(), evaluator()
    with other.sampling(stand_in(), torch.device("cpu")):
        take(other, 0, 1.0, 1.0)
    for _ in range(2):  # the second begins anew
        with taken.sampling(stand_in(), torch.device("cpu")):
            take(taken, 1, 1.0, 0.0)
        metrics = {"reward": [1], "reward_std": [1], "rewards/first/std": [1], "kept": [1]}
        scores = taken.scores(lambda samples: samples + other._taken, metrics)
        assert [sample.question for sample in taken.samples] == [0, 0, 1, 1]
        assert (scores["avg@2"], scores["questions"]) == (0.75, 2)
        assert "maj@2" not in scores
        assert metrics == {"kept": [1]}


def test_mean_of_named_data_sets():
    metrics = {
        "eval_a_avg@2": 0.5,
        "eval_a_avg@2_stderr": 0.3,
        "eval_b_avg@2": 1.0,
        "eval_b_avg@2_stderr": 0.4,
    }
    means = evaluator().mean_of(metrics, ["a", "b", "without"], "eval")
    assert means == {"eval_avg@2": 0.75, "eval_avg@2_stderr": pytest.approx(0.25)}


# ------------------------------------------------------------------ sampling


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("use_vllm", [False, True])
def test_sampling_sets_the_trainer_and_gives_it_back(use_vllm, fails):
    vllm = SimpleNamespace(temperature=1.0, top_p=1.0, generation_kwargs={"temperature": 1.0, "stop": ["."]})
    trainer = stand_in(use_vllm=use_vllm, vllm_generation=vllm)
    before, engine = copy.deepcopy(trainer), vllm if use_vllm else trainer.generation_config
    random = torch.get_rng_state()

    def run():
        with evaluator().sampling(trainer, torch.device("cpu")):
            assert (trainer.temperature, trainer.top_p) == (engine.temperature, engine.top_p) == (0.6, 0.95)
            assert trainer.num_generations_eval == 1
            assert not trainer.vllm_importance_sampling_correction
            assert not trainer.mask_truncated_completions
            assert trainer._get_per_token_logps_and_entropies(1, batch_size=2) == (None, None, None)
            if use_vllm:
                assert vllm.generation_kwargs == {"temperature": 0.6, "top_p": 0.95, "stop": ["."]}
            drawn = torch.rand(3)
            if fails:
                raise KeyError
        return drawn

    if fails:
        with pytest.raises(KeyError):
            run()
    else:
        assert torch.equal(run(), run())
    assert trainer == before
    assert torch.equal(torch.get_rng_state(), random)


def test_what_a_class_has_is_hidden_for_a_time():
    class Owner:
        def method(self):
            return "own"

    owner = Owner()
    with temporarily_set(owner, method=lambda: "set"):
        assert owner.method() == "set"
    assert owner.method() == "own"
    assert vars(owner) == {}


def test_training_gets_the_random_numbers_of_mps_back(monkeypatch):
    """MPS has no part in `torch.random.fork_rng`."""
    state, given_back = torch.arange(3), []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.mps, "set_rng_state", given_back.append)
    with evaluator().sampling(stand_in(), torch.device("mps")):
        assert not given_back
    assert given_back == [state]
