"""`--help`: our options and the most used ones in groups, each once; `--help-all`: all of them."""

import re
from collections import Counter
from dataclasses import fields

import pytest
from trl import ModelConfig

from srpo_trl import SRPOConfig
from srpo_trl.cli import COMMANDS, main
from srpo_trl.commands.evaluate import EvalArguments, read_evaluation
from srpo_trl.commands.help import GROUPS
from srpo_trl.commands.train import TrainArguments, read_arguments

KINDS = (TrainArguments, SRPOConfig, ModelConfig)


@pytest.fixture
def page(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")

    def read(*argv, command=read_arguments):
        with pytest.raises(SystemExit) as ended:
            command(argv)
        assert ended.value.code == 0
        return capsys.readouterr().out

    return read


def options_on(page):
    return Counter(re.findall(r"^  --(\S+)", page, re.M))


def test_help_has_our_options_and_the_most_used_ones_once_each_in_groups(page):
    text = page("--help")
    shown = options_on(text)
    assert set(SRPOConfig.__annotations__) - {"derived"} < set(shown)
    assert set(TrainArguments.__annotations__) < set(shown)
    assert {"model_name_or_path", "max_steps", "num_generations", "use_peft", "config"} < set(shown)
    assert set(shown.values()) == {1}
    assert len(text.splitlines()) < 250
    assert re.findall(r"^(\w.*):$", text, re.M) == list(GROUPS)
    assert "--max-steps" not in text
    assert "--max_steps N " in text
    assert "--guard_action off|warn|" in text
    assert re.search(r"--bf16 true\|false +Whether", text)
    assert re.search(r"--distillation_alpha X .*\n.*\(default: 0\.5\)", text)


def test_help_all_has_every_option_once(page):
    text = page("--help-all", "--method", "srpo")
    every = {field.name for kind in KINDS for field in fields(kind) if field.init} | {"config"}
    assert options_on(text) == Counter(every)
    titles = re.findall(r"^(\w.*):$", text, re.M)
    assert titles[: len(GROUPS)] == list(GROUPS)
    assert titles[-2:] == ["Others of TRL", "Others of transformers"]
    others = text[text.index("Others of TRL") : text.index("Others of transformers")]
    assert {"top_k", "lora_dropout"} < set(options_on(others))


def test_help_of_eval_leaves_training_out_and_has_its_own_defaults(page):
    text = page("--help", command=read_evaluation)
    shown = set(options_on(text))
    assert shown > {"output", "model_name_or_path", "eval_temperature", "use_cpu", "max_completion_length"}
    assert not shown & {"method", "learning_rate", "eval_steps", "save_steps", "dataset_train_split"}
    assert re.search(r"--bf16 .*\(default: False\)", text)


def test_every_option_of_a_group_is_one():
    every = {f.name for kind in (EvalArguments, SRPOConfig, ModelConfig) for f in fields(kind)} | {"config"}
    assert {name for names in GROUPS.values() for name in names.split()} <= every


def test_the_command_alone_prints_its_help(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in COMMANDS)


@pytest.mark.parametrize(
    ("typed", "said"), [("trian", "Did you mean train?"), ("xyzzy", "Give one of train,")]
)
def test_an_unknown_command_is_answered_with_the_nearest_one(capsys, typed, said):
    with pytest.raises(SystemExit) as ended:
        main([typed])
    assert ended.value.code == 2
    assert f"{typed} is not a command. {said}" in capsys.readouterr().err
