"""FSDP2, ZeRO-1, -2, -3 and DDP with two processes make the update of one process, teacher and checkpoints included.

On CPUs: gloo in place of NCCL. Each test first asserts that the engine ran and sharded what it is said to shard.
"""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from peft import PromptTuningConfig, get_peft_model

from engine_launch import assert_same, launch
from engine_processes import (
    ACROSS,
    BFLOAT16,
    LOADED,
    RESUMED,
    SCENARIOS,
    continued,
    results,
    resumed,
)
from harness import relative_error, tiny_model
from srpo_trl.host.arguments import refuse_unsupported
from srpo_trl.teacher.weights import TeacherWeights

AT_END = "end of a rollout batch"
CPU_ADAMW = ("zero1_offload", "zero2_offload", "zero3_offload")
EVERYTHING = [*SCENARIOS, *RESUMED, *BFLOAT16]
# What else differs little from one of those that run everything.
RUNS = {
    "fsdp2": [name for name in EVERYTHING if name != "saved head"],  # refused: a unit of its own
    "zero2": EVERYTHING,
    "zero3": EVERYTHING,
    "fsdp2_no_reshard": ["two steps", "one sided", "lora", "inside a rollout batch", *BFLOAT16],
    "fsdp2_offload": ["two steps", "lora", "inside a rollout batch"],
    "fsdp2_sharded_files": [AT_END, "resumed lora"],
    "zero1": ["two steps", "lora", "inside a rollout batch"],
    "zero1_offload": ["adamw", "adamw, lora", "inside a rollout batch"],
    "zero2_offload": ["adamw", "adamw, lora", "inside a rollout batch"],
    "zero3_offload": ["adamw", "adamw, lora", "inside a rollout batch"],
    "ddp": [*SCENARIOS, *RESUMED, *BFLOAT16],
}


def runs_of(kind):
    return [(engine, name) for engine, names in RUNS.items() for name in names if name in kind]


@pytest.fixture(scope="module")
def engine_run(tmp_path_factory):
    """Return an engine's runs: what each process ended with, and their folder. Each engine is started once."""
    made = {}

    def run(engine):
        if engine not in made:
            folder = tmp_path_factory.mktemp(engine)
            made[engine] = launch(engine, folder, *RUNS[engine]), folder
        return made[engine]

    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return results(tmp_path_factory.mktemp("alone"), 1, SCENARIOS)


def test_fsdp2_makes_the_update_of_one_process(tmp_path):
    expected = results(tmp_path / "alone", 1, ["two steps"])["two steps"]
    for rank in launch("fsdp2", tmp_path, "two steps"):
        assert_same(rank["scenarios"]["two steps"], expected, "fsdp2")


@pytest.mark.slow
def test_steps_across_rollout_batches_are_ddps(tmp_path):
    """Rollouts of two teachers in one step, and a head that stays while the teacher moves."""
    expected = launch("ddp", tmp_path, ACROSS)
    for engine in ("fsdp2", "zero2", "zero3"):
        for rank, ddp in zip(launch(engine, tmp_path, ACROSS), expected, strict=True):
            assert ddp["scenarios"][ACROSS]["num_updates"] == 6
            assert_same(rank["scenarios"][ACROSS], ddp["scenarios"][ACROSS], engine)


def accelerator(engine="DEEPSPEED", stage=3, is_fsdp2=False, **zero):
    plugin = SimpleNamespace(zero_stage=stage, deepspeed_config={"zero_optimization": zero})
    state = SimpleNamespace(deepspeed_plugin=plugin if engine == "DEEPSPEED" else None)
    return SimpleNamespace(distributed_type=DistributedType(engine), is_fsdp2=is_fsdp2, state=state)


@pytest.mark.parametrize(
    ("given", "options", "remedy"),
    [
        (accelerator("FSDP"), {}, "fsdp_version: 2"),
        (accelerator(offload_param={"device": "nvme"}), {}, "offload_param"),
        (accelerator(zero_hpz_partition_size=8), {}, "zero_hpz_partition_size"),
        (accelerator(mics_shard_size=2), {}, "mics_shard_size"),
        (accelerator(), {"gradient_share_steps": 1}, "gradient_share_steps=1"),
        (accelerator("FSDP", is_fsdp2=True), {"gradient_share_steps": 1}, "gradient_share_steps=1"),
    ],
)
def test_what_the_teacher_cannot_follow_is_refused(given, options, remedy):
    with pytest.raises(ValueError, match=remedy):
        refuse_unsupported(tiny_model(), given, max_completion_length=16, **options)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (accelerator("FSDP", is_fsdp2=True), {}),
        (accelerator(offload_param={"device": "cpu"}), {}),
        (accelerator(stage=2), {"gradient_share_steps": 1}),
        (accelerator("NO"), {"gradient_share_steps": 1}),
    ],
)
def test_what_it_can_follow_is_taken(given, options):
    refuse_unsupported(tiny_model(), given, max_completion_length=16, **options)


def test_an_adapter_that_learns_a_prompt_is_refused():
    adapter = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="learns a prompt"):
        refuse_unsupported(get_peft_model(tiny_model(), adapter), accelerator("NO"), max_completion_length=16)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "scenario"), runs_of(SCENARIOS))
