"""`srpo-trl plan` against bytes counted by hand, against itself, and at the command line.

What runs really hold is compared in test_memory_measured.py.
"""

import dataclasses
import json

import pytest
import torch
from transformers import Qwen3Config
from trl import ModelConfig

from harness import config
from memory_probe import ROOT
from srpo_trl import cli
from srpo_trl.commands.plan.engines import Engine, read_engine
from srpo_trl.commands.plan.estimate import BACKWARD, FORWARD, SAMPLING, TEACHER, UPDATE
from srpo_trl.commands.plan.fitting import find_fit, largest_micro_batch, micro_batches
from srpo_trl.commands.plan.losses import LossSizes
from srpo_trl.commands.plan.phases import estimate_memory
from srpo_trl.commands.plan.run import RunSpec
from srpo_trl.commands.plan.step import FakeModels
from srpo_trl.loss.ops import DistillationSpec
from srpo_trl.methods import routers
from srpo_trl.methods.record import Method, Scorer
from srpo_trl.methods.scorers import INITIAL

ACCELERATE = ROOT / "configs" / "accelerate"
SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "architectures": ["Qwen3ForCausalLM"],
}
LINEAR = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)  # q and o, k and v, the MLP's three, of two layers
N = 512 * 64 + LINEAR + 2 * (2 * 16 + 2 * 64) + 64  # embedding, linear layers, norms of two layers, last norm
LORA = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"]}
ADAPTER = 2 * (2 * (64 + 64) + 2 * (64 + 32))
PROMPT, COMPLETION = 40, 24
MODELS = FakeModels()  # each pass is simulated once


def the_run(engine=None, *, memory=None, model=None, teachers=None, **options):
    """A run of 8 rollouts a step; options named as ModelConfig's fields go there, the others to the trainer's."""
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    model_options = {name: options.pop(name) for name in list(options) if name in names}
    defaults = {
        "bf16": True,
        "optim": "adamw_torch_fused",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_completion_length": COMPLETION,
        "distillation_topk": 20,
    }
    training = config("unused", **(defaults | options))
    model_config = ModelConfig(model_name_or_path="tiny", **({"dtype": "float32"} | model_options))
    model = model or Qwen3Config(**SIZES)
    return RunSpec(
        training, model_config, model, engine or Engine(), PROMPT, True, memory, teachers=teachers or {}
    )


def of_accelerate(name, num_processes=None):
    return read_engine(str(ACCELERATE / f"{name}.yaml"), num_processes)


def components(run, micro_batch=1):
    return {c.name: c for c in estimate_memory(run, MODELS, micro_batch).components}


def held(run, *names, phase=UPDATE):
    """Bytes of the named components on one process at a phase, None where there is no such component."""
    found = components(run)
    return [found[name].phases.get(phase, 0) if name in found else None for name in names]


# ------------------------------------------------------------------ engines

ENGINES = {
    "single": Engine(),
    "ddp": Engine("ddp", 2),
    "fsdp2": Engine("fsdp2", 2),
    "fsdp2_no_reshard": Engine("fsdp2", 2, reshards=False),
    "multi_node": Engine("fsdp2", 16, num_machines=2),
    "zero1": Engine("zero1", 2),
    "zero1_offload": Engine("zero1", 2, optimizer_on_cpu=True),
    "zero2": Engine("zero2", 2),
    "zero2_offload": Engine("zero2", 2, optimizer_on_cpu=True),
    "zero3": Engine("zero3", 2),
    "zero3_offload": Engine("zero3", 2, parameters_on_cpu=True, optimizer_on_cpu=True),
}


def test_every_accelerate_config_is_read():
    assert {path.stem: read_engine(str(path)) for path in ACCELERATE.glob("*.yaml")} == ENGINES
    assert of_accelerate("zero3", 8).num_processes == 8
    assert of_accelerate("ddp", 1) == Engine()
    assert read_engine(None, 4) == Engine("ddp", 4)


def test_a_deepspeed_file_gives_the_sizes_of_buffers(tmp_path):
    zero = {
        "stage": 3,
        "reduce_bucket_size": "auto",
        "stage3_max_live_parameters": 1e6,
        "sub_group_size": 5e5,
        "offload_optimizer": {"device": "cpu"},
    }
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": zero}))
    file = tmp_path / "a.yaml"
    file.write_text(
        "{compute_environment: LOCAL_MACHINE, distributed_type: DEEPSPEED, num_machines: 1, num_processes: 4,"
        " deepspeed_config: {deepspeed_config_file: ds.json}}"
    )
    expected = Engine(
        "zero3", 4, optimizer_on_cpu=True, reduce_bucket=None, max_live=1_000_000, sub_group=500_000
    )
    assert read_engine(str(file)) == expected


