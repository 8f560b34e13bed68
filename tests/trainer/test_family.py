"""The family's methods in the trainer: pull and token-wise advantages by identities, splits, whole runs."""

import pytest
import torch

from harness import (
    chat_dataset,
    logged,
    make_trainer,
    relative_error,
    replay,
    tiny_model,
    tiny_tokenizer,
    update_of,
)
from method_names import FAMILY, columns, needs
from srpo_trl import trainer as training
from srpo_trl.methods import routers
from srpo_trl.methods.record import Method

MINE = "test_family:"
SHOWN = {  # groups that failed as a whole have no sibling to show
    "teacher_context": ["reference"],
    "reference_column": "answer",
    "train_dataset": chat_dataset(answer=["1", "22", "333", "4444"]),
}


def all_scored(completions, **kwargs):
    """Plain GRPO counts the tokens of rollouts without a score, too."""
    return [float("#" in completion[-1]["content"]) for completion in completions]


def grpo_in_tokens() -> Method:
    """GRPO, its advantages given token by token."""
    return Method(routers.policy, (), advantages=lambda t: t.advantage_B.unsqueeze(1).expand(t.mask_BT.shape))


def pulled_by_the_advantage() -> Method:
    """No policy gradient, and a pull k = A: GRPO's first update of a rollout batch."""
    return Method(
        routers.policy,
        (),
        advantages=lambda t: torch.zeros_like(t.advantage_B),
        pull=lambda t: t.advantage_B.unsqueeze(1) * t.mask_BT,
    )


def pulled_away_by_the_advantage() -> Method:
    """The same with the sign turned."""
    method = pulled_by_the_advantage()
    return method._replace(pull=lambda t: -method.pull(t))


def distilled_and_pulled() -> Method:
    """All branches at once: SRPO's routes, and the likelihood of correct rollouts."""
    return Method(routers.sample_routed, pull=lambda t: 0.3 * t.is_correct_B.unsqueeze(1) * t.mask_BT)


def weighed(weight: float) -> Method:
    """Distillation alone, all tokens of one weight, as it is."""
    return Method(routers.distilled, weights=lambda t: weight * t.mask_BT.double(), mean_one=False)


def wrong_pull() -> Method:
    """A pull for each rollout, where one for each token is asked for."""
    return Method(routers.policy, (), pull=lambda t: t.advantage_B)


def wrong_row() -> Method:
    """A row for each prompt, where one for each rollout is asked for."""
    return Method(
        routers.policy, (), rows=lambda s: {"mine": s.score_PG[:, 0]}, pull=lambda t: 0.0 * t.mask_BT
    )


