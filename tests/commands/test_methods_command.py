"""`srpo-trl methods`: the table and the pages are what the methods themselves say and do."""

import re
import subprocess
import sys

import pytest
import torch
import yaml

from method_names import needs as required
from srpo_trl import SRPOConfig
from srpo_trl.cli import main
from srpo_trl.commands.methods import needs, trained_on, with_defaults
from srpo_trl.methods import METHODS, routers
from srpo_trl.methods.record import Method, Route, Scorer
from srpo_trl.methods.scorers import EXTERNAL, STUDENT

WIDTH = 80


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def printed(capsys, *arguments):
    assert main(["methods", *arguments]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= WIDTH
    return out


def kinds(**options):
    """Tries a router of one's own: what a method that routes like this is trained on."""
    return trained_on(Method(**{"route": routers.policy, "scorers": (), **options}))


def test_the_table_has_every_method_once(capsys):
    named = re.findall(r"^ (\w+) +(?:\d{4}\.\d{5}|ours|id unknown)", printed(capsys), re.MULTILINE)
    assert named == list(METHODS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("srpo", "failed with context: distilled; others: policy"),
        ("grpo", "all: policy"),
        ("sdpo", "with context: distilled; others: skipped"),
        ("sdpo_correct", "correct with context: distilled; others: skipped"),
        ("advantage_mix", "with context: both; others: policy; own advantages"),
        ("hdpo", "context and whole group failed: both; others: policy"),
        ("sdpo_then_grpo", "with context: distilled; others: skipped. Later all: policy"),
        ("kl_cov", "all: policy; a pull"),
        ("rlad", "all: policy; own ratio"),
        ("vopd", "all: both; own advantages"),
        ("skill_sd", "with context: both; others: policy"),
    ],
)
def test_routes_in_words(name, words):
    assert trained_on(with_defaults(METHODS[name].factory)) == words


def test_routes_that_no_few_words_say():
    def mastered(graded):
        is_mastered_P1 = graded.is_correct_PG.sum(1, keepdim=True) >= 3
        routes_P1 = torch.where(is_mastered_P1, Route.DISTILLED, Route.POLICY)
        return routes_P1.expand_as(graded.is_correct_PG)

    def three(graded):
        return torch.where(graded.is_correct_PG, Route.SKIPPED, routers.sample_routed(graded))

    assert kinds(route=mastered) == "by the group: distilled or policy"
    assert (
        kinds(route=three, scorers=(Scorer(),))
        == "correct: skipped; failed with context: distilled; others: policy"
    )


@pytest.mark.parametrize(
    ("scorers", "words"),
    [
        ((EXTERNAL,), "teacher model"),
        ((Scorer(), STUDENT), "context"),
        ((EXTERNAL._replace(model="a"), EXTERNAL._replace(model="b", name="other")), "teacher models a, b"),
        ((Scorer(), EXTERNAL._replace(context="hint")), "teacher model; context; column hint"),
        ((Scorer(context="a"), Scorer("other", context="b")), "columns a, b"),
        ((STUDENT,), "nothing"),
    ],
)
def test_what_scorers_need(scorers, words):
    assert needs(Method(routers.distilled, scorers)) == words


def test_what_methods_need():
    needed = {name: needs(with_defaults(entry.factory)) for name, entry in METHODS.items()}
    assert {name for name in needed if needed[name] == "nothing"} >= {"grpo", "clip_cov", "kl_cov", "dmpo"}
    assert (needed["srpo"], needed["hdpo"]) == ("context", "feedback or a reference")
    assert needed["rlsd"] == "context"  # its teacher observes every rollout, those of mixed groups too
    assert (needed["kdrl"], needed["mad_opd"]) == ("teacher model", "teacher models first, second")
    assert (needed["selfci"], needed["skill_sd"]) == ("columns utility, privacy", "column skill")
    assert (needed["lightning"], needed["trace"]) == ("stored rollouts", "column label; spans of rollouts")


@pytest.mark.parametrize("name", METHODS)
def test_a_page_ends_with_lines_that_choose_the_method(name, capsys):
    page = printed(capsys, name)
    assert {"Source:", "Trained on:", "Needs:"} <= set(re.findall(r"^[A-Z][a-z ]+:", page, re.MULTILINE))
    options = yaml.safe_load(page[page.index("\nmethod: ") :])
    config = SRPOConfig("unused", use_cpu=True, bf16=False, **options)
    plain = SRPOConfig("unused", use_cpu=True, bf16=False, method=name, **required(name))
    assert config.method == name
    assert config.entropy_weight_beta == plain.entropy_weight_beta
    defaults = [list(v) if isinstance(v, tuple) else v for v in METHODS[name].factory.__defaults__ or ()]
    assert list(options.get("method_options", {}).values()) == defaults
    assert ("teacher_model" in options) is bool(config.teacher_models)


def test_a_method_of_ones_own_has_a_page(capsys):
    page = printed(capsys, "srpo_trl.methods.paced:paced")
    assert "PACED, arXiv:2603.11178" in page
    assert "method: srpo_trl.methods.paced:paced\n" in page


def test_an_unknown_name_is_refused_as_in_a_configuration(capsys):
    assert main(["methods", "srop"]) == 2
    message = capsys.readouterr().err
    with pytest.raises(ValueError) as refusal:
        SRPOConfig("unused", use_cpu=True, bf16=False, method="srop")
    assert message.removeprefix("srpo-trl methods: ").strip() in str(refusal.value)
    assert "Did you mean 'srpo'?" in message


def test_it_starts_without_trl_or_transformers():
    code = (
        "import sys; from srpo_trl.cli import main; main(['methods', 'paced']);"
        "sys.exit(any(m in sys.modules for m in ('trl', 'transformers', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
