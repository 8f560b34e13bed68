"""GSM8K as published: the hub's folder and JSON lines become rows that `math_reward` grades."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset

from srpo_trl.cli import main
from srpo_trl.commands.inputs import load_rows
from srpo_trl.commands.train import TrainArguments
from srpo_trl.data import load_gsm8k
from srpo_trl.rewards import BENCHMARK_REWARDS

# The text format of the published rows: calculator notes in <<>>, the final number after ####
PUBLISHED = [
    {"question": "Two and three? ", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"},
    {"question": "A thousand and one?", "answer": "It is 1,001.\n#### 1,001"},
    {"question": "Three below?", "answer": "0 - 3 = -3\n#### -3"},
    {"question": "A half?", "answer": "#### 0.5"},
]
ANSWERS = ["5", "1001", "-3", "0.5"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """A copy of the hub's folder in small: a README with configurations, one parquet file per split."""
    folder = tmp_path / "gsm8k"
    for config_name in ("main", "socratic"):
        (folder / config_name).mkdir(parents=True)
        for split, rows in (("train", PUBLISHED), ("test", PUBLISHED[:1])):
            changed = [row | {"question": f"{config_name}: {row['question']}"} for row in rows]
            Dataset.from_list(changed).to_parquet(folder / config_name / f"{split}-00000-of-00001.parquet")
    entries = "".join(
        f"- config_name: {name}\n  data_files:\n"
        f"  - {{split: train, path: {name}/train-*}}\n  - {{split: test, path: {name}/test-*}}\n"
        for name in ("main", "socratic")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{entries}---\n", encoding="utf-8")
    return folder


def test_rows_of_the_hubs_folder(hub_folder: Path) -> None:
    rows = load_gsm8k(name_or_path=hub_folder)
    assert rows[0] == {
        "prompt": [
            {
                "role": "user",
                "content": "main: Two and three?\n\nPlease reason step by step, and put your final answer within "
                "\\boxed{}.",
            }
        ],
        "answer": "5",
        "benchmark": "gsm8k",
    }
    assert rows["answer"][:] == ANSWERS
    assert len(load_gsm8k("test", name_or_path=hub_folder)) == 1
    assert load_gsm8k(name_or_path=hub_folder, max_rows=2).to_list() == rows.select(range(2)).to_list()


def test_the_reward_reads_the_rows_answers(hub_folder: Path) -> None:
    answers = load_gsm8k(name_or_path=hub_folder)["answer"][:]
    texts = ["so \\boxed{5}", "\\boxed{1,001}", "\\boxed{3}", "\\boxed{\\frac{1}{2}}"]
    assert BENCHMARK_REWARDS["gsm8k"](completions=texts, answer=answers) == [1.0, 1.0, 0.0, 1.0]


def test_json_lines_give_the_same_rows(tmp_path: Path, hub_folder: Path) -> None:
    path = tmp_path / "train.jsonl"
    lines = [json.dumps(row | {"question": f"main: {row['question']}"}) for row in PUBLISHED]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert load_gsm8k(name_or_path=path).to_list() == load_gsm8k(name_or_path=hub_folder).to_list()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "q", "answer": "five"},
            r"line 2: 'answer' ends in 'five', expected '#### ' and a number",
        ),
        ({"question": "q", "answer": "#### five"}, "expected '#### ' and a number"),
        ({"question": " ", "answer": "#### 5"}, r"line 2: 'question' is ' ', expected text"),
        ({"prompt": "q", "answer": "#### 5"}, r"'question' is None, .* the keys \['answer', 'prompt'\]"),
        ({"question": "q", "answer": 5}, "'answer' is 5, expected text"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(PUBLISHED[0])}\n{json.dumps(row)}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_gsm8k(name_or_path=path)
    assert len(load_gsm8k(name_or_path=path, max_rows=1)) == 1


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\.jsonl has no rows"):
        load_gsm8k(name_or_path=tmp_path / "rows.jsonl")


@pytest.mark.parametrize(("config_name", "start"), [(None, "main: "), ("socratic", "socratic: ")])
def test_the_training_script_names_source_configuration_and_split(
    hub_folder: Path, config_name: str | None, start: str
) -> None:
    script = TrainArguments(benchmark="gsm8k", dataset_name=str(hub_folder), dataset_config=config_name)
    rows = load_rows(script, "test", None)
    assert [row["prompt"][0]["content"].split("Two")[0] for row in rows] == [start]


def test_the_training_script_asks_the_hub_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*arguments: Any, **options: Any) -> Dataset:
        asked.append((*arguments, options))
        return Dataset.from_list(PUBLISHED)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_rows(TrainArguments(benchmark="gsm8k"), "train", 3)) == 3
    assert asked == [("openai/gsm8k", "main", {"split": "train"})]


def test_data_dir_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--benchmark", "gsm8k", "--data_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    assert main(["train", *words, "--model_name_or_path", "nowhere"]) == 2
    assert "belongs to the paper's benchmarks. Leave it out for gsm8k" in capsys.readouterr().err
