"""Run by test_engines.py and test_launch.py: one engine's scenarios, and what each process ended with.

    torchrun --standalone --nproc_per_node 2 tests/support/engine_processes.py ENGINE FOLDER [NAME ...]
    accelerate launch --config_file FILE tests/support/engine_processes.py launched FOLDER [NAME ...]

ENGINE is a key of `ENGINES`, a NAME one of the runs below, or `continue=CHECKPOINT`. Imported, it makes the same
runs in one process.
"""

import os
import sys
import threading
import time
from pathlib import Path

import torch
from peft import LoraConfig
from torch.distributed.tensor.debug import CommDebugMode

from engine_options import engine_options

ENGINE = sys.argv[1] if __name__ == "__main__" else None
OPTIONS = engine_options(ENGINE) if ENGINE else {}

from harness import (  # noqa: E402
    LORA,
    chat_dataset,
    contains_answer,
    logged,
    make_trainer,
    replay,
    tiny_model,
    tiny_tokenizer,
)
from method_names import columns, needs  # noqa: E402
from srpo_trl.host.finite_steps import NonFiniteStepsError  # noqa: E402
from srpo_trl.seams.parameters import (  # noqa: E402
    full_tensor,
    local_shard,
    named_trainable,
    whole_shape,
)
from two_processes import ONE_SIDED, STRADDLING  # noqa: E402

TWO_STEPS = {"max_steps": 2, "learning_rate": 0.1}
UNTIED = {"tie_word_embeddings": False}
SAVED_HEAD = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-2, "adam_epsilon": 1e-3}  # smooth where gradients vanish
# name: rollouts, micro-batch of each of two processes (of six rollouts a process), options
SCENARIOS = {
    "straddling": (STRADDLING, 6, {}),
    "one sided": (ONE_SIDED, 2, {}),
    "two steps": (STRADDLING, 2, TWO_STEPS),
    "iterations": (STRADDLING, 6, {"max_steps": 4, "num_iterations": 2, "learning_rate": 0.1}),
    "lora": (STRADDLING, 2, TWO_STEPS | {"peft_config": LORA}),
    "adamw": (STRADDLING, 2, TWO_STEPS | ADAMW),
    "adamw, lora": (STRADDLING, 2, TWO_STEPS | ADAMW | {"peft_config": LORA}),
    "one sided, lora": (ONE_SIDED, 2, TWO_STEPS | {"peft_config": LORA}),
    # no token is the policy's, and some micro-batches have none at all: a head of its own gets no gradient there
    "sdpo": (STRADDLING, 2, TWO_STEPS | {"method": "sdpo", "sizes": UNTIED}),
    "one sided, sdpo": (ONE_SIDED, 2, TWO_STEPS | {"method": "sdpo", "sizes": UNTIED}),
    "saved head": (
        STRADDLING,
        6,
        TWO_STEPS | {"peft_config": SAVED_HEAD, "sizes": UNTIED, "num_iterations": 2, "max_steps": 4},
    ),
    "untied, lora": (STRADDLING, 6, TWO_STEPS | {"peft_config": LORA, "sizes": UNTIED}),
    # odd sizes: the last process's shards are shorter, and ZeRO-3 pads them
    "untied, uneven": (
        STRADDLING,
        6,
        TWO_STEPS | {"sizes": {"hidden_size": 33} | UNTIED},
    ),
    # larger than DeepSpeed's own threshold, below which ZeRO-3 leaves a parameter gathered
    "large": (STRADDLING, 6, TWO_STEPS | ADAMW | {"sizes": {"hidden_size": 256, "intermediate_size": 512}}),
}
LOADED = "loaded by name"  # under ZeRO-3, transformers shards it while it loads
SCENARIOS[LOADED] = (STRADDLING, 6, TWO_STEPS)
# An optimizer step of three micro-batches ends one rollout batch of two and begins another. TRL shuffles a rollout
# batch on each process, so one process trains on other rows first: this is compared with DDP.
ACROSS = "steps across rollout batches"
SIX = (*STRADDLING, *((f"{prompt}+1", answers) for prompt, answers in ONE_SIDED))
COMPARED_WITH_DDP = {ACROSS: (SIX, 2, {"max_steps": 4, "steps_per_generation": 2, "learning_rate": 0.1})}
# A run that is stopped after its second step, there inside a rollout batch or at the end of one.
RESUMED = {
    "inside a rollout batch": {"max_steps": 4, "num_iterations": 3},
    "end of a rollout batch": {"max_steps": 4},
    "resumed lora": {"max_steps": 4, "peft_config": LORA},
}
BFLOAT16 = {"bfloat16": {}, "bfloat16 lora": {"peft_config": LORA}}
# A method of each kind: of weights by groups, a pull, an anchor, scorers of each kind, two that distil. Each with two
# steps in small micro-batches, where the first process has one group and a half.
FAMILY = {
    "paced": {},
    "kdrl": {"method_options": {"beta": 0.3}},
    "rlad": {},
    "tip": {},
    "selfci": {},
    "vopd": {},
    "vla_opd": {},
    "scope": {},
    "rapo": {"method_options": {"alpha": 0.3}},
    "ema_anchor": {"method_options": {"beta": 0.5}},
    "opd": {"teacher_column": "domain"},
    "lightning": {},
    "gtpo": {"method_options": {"largest_entropy": 99.0}},
    "dgpo": {},
    "trace": {},
    "kdrl, lora": {"method_options": {"beta": 0.3}, "peft_config": LORA},
    "rapo, lora": {"method_options": {"alpha": 0.3}, "peft_config": LORA},
}


