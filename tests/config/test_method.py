"""The options `method`, `method_options` and `routing`: what they make, and what is refused before a model loads."""

import copy
import dataclasses
import functools
import pickle

import pytest
import torch

from method_names import needs
from srpo_trl import SRPOConfig
from srpo_trl.methods import METHODS, routers
from srpo_trl.methods.record import Method, Route, Scorer

BASE = {"output_dir": "unused", "use_cpu": True, "bf16": False}
CALLS = []


def mine(share: float, power: float = 2.0, entropy_weight_beta: float = 9.0) -> Method:
    """A method of the user's own."""
    CALLS.append((share, power, entropy_weight_beta))
    if share < 0:
        raise ValueError("share is below 0")
    return Method(route=routers.both, strength=lambda step: share)


def no_method(share=1.0):
    return share


def open_ended(share: float = 1.0, **others: float) -> Method:
    """A method that takes whatever it is given."""
    CALLS.append((share, others))
    return mine(share)


partly = functools.partial(mine, power=3.0)  # has no name of its own


def truths() -> Method:
    """A method whose router says which rollouts, and not by what."""
    return Method(route=lambda graded: graded.has_context_PG)


def own(**options):
    return SRPOConfig(**BASE, method=f"{__name__}:mine", **options)


def test_the_factory_is_called_once_with_its_options():
    CALLS.clear()
    config = own(method_options={"share": 0.25})
    assert config.method_record.strength(0) == 0.25
    assert config.method_record is config.method_record
    assert CALLS == [(0.25, 2.0, 1.0)]


def test_options_reach_the_factory_by_name():
    CALLS.clear()
    own(method_options='{"share": 0.25, "power": 3}', entropy_weight_beta=7.0)
    assert CALLS == [(0.25, 3, 7.0)]
    mix = SRPOConfig(**BASE, method="advantage_mix", advantage_mix_lambda=0.3)
    assert mix.method_record.strength(0) == 1.0 - 0.3


def test_a_factory_may_take_any_option():
    CALLS.clear()
    method = f"{__name__}:open_ended"
    SRPOConfig(**BASE, method=method)
    SRPOConfig(**BASE, method=method, method_options={"share": 0.5, "warmth": 2.0})
    assert [call for call in CALLS if len(call) == 2] == [(1.0, {}), (0.5, {"warmth": 2.0})]


def test_a_router_takes_the_place_of_the_methods():
    assert SRPOConfig(**BASE).method_record.route is routers.sample_routed
    assert SRPOConfig(**BASE, routing="sdpo").method_record.route is routers.distilled
    assert own(method_options={"share": 1.0}, routing="srpo").method_record.route is routers.sample_routed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "srop"}, "method='srop' is not a method. Did you mean 'srpo'"),
        ({"method": "no.such:f"}, "method='no.such:f' cannot be imported"),
        ({"method": f"{__name__}:nothing"}, "cannot be imported"),
        ({"method": f"{__name__}:BASE"}, "is a dict; a function that makes a method is required"),
        ({"method": f"{__name__}:no_method"}, "makes a float; an srpo_trl.methods.record.Method is required"),
        ({"method": f"{__name__}:mine"}, r"method_options lacks share, which mine\(\) needs"),
        (
            {"method": f"{__name__}:mine", "method_options": {"share": -1}},
            "cannot be made: share is below 0",
        ),
        (
            {"method": f"{__name__}:mine", "method_options": {"shar": 1}},
            r"method_options has 'shar', which mine\(\) does not take; it takes share, power",
        ),
        (
            {"method_options": {"beta": 1}},
            r"method_options has 'beta', which srpo\(\) does not take; it takes none",
        ),
        ({"method_options": {"entropy_weight_beta": 1}}, "an option of its own. Give entropy_weight_beta="),
        (
            {"method": f"{__name__}:open_ended", "method_options": {"advantage_mix_lambda": 1}},
            "an option of its own. Give advantage_mix_lambda=",
        ),
        ({"method": f"{__name__}:partly"}, r"method_options lacks share, which the factory\(\) needs"),
        ({"method": f"{__name__}:truths"}, r"a Route for each rollout, \(P, G\) int64 of 0 to 3"),
        ({"method_options": "{"}, "is not JSON"),
        ({"method_options": [1]}, "must be a mapping"),
        ({"routing": "policy"}, "routing='policy' is not one of 'srpo', 'sdpo'"),
        ({"routing": "grpo"}, "Give method='grpo'"),
        ({"routing": "advantage_mix"}, "Give method='advantage_mix'"),
        ({"method": "grpo", "routing": "srpo"}, "distills rollouts that no teacher scores"),
        (
            {"method": "advantage_mix", "routing": "sdpo"},
            "has advantages, and no rollout takes the policy loss",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_with_a_remedy(options, message):
    with pytest.raises(ValueError, match=f"(?s)1 problem.*{message}"):
        SRPOConfig(**BASE, **options)


def test_what_is_wrong_by_itself_is_named_at_once():
    with pytest.raises(ValueError, match=r"(?s)3 problem.*- method='x'.*- method_options='{'.*- routing='y'"):
        SRPOConfig(**BASE, method="x", method_options="{", routing="y")


def test_a_scorer_that_scores_for_nothing_is_refused(monkeypatch):
    entry = METHODS["grpo"]._replace(factory=lambda: Method(route=routers.policy))
    monkeypatch.setitem(METHODS, "grpo", entry)
    with pytest.raises(ValueError, match="scores rollouts with a teacher and distills none"):
        SRPOConfig(**BASE, method="grpo")


@pytest.mark.parametrize("method", METHODS)
def test_a_replaced_method_brings_its_defaults(method):
    options = {"eval_strategy": "steps", "eval_steps": 3, "distillation_topk": 7}
    start = SRPOConfig(**BASE, **options)
    replaced = dataclasses.replace(start, method=method, **needs(method))
    assert replaced == SRPOConfig(**BASE, **options, method=method, **needs(method))
    assert replaced.defaulted == start.defaulted
    assert dataclasses.replace(replaced, method="srpo", teacher_model=None) == start


def test_what_was_given_stays_where_a_method_is_replaced():
    given = {"learning_rate": 3e-4, "eval_temperature": 0.9, "entropy_weight_beta": 2.0}
    replaced = dataclasses.replace(SRPOConfig(**BASE, **given), method="grpo")
    assert {name: getattr(replaced, name) for name in given} == given
    changed = dataclasses.replace(SRPOConfig(**BASE), method="grpo", learning_rate=1e-3)
    assert changed.learning_rate == 1e-3


def test_a_configuration_can_be_pickled_and_copied():
    config = own(method_options={"share": 0.25})
    for other in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert other == config
        assert other.method_record.strength(0) == 0.25


def test_options_in_json_are_those_of_a_mapping():
    assert own(method_options='{"share": 0.25}') == own(method_options={"share": 0.25})
    one, other = (
        own(method_options={"share": 0.25, "power": 3}),
        own(method_options='{"power": 3, "share": 0.25}'),
    )
    assert one.method_name == other.method_name  # by which a checkpoint knows the method


def test_a_name_tells_methods_apart():
    configs = [
        SRPOConfig(**BASE),
        SRPOConfig(**BASE, routing="sdpo"),
        SRPOConfig(**BASE, method="sdpo"),
        own(method_options={"share": 0.25}),
        own(method_options={"share": 0.5}),
    ]
    names = [config.method_name for config in configs]
    assert names[:3] == ["srpo", "srpo, routing=sdpo", "sdpo"]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "distills",
    [
        lambda graded: ~graded.is_correct_PG.any(1, keepdim=True) & graded.has_context_PG,
        lambda graded: graded.is_correct_PG.any(1, keepdim=True) & ~graded.is_correct_PG,
        lambda graded: (graded.score_PG.mean(1, keepdim=True) == 0.25) & graded.has_context_PG,
        lambda graded: torch.full_like(graded.has_context_PG, graded.step >= 100),
    ],
    ids=["failed groups", "mixed groups", "hard groups", "later"],
)
def test_a_router_is_tried_on_each_kind_of_group_and_late(monkeypatch, distills):
    """One that distills only sometimes is no router that distills nothing."""
    method = Method(route=lambda graded: torch.where(distills(graded), Route.BOTH, Route.POLICY))
    monkeypatch.setitem(METHODS, "sdpo", METHODS["sdpo"]._replace(factory=lambda: method))
    SRPOConfig(**BASE, method="sdpo")


