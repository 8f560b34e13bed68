"""A resumed run ends with the same weights, bit for bit, as one that never stopped; a half-written save is nothing."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOTrainer

from harness import LORA, make_trainer, replay, tiny_model, tiny_tokenizer
from resumed_runs import RUN, SPLITS, half, states
from srpo_trl.host import checkpoints as checkpointing
from srpo_trl.host.callbacks import TrainingClock
from srpo_trl.host.checkpoint_parts import STATE_FILE, StateFile
from srpo_trl.host.manifest import MANIFEST_FILE, BrokenCheckpointError, names_in, write_manifest
from srpo_trl.teacher.weights import TEACHER_FILE


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_resumed_run_equals_uninterrupted_run(tmp_path, split, peft_config):
    options = RUN | split | {"reward_funcs": half, "peft_config": peft_config}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()

    first = make_trainer(tmp_path / "parts", **options)
    first.train()  # leaves checkpoints 2 and 4; go on from 2 as if killed after it
    second = make_trainer(tmp_path / "parts", **options)
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))

    assert second.state.global_step == 4
    for resumed, uninterrupted in zip(states(second), states(whole), strict=True):
        assert torch.equal(resumed, uninterrupted)
    assert second.teacher.weights.num_updates == whole.teacher.weights.num_updates > 0
    assert any(entry.get("srpo/route/distilled_frac", 0) > 0 for entry in whole.state.log_history[-3:])


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_finished_run_that_is_resumed_trains_no_further(tmp_path, split):
    """As after a kill between the last checkpoint and the saved model."""
    options = RUN | split | {"reward_funcs": half}
    whole = make_trainer(tmp_path, **options)
    whole.train()
    resumed = make_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.state.global_step == 4
    for after, before in zip(states(resumed), states(whole), strict=True):
        assert torch.equal(after, before)
    longer = make_trainer(tmp_path, **options | {"max_steps": 5})
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert longer.state.global_step == 5


def test_run_that_has_used_up_its_time_is_resumed_for_no_further_step(tmp_path):
    options = RUN | SPLITS["one step a batch"] | {"reward_funcs": half, "max_steps": 6}
    first = make_trainer(tmp_path, callbacks=[TrainingClock(limit=1e-9)], **options)
    first.train()
    resumed = make_trainer(tmp_path, callbacks=[TrainingClock(limit=1e-9)], **options)
    resumed.train(resume_from_checkpoint=True)
    assert first.state.global_step == resumed.state.global_step == 1


def test_checkpoint_without_teacher_is_refused(tmp_path):
    options = RUN | SPLITS["one step a batch"] | {"reward_funcs": half}
    make_trainer(tmp_path, **options).train()
    checkpoint = tmp_path / "checkpoint-2"
    (checkpoint / TEACHER_FILE).unlink()
    with pytest.raises(BrokenCheckpointError, match=f"{TEACHER_FILE} is missing"):
        make_trainer(tmp_path, **options).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / MANIFEST_FILE).unlink()  # its other files show that it is SRPO's
    with pytest.raises(BrokenCheckpointError, match=f"{TEACHER_FILE} is missing"):
        make_trainer(tmp_path, **options).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "training_args.bin").unlink()  # by which a trainer's folder is known
    with pytest.raises(FileNotFoundError, match="holds no teacher"):
        make_trainer(tmp_path, **options).train(resume_from_checkpoint=str(checkpoint))


def test_checkpoint_of_another_teacher_kind_is_refused(tmp_path):
    options = RUN | SPLITS["one step a batch"] | {"reward_funcs": half}
    make_trainer(tmp_path, **options).train()
    with pytest.raises(ValueError, match="teacher of kind 'ema'"):
        make_trainer(tmp_path, teacher_model_kind="base", **options).train(resume_from_checkpoint=True)


def test_checkpoint_of_plain_grpo_is_refused(tmp_path):
    options = RUN | SPLITS["one step a batch"] | {"reward_funcs": half}
    make_trainer(tmp_path, method="grpo", **options).train()
    with pytest.raises(FileNotFoundError, match="not written by SRPOTrainer"):
        make_trainer(tmp_path, **options).train(resume_from_checkpoint=True)


def test_checkpoint_of_another_engine_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    """`Trainer` would find its weights at best, and begin with a new optimizer."""
    options = RUN | SPLITS["one step a batch"] | {"reward_funcs": half}
    make_trainer(tmp_path, **options).train()
    path = tmp_path / "checkpoint-2" / STATE_FILE
    state = json.loads(path.read_text())
    assert state["engine"] == ""
    path.write_text(json.dumps(state | {"engine": "FSDP"}))
    write_manifest(path.parent, names_in(path.parent), is_resumable=True)
    trainer = make_trainer(tmp_path, **options)
    monkeypatch.setattr(GRPOTrainer, "_load_from_checkpoint", lambda *args: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match="written under FSDP and cannot be resumed under one process or DDP"):
        trainer.train(resume_from_checkpoint=str(path.parent))


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ({}, {"method": "sdpo"}, ("'srpo'", "'sdpo'")),
        ({}, {"routing": "sdpo"}, ("'srpo'", "'srpo, routing=sdpo'")),
        (
            {"method": "paced", "method_options": {"powers": [2, 1]}},
            {"method": "paced", "method_options": {"powers": [1, 1]}},
            ("[2, 1]", "[1, 1]"),
        ),
        ({}, {"method": "grpo"}, ("'srpo'", "'grpo'")),
    ],
    ids=str,
)
def test_checkpoint_of_another_method_is_refused_before_it_is_loaded(
    tmp_path, monkeypatch, before, after, named
):
    """At the end of a rollout batch, too, where no saved rollout was routed by it."""
    options = RUN | SPLITS["one step a batch"] | {"reward_funcs": half}
    make_trainer(tmp_path, **options | before).train()
    trainer = make_trainer(tmp_path, **options | after)
    monkeypatch.setattr(GRPOTrainer, "_load_from_checkpoint", lambda *args: pytest.fail("it was loaded"))
    with pytest.raises(
        ValueError, match=r"was trained with method=.* cannot be resumed with method="
    ) as error:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(name in str(error.value) for name in named)


class PowerCut(BaseException):
    pass


@pytest.mark.parametrize(("owner", "moment"), [(StateFile, "save"), (checkpointing, "publish")])
def test_interrupted_save_is_never_chosen_and_costs_nothing(tmp_path, monkeypatch, owner, moment):
    options = (
        RUN | SPLITS["one step a batch"] | {"reward_funcs": half, "save_total_limit": 1, "save_steps": 1}
    )
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()

    calls = 0
    original = getattr(owner, moment)

    def cut(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise PowerCut
        return original(*args, **kwargs)

    run = tmp_path / "cut"
    monkeypatch.setattr(owner, moment, cut)
    with pytest.raises(PowerCut):
        make_trainer(run, **options).train()
    monkeypatch.undo()
    assert get_last_checkpoint(str(run)) == str(run / "checkpoint-2")
    resumed = make_trainer(run, **options)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(states(resumed)[0], states(whole)[0])
    assert sorted(p.name for p in run.glob("*") if "checkpoint" in p.name or "saving" in p.name) == [
        "checkpoint-4"
    ]


KILLED_RUN = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    import safetensors.torch
    from harness import make_trainer
    from resumed_runs import RUN, SPLITS, half
    import srpo_trl.teacher.weights as teacher

    write = teacher.save_file
    saves = []
    def killed(values, path, metadata):
        saves.append(path)
        if len(saves) == 2:  # half of the second checkpoint's teacher, then the end
            Path(path).write_bytes(b"half a teacher")
            os.kill(os.getpid(), signal.SIGKILL)
        write(values, path, metadata=metadata)
    teacher.save_file = killed
    make_trainer({folder!r}, **(RUN | SPLITS["one step a batch"] | dict(reward_funcs=half))).train()
"""


