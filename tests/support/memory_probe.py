"""What tiny training runs really hold: their peak at each phase of a step, measured in two ways.

In one process by torch's profiler, which sees every allocation and release of the CPU allocator. With two processes,
where threads of the communication library release memory that the profiler then misses, by the sizes of all tensor
storages that are alive. As a program it is started by `torchrun`:

    torchrun --standalone --nproc_per_node 2 tests/support/memory_probe.py ENGINE ACCUMULATION PRECISION FOLDER
"""

import bisect
import functools
import json
import os
import sys
import weakref
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

ENGINE = sys.argv[1] if __name__ == "__main__" else None
if ENGINE:  # before accelerate is imported
    import engine_processes

    OPTIONS = engine_processes.engine_options(ENGINE)
    os.environ.pop("FSDP_ACTIVATION_CHECKPOINTING", None)
    if "deepspeed" in OPTIONS:
        OPTIONS["deepspeed"]["zero_optimization"]["reduce_bucket_size"] = 50_000
    IS_MIXED = sys.argv[3] == "bf16"
    OPTIONS["bf16"] = IS_MIXED and not ENGINE.startswith("fsdp")
    if IS_MIXED and ENGINE.startswith(
        "fsdp"
    ):  # transformers refuses bf16 without a GPU there; accelerate does not
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from accelerate.optimizer import AcceleratedOptimizer  # noqa: E402
from datasets import Dataset  # noqa: E402
from torch._C._profiler import _EventType  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from torch.profiler import ProfilerActivity, profile, record_function  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_map_only  # noqa: E402

from harness import make_trainer, tiny_model  # noqa: E402
from srpo_trl import SRPOTrainer  # noqa: E402
from srpo_trl.commands.plan.estimate import BACKWARD, FORWARD, SAMPLING, TEACHER, UPDATE  # noqa: E402
from srpo_trl.rollout.batch import routed_batch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
}
PROMPT, COMPLETION, TEACHER_PROMPT = 48, 48, 128  # tokens, of every row alike
ROWS = {
    "teacher_context": ["reference"],
    "reference_column": "reference",
    "max_reprompt_length": TEACHER_PROMPT,
    "max_completion_length": COMPLETION,
    "generation_kwargs": {"min_new_tokens": COMPLETION},
}
STEP = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "max_steps": 2,
    "optim": "adamw_torch_fused",
    "learning_rate": 1e-5,
    "max_grad_norm": 1.0,
}
WATCHED = [
    (SRPOTrainer, "_generate", SAMPLING),
    (SRPOTrainer, "_score", TEACHER),
    (SRPOTrainer, "_compute_loss", FORWARD),
    (Accelerator, "backward", BACKWARD),
    (AcceleratedOptimizer, "step", UPDATE),
    (SRPOTrainer, "_update", UPDATE),
]
if ENGINE and "deepspeed" in OPTIONS:  # accelerate's backward makes its step, the optimizer's does nothing
    from deepspeed import DeepSpeedEngine

    WATCHED.append((DeepSpeedEngine, "step", UPDATE))


def one_right_of_four(completions, **kwargs):
    return [float(i % 4 == 0) for i in range(len(completions))]


def trainer(folder, *, sizes=None, dtype=torch.float32, **options):
    """A trainer whose rollouts are as long as they may be, three of four distilled."""
    # The tokenizer gives each digit a token, and three to the turn and the header.
    rows = {
        "prompt": [[{"role": "user", "content": str(i) * (PROMPT - 3)}] for i in range(8)],
        "reference": [str(i) * 500 for i in range(8)],
    }
    defaults = {
        **ROWS,
        **STEP,
        "rollout_func": None,
        "reward_funcs": one_right_of_four,
        "train_dataset": Dataset.from_dict(rows),
    }
    return make_trainer(
        folder, model=tiny_model(dtype=dtype, **(SIZES | (sizes or {}))), **(defaults | options)
    )


def note_routes(trainer, routes):
    """Append the policy's and the distilled tokens of every micro-batch of the trainer."""
    compute_loss = trainer._compute_loss

    def noting(model, inputs):
        routed = routed_batch(inputs)
        routes.append((int(routed.policy_BT.sum()), int(routed.distilled_BT.sum())))
        return compute_loss(model, inputs)

    trainer._compute_loss = noting


@contextmanager
def watched(watch):
    """Run the block with `watch(phase)` around each of a step's phases."""
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in WATCHED]

    def watching(original, phase):
        @functools.wraps(original)
        def call(self, *args, **kwargs):
            with watch(phase):
                return original(self, *args, **kwargs)

        return call

    for owner, name, phase in WATCHED:
        setattr(owner, name, watching(getattr(owner, name), phase))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def last_step(phases):
    """Return, by phase, the peak and what lay there before, of (phase, before, peak) in order; the first step
    makes the optimizer's state and does not count.

    A step's micro-batches differ in the gradients that they find; the highest peak counts.
    """
    second = [i for i, (phase, *_) in enumerate(phases) if phase == SAMPLING][1]
    found = defaultdict(lambda: (0, 0))
    for phase, before, peak in phases[second:]:
        found[phase] = max(found[phase], (peak, before))
    return dict(found)


def profiled(run):
    """Return {phase: (peak, before)} in bytes, of a function that makes a trainer and trains."""
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
        watched(lambda phase: record_function(f"phase {phase}")),
    ):
        run()
    events, waiting = [], list(profiler.profiler.kineto_results.experimental_event_tree())
    while waiting:
        events.append(waiting.pop())
        waiting += events[-1].children
    changes = sorted(
        (event.start_time_ns, event.extra_fields.total_allocated)
        for event in events
        if event.tag == _EventType.Allocation
    )
    times, totals = [time for time, _ in changes], [total for _, total in changes]
    phases = []
    for event in sorted(events, key=lambda event: event.start_time_ns):
        if event.name.startswith("phase "):
            first = bisect.bisect_left(times, event.start_time_ns)
            last = bisect.bisect_right(times, event.end_time_ns)
            before = totals[first - 1]
            phases.append((event.name.removeprefix("phase "), before, max([before, *totals[first:last]])))
    return last_step(phases)


class LivingStorages(TorchDispatchMode):
    """Adds up the present sizes of all living storages after each operator; an engine may empty one and fill it."""

    def __init__(self):
        super().__init__()
        self._storages, self.phases = {}, []
        self.total = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, result)
        self._add_up()
        return result

    def _see(self, tensor):
        tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = weakref.ref(storage, lambda _: self._storages.pop(key, None))

    def _add_up(self):
        storages = [reference() for reference in list(self._storages.values())]
        self.total = sum(storage.nbytes() for storage in storages if storage is not None)
        self.peak = max(self.peak, self.total)

    @contextmanager
    def phase(self, name):
        """Within another phase, what it holds does not count for that one."""
        self._add_up()
        outer, before = self.peak, self.total
        self.peak = before
        yield
        self._add_up()
        self.phases.append((name, before, self.peak))
        self.peak = max(outer, self.total)


def main(accumulation, folder):
    counter, routes = LivingStorages(), []
    with counter, watched(counter.phase):
        made = trainer(
            folder / "run",
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            **OPTIONS,
        )
        note_routes(made, routes)
        made.train()
    assert made.accelerator.num_processes == 2
    found = {
        "engine": made.accelerator.distributed_type.value,
        "mixed_precision": made.accelerator.mixed_precision,
        "phases": last_step(counter.phases),
        "routes": routes,
    }
    if torch.distributed.get_rank() == 0:
        (folder / "measured.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[2]), Path(sys.argv[4]))
