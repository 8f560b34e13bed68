import json
import logging

import datasets
import pytest

from graders_oracle import DATA_DIR
from srpo_trl.data import BENCHMARKS, load_benchmark
from srpo_trl.rewards import BENCHMARK_REWARDS

SYSTEM = "\nAnswer inside <answer> tags.\n"
LOGGER = "srpo_trl.data.benchmarks"


def science_row(number=0, **changes):
    row = {
        "idx": number,
        "kind": "mcq",
        "system": SYSTEM,
        "prompt": f" Which {number}?\n\nA: x\nB: y ",
        "answer": "B",
    }
    return row | {"embedding": [], "tests": "-"} | changes


def tool_row(number=0, **changes):
    answer = json.dumps([{"Action": "look", "Action_Input": '{"a": {"b": 1}}'}])
    return {
        "idx": number,
        "kind": "tooluse",
        "system": None,
        "prompt": f"Use {number}\n",
        "answer": answer,
    } | changes


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


def test_the_published_splits_are_those_of_table_4():
    assert {name: tuple(known.num_rows.values()) for name, known in BENCHMARKS.items()} == {
        "chemistry": (1890, 210),
        "physics": (720, 80),
        "biology": (450, 50),
        "materials": (841, 94),
        "tooluse": (4046, 68),
    }
    assert BENCHMARK_REWARDS.keys() == {*BENCHMARKS, "gsm8k", "livecodebench"}
    assert {
        name for name, reward in BENCHMARK_REWARDS.items() if reward.__name__ != "multiple_choice_reward"
    } == {"tooluse", "gsm8k", "livecodebench"}


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("chemistry", "sciknoweval/chemistry"),
        ("materials", "sciknoweval/material"),
        ("material", "sciknoweval/material"),
        ("materials", "sciknoweval/materials"),
    ],
)
def test_science_rows_keep_their_texts_verbatim(tmp_path, name, folder):
    write(tmp_path / folder / "train.json", [science_row(0), science_row(1, answer="D")])
    dataset = load_benchmark(name, data_dir=tmp_path)
    canonical = "materials" if name == "material" else name
    assert dataset.column_names == ["prompt", "answer", "benchmark"]
    assert dataset[1] == {
        "prompt": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": " Which 1?\n\nA: x\nB: y "},
        ],
        "answer": "D",
        "benchmark": canonical,
    }


@pytest.mark.parametrize("system", [None, "None", ""])
def test_rows_without_a_system_text_have_no_system_message(tmp_path, system):
    write(tmp_path / "tooluse" / "test.json", [tool_row(3, system=system)])
    (row,) = load_benchmark("tooluse", "test", data_dir=str(tmp_path))
    assert row["prompt"] == [{"role": "user", "content": "Use 3\n"}]
    assert row["answer"] == tool_row()["answer"]


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_real_rows(name, split, caplog):
    folders = [DATA_DIR / folder for folder in BENCHMARKS[name].folders]
    paths = [folder / f"{split}.json" for folder in folders if (folder / f"{split}.json").is_file()]
    if not paths:
        pytest.skip(
            f"no published {split} rows of {name} in {DATA_DIR}; set SRPO_DATA_DIR to a folder with them"
        )
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        dataset = load_benchmark(name, split, data_dir=DATA_DIR)
    assert len(dataset) == BENCHMARKS[name].num_rows[split]
    assert not caplog.records
    published = [json.loads(line) for line in paths[0].read_text("utf-8").split("\n") if line]
    for row, source in zip(dataset, published, strict=True):
        assert row["answer"] == source["answer"]
        assert row["prompt"][-1] == {"role": "user", "content": source["prompt"]}
        assert [message["content"] for message in row["prompt"][:-1]] == [source["system"]] * (
            name != "tooluse"
        )
    assert load_benchmark(paths[0], max_rows=3).to_list() == dataset.select(range(3)).to_list()
    scores = BENCHMARK_REWARDS[name](completions=[""] * len(dataset), answer=dataset["answer"])
    assert None not in scores


