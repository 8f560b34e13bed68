"""kill -9 at any moment, a full disk, a read-only folder: the last complete checkpoint stays, loads, and goes on.

A run goes on to the same student and teacher, bit for bit, as one that nothing happened to.
"""

import errno
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers.trainer_utils import get_last_checkpoint

from harness import chat_dataset, config, contains_answer, make_trainer
from killed_runs import (
    ACCUMULATING,
    MOMENTS,
    OPTIONS,
    log_of,
    result,
    run,
    run_two,
    small_disk,
    start,
)
from srpo_trl import SRPOTrainer
from srpo_trl.commands.train import last_complete_checkpoint, train
from srpo_trl.host.manifest import MANIFEST_FILE
from srpo_trl.host.run_lock import RunLock
from srpo_trl.host.staging import STAGING_FOLDER, explained_failure
from srpo_trl.runs.log import RunLog

NUM_RANDOM_KILLS = 2
NUM_RANDOM_KILLS_SLOW = 40
FAST = (
    *("before the first save", "in the optimizer's file", "in the rollouts' file"),
    *("before the checkpoint has its name", "while older ones go", "in a generation"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nothing happens to, by their options; each is made once."""
    made = {}

    def result_of(options):
        key = repr(sorted(options.items(), key=str))
        if key not in made:
            folder = tmp_path_factory.mktemp("whole") / "run"
            assert run(folder, options=options) == 0, log_of(folder)
            made[key] = result(folder)
        return made[key]

    return result_of


def assert_same(found, expected):
    assert set(found) == {"student", "teacher"}
    for name, values in found.items():
        assert torch.equal(values, expected[name]), name
    assert not torch.equal(found["student"], found["teacher"])


def checkpoints(folder):
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


# ------------------------------------------------------------------ kill -9


@pytest.mark.parametrize(
    "moment", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MOMENTS]
)
def test_killed_run_goes_on(tmp_path, whole, moment):
    options = ACCUMULATING if moment == "between micro-batches" else OPTIONS
    folder = tmp_path / "run"
    assert run(folder, moment, options) == -signal.SIGKILL, log_of(folder)
    last = last_complete_checkpoint(str(folder))
    assert (last is None) == (moment == "before the first save")
    assert get_last_checkpoint(str(folder)) == last  # no half of one beside it that others would choose

    assert run(folder, options=options) == 0, log_of(folder)
    assert_same(result(folder), whole(options))
    assert not (folder / STAGING_FOLDER).exists()


def killed_at_random(parent, num_kills, duration):
    """Kill runs, each until it has come to its end in spite of it; yield the folder of each that has."""
    rng, num_survived, folder = random.Random(0), 0, parent / "run-0"
    while True:
        process = start(folder)
        if num_survived < num_kills:
            process.join(rng.uniform(0.2, 1.2) * duration)
            process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            num_survived += 1
            continue
        assert process.exitcode == 0, log_of(folder)
        assert checkpoints(folder) == [OPTIONS["max_steps"]]
        yield folder
        if num_survived == num_kills:
            return
        folder = parent / f"run-{num_survived}"


@pytest.mark.parametrize(
    "num_kills", [NUM_RANDOM_KILLS, pytest.param(NUM_RANDOM_KILLS_SLOW, marks=pytest.mark.slow)]
)
def test_run_killed_at_random_times_ends_with_the_same_weights(tmp_path, whole, num_kills):
    expected = whole(OPTIONS)
    began = time.monotonic()
    assert run(tmp_path / "timed") == 0
    for folder in killed_at_random(tmp_path, num_kills, time.monotonic() - began):
        assert_same(result(folder), expected)


def test_kill_while_a_checkpoint_is_replaced(tmp_path):
    """A save onto an existing checkpoint sets that one aside; the next trainer gives it its name back."""
    trainer = make_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    staging = tmp_path / STAGING_FOLDER
    staging.mkdir()
    (tmp_path / "checkpoint-1").rename(staging / "checkpoint-1.replaced")
    assert last_complete_checkpoint(str(tmp_path)) is None
    make_trainer(tmp_path, max_steps=1)
    assert last_complete_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-1")


TWO = OPTIONS | {"per_device_train_batch_size": 2, "ddp_find_unused_parameters": False, "ddp_timeout": 60}


@pytest.mark.parametrize(
    "moment",
    [
        "in the rollouts' file",
        pytest.param("in a teacher pass", marks=pytest.mark.slow),
        pytest.param("in an optimizer step", marks=pytest.mark.slow),
        pytest.param("before a save", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_processes_is_killed(tmp_path, moment, victim):
    folder, unharmed = tmp_path / "run", tmp_path / "unharmed"
    if moment == "in the rollouts' file" and victim == 1:
        pytest.skip("the moment is named after the first process's file")
    assert run_two(unharmed, [None, None], TWO) == [0, 0], log_of(unharmed)
    codes = run_two(folder, [moment if rank == victim else None for rank in (0, 1)], TWO)
    assert codes[victim] == -signal.SIGKILL, log_of(folder)
    assert codes[1 - victim] != 0  # it does not wait forever, nor go on alone
    assert last_complete_checkpoint(str(folder))
    assert run_two(folder, [None, None], TWO) == [0, 0], log_of(folder)
    for rank in (0, 1):
        assert_same(result(folder, rank), result(unharmed, rank))


@pytest.mark.slow
def test_two_processes_are_both_refused_a_folder_in_use(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lock = RunLock.take(folder)
    try:
        assert run_two(folder, [None, None], TWO) == [1, 1]
    finally:
        lock.release()
    assert log_of(folder).count("is in use by another run") == 2
    assert not checkpoints(folder)


@pytest.mark.slow
def test_two_processes_both_learn_of_a_broken_checkpoint(tmp_path):
    """One of them reads it."""
    folder = tmp_path / "run"
    assert run_two(folder, [None, None], TWO | {"max_steps": 2, "save_total_limit": None}) == [0, 0]
    listed = json.loads((folder / "checkpoint-2" / MANIFEST_FILE).read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth", "srpo_rollouts_rank0.pt", "srpo_rollouts_rank1.pt"} <= set(
        listed
    )
    (folder / "checkpoint-2" / "rng_state_1.pth").unlink()
    assert run_two(folder, ["named"] * 2, TWO) == [1, 1], log_of(folder)
    assert log_of(folder).count("rng_state_1.pth is missing") >= 2
    assert run_two(folder, [None, None], TWO | {"max_steps": 3}) == [0, 0], log_of(folder)
    assert 3 in checkpoints(folder)


# ------------------------------------------------------------------ disks


@pytest.fixture
def disk(tmp_path):
    """A folder on a file system of its own, with room for two checkpoints; and a function that remounts it."""
    folder = tmp_path / "disk"
    try:
        with small_disk(folder, "1m") as remount:
            yield folder, remount
    except PermissionError as error:
        pytest.skip(str(error))


KEEP_ALL = OPTIONS | {"save_total_limit": None}


def test_full_disk_loses_nothing_written_before(disk, whole):
    folder, remount = disk[0] / "run", disk[1]
    assert run(folder, options=KEEP_ALL) == 1
    assert "could not be written into" in log_of(folder).splitlines()[-2]
    assert "bytes are free" in log_of(folder)
    assert checkpoints(folder) == [1, 2]
    assert not (folder / STAGING_FOLDER).exists()
    remount("size=16m")
    assert run(folder, options=KEEP_ALL) == 0, log_of(folder)
    assert_same(result(folder), whole(OPTIONS))


def test_read_only_disk_is_refused_before_anything_is_loaded(disk, capsys):
    folder, remount = disk
    remount("ro")
    check_refused(folder / "run", "is read-only", capsys)


def test_a_file_in_place_of_the_folder_is_refused_before_anything_is_loaded(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    check_refused(tmp_path / "file" / "run", "is a file", capsys)


def test_a_folder_without_the_right_to_write_is_refused(tmp_path, capsys, monkeypatch):
    """The superuser may write anywhere, so the answer of the system is given here."""
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    check_refused(tmp_path / "run", "is read-only", capsys)


def check_refused(folder, reason, capsys):
    with pytest.raises(ValueError, match=f"cannot take checkpoints: .*{reason}"):
        SRPOTrainer(
            model="no/such-model",
            reward_funcs=contains_answer,
            args=config(folder, save_strategy="steps"),
            train_dataset=chat_dataset(),
        )
    command = [
        "--output_dir",
        str(folder),
        "--model_name_or_path",
        "no/such-model",
        "--benchmark",
        "chemistry",
    ]
    assert train([*command, "--use_cpu", "true", "--bf16", "false"]) == 2
    assert f"cannot take the model: {folder.parent} {reason}" in capsys.readouterr().err


def full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def full_for_torch(values, path, *args, **kwargs):
    Path(path).write_bytes(b"half")
    raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 576 vs 470")


def full_for_safetensors(*args, **kwargs):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("writer", "failure"),
    [
        ("transformers.PreTrainedModel.save_pretrained", full_for_safetensors),
        ("torch.save", full_for_torch),
        ("srpo_trl.teacher.weights.save_file", full_for_safetensors),
        ("srpo_trl.host.checkpoint_parts.StateFile.save", full),
        ("srpo_trl.host.manifest.write_manifest", full),
        ("srpo_trl.host.staging._sync_to_disk", full),
        ("os.rename", full),
    ],
)
def test_every_write_that_fails_says_so_and_costs_nothing(tmp_path, monkeypatch, writer, failure):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path, **options)
    with monkeypatch.context() as patched:
        break_at_the_second_save(patched, trainer, writer, failure)
        with pytest.raises(OSError, match="checkpoint-2 could not be written into"):
            trainer.train()
    assert checkpoints(tmp_path) == [1]
    assert not (tmp_path / STAGING_FOLDER).exists()
    resumed = make_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=last_complete_checkpoint(str(tmp_path)))
    assert checkpoints(tmp_path) == [1, 2]


def break_at_the_second_save(patched, trainer, writer, failure):
    save = trainer._save_checkpoint

    def broken(*args, **kwargs):
        if trainer.state.global_step == 2:
            patched.setattr(writer, failure)
        save(*args, **kwargs)

    patched.setattr(trainer, "_save_checkpoint", broken)


FAILURES = {
    "ENOSPC": ("the disk is full", "Make room"),
    "EDQUOT": ("the quota on this disk is used up", "larger quota"),
    "EFBIG": ("a file would become larger than", "Raise the limit"),
    "EROFS": ("the disk is read-only", "Make it writable"),
    "EACCES": ("there is no right to write", "Change the folder's rights"),
    "EIO": ("the disk reports an error", "Check the disk"),
}
# As Python says it, as safetensors does, and as torch.save hides it: then the system is asked.
SAID_BY = {
    "python": lambda number: OSError(number, os.strerror(number)),
    "safetensors": lambda number: SafetensorError(
        f"Error while serializing: I/O error: x (os error {number})"
    ),
    "torch": lambda number: RuntimeError(
        "[enforce fail at inline_container.cc:664] . unexpected pos 576 vs 470"
    ),
}


@pytest.mark.parametrize("said_by", SAID_BY)
@pytest.mark.parametrize("name", FAILURES)
def test_a_write_that_fails_is_named_as_what_it_is(tmp_path, monkeypatch, name, said_by):
    number = getattr(errno, name)

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    explained = explained_failure(str(tmp_path), "checkpoint-2", clears=True)
    with pytest.raises(OSError, match="checkpoint-2 could not be written into") as error, explained:
        raise SAID_BY[said_by](number)
    assert error.value.errno == number
    for text in FAILURES[name]:
        assert text in str(error.value)
    others = [reason for other, (reason, _) in FAILURES.items() if other != name]
    assert not [reason for reason in others if reason in str(error.value)]


def test_a_failure_without_a_known_cause_guesses_none(tmp_path):
    with (
        pytest.raises(
            OSError, match=r"written into .*: something else\n.*Repair the folder or make room"
        ) as error,
        explained_failure(str(tmp_path), "checkpoint-2", clears=True),
    ):
        raise RuntimeError("something else")
    assert error.value.errno is None


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no limit on the size of files")
def test_a_limit_on_the_size_of_files_is_no_full_disk(tmp_path):
    """What `ulimit -f` sets; torch.save says of it only that a position is unexpected."""
    folder = tmp_path / "run"
    assert run(folder, "limit on files", KEEP_ALL) == 1
    text = log_of(folder)
    assert "a file would become larger than this process or this disk allows" in text
    assert "the disk is full" not in text
    assert checkpoints(folder) == [1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_log_that_cannot_be_written_names_its_file():
    with pytest.raises(OSError, match="No space left") as error:
        RunLog(Path("/dev/full")).append({"step": 1})
    (note,) = error.value.__notes__
    assert note.startswith("Raised while a line was added to /dev/full.")