def make(folder, rollouts, num_processes, micro_batch, *, sizes=None, **options):
    defaults = {
        "model": tiny_model(**(sizes or {})),
        "train_dataset": chat_dataset(rollouts),
        "rollout_func": replay(tiny_tokenizer(), rollouts),
        "per_device_train_batch_size": micro_batch * 2 // num_processes,
        "gradient_accumulation_steps": 6 // micro_batch,
    }
    return make_trainer(folder, **(defaults | options | OPTIONS))


def flat(parameters_and_parts):
    """Gather each value and return all of them as one vector."""
    wholes = [full_tensor(p, part.detach(), torch.device("cpu")) for p, part in parameters_and_parts]
    return torch.cat([value.double().reshape(-1) for value in wholes])


def whole(trainer, values=None):
    """The trainable parameters, or the teacher's values of them, gathered into one vector."""
    parameters = trainer.teacher.weights._parameters()
    return flat((p, local_shard(p) if values is None else values[name]) for name, p in parameters.items())


def saved_model(folder, seed=0):
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        tiny_model(seed).save_pretrained(folder / "model")
        tiny_tokenizer().save_pretrained(folder / "model")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return str(folder / "model")


def sharded_fraction(trainer):
    return fraction_of(trainer.teacher.weights._parameters().values())


def held_fraction(model):
    return fraction_of(model.parameters())


def fraction_of(parameters):
    held = [(local_shard(p).numel(), whole_shape(p).numel()) for p in parameters]
    return sum(own for own, _ in held) / sum(all_of_it for _, all_of_it in held)


def engine_name(trainer):
    """The engine that prepared the model, with the stage and offload that DeepSpeed itself says it runs."""
    state = trainer.accelerator.state
    name = state.distributed_type.value
    if state.deepspeed_plugin is None:
        return name
    engine = trainer.model_wrapped
    offloads = [
        kind
        for kind, config in (
            ("optimizer", engine.zero_offload_optimizer()),
            ("param", engine.zero_offload_param()),
        )
        if config is not None and config.device == "cpu"
    ]
    return " ".join([name, str(engine.zero_optimization_stage()), *offloads])


def run(folder, num_processes, rollouts, micro_batch, options):
    if folder.name == LOADED:
        options = options | {"model": saved_model(folder)}
    trainer = make(folder, rollouts, num_processes, micro_batch, **options)
    initial = flat((p, local_shard(p)) for _, p in named_trainable(trainer.model))
    trainer.train()
    teacher = whole(trainer, trainer.teacher.weights.state_dict())
    num_updates = trainer.teacher.weights.num_updates
    with CommDebugMode() as communication:
        trainer.teacher.weights.update()
    return {
        "engine": engine_name(trainer),
        "num_processes": trainer.accelerator.num_processes,
        "held": sharded_fraction(trainer),
        "teacher_held": sum(v.numel() for v in trainer.teacher.weights.state_dict().values()) / len(teacher),
        "update_messages": communication.get_total_counts(),
        "update": whole(trainer) - initial,
        "teacher": teacher,
        "teacher_moved": teacher - initial,
        "num_updates": num_updates,
        "routes": [
            logged(trainer, f"srpo/route/{route}_frac") for route in ("policy", "distilled", "skipped")
        ],
        "loss": logged(trainer, "loss"),
        "grad_norm": [float(norm) for norm in logged(trainer, "grad_norm")],
        "distance": logged(trainer, "srpo/teacher/distance"),
    }