# Bytes per parameter on each of four processes: weights, fp32 weights of the optimizer, its state, teacher, gradients
# in the backward of eight micro-batches, gradients at the update. Trained in bf16 with float32 weights.
PER_PARAMETER = {
    "single": (4, None, 8, 4, 4, 4),
    "ddp": (4, None, 8, 4, 4, 4),
    "fsdp2": (1, None, 2, 1, 2, 1),  # whole bf16 gradients until the step's last micro-batch
    "fsdp2_no_reshard": (1, None, 2, 1, 2, 1),
    "multi_node": (1, None, 2, 1, 2, 1),
    "zero1": (2, 1, 2, 4, 2, 2),
    "zero2": (2, 1, 2, 4, 0.5, 0.5),
    "zero3": (0.5, 1, 2, 1, 0.5, 0.5),
    "zero3_offload": (0.5, 1, 2, 1, 0.5, 0.5),
}


@pytest.mark.parametrize("name", PER_PARAMETER)
def test_what_each_engine_holds(name):
    run = the_run(of_accelerate(name, None if name == "single" else 4))
    lasting = held(run, "weights", "optimizer's fp32 weights", "optimizer state", "teacher")
    gradients = [*held(run, "gradients", phase=BACKWARD), *held(run, "gradients")]
    expected = [value and value * N for value in PER_PARAMETER[name]]
    assert [*lasting, *gradients] == expected


def test_buffers_of_engines():
    bucket = 500_000_000 * 2  # of bf16
    zero1, zero3 = (
        components(the_run(of_accelerate(name, 4)))["gradient buckets"] for name in ("zero1", "zero3")
    )
    assert zero1.phases == {BACKWARD: bucket}
    assert zero3.phases[SAMPLING] == bucket
    assert held(the_run(of_accelerate("ddp")), "gradient buckets") == [4 * N]
    assert held(the_run(), "gradient buckets") == [None]
    run = the_run(Engine("zero3", 4, sub_group=1000))
    assert held(run, "buffers of loss, sampling, update") < held(
        the_run(Engine("zero3", 4)), "buffers of loss, sampling, update"
    )


