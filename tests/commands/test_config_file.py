"""YAML files that build on other YAML files."""

import os
from pathlib import Path

import pytest

from srpo_trl.cli import main
from srpo_trl.commands.config_file import read_config_file
from srpo_trl.commands.launch import read_launch
from srpo_trl.commands.train import read_arguments


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
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
        ({"own": "1: 2"}, "own.yaml: the key 1 must be text, the name of an option."),
        ({"own": "yes: 2"}, "own.yaml: the key True must be text"),
        ({"own": "base: b.yaml", "b": "null: 2"}, "base b.yaml: the key None must be text"),
        ({"own": "env: {A: 1, 3: 4}"}, "own.yaml: env has the name 3; it must be text, without '='."),
        ({"own": "env: {A=B: 4}"}, "own.yaml: env has the name 'A=B'; it must be text"),
        ({"own": 'env: {A: "a\\0b"}'}, "own.yaml: env has A='a\\x00b'; it must be text or a number."),
        ({"own": "env: {A: [1]}"}, "own.yaml: env has A=[1]; it must be text or a number."),
        ({"own": "base: b.yaml", "b": "\udcff: 1"}, "base b.yaml is not valid YAML: 'utf-8' codec"),
        ({"own": "max_steps: 2024-99-99"}, "own.yaml is not valid YAML: month must be"),
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


@pytest.mark.parametrize("name", ["x" * 5000, "gone.yaml", "binary.yaml", "."])
@pytest.mark.parametrize("command", ["train", "eval"])
def test_after_a_file_that_cannot_be_read_nothing_else_is_told(
    command: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a: 1")
    assert main([command, "--config", name, "--learning_rate", "-1"]) == 2
    first, only = capsys.readouterr().err.splitlines()
    assert first.endswith("nothing was started, because")
    assert only.startswith(f"- --config {name} ")


def test_no_variable_is_set_where_one_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SRPO_TEST_VARIABLE", raising=False)
    own = write(tmp_path / "own.yaml", "env: {SRPO_TEST_VARIABLE: 3, '': 4}\n")
    assert len(read_arguments(["--config", str(own)])[3]) == 1
    assert "SRPO_TEST_VARIABLE" not in os.environ


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such pipes")
def test_a_pipe_is_read_once_and_builds_on_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "b.yaml", "max_steps: 5\n")
    reader, writer = os.pipe()
    os.write(writer, b"base: b.yaml\nseed: 7\nuse_cpu: true\nbf16: false\n")
    os.close(writer)
    try:
        words = ["--config", f"/dev/fd/{reader}"]
        assert read_launch("train", words) == (None, [])
        _, config, _, problems = read_arguments(words)
        assert problems == []
        assert config is not None
        assert (config.seed, config.max_steps) == (7, 5)
        _, problems = read_launch("train", [*words, "--num_processes", "2"])
        assert problems == [
            f"--config /dev/fd/{reader} is a pipe, which other processes cannot read: give a file."
        ]
    finally:
        os.close(reader)
