"""YAML files that build on other YAML files."""

import os
from pathlib import Path

import pytest

from srpo_trl.commands.config_file import read_config_file
from srpo_trl.commands.train import read_arguments


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_files_own_values_win_over_those_that_it_builds_on(tmp_path: Path) -> None:
    write(tmp_path / "far.yaml", "a: 1\nb: 1\nc: 1\n")
    write(tmp_path / "near.yaml", "base: far.yaml\nb: 2\nc: 2\n")
    assert read_config_file(write(tmp_path / "own.yaml", "base: near.yaml\nc: 3\n")) == {
        "a": 1,
        "b": 2,
        "c": 3,
    }


def test_base_is_relative_to_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "root.yaml", "a: 1\n")
    write(tmp_path / "one" / "middle.yaml", "base: ../root.yaml\nb: 2\n")
    write(tmp_path / "two" / "own.yaml", "base: ../one/middle.yaml\n")
    monkeypatch.chdir(tmp_path / "two")
    assert read_config_file("own.yaml") == {"a": 1, "b": 2}
    monkeypatch.chdir(tmp_path)
    assert read_config_file("two/own.yaml") == {"a": 1, "b": 2}


def test_mappings_and_lists_are_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "kwargs: {x: 1}\nitems: [1, 2]\n")
    own = write(tmp_path / "own.yaml", "base: base.yaml\nkwargs: {y: 2}\nitems: [3]\n")
    assert read_config_file(own) == {"kwargs": {"y": 2}, "items": [3]}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"own": "base: own.yaml"}, "own.yaml, base own.yaml: the file builds on itself"),
        (
            {"own": "base: b.yaml", "b": "base: ../{folder}/own.yaml"},
            "base b.yaml, base ../{folder}/own.yaml: the file builds on itself",
        ),
        (
            {"own": "base: b.yaml", "b": "base: c.yaml", "c": "base: b.yaml"},
            "own.yaml, base b.yaml, base c.yaml, base b.yaml: the file builds on itself",
        ),
        ({"own": "base: gone.yaml"}, "own.yaml, base gone.yaml cannot be read: No such file"),
        ({"own": "base: b.yaml", "b": "a: [1"}, "own.yaml, base b.yaml is not valid YAML"),
        ({"own": "base: b.yaml", "b": "- 1"}, "own.yaml, base b.yaml must hold `option: value` lines"),
        ({"own": "base: [a.yaml, b.yaml]"}, "base=['a.yaml', 'b.yaml'] must be the path of one YAML file"),
        ({"own": "env: 3"}, "must hold `option: value` lines (and `env:`"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    for name, text in files.items():
        write(tmp_path / f"{name}.yaml", text.replace("{folder}", tmp_path.name))
    with pytest.raises(ValueError) as caught:
        read_config_file(tmp_path / "own.yaml")
    assert str(caught.value).startswith(f"--config {tmp_path}/own.yaml")
    assert expected.replace("{folder}", tmp_path.name) in str(caught.value)


def test_unknown_options_of_a_base_are_refused_and_its_environment_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRPO_TEST_VARIABLE", "before")
    write(tmp_path / "b.yaml", "learning_rat: 1\nmax_steps: 5\nenv: {SRPO_TEST_VARIABLE: 3}\n")
    own = write(tmp_path / "own.yaml", "base: b.yaml\nuse_cpu: true\nbf16: false\n")
    _, config, _, problems = read_arguments(["--config", str(own), "--max_steps", "7"])
    assert problems == ["learning_rat is not an option. Did you mean learning_rate?"]
    assert config is not None
    assert config.max_steps == 7
    assert os.environ["SRPO_TEST_VARIABLE"] == "3"