def test_layers_that_stay_gathered_cost_a_copy_of_the_weights():
    gathered = "weights gathered, restored"
    many = Qwen3Config(**SIZES | {"num_hidden_layers": 8})
    freed, kept = (
        held(the_run(of_accelerate(name, 4), model=many), gathered, phase=FORWARD)[0]
        for name in ("fsdp2", "fsdp2_no_reshard")
    )
    layer = (LINEAR // 2 + 160) * 2
    outside = (512 * 64 + 64) * 2
    assert (freed, kept) == (outside + 3 * layer, outside + 8 * layer + 2 * layer)


def test_offload_moves_what_it_shards_to_the_host():
    plan = estimate_memory(the_run(of_accelerate("zero3_offload", 4)), MODELS, 1)
    on_cpu = {c.name for c in plan.components if c.on_cpu}
    assert on_cpu == {
        "weights",
        "optimizer's fp32 weights",
        "optimizer state",
        "teacher",
        "student's weights set aside",
        "gradients",
    }
    assert plan.cpu_peak == (0.5 + 1 + 2 + 1 + 0.5 + 0.5) * N  # set aside during the teacher pass alone
    kept = estimate_memory(the_run(of_accelerate("zero3", 4)), MODELS, 1)
    assert kept.cpu_peak == 0
    assert kept.total(TEACHER) == plan.total(TEACHER) + plan.total(TEACHER, on_cpu=True)


# ------------------------------------------------------------------ numbers and adapters


def test_number_formats():
    names = ("weights", "gradients", "optimizer state", "teacher")
    assert held(the_run(bf16=False), *names) == [4 * N, 4 * N, 8 * N, 4 * N]
    assert held(the_run(dtype="bfloat16"), *names) == [2 * N, 2 * N, 4 * N, 4 * N]  # an fp32 average
    assert held(the_run(of_accelerate("zero3", 4), bf16=False), *names) == [N, N, 2 * N, N]
    # bf16 weights wait while the fp32 average's values are in the parameters
    assert held(the_run(dtype="bfloat16"), "student's weights set aside", phase=TEACHER) == [2 * N]
    assert held(the_run(), "student's weights set aside", phase=TEACHER) == [None]


def test_optimizers():
    assert held(the_run(optim="sgd"), "optimizer state") == [None]
    assert held(the_run(optim="adamw_bnb_8bit"), "optimizer state") == [2 * N]


def test_lora_trains_an_adapter_on_one_base():
    names = ("weights", "gradients", "optimizer state", "teacher", "reference model")
    run = the_run(beta=0.1, **LORA)
    assert held(run, *names) == [4 * (N + ADAPTER), 4 * ADAPTER, 8 * ADAPTER, 4 * ADAPTER, None]
    assert held(the_run(beta=0.1), "reference model") == [4 * N]


def test_qlora_stores_linear_layers_in_four_bits():
    run = the_run(dtype="bfloat16", load_in_4bit=True, **LORA)
    rest = 2 * (N - LINEAR + ADAPTER)
    assert held(run, "weights") == [LINEAR * (0.5 + 4 / 64) + rest]
    assert held(run, "optimizer state", "teacher") == [4 * ADAPTER, 4 * ADAPTER]
    assert held(run, "weights gathered, restored", phase=FORWARD) == [64 * 128 * 2]
    nested = the_run(dtype="bfloat16", load_in_4bit=True, use_bnb_nested_quant=True, **LORA)
    assert held(nested, "weights") == [LINEAR * (0.5 + 1 / 64 + 4 / (64 * 256)) + rest]


# ------------------------------------------------------------------ teacher


def test_teachers():
    base = {"dtype": "bfloat16", "teacher_model_kind": "base"}
    assert held(the_run(**base), "teacher") == [2 * N]
    assert held(the_run(teacher_model_kind="live"), "teacher") == [None]
    # the live teacher's head is copied since the student moves on; the average's own is used as it lies there
    assert held(the_run(teacher_model_kind="live"), "teacher's LM head") == [512 * 64 * 4]
    assert held(the_run(), "teacher's LM head") == [None]
    assert held(the_run(teacher_model_kind="live"), "teacher's LM head", phase=SAMPLING) == [0]  # used up


def test_a_step_that_straddles_two_rollout_batches_keeps_the_first_ones_head():
    run = the_run(steps_per_generation=6)  # 8 rollouts a step, 12 sampled at a time
    head = 512 * 64 * 4
    assert run.rollouts_held == 16  # step 2: the last 4 of the first batch, and the second one
    assert held(run, "teacher's LM head", phase=SAMPLING) == [head]
    assert held(run, "teacher's LM head") == [head]
    live = the_run(steps_per_generation=6, teacher_model_kind="live")
    assert held(live, "teacher's LM head") == [2 * head]
    whole = the_run(steps_per_generation=8)
    assert not whole.steps_straddle
    assert whole.rollouts_held == 16


def test_teacher_states_are_one_vector_per_token():
    states = "teacher's hidden states"
    size = 8 * COMPLETION * 64 * 4
    assert held(the_run(), states) == [size]
    assert held(the_run(), states, phase=TEACHER) == [2 * size]  # the last rollouts' are still there
    found = components(the_run(teacher_states_on_cpu=True))[states]
    assert found.on_cpu


def test_without_distillation_there_is_no_teacher():
    plan = estimate_memory(the_run(method="grpo"), MODELS, 1)
    assert not [c.name for c in plan.components if "teacher" in c.name]
    assert TEACHER not in [phase for c in plan.components if c.name == "activations" for phase in c.phases]


# ------------------------------------------------------------------ scorers

SMALLER = {"hidden_size": 32, "num_hidden_layers": 1}
N_SMALLER = 512 * 32 + 32 * 64 * 2 + 32 * 32 * 2 + 3 * 32 * 128 + 2 * 16 + 2 * 32 + 32


def external(dtype="bfloat16", **sizes):
    """The config of an external teacher, as its folder has it."""
    return Qwen3Config(**SIZES | SMALLER | sizes, dtype=dtype)


def with_teacher(method, engine=None, *, teacher=None, **options):
    """A run with one external teacher."""
    teachers = {"teacher": teacher or external()}
    return the_run(engine, method=method, teacher_model="folder", teachers=teachers, **options)


# Bytes per parameter on each of four processes, of a teacher in bfloat16 and one in float32.
PER_TEACHERS_PARAMETER = {
    "single": (2, 4),
    "ddp": (2, 4),
    "fsdp2": (0.5, 1),  # what does not train is not upcast
    "zero1": (2, 4),
    "zero2": (2, 4),  # DeepSpeed does not convert a model that it does not shard
    "zero3": (0.5, 0.5),
    "zero3_offload": (0.5, 0.5),
}


@pytest.mark.parametrize("name", PER_TEACHERS_PARAMETER)
def test_external_teachers_are_sharded_where_the_student_is(name):
    engine = of_accelerate(name, None if name == "single" else 4)
    for dtype, per_parameter in zip(("bfloat16", "float32"), PER_TEACHERS_PARAMETER[name], strict=True):
        run = with_teacher("kdrl", engine, teacher=external(dtype))
        assert held(run, "external teacher") == [per_parameter * N_SMALLER]
        assert held(run, "external teacher", phase=SAMPLING) == [per_parameter * N_SMALLER]
    assert components(run)["external teacher"].on_cpu == (name == "zero3_offload")


def test_a_config_without_a_dtype_is_float32():
    assert held(with_teacher("kdrl", teacher=external(None)), "external teacher") == [4 * N_SMALLER]


def test_an_adapter_is_the_students_alone():
    run = with_teacher("kdrl", dtype="bfloat16", load_in_4bit=True, **LORA)
    assert held(run, "external teacher") == [2 * N_SMALLER]


def test_without_its_scorer_there_is_no_self_teacher():
    run = with_teacher("kdrl", of_accelerate("zero3", 4))
    own = ("teacher", "student's weights set aside", "teacher's hidden states", "initial weights")
    assert held(run, *own, phase=TEACHER) == [None] * 4


def test_what_only_observes_lets_go_after_the_passes():
    states, head = 8 * COMPLETION * 32 * 2, 512 * 32 * 2
    run = with_teacher("kdrl", of_accelerate("zero3", 4))
    found = components(run)
    assert found["observers' hidden states"].phases == {TEACHER: states}
    assert held(run, "teacher's LM head", phase=TEACHER) == [head]  # gathered
    assert held(run, "teacher's LM head") == held(run, "teacher's LM head", phase=FORWARD) == [0]
    assert held(with_teacher("kdrl"), "teacher's LM head", phase=TEACHER) == [None]  # as it lies there


def test_hidden_states_of_several_observers_follow_each_other():
    one = 8 * COMPLETION * 64 * 4
    scope = with_teacher("scope")  # the teacher, then the student
    assert held(scope, "observers' hidden states", phase=TEACHER) == [one]
    compared = the_run(method="eksft")  # the student held against the initial weights
    assert held(compared, "observers' hidden states", phase=TEACHER) == [2 * one]


def test_stored_log_probabilities_need_no_pass():
    plan = estimate_memory(the_run(method="lightning"), MODELS, 1)
    assert not [c.name for c in plan.components if TEACHER in c.phases and "hidden states" in c.name]
    assert TEACHER not in components(the_run(method="lightning"))["activations"].phases


def test_what_distils_stays_until_it_is_trained_on():
    states, head = 8 * COMPLETION * 32 * 2, 512 * 32 * 2
    run = with_teacher("vla_opd", of_accelerate("zero3", 4))
    names = ("teacher's hidden states", "teacher's LM head", "observers' hidden states")
    assert held(run, *names, phase=TEACHER) == [2 * states, head, None]
    assert held(run, *names, phase=FORWARD) == [states, head, None]
    assert held(run, *names, phase=SAMPLING) == [states, 0, None]
    assert held(with_teacher("vla_opd"), "teacher's LM head", phase=FORWARD) == [None]


def test_each_scorer_that_distils_has_hidden_states_and_each_model_a_head():
    teachers = {"first": external(), "second": external(hidden_size=48)}
    run = the_run(
        of_accelerate("fsdp2", 4),
        method="mad_opd",
        teacher_model={"first": "a", "second": "b"},
        teachers=teachers,
    )
    assert held(run, "external teacher first") == [2 * N_SMALLER / 4]
    assert held(run, "external teacher second")[0] > 2 * N_SMALLER / 4
    names = ("teacher's hidden states", "teacher's LM head")
    assert held(run, *names) == [8 * COMPLETION * (32 + 48) * 2, 512 * (32 + 48) * 2]
    two_prompts = the_run(of_accelerate("fsdp2", 4), method="selfci")  # one self-teacher, two scorers
    one, head = 8 * COMPLETION * 64 * 2, 512 * 64 * 4
    assert held(two_prompts, *names) == [2 * one, head]
    assert held(two_prompts, *names, phase=TEACHER) == [4 * one, 2 * head]


def test_rows_that_choose_among_teachers_are_one_pass_each():
    teachers = {"first": external(), "second": external(hidden_size=48)}
    paths = {"first": "a", "second": "b"}
    run = the_run(method="kdrl", teacher_model=paths, teacher_column="which", teachers=teachers)
    assert components(run)["observers' hidden states"].phases == {TEACHER: 8 * COMPLETION * 48 * 2}


def test_initial_weights_are_held_where_they_score():
    assert held(the_run(method="rapo"), "initial weights", "teacher") == [4 * N, None]
    assert held(the_run(method="rapo", dtype="bfloat16"), "initial weights") == [2 * N]
    assert held(the_run(of_accelerate("fsdp2", 4), method="rapo"), "initial weights") == [N]
    assert held(the_run(method="rapo", **LORA), "initial weights") == [4 * ADAPTER]
    both = {"method": "test_memory_plan:initial_beside_the_teacher"}
    assert held(the_run(**both), "initial weights", "teacher") == [4 * N, 4 * N]
    assert held(the_run(**both, teacher_model_kind="base"), "initial weights", "teacher") == [None, 4 * N]


def initial_beside_the_teacher():
    """A method of the user's own."""
    return Method(routers.distilled, (Scorer(), INITIAL))


def test_a_pass_is_of_the_prompt_and_the_model_that_its_scorer_has():
    def activations(run):
        return held(run, "activations", phase=TEACHER)[0]

    own, shown = the_run(method="rapo"), the_run(method="rlsd", max_reprompt_length=500)
    assert own.longest_teacher_prompt is None
    assert shown.longest_teacher_prompt == PROMPT + COMPLETION + 64
    assert activations(own) < activations(shown)
    assert activations(with_teacher("kdrl")) < activations(own)
    assert activations(with_teacher("kdrl", teacher=external("float32", hidden_size=256))) > activations(own)


def test_two_scorers_are_compared_with_all_their_hidden_states_in_one_piece():
    short = {"teacher_tokens_per_pass": PROMPT + COMPLETION}  # each pass is small, and the comparison is not
    run, buffers = the_run(method="tip", **short), "buffers of loss, sampling, update"
    assert held(the_run(**short), buffers, phase=TEACHER) == [0]
    states = 2 * run.rollouts_per_sampling * COMPLETION * 64 * 4
    plain = components(run)["teacher's hidden states"].phases[FORWARD]
    assert plain == states / 2
    assert held(run, buffers, phase=TEACHER)[0] > states
    assert held(run, "activations", phase=TEACHER) == [0]


def test_the_operator_runs_once_for_each_teacher():
    one = LossSizes(64, 512, 4, 4, 4, is_trainable=True, on_gpu=False, teacher_hidden_sizes=(64,))
    two = one._replace(teacher_hidden_sizes=(64, 32))
    spec, tokens = DistillationSpec(), 100
    of_one, of_two = (sizes.both(0, tokens, spec) for sizes in (one, two))
    gradients = tokens * 64 * 4 + 512 * 64 * 4  # of the student's hidden states and head, until the backward
    assert of_two.forward - of_one.forward == tokens * 32 * 4 + gradients


# ------------------------------------------------------------------ what fits


def test_the_largest_micro_batch_fits_and_the_next_does_not():
    run = the_run()
    candidates = micro_batches(run)
    assert candidates == [1, 2, 4, 8]
    peaks = [estimate_memory(run, MODELS, rows).peak for rows in candidates]
    assert peaks == sorted(peaks)
    assert len(set(peaks)) > 2
    for rows, peak in zip(candidates, peaks, strict=True):
        largest = largest_micro_batch(run, MODELS, peak)
        assert largest.peak == peak  # a larger one may need no more
        assert largest.micro_batch >= rows
        smaller = largest_micro_batch(run, MODELS, peak - 1)
        assert smaller is None or smaller.micro_batch < rows
    assert largest_micro_batch(run, MODELS, peaks[0] - 1) is None
    assert largest_micro_batch(run, MODELS, 10 * peaks[-1]).accumulation == 1


def test_micro_batches_leave_groups_and_steps_whole():
    assert micro_batches(the_run(steps_per_generation=2)) == [
        1,
        2,
        4,
    ]  # 8 rollouts a step, 4 sampled at a time


def test_remedies_are_planned_on_top_of_each_other():
    run = the_run(Engine("ddp", 2), gradient_checkpointing=False)
    told = []
    findings = find_fit(run, MODELS, 1, told.append)
    assert told[:2] == [f"Trying micro-batches of {rows}" for rows in (4, 2)]
    assert any("gradient_checkpointing" in text for text in told)
    assert findings.largest is None
    peaks = [remedy.estimate.peak for remedy in findings.remedies]
    assert len(peaks) > 2
    assert peaks == sorted(set(peaks), reverse=True)
    # the first that is enough is the last that is proposed
    assert [r.change for r in find_fit(run, MODELS, peaks[1]).remedies] == [
        r.change for r in findings.remedies[:2]
    ]
    assert find_fit(run, MODELS, 100 * peaks[0]).remedies == ()


def test_vllm_can_give_its_memory_back():
    run = the_run(memory=2**22, use_vllm=True, vllm_mode="colocate", vllm_gpu_memory_utilization=0.5)
    assert held(run, "vLLM") == [2**21]
    changes = [remedy.change for remedy in find_fit(run, MODELS, 1).remedies]
    assert any(change.startswith("vllm_enable_sleep_mode: true") for change in changes)


# ------------------------------------------------------------------ the command line


@pytest.fixture
def files(tmp_path):
    """A folder with a model's config.json and no weights, and a training config."""
    Qwen3Config(**SIZES).save_pretrained(tmp_path / "model")
    (tmp_path / "base.yaml").write_text(
        "{num_generations: 4, per_device_train_batch_size: 2, gradient_accumulation_steps: 4, "
        f"max_completion_length: {COMPLETION}, distillation_topk: 20, dtype: float32, bf16: true, "
        f"optim: adamw_torch_fused, output_dir: {tmp_path / 'out'}}}"
    )
    (tmp_path / "train.yaml").write_text("base: base.yaml\n")
    return tmp_path


def plan(folder, *arguments):
    given = ["plan", "--config", str(folder / "train.yaml"), "--model", str(folder / "model")]
    return cli.main([*given, "--prompt_length", str(PROMPT), *arguments])


def test_a_plan_is_printed_from_configs_alone(files, capsys):
    assert [path.name for path in (files / "model").iterdir()] == ["config.json"]
    zero3 = ["--accelerate_config", str(ACCELERATE / "zero3.yaml"), "--num_processes", "4"]
    assert plan(files, *zero3, "--gpu_memory", "80", "--json", str(files / "plan.json")) == 0
    printed = capsys.readouterr().out
    found = json.loads((files / "plan.json").read_text())
    assert f"{N:,} parameters" in printed
    assert "ZeRO-3 on 4 processes" in printed
    assert (
        "per_device_train_batch_size: 8\n  gradient_accumulation_steps: 1\n  steps_per_generation: 1"
        in printed
    )
    weights = next(c for c in found["plan"]["components"] if c["name"] == "weights")
    assert weights["phases"][UPDATE] == N / 2
    for phase, total in found["plan"]["totals"].items():
        parts = [c["phases"].get(phase, 0) for c in found["plan"]["components"] if not c["on_cpu"]]
        assert total == sum(parts)
    assert found["plan"]["peak_bytes"] == max(found["plan"]["totals"].values())
    assert found["largest_micro_batch"]["per_device_train_batch_size"] == 8
    assert not (files / "out").exists()


def test_a_plan_names_the_external_teacher(files, capsys):
    external().save_pretrained(files / "expert")
    kdrl = ("--method", "kdrl", "--json", str(files / "plan.json"), "--teacher_model")
    assert plan(files, *kdrl, str(files / "expert")) == 0
    printed = capsys.readouterr().out
    assert "external teacher " in printed
    assert "observers' hidden states" in printed
    assert "teacher's prompt" not in printed  # it reads the student's
    found = {c["name"]: c for c in json.loads((files / "plan.json").read_text())["plan"]["components"]}
    assert found["external teacher"]["phases"][UPDATE] == 2 * N_SMALLER
    assert plan(files, *kdrl, str(files / "none")) == 2
    assert "none" in capsys.readouterr().err


def test_what_does_not_fit_says_what_helps(files, capsys):
    assert plan(files, "--gpu_memory", "0.001") == 0
    printed = capsys.readouterr().out
    assert "It does not fit in 0.9 MiB" in printed
    assert "No micro-batch fits, not even one row." in printed
    assert "use_peft: true" in printed
    assert "That is not enough: take more or larger GPUs" in printed


def test_a_run_on_cpus_is_seen_through_base_files(files, capsys):
    (files / "base.yaml").write_text((files / "base.yaml").read_text()[:-1] + ", use_cpu: true}")
    assert plan(files) == 0
    assert "memory of one process" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="the memory of the GPU here is taken")