def test_a_file_of_json_lines_is_read_whatever_the_line_breaks_of_unicode_in_it(tmp_path):
    rows = [science_row(0, prompt="a\u2028b\u0085c\u000bd"), science_row(1)]
    path = tmp_path / "mine.jsonl"
    path.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    dataset = load_benchmark(path, benchmark="biology")
    assert [row["prompt"][1]["content"] for row in dataset] == [row["prompt"] for row in rows]
    assert set(dataset["benchmark"]) == {"biology"}


def test_a_file_below_a_published_folder_says_which_benchmark_it_is(tmp_path):
    path = write(tmp_path / "sciknoweval" / "material" / "test.json", [science_row()])
    assert load_benchmark(str(path))["benchmark"][:] == ["materials"]
    other = write(tmp_path / "mine.json", [science_row()])
    with pytest.raises(ValueError, match=r"mine\.json' does not say which benchmark it is; pass benchmark="):
        load_benchmark(other)


def test_row_counts_that_are_not_the_papers_are_a_warning_but_not_for_max_rows(tmp_path, caplog):
    write(tmp_path / "sciknoweval" / "physics" / "test.json", [science_row(number) for number in range(5)])
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        assert len(load_benchmark("physics", "test", data_dir=tmp_path, max_rows=2)) == 2
        assert not caplog.records
        assert len(load_benchmark("physics", "test", data_dir=tmp_path)) == 5
    assert "has 5 rows, the paper's test split of physics has 80" in caplog.text


def test_max_rows_does_not_read_further(tmp_path):
    path = write(tmp_path / "physics" / "mine.json", [science_row(0), science_row(1), {}])
    assert len(load_benchmark(path, max_rows=2)) == 2
    with pytest.raises(ValueError, match="line 3"):
        load_benchmark(path)


GOOD_LINE = json.dumps(science_row()).encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD_LINE[:-20], "not JSON"),
        (b"[" + GOOD_LINE, r"not JSON .*the line starts with '\[\{"),
        (b"version https://git-lfs.github.com/spec/v1", "not JSON .*starts with 'version https://git-lfs"),
        (b"[" * 100_000, "not JSON"),
        (b"", "the line is empty"),
        (b'["a"]', "list found; expected one JSON object"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b"{}", "missing key 'system', 'prompt', 'answer'"),
        (
            json.dumps({"prompt": "q", "answer": "A", "sys": 1}).encode(),
            r"missing key 'system'; the row has \['answer'",
        ),
        (json.dumps(science_row(system=3)).encode(), "'system' is int, expected text or null"),
        (json.dumps(science_row(prompt=["q"])).encode(), r"'prompt' is \['q'\], expected text"),
        (json.dumps(science_row(prompt=" ")).encode(), "'prompt' is ' ', expected text that is not empty"),
        (json.dumps(science_row(answer=None)).encode(), "'answer' is None, expected text"),
        (
            json.dumps(science_row(answer="E")).encode(),
            "'answer' does not fit chemistry: 'E' is none of the letters A, B",
        ),
        (json.dumps(science_row(answer="A ")).encode(), "'A ' is none of the letters"),
        (json.dumps(tool_row()).encode(), "is none of the letters"),
    ],
)
def test_a_wrong_line_is_named_with_its_file_and_number(tmp_path, line, message):
    path = tmp_path / "sciknoweval" / "chemistry" / "train.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(GOOD_LINE + b"\n" + line + b"\n" + GOOD_LINE)
    with pytest.raises(ValueError, match=message) as caught:
        load_benchmark("chemistry", data_dir=tmp_path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert len(str(caught.value)) < len(str(path)) + 400


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("B", "'B' is not JSON"),
        ('{"Action": "look"}', "is not a list of at least one call"),
        ("[]", "is not a list of at least one call"),
        ('["look"]', "call 1 is 'look', not an object"),
        ('[{"Action": "a", "Action_Input": "{}"}, {"Action_Input": "{}"}]', "call 2 has no action name"),
        ('[{"Action": "a", "Action_Input": 3}]', "call 1 has neither text nor an object"),
    ],
)
def test_a_tool_use_answer_must_be_a_list_of_calls(tmp_path, answer, message):
    write(tmp_path / "tooluse" / "train.json", [tool_row(), tool_row(answer=answer)])
    with pytest.raises(ValueError, match=rf"train\.json, line 2: 'answer' does not fit tooluse: .*{message}"):
        load_benchmark("tooluse", data_dir=tmp_path)


