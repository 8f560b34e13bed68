"""`srpo-trl recipes`, and recipes by name wherever a YAML file is read."""

import subprocess
import sys
from pathlib import Path

import pytest

from srpo_trl.cli import main
from srpo_trl.commands.compare.jobs import _variants
from srpo_trl.commands.config_file import config_path, engine_profiles, read_config_file, recipes
from srpo_trl.commands.evaluate import read_evaluation
from srpo_trl.commands.plan.engines import read_engine
from srpo_trl.commands.train import read_arguments

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = [file for file in CONFIGS.rglob("*.yaml") if file.parent.name != "accelerate"]


def test_every_file_is_a_recipe_with_a_name_of_its_own() -> None:
    assert len(FILES) > 50
    assert {name: file.resolve() for name, file in recipes().items()} == {file.stem: file for file in FILES}
    assert set(engine_profiles()) == {file.stem for file in (CONFIGS / "accelerate").glob("*.yaml")}


@pytest.mark.parametrize("name", ["qwen3_0.6b_lora_16gb", "small/qwen3_0.6b_lora_16gb"])
def test_a_recipe_is_found_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_path(name).samefile(CONFIGS / "small" / "qwen3_0.6b_lora_16gb.yaml")


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "srpo").write_text("seed: 1\n", encoding="utf-8")
    (tmp_path / "grpo").mkdir()  # a folder is no file
    assert read_config_file("srpo") == {"seed": 1}
    assert config_path("grpo").samefile(CONFIGS / "paper" / "grpo.yaml")


def test_a_file_of_ones_own_builds_on_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("base: qwen3_0.6b_lora_16gb\nseed: 7\n", encoding="utf-8")
    expected = read_config_file(CONFIGS / "small" / "qwen3_0.6b_lora_16gb.yaml")
    assert read_config_file(tmp_path / "own.yaml") == expected | {"seed": 7}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3_06b_lora_16gb", "is neither a file nor a recipe. Did you mean qwen3_0.6b_lora_16gb or"),
        (
            "small/srpo",
            "cannot be read: No such file. Did you mean the recipe srpo, without folder and .yaml?",
        ),
        ("configs/small/qwen3_0.6b_lora_16gb.yaml", "Did you mean the recipe qwen3_0.6b_lora_16gb, without"),
        ("xyzzy", "--config xyzzy is neither a file nor a recipe. `srpo-trl recipes` lists the recipes."),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(
    name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    problems = read_arguments(["--config", name, "--use_cpu", "true", "--bf16", "false"])[3]
    assert len(problems) == 1
    assert expected in problems[0]


def test_every_command_takes_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--config", "qwen3_0.6b_lora_16gb", "--use_cpu", "true"]
    for _, config, model, problems in (read_arguments(argv), read_evaluation(["folder", *argv])):
        assert problems == []
        assert config is not None
        assert model is not None
        assert (config.steps_per_generation, model.lora_r) == (8, 32)
    assert read_engine("zero3", 4) == read_engine(str(CONFIGS / "accelerate" / "zero3.yaml"), 4)
    problems = []
    variants = _variants([Path("qwen3_0.6b"), Path("nothing")], [], problems)
    assert list(variants) == ["qwen3_0.6b"]
    assert problems == [
        "CONFIG nothing is neither a file nor a recipe. `srpo-trl recipes` lists the recipes."
    ]


def test_the_list_names_all_recipes_and_does_without_torch() -> None:
    code = "import sys\nfrom srpo_trl.cli import main\nmain(['recipes'])\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert set(recipes()) <= set(rows)
    assert rows["smoke_cpu"].split()[-2:] == ["tiny-random-qwen3", "none"]
    assert rows["srpo"].split()[-5:] == ["Qwen/Qwen3-8B", "8", "x", "80", "GB"]
    for name in recipes():
        if name.endswith("gb"):
            model, _, memory = name.removeprefix("qwen3_").split("_")
            assert f"Qwen/Qwen3-{model}".lower() in rows[name].lower()
            assert rows[name].rstrip().endswith(f" {memory.removesuffix('gb')} GB")
        elif name != "smoke_cpu":
            assert rows[name].rstrip().endswith(" GB"), name
    assert all(profile in done.stdout for profile in engine_profiles())


def test_a_recipe_is_printed_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("smoke_cpu", "small/lora", "fsdp2"):
        assert main(["recipes", name]) == 0
        file = next(CONFIGS.rglob(f"{Path(name).name}.yaml"))
        assert capsys.readouterr().out == file.read_text(encoding="utf-8")
    assert main(["recipes", "smoke_cp"]) == 2
    assert "no recipe is called 'smoke_cp'. Did you mean smoke_cpu?" in capsys.readouterr().err


def test_a_copy_holds_the_files_that_the_recipe_builds_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes", "opsd", "--copy", str(tmp_path)]) == 0
    copied = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.name for file in copied] == [
        *("opsd.yaml", "qwen3_0.6b_lora_24gb.yaml", "lora.yaml", "qwen3_0.6b.yaml")
    ]
    assert read_config_file(copied[0]) == read_config_file("opsd")
    copied[0].write_text("base: ../small/lora.yaml\n", encoding="utf-8")
    assert main(["recipes", "opsd", "--copy", str(tmp_path)]) == 2
    assert "exists. Give another folder." in capsys.readouterr().err
    assert copied[0].read_text(encoding="utf-8") == "base: ../small/lora.yaml\n"
    assert main(["recipes", "ddp", "--copy", str(tmp_path / "engines")]) == 0
    assert (tmp_path / "engines" / "accelerate" / "ddp.yaml").is_file()


def test_copying_needs_a_name(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["recipes", "--copy", str(tmp_path)])


def test_files_that_somebody_added_are_listed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "configs"
    (own / "mine").mkdir(parents=True)
    (own / "lora.yaml").write_text("# LoRA: mine.\nmodel_name_or_path: some/model\n", encoding="utf-8")
    (own / "mine" / "without_model.yaml").write_text("seed: 1\n", encoding="utf-8")
    (own / "mine" / "broken.yaml").write_text("a: [1", encoding="utf-8")
    (own / "mine" / "binary.yaml").write_bytes(b"\xff\xfe")
    (own / "mine" / "outside.yaml").write_text("base: ../../other.yaml\n", encoding="utf-8")
    (tmp_path / "other.yaml").write_text("seed: 2\n", encoding="utf-8")
    monkeypatch.setattr("srpo_trl.commands.config_file.recipes_folder", lambda: own)
    monkeypatch.setattr("srpo_trl.commands.recipes.recipes_folder", lambda: own)
    assert main(["recipes"]) == 0
    table = capsys.readouterr().out
    names = [line.split()[0] for line in table.splitlines() if line.strip()]
    assert names.index("lora") < names.index("without_model")
    assert "is not valid YAML" in table
    for words in (["binary"], *(["--copy", str(tmp_path / "to"), name] for name in ("broken", "outside"))):
        assert main(["recipes", *words]) == 2
        assert capsys.readouterr().err.startswith(f"srpo-trl recipes: {own}")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("folder", ["file", "file/below", "x" * 5000])
def test_a_folder_that_cannot_be_is_told(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    assert main(["recipes", "smoke_cpu", "--copy", str(tmp_path / folder)]) == 2
    assert capsys.readouterr().err.startswith(f"srpo-trl recipes: {tmp_path}")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"