COLUMNS = {  # whole prompts of scorers; of one row none
    "skill": ["1+1, add", "2+2, add", None, "4+4, add"],
    "label": ["1+1, carry"] * 4,
    "utility": ["1+1, helpfully"] * 4,
    "privacy": ["1+1, discreetly"] * 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher that is a model of its own."""
    path = tmp_path_factory.mktemp("teacher")
    tiny_model(seed=1).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def options_of(name, folder):
    """What the method needs, and columns for its scorers."""
    made = {column: COLUMNS[column] for column in columns(name)}
    options = {"method": name, **needs(name, folder), "train_dataset": chat_dataset(**made)}
    options |= {"reward_funcs": marking} if name == "trace" else {}
    return options | ({"rollout_func": scored_before} if name in ("lightning", "dph_rl") else {})


def marking(completions, log_extra, **kwargs):
    """Marks the first two tokens of every rollout."""
    log_extra("spans", [[(0, 2)]] * len(completions))
    return all_scored(completions)


def scored_before(prompts, trainer):
    """Stored rollouts, with log-probabilities of a teacher."""
    output = replay(tiny_tokenizer())(prompts, trainer)
    return output | {"teacher_logps": [[-1.0] * len(ids) for ids in output["completion_ids"]]}


@pytest.fixture(scope="module")
def grpo(tmp_path_factory):
    return update_of(
        tmp_path_factory.mktemp("grpo"), method="grpo", scale_rewards="none", reward_funcs=all_scored
    )


def test_advantages_by_token_are_those_by_rollout(tmp_path, grpo):
    assert (
        relative_error(update_of(tmp_path, method=MINE + "grpo_in_tokens", reward_funcs=all_scored), grpo)
        < 1e-6
    )


def test_a_pull_by_the_advantage_is_grpos_first_update(tmp_path, grpo):
    pulled = update_of(tmp_path / "pull", method=MINE + "pulled_by_the_advantage", reward_funcs=all_scored)
    assert relative_error(pulled, grpo) < 1e-5
    away = update_of(tmp_path / "away", method=MINE + "pulled_away_by_the_advantage", reward_funcs=all_scored)
    assert relative_error(away, -grpo) < 1e-5


@pytest.mark.parametrize("split", [(8, 2, 2), (4, 4, 4), (2, 8, 8), (1, 16, 16), (4, 4, 1)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"method": "paced"},
        {"method": "sc_sdpo"},
        {"method": "hdpo", **SHOWN},
        {"method": MINE + "distilled_and_pulled"},
        {"method": "negative_control"},
        *({"method": name} for name in ("kdrl", "rlad", "tip", "selfci", "vopd", "scope", "dgpo")),
    ],
    ids=lambda options: options["method"],
)
def test_no_update_depends_on_the_split(tmp_path, options, split, folder):
    if ":" not in options["method"]:
        options = options_of(options["method"], folder) | options
    whole = update_of(tmp_path / "whole", **options)
    assert whole.norm() > 0
    assert relative_error(update_of(tmp_path / "split", split, **options), whole) < 1e-5


def test_paceds_weights_are_used_as_they_are(tmp_path):
    """Weights of 1/2 everywhere halve the distillation; divided by their mean they would not."""
    whole = update_of(tmp_path / "whole", method=MINE + "weighed", method_options={"weight": 1.0})
    half = update_of(tmp_path / "half", method=MINE + "weighed", method_options={"weight": 0.5})
    assert relative_error(2 * half, whole) < 1e-5


@pytest.mark.parametrize("name", FAMILY)
def test_each_method_trains_three_steps(tmp_path, name, folder):
    options = options_of(name, folder)
    trainer = make_trainer(
        tmp_path, **options, max_steps=3, num_iterations=2, logging_steps=1, learning_rate=0.1
    )
    trainer.train()
    assert trainer.state.global_step == 3
    has_pull = trainer.args.method_record.pull is not None
    assert bool(logged(trainer, "srpo/loss/pull")) is has_pull
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


COMBINED = ("paced", "sc_sdpo", "distil", "many_faces", "decoupling", "tip", "va_opd", "opsd_zhao")


@pytest.mark.parametrize("name", COMBINED)
def test_a_methods_weights_and_divergence_go_with_srpos_routes(tmp_path, name, folder):
    """Both branches train: wrong rollouts with a correct sibling by the method, the others by GRPO."""
    trainer = make_trainer(
        tmp_path, **options_of(name, folder), routing="srpo", max_steps=3, learning_rate=0.1
    )
    trainer.train()
    assert trainer.state.global_step == 3
    policy, distilled = (logged(trainer, f"srpo/route/{route}_frac")[0] for route in ("policy", "distilled"))
    assert policy + distilled == 15 / 16  # one has no score
    assert policy > 0 < distilled
    assert logged(trainer, "srpo/loss/distilled")[0] > 0


def test_the_family_costs_srpo_nothing(tmp_path, monkeypatch):
    """Keys of the batch, passes and collectives of two rollout batches of two steps each, four micro-batches a step."""
    calls = dict.fromkeys(("gather", "gather_object", "sum", "pass"), 0)

    def counted(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    for name in ("gather", "gather_object"):
        monkeypatch.setattr(training, name, counted(name, getattr(training, name)))
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "logging_steps": 4}
    trainer = make_trainer(tmp_path, method="srpo", max_steps=4, num_iterations=2, **options)
    trainer.sum_over_processes = counted("sum", trainer.sum_over_processes)
    trainer.student.base_model.register_forward_hook(counted("pass", lambda *_: None))
    keys, score = [], trainer._score

    def keep(output, rollouts):
        score(output, rollouts)
        keys.append({key for key in output if key.startswith("srpo")})

    trainer._score = keep
    trainer.train()
    of_teacher = {f"srpo_teacher_{what}" for what in ("entropy", "hidden", "log_sum_exp")}
    assert keys == [{"srpo_route", "srpo_rollout", "srpo_row/is_correct", *of_teacher}] * 2
    # A rollout batch: ranks and context of demonstrations, and their texts; a step: its totals; a log: its sums.
    assert (calls["gather"], calls["gather_object"], calls["sum"]) == (2 * 2, 2, 4 + 2)
    # A rollout batch: the teacher's prompts and rollouts, TRL's log pi_old, two steps of the loss.
    assert calls["pass"] == 2 * (2 + 4 + 2 * 4)


def test_the_pull_is_logged_and_measured_by_itself(tmp_path):
    trainer = make_trainer(
        tmp_path, method=MINE + "distilled_and_pulled", max_steps=1, gradient_share_steps=1, logging_steps=1
    )
    trainer.train()
    assert logged(trainer, "srpo/gradient/pull_norm")[0] > 0
    policy, distilled, pull = (
        logged(trainer, f"srpo/loss/{branch}")[0] for branch in ("policy", "distilled", "pull")
    )
    assert pull > 0
    assert logged(trainer, "loss")[0] == pytest.approx(policy + distilled + pull, rel=1e-4, abs=1e-6)


def test_a_method_without_a_scorer_holds_no_teacher(tmp_path):
    trainer = make_trainer(tmp_path, method="kl_cov", max_steps=1)
    trainer.train()
    assert trainer.teacher.weights.kind == "live"


@pytest.mark.parametrize(
    ("method", "problem"),
    [("wrong_pull", r"pull is \(\d+,\); \(\d+, \d+\) is required"), ("wrong_row", "row 'mine' is")],
)
def test_a_method_of_ones_own_is_told_what_is_wrong(tmp_path, method, problem):
    trainer = make_trainer(tmp_path, method=MINE + method, max_steps=1)
    with pytest.raises(ValueError, match=problem):
        trainer.train()
