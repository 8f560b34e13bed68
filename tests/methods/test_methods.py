"""Each method of `METHODS` against the oracle: routes, weights and advantages, from values alone."""

import inspect
import itertools
import re
from pathlib import Path

import pytest
import torch

import oracle
from method_names import PAPER
from srpo_trl import methods
from srpo_trl.methods import METHODS, VARIANTS, routers, testing
from srpo_trl.methods.record import (
    ROUTE_NAMES,
    Graded,
    Method,
    Route,
    TokenScores,
    is_distilled,
    is_policy,
)
from srpo_trl.methods.routers import ROUTERS, needs_context, scored_routes

OPTIONS = {"entropy_weight_beta": 1.5, "advantage_mix_lambda": 0.3}
KINDS = list(itertools.product([True, False], repeat=3))  # correct, has context, scored


def make(name):
    factory = METHODS[name].factory
    parameters = inspect.signature(factory).parameters
    return factory(**{option: OPTIONS[option] for option in parameters if option in OPTIONS})


def graded(kinds=KINDS):
    """A group of the kinds of rollout."""
    correct, context, scored = torch.tensor(kinds).T.unsqueeze(1)
    return Graded(correct.float(), scored, correct & scored, context, step=0)


def tokens():
    entropy_BT = torch.tensor([[0.5, 2.0], [1.0, 0.0]])
    mask_BT = torch.tensor([[True, True], [True, False]])
    advantage_B = torch.tensor([0.25, -0.75])
    scores = {"teacher": TokenScores(entropy_BT, torch.empty(0), torch.empty(0))}
    return testing.tokens()._replace(mask_BT=mask_BT, advantage_B=advantage_B, scores=scores)


@pytest.mark.parametrize("name", PAPER)
def test_routes_equal_the_oracles_table(name):
    routes = scored_routes(make(name).route, graded())
    for (correct, context, scored), route in zip(KINDS, routes.flatten().tolist(), strict=True):
        policy, distilled = oracle.route_weights(name, correct and scored, context, scored)
        assert (bool(route & Route.POLICY), bool(route & Route.DISTILLED)) == (policy > 0, distilled > 0)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_by_name_is_the_methods(name):
    assert torch.equal(scored_routes(ROUTERS[name], graded()), scored_routes(make(name).route, graded()))


@pytest.mark.parametrize("name", PAPER)
def test_context_is_needed_where_it_would_be_used(name):
    needed = needs_context(make(name), graded())
    expected = [
        oracle.route_weights(name, correct and scored, True, scored)[1] > 0 for correct, _, scored in KINDS
    ]
    assert needed.flatten().tolist() == expected


def test_routes_are_sets_of_branches():
    routes = torch.tensor([Route.SKIPPED, Route.POLICY, Route.DISTILLED, Route.BOTH])
    assert routes.dtype == torch.int64
    assert routes.tolist() == [0, 1, 2, 3]
    assert is_policy(routes).tolist() == [False, True, False, True]
    assert is_distilled(routes).tolist() == [False, False, True, True]
    assert [ROUTE_NAMES[route] for route in routes.tolist()] == ["skipped", "policy", "distilled", "both"]


@pytest.mark.parametrize("name", [name for name in PAPER if name != methods.GRPO])
def test_weights_are_the_entropy_weights(name):
    (raw_BT,) = make(name).raw_weights(tokens())
    assert raw_BT.dtype == torch.float64
    torch.testing.assert_close(
        raw_BT, (-1.5 * torch.tensor([[0.5, 2.0], [1.0, 0.0]], dtype=torch.float64)).exp()
    )


def test_weights_that_a_method_leaves_out_are_1():
    (raw_BT,) = Method(routers.distilled).raw_weights(tokens())
    assert torch.equal(raw_BT, torch.ones(2, 2, dtype=torch.float64))
    assert make(methods.GRPO).raw_weights(tokens()) == ()


def test_the_mix_shares_the_loss_and_the_others_have_all_of_it():
    for name in PAPER:
        share = 0.3 if name == "advantage_mix" else 1.0
        method = make(name)
        advantages = method.advantages(tokens()) if method.advantages else tokens().advantage_B
        assert torch.equal(advantages, share * tokens().advantage_B)
        assert method.strength(7) == (1.0 - share if name == "advantage_mix" else 1.0)


def test_grpo_alone_is_plain():
    assert [name for name in METHODS if make(name).is_plain] == [methods.GRPO]


def test_methods_are_immutable():
    with pytest.raises(AttributeError):
        make("srpo").route = None


def test_variants_are_the_papers_seven():
    assert len(VARIANTS) == 7
    assert set(PAPER) == {"grpo", "sdpo", "srpo", "advantage_mix", "sdpo_failed", "sdpo_correct"}
    weighted = {name for name, options in VARIANTS.items() if "entropy_weight_beta" not in options}
    assert weighted == {"srpo", "grpo"}  # which has no token weights to leave out


def test_a_method_has_a_title_help_and_values_of_all_deferred_options():
    assert len({entry.title for entry in METHODS.values()}) == len(METHODS)
    for entry in METHODS.values():
        assert entry.help.endswith(".")
        assert set(entry.defaults) <= set(methods.WEIGHTED)


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_file_is_short_and_imports_nothing_but_the_seam(name):
    text = (Path(methods.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    assert text.count("\n") <= 30
    imported = re.findall(r"^(?:from|import) (\S+)", text, re.MULTILINE)
    assert all(module.startswith(("srpo_trl.methods", "torch")) for module in imported)
