"""`srpo-trl train`: wrong options are refused together, before a model loads; the smoke run trains and resumes."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from srpo_trl.cli import main
from srpo_trl.commands.train import last_complete_checkpoint, read_arguments
from srpo_trl.data.smoke_model import build_byte_tokenizer, save_tiny_random_qwen3
from srpo_trl.teacher.weights import TEACHER_FILE

REPOSITORY = Path(__file__).resolve().parents[2]
SMOKE_CONFIG = str(REPOSITORY / "configs" / "smoke_cpu.yaml")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with the published Chemistry rows; where they are absent, rows made up in their format."""
    for folder in (os.environ.get("SRPO_DATA_DIR"), REPOSITORY.parent / "shared" / "data"):
        if folder and (Path(folder) / "sciknoweval" / "chemistry" / "train.json").is_file():
            return str(folder)
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {
            "system": "Answer with the letter of the right option in <answer> tags.",
            "prompt": f"How many atoms has molecule {index}?\n\nA: 1\nB: 2\nC: 3\nD: 4",
            "answer": "ABCD"[index % 4],
        }
        for index in range(8)
    ]
    (folder / "sciknoweval" / "chemistry").mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for split in ("train", "test"):
        (folder / "sciknoweval" / "chemistry" / f"{split}.json").write_text(lines, encoding="utf-8")
    return str(folder)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `srpo-trl train` writes when it refuses `arguments`."""
    assert main(["train", *arguments]) == 2
    return capsys.readouterr().err


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test where a model or tokenizer is loaded."""

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("srpo_trl.commands.train.SRPOTrainer", fail)
    monkeypatch.setattr("srpo_trl.commands.train.save_tiny_random_qwen3", fail)


@pytest.mark.usefixtures("no_model")
class TestRefusals:
    def test_all_problems_come_in_one_message(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        message = refused(
            capsys,
            *("--config", SMOKE_CONFIG, "--max_stepz", "3", "--distillation_alpha", "3"),
            *(
                "--entropy_weight_beta",
                "-1",
                "--reward_funcs",
                "nodots",
                "no.such.module",
                "trl.rewards.__all__",
            ),
            *("--model_name_or_path", "./nowhere", "--data_dir", str(tmp_path)),
        )
        for part in (
            "max_stepz is not an option. Did you mean max_steps?",
            "distillation_alpha=3.0",
            "entropy_weight_beta=-1.0",
            "reward_funcs: 'nodots' is neither one of accuracy_reward, ",
            "'no.such.module' cannot be imported",
            "'trl.rewards.__all__' is a list, not a function",
            "model_name_or_path='./nowhere' is not a folder",
            f"{tmp_path}/sciknoweval/chemistry/train.json",
        ):
            assert part in message

    def test_missing_data_dir_names_the_option_and_the_layout(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        message = refused(capsys, "--config", SMOKE_CONFIG)
        assert "data_dir" in message
        assert "sciknoweval/chemistry/train.json" in message

    def test_nothing_to_train_on(self, capsys: pytest.CaptureFixture[str]) -> None:
        message = refused(capsys, "--use_cpu", "true", "--bf16", "false")
        assert (
            "give benchmark (one of chemistry, physics, biology, materials, tooluse, gsm8k, livecodebench), "
            "dataset_name or datasets" in message
        )
        assert "model_name_or_path is missing" in message

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (("--benchmark", "alchemy"), "benchmark='alchemy' is not one of chemistry"),
            (("--max_train_rows", "0"), "max_train_rows=0 must be a whole number of at least 1"),
            (("--reward_weights", "1", "2"), "one weight for each of multiple_choice_reward"),
            (
                ("--correctness_reward", "other"),
                "correctness_reward='other' is not one of multiple_choice_reward",
            ),
            (("--resume_from_checkpoint", "nowhere"), "'nowhere' is not a complete checkpoint folder"),
            (
                ("--max_training_time", "soon"),
                "max_training_time='soon' is not a duration. Give a number above 0",
            ),
            (("--max_steps", "2", "stray"), "'stray' belongs to no option"),
        ],
    )
    def test_one_wrong_option(
        self, capsys: pytest.CaptureFixture[str], data_dir: str, options: tuple[str, ...], expected: str
    ) -> None:
        message = refused(capsys, "--config", SMOKE_CONFIG, "--data_dir", data_dir, *options)
        assert expected in message
        assert message.count("\n- ") == 1

    def test_dataset_name_needs_rewards_and_takes_no_data_dir(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ("--dataset_name", "x", "--data_dir", "y", "--model_name_or_path", "z")
        message = refused(capsys, "--use_cpu", "true", "--bf16", "false", *options)
        assert "dataset_name='x' has no rewards of its own: give reward_funcs" in message
        assert "data_dir='y' belongs to benchmark" in message

    def test_rows_without_a_prompt_column(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text('{"question": "?"}\n', encoding="utf-8")
        message = refused(
            capsys,
            *("--dataset_name", str(tmp_path / "rows.jsonl"), "--model_name_or_path", "z"),
            *("--reward_funcs", "srpo_trl.rewards.format_reward", "--use_cpu", "true", "--bf16", "false"),
        )
        assert "columns ['question'], but no column 'prompt'" in message

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (None, "cannot be read: No such file"),
            ("a: [1", "is not valid YAML"),
            ("- 1", "must hold `option: value` lines"),
            ("learning_rat: 1", "learning_rat is not an option. Did you mean learning_rate?"),
            ("dtype: bf16", "dtype='bf16' is not one of 'auto', 'bfloat16'"),
            ("method: both", "method='both' is not a method"),
        ],
    )
    def test_wrong_config_file(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | None, expected: str
    ) -> None:
        path = tmp_path / "config.yaml"
        if text is not None:
            path.write_text(text, encoding="utf-8")
        assert expected in refused(capsys, f"--config={path}", "--use_cpu", "true", "--bf16", "false")

    def test_value_of_the_wrong_type(self, capsys: pytest.CaptureFixture[str]) -> None:
        said = refused(capsys, "--max_steps", "three")
        assert "max_steps='three' must be a whole number." in said
        assert "model_name_or_path is missing" in said