def by_row() -> Method:
    """Advantages from what a rollout is told of its group."""
    return Method(
        routers.policy,
        scorers=(),
        rows=lambda scored: {"share": scored.score_PG},
        advantages=lambda tokens: tokens.rows["share"] * tokens.advantage_B,
    )


def by_score() -> Method:
    """Advantages of whole rollouts, by their entropy under a scorer of another name."""
    return Method(
        routers.sample_routed,
        scorers=(Scorer("other"),),
        advantages=lambda tokens: tokens.scores["other"].entropy_BT.sum(1) * tokens.advantage_B,
    )


def anchored() -> Method:
    """A ratio to half of the old log-probability."""
    return Method(routers.policy, scorers=(), anchor=lambda tokens: tokens.student.logps_BT / 2)


def test_an_anchor_needs_a_ratio_for_each_token():
    method = f"{__name__}:anchored"
    SRPOConfig(**BASE, method=method, importance_sampling_level="token")
    with pytest.raises(
        ValueError, match=r"1 problem.*\n- importance_sampling_level='sequence' makes one ratio"
    ):
        SRPOConfig(**BASE, method=method, importance_sampling_level="sequence")
    SRPOConfig(**BASE, method="clip_cov", importance_sampling_level="sequence")


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("clip_cov", "advantages of its own for each token"),
        ("kl_cov", "a pull for each token"),
        (f"{__name__}:anchored", "an anchor for each token"),
        (f"{__name__}:by_row", "advantages of its own for each token"),
        (f"{__name__}:by_score", ""),
        ("advantage_mix", ""),
        ("negative_control", ""),
        ("srpo", ""),
        ("grpo", ""),
    ],
)
def test_what_decides_by_one_advantage_of_a_rollout_takes_no_others(method, own):
    SRPOConfig(**BASE, method=method, loss_type="dapo")
    for option in ({"loss_type": "vespo"}, {"off_policy_mask_threshold": 0.5}):
        ((name, value),) = option.items()
        if not own:
            SRPOConfig(**BASE, method=method, **option)
            continue
        with pytest.raises(
            ValueError, match=f"1 problem.*\n- {name}={value!r} decides for a whole rollout"
        ) as refusal:
            SRPOConfig(**BASE, method=method, **option)
        assert f"but method={method!r} has {own}. " in str(refusal.value)


def test_a_method_made_of_a_wrong_option_is_not_tried():
    with pytest.raises(ValueError, match=r"1 problem.*\n- advantage_mix_lambda=None"):
        SRPOConfig(**BASE, method="advantage_mix", advantage_mix_lambda=None, loss_type="vespo")
