"""One run a folder: the second is refused, and what a killed run leaves behind is recognized."""

import dataclasses
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from harness import make_trainer
from srpo_trl.host import run_lock
from srpo_trl.host.run_lock import LOCK_FILE, FolderInUseError, Holder, RunLock, holder_of, may_be_in_use

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


def write(folder, holder):
    (folder / LOCK_FILE).write_text(json.dumps(dataclasses.asdict(holder)))


def changed(**values):
    return dataclasses.replace(Holder.this_process(), **values)


def take(folder, watch_seconds=0.0, said=None):
    return RunLock.take(folder, watch_seconds=watch_seconds, say=[].append if said is None else said.append)


def test_a_folder_is_taken_once_and_given_back(tmp_path):
    folder = tmp_path / "new" / "run"
    lock = take(folder)
    assert may_be_in_use(folder)
    with pytest.raises(FolderInUseError, match=f"in use by another run, process {os.getpid()} on "):
        take(folder)
    lock.check()
    lock.release()
    assert list(folder.iterdir()) == []
    assert not may_be_in_use(folder)
    take(folder).release()


def test_a_disk_without_hard_links_will_do(tmp_path, monkeypatch):
    def no_link(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", no_link)
    lock = take(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
    assert run_lock._create_in_two_steps(tmp_path / LOCK_FILE, "x") is False
    with pytest.raises(FolderInUseError):
        take(tmp_path)
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_come_at_once_one_gets_the_folder(tmp_path, monkeypatch):
    """The other has seen no lock, and finds one when it puts its own there."""
    first = take(tmp_path)
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)
    assert run_lock._create(tmp_path / LOCK_FILE, Holder.this_process()) is False
    monkeypatch.undo()
    assert run_lock.holder_of(tmp_path) == first._holder
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
    first.release()


def test_another_path_to_the_folder_is_the_same_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run", target_is_directory=True)
    lock = take(tmp_path / "run")
    with pytest.raises(FolderInUseError):
        take(tmp_path / "link")
    lock.release()


def test_the_lock_is_not_pushed_to_the_hub():
    assert LOCK_FILE.startswith("_")  # transformers' pattern for what stays: ["_*", "checkpoint-*"]


def test_a_process_that_lives_keeps_its_folder(tmp_path):
    other = subprocess.Popen(SLEEPER)
    try:
        write(tmp_path, changed(pid=other.pid, started=psutil.Process(other.pid).create_time()))
        with pytest.raises(FolderInUseError, match=f"process {other.pid} on "):
            take(tmp_path)
        os.kill(other.pid, signal.SIGKILL)
        while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        take(tmp_path).release()  # nobody has asked for its exit status yet
    finally:
        other.kill()
        other.wait()


def test_a_process_that_is_gone_has_left_its_lock_behind(tmp_path):
    other = subprocess.Popen(SLEEPER)
    write(tmp_path, changed(pid=other.pid, started=psutil.Process(other.pid).create_time()))
    other.kill()
    other.wait()
    assert not may_be_in_use(tmp_path)
    said = []
    take(tmp_path, said=said).release()
    assert "left behind by a run that is gone" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_another_process_has_now_is_no_run(tmp_path):
    write(tmp_path, changed(started=psutil.Process().create_time() - 3600.0))
    take(tmp_path).release()


@pytest.mark.parametrize("content", ["", '{"host": "x"', '{"host": "x"}', "[]"])
def test_a_lock_that_cannot_be_read_is_left_behind_unless_it_changes(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    assert may_be_in_use(tmp_path)
    take(tmp_path, watch_seconds=0.05).release()


@pytest.mark.parametrize(
    "values", [{"pid": "1"}, {"pid": -1}, {"pid": 2**40}, {"started": None}, {"booted": "x"}, {"token": 1}]
)
def test_a_lock_with_values_of_another_kind_cannot_be_read(tmp_path, values):
    write(tmp_path, changed(**values))
    assert holder_of(tmp_path) is None
    assert may_be_in_use(tmp_path)
    take(tmp_path, watch_seconds=0.05).release()


def test_a_clock_that_is_set_ends_no_run(tmp_path, monkeypatch):
    """Start times are told from the machine's start, which moves with its clock."""
    lock = take(tmp_path)
    booted, started = run_lock._times(os.getpid())
    monkeypatch.setattr(run_lock, "_times", lambda pid: (booted + 7200.0, started + 7200.0))
    with pytest.raises(FolderInUseError, match="in use by another run"):
        take(tmp_path)
    lock.release()


def test_another_machines_lock_that_is_touched_is_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(run_lock, "_POLL_SECONDS", 0.01)
    lock = take(tmp_path)
    monkeypatch.setattr(run_lock, "_machine", lambda: "another machine")
    said = []
    with pytest.raises(FolderInUseError, match="another run"):
        take(tmp_path, watch_seconds=5.0, said=said)
    assert "from another machine" in said[0]
    lock._is_released.set()  # as if that machine were switched off
    time.sleep(0.1)
    taken = take(tmp_path, watch_seconds=0.1, said=said)
    with pytest.raises(FolderInUseError, match="has taken the folder"):
        lock.check()  # and came back
    lock.release()
    taken.check()  # the first has not removed the second's
    taken.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_a_third_run_has_put_there_is_not_removed(tmp_path):
    seen, third = changed(started=1.0), changed(pid=1)
    write(tmp_path, third)
    assert run_lock._remove_left_behind(tmp_path / LOCK_FILE, seen) is False
    assert run_lock.holder_of(tmp_path) == third
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_a_lock_removed_by_hand_comes_back_with_the_next_save(tmp_path):
    lock = take(tmp_path)
    (tmp_path / LOCK_FILE).unlink()
    lock.check()
    assert run_lock.holder_of(tmp_path) == lock._holder
    lock.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_process_does_not_give_the_folder_back(tmp_path):
    lock = take(tmp_path)
    child = multiprocessing.get_context("fork").Process(target=lock.release)
    child.start()
    child.join()
    assert (tmp_path / LOCK_FILE).exists()
    lock.release()


# ------------------------------------------------------------------ trainers


def test_a_second_run_is_refused_before_it_writes_and_the_first_goes_on(tmp_path):
    refused, names = [], []

    class Rival:
        def __call__(self, completions, **kwargs):
            if not refused:
                names.append(sorted(path.name for path in tmp_path.iterdir()))
                rival = make_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
                with pytest.raises(FolderInUseError, match="another run") as error:
                    rival.train()
                refused.append(str(error.value))
                names.append(sorted(path.name for path in tmp_path.iterdir()))
            return [float(len(completion[-1]["content"]) % 2) for completion in completions]

        __name__ = "rival"

    trainer = make_trainer(tmp_path, reward_funcs=Rival(), max_steps=2, save_strategy="steps", save_steps=1)
    trainer.train()
    assert trainer.state.global_step == 2
    assert names[0] == names[1]
    assert str(tmp_path) in refused[0]
    assert not (tmp_path / LOCK_FILE).exists()


def test_trainers_one_after_another_share_a_folder(tmp_path):
    def broken(completions, **kwargs):
        raise KeyboardInterrupt

    for _ in range(2):
        make_trainer(tmp_path).train()
        with pytest.raises(KeyboardInterrupt):
            make_trainer(tmp_path, reward_funcs=broken).train()
        assert not (tmp_path / LOCK_FILE).exists()


def test_a_folder_that_cannot_be_locked_is_no_matter_where_nothing_is_saved(tmp_path, monkeypatch, caplog):
    def read_only(*args):
        raise OSError(30, "Read-only file system")

    first = make_trainer(tmp_path / "a", save_strategy="no")
    second = make_trainer(tmp_path / "b", save_strategy="steps")
    monkeypatch.setattr(run_lock, "_create", read_only)
    first.train()
    assert "It is not locked" in caplog.text
    with pytest.raises(OSError, match=r"cannot be written to: .*Read-only"):
        second.train()


def test_what_another_run_is_replacing_is_left_alone(tmp_path):
    """A trainer gives a set-aside checkpoint its name back, unless the run that set it aside is alive."""
    staging = tmp_path / ".saving"
    (staging / "checkpoint-1.replaced").mkdir(parents=True)
    lock = take(tmp_path)
    make_trainer(tmp_path)
    assert (staging / "checkpoint-1.replaced").is_dir()
    lock.release()
    make_trainer(tmp_path)
    assert (tmp_path / "checkpoint-1").is_dir()