def test_a_console_without_a_character_shows_another(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    assert main(["methods"]) == 0
    print("arrow → and 答", flush=True)
    assert b"arrow ? and ?" in written.getvalue()


def test_help_lists_the_options_of_all_three_dataclasses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    printed = capsys.readouterr().out
    for option in (
        "--config",
        "--benchmark",
        "--method",
        "--num_generations",
        "--model_name_or_path",
        "--use_peft",
    ):
        assert option in printed


def test_command_line_replaces_yaml_replaces_default() -> None:
    script, config, model_config, problems = read_arguments(
        [
            "--config",
            SMOKE_CONFIG,
            "--max_steps=7",
            "--teacher_context",
            "sibling",
            "--model_name_or_path",
            "m",
        ]
    )
    assert problems == []
    assert config is not None
    assert model_config is not None
    assert (config.max_steps, config.teacher_context, config.num_generations) == (7, ["sibling"], 4)
    assert (model_config.model_name_or_path, model_config.dtype, model_config.use_peft) == (
        "m",
        "float32",
        False,
    )
    assert script.benchmark == "chemistry"


@pytest.mark.parametrize("config_file", [SMOKE_CONFIG, str(REPOSITORY / "configs" / "methods" / "opsd.yaml")])
def test_a_method_and_its_options_are_given_on_the_command_line(config_file: str) -> None:
    words = ["--config", config_file, "--method", "paced", "--method_options", '{"powers": [2, 1]}']
    _, config, _, problems = read_arguments([*words, "--use_cpu", "true"])
    assert problems == []
    assert config is not None
    assert (config.method, config.method_options) == ("paced", {"powers": [2, 1]})
    assert not config.method_record.mean_one  # PACED's alone
    wrong = [*words[:-1], '{"power": 2}', "--use_cpu", "true"]
    assert "which paced() does not take; it takes powers" in read_arguments(wrong)[3][0]


def test_env_in_the_config_file_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRPO_TEST_VARIABLE", "before")
    path = tmp_path / "config.yaml"
    path.write_text("env: {SRPO_TEST_VARIABLE: 3}\nuse_cpu: true\nbf16: false\n", encoding="utf-8")
    _, _, _, problems = read_arguments(["--config", str(path)])
    assert problems == []
    assert os.environ["SRPO_TEST_VARIABLE"] == "3"


def test_last_complete_checkpoint_skips_broken_ones(tmp_path: Path) -> None:
    assert last_complete_checkpoint(str(tmp_path / "nowhere")) is None
    contents = {"checkpoint-9": "{}", "checkpoint-10": "{}", "checkpoint-11": '{"ste', "checkpoint-x": "{}"}
    for name, text in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(text, encoding="utf-8")
    (tmp_path / "checkpoint-12").mkdir()
    assert last_complete_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10")


def test_byte_tokenizer_keeps_every_text() -> None:
    tokenizer = build_byte_tokenizer()
    text = "  Δ C1=CC\n\n<answer>A</answer> 漢 "
    token_ids = tokenizer(text)["input_ids"]
    assert len(token_ids) == len(text.encode())
    assert tokenizer.decode(token_ids) == text
    assert tokenizer("<|im_end|>")["input_ids"] == [tokenizer.eos_token_id]


def test_tiny_model_loads_from_its_folder_and_is_reproducible(tmp_path: Path) -> None:
    first, second = (save_tiny_random_qwen3(tmp_path / name) for name in ("first", "second"))
    other = save_tiny_random_qwen3(tmp_path / "other", seed=1)
    weights = [load_file(folder / "model.safetensors") for folder in (first, second, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    tokenizer = AutoTokenizer.from_pretrained(first)
    messages = [{"role": "user", "content": "hé"}]
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert text == "<|im_start|>user\nhé<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert tokenizer(text)["input_ids"] == build_byte_tokenizer()(text)["input_ids"]
    assert AutoModelForCausalLM.from_pretrained(first).config.vocab_size == len(tokenizer)


def test_smoke_config_trains_saves_and_resumes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data_dir: str
) -> None:
    output_dir = tmp_path / "run"
    options = ["train", "--config", SMOKE_CONFIG, "--data_dir", data_dir, "--output_dir", str(output_dir)]
    small = ["--max_completion_length", "8", "--num_generations", "2", "--per_device_train_batch_size", "2"]
    small += ["--save_steps", "1", "--max_train_rows", "4", "--resume_from_checkpoint", "auto"]

    assert main([*options, *small, "--max_steps", "1"]) == 0
    printed = capsys.readouterr().out
    assert "starting anew" in printed
    assert f"model saved to {output_dir}; last checkpoint: {output_dir}/checkpoint-1" in printed
    first = json.loads((output_dir / "checkpoint-1" / "trainer_state.json").read_text(encoding="utf-8"))
    assert (
        first["log_history"][0]["srpo/route/distilled_frac"] == 1.0
    )  # the grader's feedback reached the teacher
    assert (output_dir / "checkpoint-1" / TEACHER_FILE).is_file()

    assert main([*options, *small, "--max_steps", "2"]) == 0
    assert f"resuming from {output_dir}/checkpoint-1" in capsys.readouterr().out
    second = json.loads((output_dir / "checkpoint-2" / "trainer_state.json").read_text(encoding="utf-8"))
    assert second["global_step"] == 2
    assert second["log_history"][0] == first["log_history"][0]

    trained = AutoModelForCausalLM.from_pretrained(output_dir)
    start = AutoModelForCausalLM.from_pretrained(output_dir / "tiny-random-qwen3")
    moved = [not torch.equal(a, b) for a, b in zip(trained.parameters(), start.parameters(), strict=True)]
    assert all(moved)
    assert AutoTokenizer.from_pretrained(output_dir).chat_template is not None
    teacher = load_file(output_dir / "checkpoint-2" / TEACHER_FILE)
    assert all(tensor.dtype == torch.float32 for tensor in teacher.values())