def test_every_engine_makes_the_update_of_one_process(engine_run, alone, engine, scenario):
    """Groups on both processes, one process without a routed row, iterations, LoRA, shards of unequal size."""
    for rank in engine_run(engine)[0]:
        assert_same(rank["scenarios"][scenario], alone[scenario], engine)


@pytest.mark.slow
def test_a_model_loaded_by_name_is_the_model_given(alone):
    for found in ("update", "teacher"):
        assert torch.equal(alone[LOADED][found], alone["two steps"][found]) or (
            relative_error(alone[LOADED][found], alone["two steps"][found]) < 1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "name"), runs_of(RESUMED))
def test_resumed_run_equals_uninterrupted_run(engine_run, engine, name):
    """Bit for bit, but under DeepSpeed's AdamW on CPUs, which multiplies beta^n up and takes a power when resumed."""
    ranks, folder = engine_run(engine)
    for rank in ranks:
        found = rank["resume"][name]
        for went_on, uninterrupted in zip(found["resumed"], found["uninterrupted"], strict=True):
            error = relative_error(went_on, uninterrupted)
            assert error < 1e-6 if engine in CPU_ADAMW else torch.equal(went_on, uninterrupted)
        assert found["num_updates"][0] == found["num_updates"][1] > 0
    checkpoints = [f"checkpoint-{step}" for step in range(1, 5)]
    assert sorted(p.name for p in (folder / name).iterdir() if p.is_dir()) == checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_teacher_of_two_processes_loads_on_one(engine_run, engine):
    (first, _), folder = engine_run(engine)
    teacher = TeacherWeights(tiny_model(), "ema", 0.05)
    teacher.load(folder / AT_END / "checkpoint-4")
    values = torch.cat([value.double().reshape(-1) for value in teacher.state_dict().values()])
    assert torch.equal(values, first["resume"][AT_END]["uninterrupted"][1])
    assert teacher.num_updates == 4


def assert_went_on(found, uninterrupted):
    for part, expected, tolerance in zip(("student", "teacher"), uninterrupted, (1e-5, 1e-7), strict=True):
        assert relative_error(found[part], expected) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "fsdp2_sharded_files"])
def test_fsdp2_run_goes_on_with_another_number_of_processes(engine_run, tmp_path, engine):
    (first, _), folder = engine_run(engine)
    (rank,) = launch(engine, tmp_path, f"continue={folder / AT_END / 'checkpoint-2'}", num_processes=1)
    assert_went_on(rank["continued"][0], first["resume"][AT_END]["uninterrupted"])
    with pytest.raises(ValueError, match="written under FSDP and cannot be resumed under one process or DDP"):
        continued(tmp_path, 1, str(folder / AT_END / "checkpoint-2"))


@pytest.mark.slow
def test_ddp_run_goes_on_with_one_process(engine_run, tmp_path):
    (first, _), folder = engine_run("ddp")
    found = continued(tmp_path, 1, str(folder / AT_END / "checkpoint-2"))
    assert_went_on(found, first["resume"][AT_END]["uninterrupted"])


@pytest.mark.slow
def test_run_of_one_process_goes_on_with_two_and_under_no_other_engine(tmp_path):
    alone = resumed(tmp_path / "alone", 1, RESUMED[AT_END])
    checkpoint = tmp_path / "alone" / "checkpoint-2"
    for rank in launch("ddp", tmp_path, f"continue={checkpoint}"):
        assert_went_on(rank["continued"][0], alone["uninterrupted"])
    for engine, name in (("fsdp2", "FSDP"), ("zero2", "DEEPSPEED")):
        with pytest.raises(AssertionError, match=f"one process or DDP and cannot be resumed under {name}"):
            launch(engine, tmp_path, f"continue={checkpoint}")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_deepspeed_refuses_its_checkpoint_on_another_number_of_processes(engine_run, tmp_path, engine):
    """It, not we: a run that goes on with a part of the optimizer's state would be worse."""
    folder = engine_run(engine)[1]
    with pytest.raises(AssertionError, match="DP world size of 2 but the current world size is 1"):
        launch(engine, tmp_path, f"continue={folder / AT_END / 'checkpoint-2'}", num_processes=1)


@pytest.mark.slow
def test_rollouts_of_two_processes_are_refused_on_one(engine_run, tmp_path):
    checkpoint = engine_run("ddp")[1] / "inside a rollout batch" / "checkpoint-2"
    with pytest.raises(
        ValueError, match=r"saved under .*num_processes=2, and cannot be resumed under .*num_processes=1"
    ):
        continued(tmp_path, 1, str(checkpoint))


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "name"), runs_of(BFLOAT16))
def test_bfloat16_run_with_sampled_rollouts(engine_run, engine, name):
    """The teacher is float32, moves by 1 - 0.95^n, and gives the student back to the bit."""
    first, second = (rank["bfloat16"][name] for rank in engine_run(engine)[0])
    assert torch.equal(first["student"], second["student"])
    for found in (first, second):
        assert found["mixed_precision"] == "bf16"
        assert found["teacher_dtypes"] == ["torch.float32"]
        assert found["restored"]
        assert not torch.equal(found["installed"], found["student"])
        assert found["moved"] == pytest.approx(1 - 0.95**10, abs=1e-5)
        assert max(found["routed"]) > 0