def test_kill_9_in_the_middle_of_a_save(tmp_path):
    options = RUN | SPLITS["one step a batch"] | {"reward_funcs": half}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    run = tmp_path / "killed"
    script = textwrap.dedent(KILLED_RUN).format(
        tests=str(Path(__file__).parents[1] / "support"), folder=str(run)
    )
    killed = subprocess.run(
        [sys.executable, "-c", script], env=dict(os.environ), check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert (run / ".saving" / "checkpoint-4" / TEACHER_FILE).read_bytes() == b"half a teacher"

    resumed = make_trainer(run, **options)
    resumed.train(resume_from_checkpoint=True)
    for ours, theirs in zip(states(resumed), states(whole), strict=True):
        assert torch.equal(ours, theirs)


def test_best_checkpoint_keeps_its_final_name(tmp_path):
    options = RUN | SPLITS["one step a batch"]
    trainer = make_trainer(
        tmp_path,
        reward_funcs=half,
        eval_dataset=tiny_eval(),
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=8,
        metric_for_best_model="reward",
        greater_is_better=True,
        load_best_model_at_end=True,
        **options,
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path
    assert best.is_dir()
    for checkpoint in tmp_path.glob("checkpoint-*"):
        recorded = json.loads((checkpoint / "trainer_state.json").read_text())["best_model_checkpoint"]
        assert recorded is None or ".saving" not in recorded


def tiny_eval():
    from harness import chat_dataset

    return chat_dataset()


def test_teacher_saved_is_the_teacher_used(tmp_path):
    trainer = make_trainer(
        tmp_path,
        model=tiny_model(),
        rollout_func=replay(tiny_tokenizer()),
        save_strategy="steps",
        save_steps=1,
        max_steps=2,
    )
    trainer.train()
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "checkpoint-2" / TEACHER_FILE)
    for name, value in trainer.teacher.weights.state_dict().items():
        assert torch.equal(saved[name], value)
