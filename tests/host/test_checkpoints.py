"""`Checkpoints` by itself: what is written, when it shows, what is refused, and what waits for a step's end."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from accelerate import Accelerator
from transformers import TrainerControl, TrainerState

from srpo_trl.host.checkpoints import Checkpoints
from srpo_trl.host.manifest import MANIFEST_FILE, BrokenCheckpointError, Manifest, flaw_of
from srpo_trl.host.run_lock import LOCK_FILE, FolderInUseError
from srpo_trl.host.staging import STAGING_FOLDER
from srpo_trl.host.step_boundary import StepBoundary


class Part:
    """A part with a file of its name, and a list that all its calls go to."""

    def __init__(self, name, calls):
        self.name, self.calls, self.refusal = name, calls, ""

    def save(self, folder, rank, *, writes):
        self.calls.append(("save", self.name, rank, writes))
        (folder / f"{self.name}.txt").write_text("state")

    def check(self, folder):
        self.calls.append(("check", self.name))
        if self.refusal:
            raise ValueError(self.refusal)

    def load(self, folder, rank, device):
        assert (folder / f"{self.name}.txt").read_text() == "state"
        self.calls.append(("load", self.name, rank, device.type))


@pytest.fixture
def calls():
    return []


@pytest.fixture
def make(tmp_path, calls):
    """A function that makes the checkpoints of one folder, with two parts."""

    def made(folder=tmp_path, **options):
        options = {"manifest": Manifest(), "boundary": StepBoundary([])} | options
        parts = [Part("first", calls), Part("second", calls)]
        return Checkpoints(str(folder), Accelerator(cpu=True), parts=parts, **options)

    return made


def write(folder, state):
    """Write what transformers would."""
    staged = Path(folder) / f"checkpoint-{state.global_step}"
    staged.mkdir(parents=True)
    state.save_to_json(str(staged / "trainer_state.json"))
    (staged / "model.safetensors").write_text(f"weights of {state.global_step}")


def save(checkpoints, step, **values):
    state = TrainerState(global_step=step, **values)
    with checkpoints.staging(state) as folder:
        write(folder, state)
    return state


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


# ------------------------------------------------------------------ writing


def test_every_part_is_asked_in_order(make, calls, tmp_path):
    checkpoints = make()
    save(checkpoints, 3)
    checkpoints.check(str(tmp_path / "checkpoint-3"))
    checkpoints.load(str(tmp_path / "checkpoint-3"))
    checkpoints.load(None)
    assert calls == [
        *[("save", name, 0, True) for name in ("first", "second")],
        *[("check", name) for name in ("first", "second")],
        *[("load", name, 0, "cpu") for name in ("first", "second")],
    ]


def test_a_new_part_needs_no_other_change(make, calls, tmp_path):
    checkpoints = make()
    checkpoints.parts.append(Part("third", calls))
    save(checkpoints, 1)
    assert "third.txt" in json.loads((tmp_path / "checkpoint-1" / MANIFEST_FILE).read_text())["files"]
    (tmp_path / "checkpoint-1" / "third.txt").unlink()
    with pytest.raises(BrokenCheckpointError, match=r"third\.txt is missing"):
        checkpoints.check(str(tmp_path / "checkpoint-1"))


def test_a_checkpoint_shows_when_all_of_it_is_there(make, tmp_path):
    checkpoints = make()
    state = TrainerState(global_step=1)
    with checkpoints.staging(state) as folder:
        write(folder, state)
        assert names(tmp_path) == [STAGING_FOLDER]
    assert names(tmp_path) == ["checkpoint-1"]
    assert flaw_of(tmp_path / "checkpoint-1") == ""
    assert checkpoints.path_of(1) == str(tmp_path / "checkpoint-1")


def test_without_a_manifest_there_is_no_list(make, tmp_path):
    checkpoints = make(manifest=None)
    checkpoints.parts.clear()
    save(checkpoints, 1)
    assert names(tmp_path / "checkpoint-1") == ["model.safetensors", "trainer_state.json"]


def test_a_part_that_cannot_be_written_leaves_nothing(make, tmp_path):
    checkpoints = make()
    save(checkpoints, 1)
    checkpoints.parts[1].save = lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "No space left"))
    with pytest.raises(OSError, match=r"checkpoint-2 could not be written into .* the disk is full"):
        save(checkpoints, 2)
    assert names(tmp_path) == ["checkpoint-1"]
    assert checkpoints.newest_whole() == str(tmp_path / "checkpoint-1")


def test_what_a_kill_leaves_is_no_checkpoint_and_goes_with_the_next(make, tmp_path):
    class Killed(BaseException):
        pass

    def killed(folder, state):
        (Path(folder) / "checkpoint-1").mkdir(parents=True)
        raise Killed

    state = TrainerState(global_step=1)
    with pytest.raises(Killed), make().staging(state) as folder:
        killed(folder, state)
    assert make().newest_whole() is None
    save(make(), 2)
    assert names(tmp_path) == ["checkpoint-2"]


def test_a_checkpoint_that_was_set_aside_gets_its_name_back(make, tmp_path):
    save(make(), 1)
    (tmp_path / STAGING_FOLDER).mkdir()
    (tmp_path / "checkpoint-1").rename(tmp_path / STAGING_FOLDER / "checkpoint-1.replaced")
    make(writes=False)
    assert not (tmp_path / "checkpoint-1").exists()
    make()
    assert flaw_of(tmp_path / "checkpoint-1") == ""


@pytest.mark.parametrize(("limit", "kept"), [(None, [1, 2, 3, 4]), (1, [2, 4]), (3, [2, 3, 4])])
def test_older_ones_go_and_the_best_stays(make, tmp_path, limit, kept):
    checkpoints = make(limit=limit)
    for step in (1, 2, 3, 4):
        save(checkpoints, step, best_global_step=min(step, 2))
    assert names(tmp_path) == [f"checkpoint-{step}" for step in kept]


# ------------------------------------------------------------------ the best one


@pytest.mark.parametrize("best", [1, 2])
def test_the_best_one_is_recorded_under_its_final_name(make, tmp_path, best):
    checkpoints = make()
    save(checkpoints, 1)
    state = save(checkpoints, 2, best_global_step=best, best_model_checkpoint=".saving/elsewhere")
    expected = str(tmp_path / f"checkpoint-{best}")
    recorded = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert state.best_model_checkpoint == recorded["best_model_checkpoint"] == expected


def test_a_best_one_that_is_gone_is_not_pointed_to(make, tmp_path, caplog):
    checkpoints = make()
    save(checkpoints, 1)
    moved, lost = TrainerState(best_global_step=1), TrainerState(best_global_step=7)
    with caplog.at_level(logging.WARNING):
        checkpoints.find_best(TrainerState())
        checkpoints.find_best(moved)
        assert not caplog.text
        checkpoints.find_best(lost)
    assert moved.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    assert lost.best_model_checkpoint is None
    assert "The best checkpoint, of step 7, is not in" in caplog.text


# ------------------------------------------------------------------ runs


def resumed(checkpoints, resume):
    with checkpoints.run(resume) as checkpoint:
        return checkpoint


def test_what_a_run_resumes_from(make, tmp_path):
    checkpoints = make()
    assert resumed(checkpoints, None) is None
    assert resumed(checkpoints, "auto") is None
    assert resumed(checkpoints, True) is True  # transformers says that there is none
    for step in (1, 2):
        save(checkpoints, step)
    for resume in ("auto", True, str(tmp_path / "checkpoint-2")):
        assert resumed(checkpoints, resume) == str(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "first.txt").write_text("other")
    assert resumed(checkpoints, True) == resumed(checkpoints, "auto") == str(tmp_path / "checkpoint-1")
    with pytest.raises(BrokenCheckpointError, match=r"first\.txt has changed"):
        resumed(checkpoints, tmp_path / "checkpoint-2")
    shutil.rmtree(tmp_path / "checkpoint-1")
    assert resumed(checkpoints, "auto") is None
    with pytest.raises(BrokenCheckpointError, match="no checkpoint beside it is whole"):
        resumed(checkpoints, True)


def test_a_model_alone_is_read_but_not_resumed(make, tmp_path):
    checkpoints = make(manifest=Manifest(is_resumable=False))
    save(checkpoints, 1)
    checkpoints.check_whole(str(tmp_path / "checkpoint-1"), to_resume=False)
    with pytest.raises(BrokenCheckpointError, match="holds the model alone"):
        checkpoints.check_whole(str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize("resume", [True, "auto", "checkpoint-1"])
def test_a_part_refuses_before_anything_is_loaded(make, calls, tmp_path, resume):
    checkpoints = make()
    save(checkpoints, 1)
    calls.clear()
    checkpoints.parts[1].refusal = "counted otherwise"
    with (
        pytest.raises(ValueError, match="counted otherwise"),
        checkpoints.run(str(tmp_path / resume) if resume == "checkpoint-1" else resume),
    ):
        pytest.fail("it runs")
    assert calls == [("check", "first"), ("check", "second")]
    assert not (tmp_path / LOCK_FILE).exists()


def test_the_folder_is_the_runs_own_while_it_trains(make, tmp_path):
    checkpoints, other = make(), make()
    with checkpoints.run(None):
        assert (tmp_path / LOCK_FILE).exists()
        with pytest.raises(FolderInUseError), other.run(None):
            pytest.fail("it runs")
        save(checkpoints, 1)
    assert names(tmp_path) == ["checkpoint-1"]
    with other.run(None):
        pass
    with make(writes=False).run(None):
        assert not (tmp_path / LOCK_FILE).exists()


def test_a_folder_that_another_run_has_taken_is_not_written_to(make, tmp_path):
    checkpoints = make()
    with checkpoints.run(None):
        lock = tmp_path / LOCK_FILE
        lock.write_text(json.dumps(json.loads(lock.read_text()) | {"token": "another"}))
        with pytest.raises(FolderInUseError, match="has taken the folder"):
            save(checkpoints, 1)
        assert names(tmp_path) == [LOCK_FILE]


# ------------------------------------------------------------------ the end of a step


@pytest.fixture
def boundary():
    return StepBoundary([])


def test_a_save_inside_a_step_is_due_at_its_end(make, boundary):
    checkpoints, control = make(boundary=boundary), TrainerControl()
    state = TrainerState(global_step=5)
    with checkpoints.run(None):
        assert not checkpoints.puts_off(5)
        assert not checkpoints.is_due(state, control)
        boundary.is_inside = True
        assert checkpoints.puts_off(5)
        assert not checkpoints.is_due(state, control)
        boundary.is_inside = False
        assert checkpoints.is_due(state, control)
        assert not checkpoints.is_due(state, control)
    assert not control.should_training_stop


def test_a_save_that_came_anyway_is_not_due_again(make, boundary):
    checkpoints = make(boundary=boundary)
    with checkpoints.run(None):
        boundary.save_is_due = True
        state = save(checkpoints, 5)
        assert not checkpoints.is_due(state, TrainerControl())
    with checkpoints.run(None):  # another run saves the step again
        boundary.save_is_due = True
        assert checkpoints.is_due(state, TrainerControl())


def test_no_save_after_a_run_that_ended_inside_a_step(make, boundary):
    checkpoints = make(boundary=boundary)

    def broken_off():
        boundary.is_inside = True
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), checkpoints.run(None):
        broken_off()
    with pytest.raises(RuntimeError, match="ended inside the optimizer step after step 4"):
        checkpoints.puts_off(4)


def test_a_signal_saves_once_and_stops(make, boundary):
    class Signal:
        asked = True

        def take(self, device):
            was_asked, self.asked = self.asked, False
            return was_asked

    boundary.preemption = Signal()
    checkpoints, control, state = make(boundary=boundary), TrainerControl(), TrainerState(global_step=2)
    boundary.is_inside = True
    assert not checkpoints.is_due(state, control)
    assert boundary.preemption.asked
    boundary.is_inside = False
    assert checkpoints.is_due(state, control)
    assert control.should_training_stop
    assert not checkpoints.is_due(state, control)
