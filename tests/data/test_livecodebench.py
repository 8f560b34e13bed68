"""LiveCodeBench as published: public and private tests become rows that `code_reward` grades."""

import base64
import json
import os
import pickle
import zlib

import pytest

from srpo_trl.commands.inputs import data_problems, load_rows
from srpo_trl.commands.train import TrainArguments
from srpo_trl.data import livecodebench, load_livecodebench
from srpo_trl.rewards import BENCHMARK_REWARDS


def packed(data, cut=0):
    """Bytes compressed, without the last `cut`, in base 64."""
    data = zlib.compress(data)
    return base64.b64encode(data[: len(data) - cut]).decode()


def hidden(tests):
    """Private tests as they are published."""
    return packed(pickle.dumps(json.dumps(tests)))


def case(given, wanted, kind):
    return {"input": given, "output": wanted, "testtype": kind}


STDIN = {
    "question_content": "Print the sum. ",
    "starter_code": "",
    "public_test_cases": json.dumps([case("1 2\n", "3\n", "stdin")]),
    "private_test_cases": hidden([case("40 2\n", "42\n", "stdin")]),
    "metadata": "{}",
}
FUNCTION = {
    "question_content": "Reverse it, n times.",
    "starter_code": "class Solution:\n    def turn(self, rows, n):\n        ",
    "public_test_cases": json.dumps([case("[1, 2]\n1", "[2, 1]", "functional")]),
    "private_test_cases": json.dumps([case('["a", "b"]\n2', '["a", "b"]', "functional")]),
    "metadata": json.dumps({"func_name": "turn"}),
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "test6.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (STDIN, FUNCTION)), encoding="utf-8")
    return path


def test_rows_of_a_published_file_train_and_are_graded(file):
    script = TrainArguments(benchmark="livecodebench", dataset_name=str(file), dataset_train_split="test")
    assert list(data_problems(script)) == []
    rows = load_rows(script, "test", None)
    assert "standard input" in rows[0]["prompt"][0]["content"]
    assert "def turn(self, rows, n):" in rows[1]["prompt"][0]["content"]
    programs = [
        "print(sum(map(int, input().split())))",
        "class Solution:\n    def turn(self, rows, n):\n        return rows[::-1] if n % 2 else rows",
    ]
    answers = [[{"role": "assistant", "content": f"```python\n{program}\n```"}] for program in programs]
    grade = BENCHMARK_REWARDS["livecodebench"]
    assert grade(completions=answers, answer=rows["answer"]) == [1.0, 1.0]
    assert grade(completions=answers[::-1], answer=rows["answer"]) == [0.0, 0.0]
    assert load_livecodebench(name_or_path=file, max_rows=1).num_rows == 1


class _Names:
    def __reduce__(self):
        return (os.system, ("false",))


def test_tests_that_name_what_is_called_are_refused(file):
    wrong = packed(pickle.dumps(_Names()))
    file.write_text(json.dumps(STDIN | {"private_test_cases": wrong}) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1: the tests name (posix|nt)\.system, which data may not"):
        load_livecodebench(name_or_path=file)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"private_test_cases": "?"}, "cannot be read"),
        ({"private_test_cases": packed(b"0.")}, "cannot be read"),
        ({"private_test_cases": packed(b"Pid\n.")}, "cannot be read"),
        ({"private_test_cases": packed(bytes(300 << 20))}, "larger than 256 MB"),
        ({"private_test_cases": packed(pickle.dumps("[]"), cut=4)}, "end early"),
        ({"public_test_cases": "[]", "private_test_cases": "[]"}, "no tests"),
        ({"metadata": "{}"}, "func_name"),
    ],
)
def test_a_wrong_row_is_named(file, changes, said):
    file.write_text(json.dumps(FUNCTION | changes) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"line 1: .*{said}"):
        load_livecodebench(name_or_path=file)


def test_tests_that_do_not_fit_the_memory_are_named(file, monkeypatch):
    def too_large(self):
        raise MemoryError

    monkeypatch.setattr(livecodebench._TextAlone, "load", too_large)
    with pytest.raises(ValueError, match="line 1: the tests need more memory than there is"):
        load_livecodebench(name_or_path=file)


def test_tests_of_all_rows_may_pass_2_gib(file):
    assert load_livecodebench(name_or_path=file).features["answer"].dtype == "large_string"


def test_an_argument_may_hold_other_separators_of_lines(file):
    row = FUNCTION | {"public_test_cases": json.dumps([case('"a\u2028b"\n1\n', '"b"', "functional")])}
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    answer = json.loads(load_livecodebench(name_or_path=file)[0]["answer"])
    assert answer["inputs"][0] == ["a\u2028b", 1]


def test_a_data_dir_is_refused():
    script = TrainArguments(benchmark="livecodebench", data_dir="DIR")
    assert "Leave it out for livecodebench" in next(data_problems(script))