def test_a_file_without_rows_is_refused(tmp_path):
    write(tmp_path / "tooluse" / "train.json", [])
    with pytest.raises(ValueError, match=r"train\.json has no rows"):
        load_benchmark("tooluse", data_dir=tmp_path)


def test_a_missing_file_says_which_layout_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_benchmark("materials", "test", data_dir=tmp_path)
    root = tmp_path / "sciknoweval"
    assert f"expected {root / 'material' / 'test.json'} or {root / 'materials' / 'test.json'}" in str(
        caught.value
    )
    with pytest.raises(FileNotFoundError, match=r"gone\.json is not a file"):
        load_benchmark(tmp_path / "tooluse" / "gone.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name_or_path": "alchemy"},
            "'alchemy' is neither .*'chemistry', 'physics', 'biology', 'materials', 'tooluse'",
        ),
        ({"name_or_path": "chemistry"}, "'chemistry' needs data_dir, .* sciknoweval/chemistry/train.json"),
        (
            {"name_or_path": "chemistry", "data_dir": ".", "split": "dev"},
            "split='dev' is unknown; known are 'train'",
        ),
        (
            {"name_or_path": "chemistry", "benchmark": "physics"},
            "benchmark='physics' contradicts 'chemistry'",
        ),
        (
            {"name_or_path": "a/b", "benchmark": "alchemy"},
            "benchmark='alchemy' is unknown; known are 'chemistry'",
        ),
        ({"name_or_path": "owner/name"}, "'owner/name' does not say which benchmark it is"),
        ({"name_or_path": "chemistry", "max_rows": 0}, "max_rows=0 must be at least 1"),
        ({"name_or_path": "tooluse/train.json", "data_dir": "x"}, "data_dir='x' does not apply to the file"),
        ({"name_or_path": "tooluse/train.json", "split": "test"}, "split='test' contradicts the file"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_benchmark(**arguments)


def test_a_dataset_folder_or_hub_id_goes_through_load_dataset(tmp_path):
    folder = tmp_path / "owner" / "tooluse"
    write(folder / "train.json", [tool_row(0), tool_row(1)])
    write(folder / "test.json", [tool_row(2)])
    assert load_benchmark(folder, "test").to_list() == load_benchmark(folder / "test.json").to_list()
    train = load_benchmark(str(folder), max_rows=1)
    assert (len(train), train["benchmark"][:]) == (1, ["tooluse"])


def test_a_folder_within_a_hub_dataset_says_which_benchmark_it_is(tmp_path):
    write(tmp_path / "chemistry" / "sciknoweval" / "biology" / "test.json", [science_row()])
    (row,) = load_benchmark(tmp_path / "chemistry", "test", data_dir="sciknoweval/biology")
    assert row["benchmark"] == "biology"
    assert row["prompt"][0] == {"role": "system", "content": SYSTEM}


def test_a_hub_dataset_with_wrong_columns_or_rows_is_refused(tmp_path):
    columns, rows = tmp_path / "columns", tmp_path / "rows"
    write(columns / "train.json", [{"question": "q", "answer": "A"}])
    write(rows / "train.json", [science_row(0), science_row(1, answer="F")])
    with pytest.raises(
        ValueError, match=r"missing column 'system', 'prompt'; it has \['question', 'answer'\]"
    ):
        load_benchmark(columns, benchmark="physics")
    with pytest.raises(
        ValueError, match=r"rows, split train, row 1: 'answer' does not fit physics: 'F' is none"
    ):
        load_benchmark(rows, benchmark="physics")