def results(folder, num_processes, scenarios):
    every = SCENARIOS | COMPARED_WITH_DDP
    return {name: run(folder / name, num_processes, *every[name]) for name in scenarios}


def family(folder, num_processes, name):
    """Two steps of a method of the family, and how much of the models each process holds."""
    method, options = name.partition(",")[0], dict(FAMILY[name])
    models = needs(method).get("teacher_model", {})
    if "teacher_column" in options:
        models = dict.fromkeys(("first", "second"))
    paths = {model: saved_model(folder / model, seed) for seed, model in enumerate(models, 1)}
    if method == "lightning":
        options["rollout_func"] = with_logps(replay(tiny_tokenizer(), STRADDLING))
    if method == "trace":
        options["reward_funcs"] = marking
    prompts = {column: [f"1+{n}, {column}" for n in range(3)] for column in columns(method)}
    if "teacher_column" in options:
        prompts["domain"] = ["first", "second", "first"]
    trainer = make(
        folder,
        STRADDLING,
        num_processes,
        2,
        method=method,
        teacher_model=paths or None,
        **(TWO_STEPS | {"train_dataset": chat_dataset(STRADDLING, **prompts)} | options),
    )
    initial = flat((p, local_shard(p)) for _, p in named_trainable(trainer.model))
    trainer.train()
    external = [teacher.model for teacher in trainer.teacher._external.values()]
    return {
        "engine": engine_name(trainer),
        "num_processes": trainer.accelerator.num_processes,
        "held": [sharded_fraction(trainer), *map(held_fraction, external)],
        "update": whole(trainer) - initial,
        "loss": logged(trainer, "loss"),
        "grad_norm": [float(norm) for norm in logged(trainer, "grad_norm")],
    }


def with_logps(rollout):
    """Stored rollouts: with a teacher's log-probability of each token, by its place."""

    def stored(prompts, trainer):
        output = rollout(prompts, trainer)
        logps = [[-0.5 - 0.1 * t for t in range(len(ids))] for ids in output["completion_ids"]]
        return output | {"teacher_logps": logps}

    return stored


def marking(completions, log_extra, **kwargs):
    """Marks two tokens of every rollout."""
    log_extra("spans", [[(0, 2)]] * len(completions))
    return contains_answer(completions)


def half(completions, **kwargs):
    """A reward that is neither always nor never won by random text."""
    return [float(sum(map(ord, c[0]["content"])) % 2) for c in completions]


def bfloat16(folder, **more):
    """A bfloat16 run with sampled rollouts, then the teacher's updates toward a student that no longer moves."""
    options = {
        "model": tiny_model(dtype=torch.bfloat16),
        "rollout_func": None,
        "reward_funcs": half,
        "bf16": True,
        "gradient_checkpointing": "FSDP_ACTIVATION_CHECKPOINTING" not in os.environ,
        "max_completion_length": 8,
        "max_steps": 2,
    } | ADAMW
    if OPTIONS.get("use_cpu") is False:  # transformers refuses bf16 without a GPU there; accelerate does not
        options["bf16"] = False
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    trainer = make(folder, STRADDLING, 2, 2, **(options | more))
    trainer.train()
    teacher, student = trainer.teacher.weights, whole(trainer)
    held = {name: local_shard(p).clone() for name, p in teacher._parameters().items()}
    with teacher.swapped_in():
        installed = whole(trainer)
    restored = all(torch.equal(local_shard(p), held[name]) for name, p in teacher._parameters().items())
    with torch.no_grad():
        for parameter in teacher._parameters().values():
            local_shard(parameter).mul_(1.01)
    start, target = whole(trainer, teacher.state_dict()), whole(trainer)
    for _ in range(10):
        teacher.update()
    moved = whole(trainer, teacher.state_dict()) - start
    return {
        "student": student,
        "mixed_precision": trainer.accelerator.mixed_precision,
        "dtypes": sorted({str(p.dtype) for p in teacher._parameters().values()}),
        "teacher_dtypes": sorted({str(v.dtype) for v in teacher.state_dict().values()}),
        "installed": installed,
        "restored": restored,
        "moved": float(moved.norm() / (target - start).norm()),
        "routed": logged(trainer, "srpo/route/distilled_frac"),
        "loss": logged(trainer, "loss"),
    }


def continued(folder, num_processes, checkpoint):
    """A run that goes on from a checkpoint, perhaps of another number of processes."""
    trainer = make(folder, STRADDLING, num_processes, 6, **RESUMED["end of a rollout batch"], **ADAMW)
    trainer.train(resume_from_checkpoint=checkpoint)
    return {"student": whole(trainer), "teacher": whole(trainer, trainer.teacher.weights.state_dict())}