def test_without_a_gpus_memory_the_plan_asks_for_it(files, capsys):
    assert plan(files) == 0
    assert "Give --gpu_memory to see what fits." in capsys.readouterr().out


def test_all_problems_in_one_message(files, capsys):
    (files / "accelerate.yaml").write_text(
        "{compute_environment: LOCAL_MACHINE, distributed_type: FSDP, num_machines: 3, num_processes: 4, "
        "fsdp_config: {fsdp_version: 1}}"
    )
    (files / "train.yaml").write_text("{base: base.yaml, method: srop}")
    status = plan(
        files,
        *("--model", str(files / "missing"), "--accelerate_config", str(files / "accelerate.yaml")),
        *("--optim", "adafactor", "--gpu_memory", "-1", "--margin", "1.5", "--prompt_length", "0"),
    )
    said = capsys.readouterr().err
    assert status == 2
    for problem in (
        "--gpu_memory -1 must be",
        "--margin 1.5 must be",
        "--prompt_length 0 must be",
        "num_processes=4 cannot be shared out evenly over 3 machines",
        "Set fsdp_version: 2",
        "missing' is not a folder",
        "method='srop'",
    ):
        assert problem in said
    (files / "train.yaml").write_text("base: base.yaml")
    assert plan(files, "--optim", "adafactor", "--prompt_length", "2040", "--load_in_4bit") == 2
    said = capsys.readouterr().err
    for problem in ("optim='adafactor' is not planned", "2064 tokens", "need use_peft"):
        assert problem in said


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("distributed_type: [", "is not valid YAML"),
        ("[1, 2]", "must hold"),
        ("num_processes: 2", "names no distributed_type"),
        ("{distributed_type: XLA, num_machines: 1, num_processes: 2}", "is not planned"),
        (
            "{distributed_type: DEEPSPEED, num_machines: 1, num_processes: 2, deepspeed_config: {zero_stage: 0}}",
            "ZeRO stage 0 is not planned",
        ),
        (
            "{distributed_type: DEEPSPEED, num_machines: 1, num_processes: 2, "
            "deepspeed_config: {deepspeed_config_file: none.json}}",
            "'none.json' does not exist",
        ),
    ],
)
def test_a_wrong_accelerate_config_is_refused(text, problem, files, capsys):
    file = files / "accelerate.yaml"
    file.write_text(text)
    assert plan(files, "--accelerate_config", str(file)) == 2
    assert problem in capsys.readouterr().err
    assert plan(files, "--accelerate_config", str(files / "none.yaml")) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_an_empty_model_folder_is_refused(files, capsys):
    (files / "model" / "config.json").unlink()
    assert plan(files) == 2
    assert "config.json" in capsys.readouterr().err


QWEN3_8B = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
    "architectures": ["Qwen3ForCausalLM"],
}


@pytest.mark.slow
def test_the_papers_run_is_planned_on_a_laptop(files, capsys):
    Qwen3Config(**QWEN3_8B).save_pretrained(files / "model")
    (files / "train.yaml").write_text(f"base: {ROOT}/configs/paper/srpo.yaml\n")
    arguments = ["--accelerate_config", str(ACCELERATE / "zero3.yaml"), "--num_processes", "8"]
    assert plan(files, *arguments, "--gpu_memory", "80", "--prompt_length", "2048") == 0
    printed = capsys.readouterr().out
    assert "8,190,735,360 parameters" in printed  # as published
    assert "Largest micro-batch that fits" in printed
