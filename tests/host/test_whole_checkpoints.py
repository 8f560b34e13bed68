"""A checkpoint is whole when every file that its run wrote is there, as long as it was, and unchanged."""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trl import GRPOTrainer

from harness import LORA, chat_dataset, flat_parameters, make_trainer
from resumed_runs import RUN, SPLITS, half
from srpo_trl.commands.evaluate import evaluate
from srpo_trl.commands.train import last_complete_checkpoint
from srpo_trl.host import unlisted as unlisted_files
from srpo_trl.host.checkpoint_parts import STATE_FILE
from srpo_trl.host.manifest import (
    MANIFEST_FILE,
    BrokenCheckpointError,
    checkpoints_in,
    expendable,
    flaw_of,
    names_in,
    names_of_processes,
    write_manifest,
)
from srpo_trl.teacher.weights import TEACHER_FILE

OPTIONS = RUN | SPLITS["inside a rollout batch"] | {"reward_funcs": half, "save_steps": 1, "max_steps": 2}
FILES = (
    *("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"),
    *("srpo_state.json", "srpo_teacher.safetensors", "srpo_rollouts_rank0.pt", "training_args.bin"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps that left two checkpoints, both inside a rollout batch."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, **OPTIONS).train()
    return folder


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run, to break."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def change(path):
    """Turn one byte in the middle over; the size and the time of the file stay."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


BREAKS = {
    "missing": (Path.unlink, "is missing"),
    "cut off": (cut, "is cut off"),
    "empty": (lambda path: os.truncate(path, 0), "is cut off"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "has changed"),
    "changed": (change, "has changed"),
}


def test_the_list_holds_every_file_with_its_size_and_checksum(run):
    folder = run / "checkpoint-2"
    content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    assert content["format"] == 1
    assert content["is_resumable"] is True
    expected = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
        if path.name != MANIFEST_FILE
    }
    assert set(FILES) <= set(expected)
    assert content["files"] == expected
    assert flaw_of(folder) == ""


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_named_and_the_checkpoint_passed_over(copied, caplog, name, how):
    break_it, flaw = BREAKS[how]
    break_it(copied / "checkpoint-2" / name)
    assert f"{name} {flaw}" in flaw_of(copied / "checkpoint-2")
    with caplog.at_level(logging.WARNING):
        assert last_complete_checkpoint(str(copied)) == str(copied / "checkpoint-1")
    assert f"checkpoint-2 is passed over: {name} {flaw}" in caplog.text


def test_nothing_is_left_where_all_are_broken(copied):
    for step in (1, 2):
        cut(copied / f"checkpoint-{step}" / "optimizer.pt")
    assert last_complete_checkpoint(str(copied)) is None
    for named in (str(copied / "checkpoint-1"), True):
        with pytest.raises(BrokenCheckpointError, match=r"optimizer\.pt is cut off"):
            make_trainer(copied, **OPTIONS).train(resume_from_checkpoint=named)
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        make_trainer(copied / "new", **OPTIONS).train(resume_from_checkpoint=True)


def test_a_list_that_is_cut_off_is_named(copied):
    cut(copied / "checkpoint-2" / MANIFEST_FILE)
    assert f"{MANIFEST_FILE} cannot be read" in flaw_of(copied / "checkpoint-2")
    assert last_complete_checkpoint(str(copied)) == str(copied / "checkpoint-1")


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"is_resumable": true, "files": {}}',
        '{"is_resumable": true, "files": {"model.safetensors": 1}}',
        '{"is_resumable": true, "files": {"model.safetensors": {"bxtes": 1, "sha256": "x"}}}',
        '{"is_resumable": true, "files": {"model.safetensors": {"bytes": null, "sha256": "x"}}}',
        '{"is_resumable": true, "files": {"model.safetensors": {"bytes": 1, "sha256": 2}}}',
        '{"is_resumabme": true, "files": {"model.safetensors": {"bytes": 1, "sha256": "x"}}}',
    ],
)
def test_a_list_that_has_changed_is_named(copied, content):
    (copied / "checkpoint-2" / MANIFEST_FILE).write_text(content)
    assert f"{MANIFEST_FILE} cannot be read" in flaw_of(copied / "checkpoint-2")
    assert last_complete_checkpoint(str(copied)) == str(copied / "checkpoint-1")


def test_files_that_others_add_are_no_fault(copied):
    folder = copied / "checkpoint-2"
    (folder / "README.md").write_text("mine")
    (folder / "notes").mkdir()
    (folder / "notes" / "more.txt").write_text("mine")
    assert flaw_of(folder) == ""
    assert last_complete_checkpoint(str(copied)) == str(folder)


def test_a_checkpoint_named_by_hand_is_refused_before_anything_is_loaded(copied, monkeypatch):
    change(copied / "checkpoint-2" / "optimizer.pt")
    trainer = make_trainer(copied, **OPTIONS | {"max_steps": 3})
    monkeypatch.setattr(GRPOTrainer, "_load_from_checkpoint", lambda *args: pytest.fail("it was loaded"))
    with pytest.raises(BrokenCheckpointError) as error:
        trainer.train(resume_from_checkpoint=str(copied / "checkpoint-2"))
    for part in ("optimizer.pt has changed", "Copy the checkpoint again", f"remove {MANIFEST_FILE}"):
        assert part in str(error.value)
    monkeypatch.undo()
    (copied / "checkpoint-2" / MANIFEST_FILE).unlink()  # what the message says for a change on purpose
    state = copied / "checkpoint-2" / "trainer_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"logging_steps": 3}))
    assert flaw_of(copied / "checkpoint-2") == ""


def test_true_goes_on_from_the_newest_whole_one(copied, tmp_path):
    whole = make_trainer(tmp_path / "whole", **OPTIONS | {"max_steps": 3})
    whole.train()
    cut(copied / "checkpoint-2" / "srpo_teacher.safetensors")
    trainer = make_trainer(copied, **OPTIONS | {"max_steps": 3})
    assert trainer.checkpoints.newest_whole() == str(copied / "checkpoint-1")
    trainer.train(resume_from_checkpoint=True)
    assert torch.equal(flat_parameters(trainer.model), flat_parameters(whole.model))
    assert flaw_of(copied / "checkpoint-2") == ""  # written anew


def test_auto_goes_on_from_the_newest_whole_one_or_begins(copied, tmp_path):
    cut(copied / "checkpoint-2" / "optimizer.pt")
    weights = []
    for folder in (copied, tmp_path / "new"):
        trainer = make_trainer(folder, **OPTIONS | {"max_steps": 3})
        trainer.train(resume_from_checkpoint="auto")
        weights.append(flat_parameters(trainer.model))
        assert trainer.state.global_step == 3
    assert torch.equal(*weights)


def test_a_checkpoint_of_the_model_alone_is_not_resumed(tmp_path):
    options = OPTIONS | {"save_only_model": True, "max_steps": 1}
    make_trainer(tmp_path, **options).train()
    assert last_complete_checkpoint(str(tmp_path)) is None
    assert flaw_of(tmp_path / "checkpoint-1", to_resume=False) == ""
    with pytest.raises(BrokenCheckpointError, match="holds the model alone"):
        make_trainer(tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


# ------------------------------------------------------------------ without a list


@pytest.fixture(scope="module")
def unlisted(tmp_path_factory):
    """A checkpoint as GRPOTrainer writes it: no list, nothing of SRPO."""
    folder = tmp_path_factory.mktemp("unlisted")
    make_trainer(folder, **OPTIONS | {"method": "grpo"}).train()
    assert not (folder / "checkpoint-2" / MANIFEST_FILE).exists()
    return folder


def test_a_checkpoint_of_grpo_is_gone_on_from(unlisted, tmp_path):
    folder = shutil.copytree(unlisted, tmp_path / "run")
    assert last_complete_checkpoint(str(folder)) == str(folder / "checkpoint-2")
    trainer = make_trainer(folder, **OPTIONS | {"method": "grpo", "max_steps": 3})
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("how", ["missing", "cut off", "empty"])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_what_is_cut_off_shows_without_a_list(unlisted, tmp_path, name, how):
    folder = Path(shutil.copytree(unlisted / "checkpoint-2", tmp_path / "checkpoint-2"))
    BREAKS[how][0](folder / name)
    assert name in flaw_of(folder)


@pytest.mark.parametrize("how", ["cut off", "empty"])
def test_weights_that_are_cut_off_show_without_a_list(unlisted, tmp_path, how):
    folder = Path(shutil.copytree(unlisted / "checkpoint-2", tmp_path / "checkpoint-2"))
    BREAKS[how][0](folder / "model.safetensors")
    assert "model.safetensors is cut off" in flaw_of(folder)


def test_a_part_of_the_weights_that_is_missing_shows_without_a_list(unlisted, tmp_path):
    folder = Path(shutil.copytree(unlisted / "checkpoint-2", tmp_path / "checkpoint-2"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors is missing" in flaw_of(folder)


@pytest.mark.parametrize("name", [name for name in FILES if name != "training_args.bin"])
def test_a_copy_that_broke_off_before_the_list_is_passed_over(copied, caplog, name):
    """The list was not copied, and neither was this file."""
    (copied / "checkpoint-2" / MANIFEST_FILE).unlink()
    assert flaw_of(copied / "checkpoint-2") == ""
    (copied / "checkpoint-2" / name).unlink()
    trainer = make_trainer(copied, **OPTIONS)
    with caplog.at_level(logging.WARNING):
        assert trainer.checkpoints.newest_whole() == str(copied / "checkpoint-1")
    assert f"{name} is missing" in caplog.text


def test_srpos_files_have_the_names_that_are_looked_for():
    assert unlisted_files.OF_SRPO == (STATE_FILE, TEACHER_FILE)


# ------------------------------------------------------------------ the best one at the end


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_a_best_checkpoint_that_is_broken_is_not_loaded(tmp_path, adapter):
    trainer = make_trainer(tmp_path, **OPTIONS | {"peft_config": adapter})
    trainer.train()
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    trained = flat_parameters(trainer.model)
    trainer._read_best()
    assert not torch.equal(flat_parameters(trainer.model), trained)
    name = "adapter_model.safetensors" if adapter else "model.safetensors"
    change(tmp_path / "checkpoint-1" / name)
    with pytest.raises(BrokenCheckpointError, match=f"{name} has changed"):
        trainer._read_best()


BEST = OPTIONS | {
    **{"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True},
    **{"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2},
}


def evaluated(folder):
    """A trainer whose first evaluation is the best."""
    trainer = make_trainer(folder, **BEST, eval_dataset=chat_dataset())
    trainer.evaluate = lambda *args, **kwargs: {"eval_score": -float(trainer.state.global_step)}
    return trainer


@pytest.mark.parametrize("has_best", [True, False])
def test_a_run_that_was_moved_finds_its_best_checkpoint(tmp_path, caplog, has_best):
    before = evaluated(tmp_path / "before")
    before.train()
    assert before.state.best_model_checkpoint == str(tmp_path / "before" / "checkpoint-1")
    last = load_file(tmp_path / "before" / "checkpoint-2" / "model.safetensors")
    (tmp_path / "before").rename(tmp_path / "after")
    if not has_best:
        shutil.rmtree(tmp_path / "after" / "checkpoint-1")
    after = evaluated(tmp_path / "after")
    with caplog.at_level(logging.WARNING):
        after.train(resume_from_checkpoint=True)  # it is over: only the best model is loaded
    if has_best:
        assert after.state.best_model_checkpoint == str(tmp_path / "after" / "checkpoint-1")
        assert torch.equal(flat_parameters(after.model), flat_parameters(before.model))
    else:
        assert after.state.best_model_checkpoint is None
        parameters = dict(after.model.named_parameters())
        assert all(torch.equal(parameters[name], value) for name, value in last.items())
    assert ("The best checkpoint, of step 1, is not in" in caplog.text) is not has_best


def test_an_evaluation_looks_at_what_it_reads(copied, capsys):
    command = ["--benchmark", "none", "--bf16", "false", "--use_cpu", "true"]
    change(copied / "checkpoint-1" / "optimizer.pt")
    assert evaluate([str(copied / "checkpoint-1"), *command]) == 2  # there is no such benchmark
    assert "broken checkpoint" not in capsys.readouterr().err
    change(copied / "checkpoint-1" / "model.safetensors")
    assert evaluate([str(copied / "checkpoint-1"), *command]) == 2
    assert "is a broken checkpoint: model.safetensors has changed" in capsys.readouterr().err


# ------------------------------------------------------------------ small functions


def test_files_in_folders_are_listed_too(tmp_path):
    (tmp_path / "global_step2").mkdir()
    (tmp_path / "global_step2" / "states.pt").write_bytes(b"12345")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    assert names_in(tmp_path) == ["global_step2/states.pt", "model.safetensors"]
    write_manifest(tmp_path, names_in(tmp_path), is_resumable=True)
    assert names_in(tmp_path) == ["global_step2/states.pt", "model.safetensors"]
    assert flaw_of(tmp_path) == ""
    cut(tmp_path / "global_step2" / "states.pt")
    assert flaw_of(tmp_path) == "global_step2/states.pt is cut off: it has 2 of 5 bytes"


def test_files_of_other_processes_are_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("srpo_trl.host.manifest._MAX_WAIT", 0.05)
    (tmp_path / "a").touch()
    assert names_of_processes(tmp_path, [["a"], ["b"]]) == (["a"], ["b"])
    monkeypatch.setattr("time.sleep", lambda seconds: (tmp_path / "b").touch())
    assert names_of_processes(tmp_path, [["a"], ["b"]]) == (["a", "b"], [])


@pytest.mark.parametrize(
    ("steps", "limit", "current", "best", "expected"),
    [
        ([1, 2, 3], None, 3, None, []),
        ([1, 2, 3], 0, 3, None, []),
        ([1, 2, 3], 3, 3, None, []),
        ([1, 2, 3], 2, 3, None, [1]),
        ([1, 2, 3], 1, 3, None, [1, 2]),
        ([1, 2, 3], 1, 3, 1, [2]),
        ([1, 2, 3], 2, 3, 1, [2]),
        ([9, 10, 11], 1, 11, 9, [10]),  # numbers, not text
        ([1, 2, 3], 1, 3, 7, [1, 2]),  # the best was removed by hand
        ([2, 3, 4], 1, 3, None, [4, 2]),  # gone on from 2: 4 is of the run before
        ([2, 3, 4], 2, 3, None, [4]),
        ([], 1, 3, None, []),
    ],
)
def test_which_checkpoints_may_go(steps, limit, current, best, expected):
    assert expendable(steps, limit, current, best) == expected


def test_only_folders_named_by_a_step_are_checkpoints(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-best", "checkpoint-9-old", "checkpoint-²"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-11").touch()
    assert [step for step, _ in checkpoints_in(tmp_path)] == [9, 10]


@pytest.mark.parametrize("future", [True, False])
def test_rotation_does_not_look_at_the_clock(tmp_path, future):
    """A copied folder has the time of its copy, and a clock may be set back."""
    options = OPTIONS | {"save_total_limit": 2}
    make_trainer(tmp_path, **options).train()
    (tmp_path / "checkpoint-best").mkdir()  # of the user
    when = 4e9 if future else 1e9
    os.utime(tmp_path / "checkpoint-1", (when, when))
    os.utime(tmp_path / "checkpoint-2", (2e9, 2e9))
    trainer = make_trainer(tmp_path, **options | {"max_steps": 4})
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-3",
        "checkpoint-4",
        "checkpoint-best",
    ]


def test_a_run_that_goes_back_keeps_what_it_writes(tmp_path):
    options = OPTIONS | {"save_total_limit": 2}
    make_trainer(tmp_path, **options | {"max_steps": 4, "save_total_limit": None}).train()
    trainer = make_trainer(tmp_path, **options | {"max_steps": 3})
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [step for step, _ in checkpoints_in(tmp_path)] == [2, 3]