def resumed(folder, num_processes, options):
    options = options | ADAMW | {"save_strategy": "steps", "save_steps": 1}
    trainers = []
    for _ in range(2):
        trainer = make(folder, STRADDLING, num_processes, 6, **options)
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if trainers else None)
        trainers.append(trainer)
    uninterrupted, second = trainers
    return {
        "uninterrupted": (
            whole(uninterrupted),
            whole(uninterrupted, uninterrupted.teacher.weights.state_dict()),
        ),
        "resumed": (whole(second), whole(second, second.teacher.weights.state_dict())),
        "num_updates": (uninterrupted.teacher.weights.num_updates, second.teacher.weights.num_updates),
        "folders": sorted(path.name for path in folder.iterdir()),
    }


def nonfinite(folder):
    """A run whose second step has an infinite loss on one process, one without that step, and one that is stopped.

    The batches of all steps are the same, and every group has one right answer at the most: the step has no say.
    """

    def spoiled(name, steps, **options):
        trainer = make(folder / name, STRADDLING, 2, 2, **(ADAMW | {"weight_decay": 0.1} | options))
        original = trainer._compute_loss

        def compute(model, inputs):
            is_spoiled = trainer.state.global_step in steps and trainer.accelerator.process_index == 1
            return original(model, inputs) + (float("inf") if is_spoiled else 0.0)

        trainer._compute_loss = compute
        return trainer

    clean, skipping = spoiled("clean", (), max_steps=2), spoiled("skipping", {1}, max_steps=3)
    stopped = spoiled("stopped", {1, 2}, max_steps=4, max_nonfinite_steps=2)
    report = None
    for trainer in (clean, skipping):
        trainer.train()
    try:
        stopped.train()
    except NonFiniteStepsError as error:
        report = str(error)
    return {
        "engine": engine_name(clean),
        "student": [whole(trainer) for trainer in (clean, skipping, stopped)],
        "teacher": [whole(t, t.teacher.weights.state_dict()) for t in (clean, skipping, stopped)],
        "num_updates": [trainer.teacher.weights.num_updates for trainer in (clean, skipping, stopped)],
        "steps": [trainer.state.global_step for trainer in (clean, skipping, stopped)],
        "counted": logged(skipping, "srpo/nonfinite_steps")[:3],
        "report": report,
        "files": sorted(path.name for path in (folder / "stopped" / "nonfinite").iterdir()),
    }


def hanging(folder):
    """A run of two batches in the first of which the reward function hangs on one process."""
    released = threading.Event()

    def slow(completions, log_extra, **kwargs):
        if trainer.state.global_step == 0 and trainer.accelerator.process_index == 1:
            released.wait(60)
        log_extra("feedback", ["wrong"] * len(completions))
        return contains_answer(completions)

    options = {"max_steps": 2, "learning_rate": 0.1, "reward_funcs": slow, "reward_timeout": 2.0}
    trainer = make(folder, STRADDLING, 2, 6, **options)
    start = time.monotonic()
    trainer.train()
    released.set()
    return {
        "seconds": time.monotonic() - start,
        "student": whole(trainer),
        "skipped": logged(trainer, "srpo/route/skipped_frac"),
        "timed_out": logged(trainer, "rewards/slow/timed_out_frac"),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    output, num_processes = Path(sys.argv[2]), int(os.environ.get("WORLD_SIZE", "1"))
    names = sys.argv[3:] or [*SCENARIOS, *RESUMED, *BFLOAT16]
    found = {
        "scenarios": results(
            output / "runs",
            num_processes,
            [name for name in [*SCENARIOS, *COMPARED_WITH_DDP] if name in names],
        ),
        "resume": {n: resumed(output / n, num_processes, RESUMED[n]) for n in RESUMED if n in names},
        "family": {n: family(output / n, num_processes, n) for n in FAMILY if n in names},
        "bfloat16": {n: bfloat16(output / n, **BFLOAT16[n]) for n in BFLOAT16 if n in names},
        "nonfinite": nonfinite(output / "nonfinite") if "nonfinite" in names else None,
        "hanging": hanging(output / "hanging") if "hanging" in names else None,
        "continued": [
            continued(output / "continued", num_processes, name.removeprefix("continue="))
            for name in names
            if name.startswith("continue=")
        ],
    }
    torch.save(found, output / f"rank{os.environ.get('RANK', '0')}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
