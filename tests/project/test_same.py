"""`scripts/same`: recordings that differ in one bit, one key or one name are told apart."""

import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "same"


@pytest.fixture(scope="module")
def same():
    """The script's own modules, which other tests must not find under such plain names."""
    names = ("compare", "renamed", "recording", "rows")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(SCRIPT))
    try:
        modules = {name: __import__(name) for name in names}
    finally:
        sys.path.remove(str(SCRIPT))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
    return modules


def next_float(value):
    return struct.unpack("<d", (struct.unpack("<Q", struct.pack("<d", value))[0] + 1).to_bytes(8, "little"))[
        0
    ]


def recording(**changes):
    values = {
        "log/0/loss": 0.1,
        "log/0/reward": math.nan,
        "log/0/srpo/route/grpo_frac": 0.5,
        "log/1/srpo/route/grpo_frac": 0.25,
        "weights/head": torch.arange(6.0).reshape(2, 3),
        "files/log.jsonl": "(a file)",
    }
    return values | {key.replace("__", "/"): value for key, value in changes.items()}


def test_equal_recordings(same):
    found = same["compare"].compare(recording(), recording())
    assert found.summary() == "equal"
    assert found.details() == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("log/0/loss", next_float(0.1)),
        ("log/0/loss", 0),
        ("log/0/reward", 0.0),
        ("weights/head", torch.arange(6.0).reshape(3, 2)),
        ("weights/head", torch.arange(6.0).reshape(2, 3).double()),
    ],
    ids=["last bit", "type", "NaN", "shape", "precision"],
)
def test_a_number_that_differs_is_seen(same, key, value):
    found = same["compare"].compare(recording(), recording() | {key: value})
    assert list(found.numbers) == [key]
    assert (found.gone, found.added, found.texts) == ([], [], {})
    assert "1 number differs: " + key in found.summary()


def test_last_bit_of_one_weight_is_seen(same):
    changed = recording()
    changed["weights/head"].view(torch.int32)[1, 2] += 1
    found = same["compare"].compare(recording(), changed)
    assert found.numbers == {"weights/head": "1 of 6 elements, by up to 4.77e-07"}
    negative = recording()
    negative["weights/head"][0, 0] = -0.0  # equal as a number
    assert list(same["compare"].compare(recording(), negative).numbers) == ["weights/head"]


def test_keys_and_texts_are_told_apart_from_numbers(same):
    changed = recording(page="a\nb\nc")
    del changed["log/0/loss"]
    changed["log/0/policy_loss"] = 0.1
    found = same["compare"].compare(recording(page="a\nx\nc"), changed)
    assert found.summary() == (
        "numbers equal; 1 text differs: page (-1 +1 lines); keys: -log/*/loss +log/*/policy_loss"
    )


def test_renamed_metrics_and_files_are_compared_under_their_new_names(same, monkeypatch):
    names = {"srpo/route/grpo_frac": "srpo/route/policy_frac", "log.jsonl": "metrics.jsonl"}
    monkeypatch.setattr(same["renamed"], "KEYS", names)
    new = {}
    for key, value in recording().items():
        for before, after in names.items():
            key = key.replace(before, after)
        new[key] = value
    assert new.keys() != recording().keys()
    assert same["compare"].compare(recording(), new).summary() == "equal"
    assert same["renamed"].new_key("log/0/srpo/route/grpo_fraction") == "log/0/srpo/route/grpo_fraction"
    new["log/1/srpo/route/policy_frac"] = 0.5
    assert list(same["compare"].compare(recording(), new).numbers) == ["log/1/srpo/route/policy_frac"]


def test_the_head_of_stored_rollouts_is_the_teachers(same):
    new_key, file = same["renamed"].new_key, "files/checkpoint-2/srpo_rollouts_rank0.pt"
    assert [new_key(f"{file}/1{end}") for end in ("", "/0", "/teacher/0")] == [
        f"{file}/1/teacher{end}" for end in ("", "/0", "/0")
    ]
    assert new_key(f"{file}/0/1/srpo_route") == f"{file}/0/1/srpo_route"


def test_renamed_options_are_given_and_recorded_under_their_new_names(same, monkeypatch):
    renamed = same["renamed"]
    monkeypatch.setattr(renamed, "OPTIONS", {"mode": renamed.Option("estimator", {"logits": "exact"})})
    given = {"mode": "logits", "beta": 0.1}
    assert renamed.options_for({"mode", "beta"}, given) == given
    assert renamed.options_for({"estimator", "beta"}, given) == {"estimator": "exact", "beta": 0.1}
    old = {"fields/mode": "logits", "files/log.jsonl/0/begin/options/mode": "other", "log/0/mode": 1.0}
    new = {
        "fields/estimator": "exact",
        "files/log.jsonl/0/begin/options/estimator": "other",
        "log/0/mode": 1.0,
    }
    assert renamed.new_keys(old) == new
    assert same["compare"].compare(old, new).summary() == "equal"


def test_a_time_is_recorded_as_a_key_alone(same):
    logs = [{"loss": 1.0, "srpo/seconds/loss": 0.2, "train_runtime": 3.0, "srpo/memory/peak_gb": 1.5}]
    found = dict(same["recording"].flat(logs, "log"))
    varying = dict.fromkeys(("srpo/seconds/loss", "train_runtime", "srpo/memory/peak_gb"), "(varies)")
    assert found == {"log/0/loss": 1.0} | {f"log/0/{key}": value for key, value in varying.items()}


def test_list_names_every_row_once(same):
    command = [sys.executable, str(SCRIPT), "--list"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert names == [row.name for row in same["rows"].ROWS]
    assert len(set(names)) == len(names)
    expected = {
        f"{routing}-{kind}-{n}"
        for routing in same["rows"].ROUTINGS
        for kind in ("full", "lora")
        for n in (1, 4)
    }
    assert expected <= set(names)
