"""Training runs in processes of their own that end at a chosen moment, for test_faults_checkpoints.py.

The processes are forked from a server that has imported everything, so that a run costs a second or two. A run goes on
from the last complete checkpoint of its folder, as `srpo-trl train` does with `resume_from_checkpoint: auto`.
"""

import multiprocessing
import os
import shutil
import signal
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW
from transformers import GenerationMixin, PreTrainedModel, TrainerState

from harness import flat_parameters, make_trainer
from resumed_runs import RUN, SPLITS, half
from srpo_trl import SRPOTrainer
from srpo_trl.commands.train import last_complete_checkpoint
from srpo_trl.host import checkpoints as checkpointing
from srpo_trl.host import manifest
from srpo_trl.host.checkpoint_parts import StateFile
from srpo_trl.host.manifest import MANIFEST_FILE
from srpo_trl.teacher import scoring as teacher_pass
from srpo_trl.teacher import weights as teacher

# Sampled rollouts, AdamW, and saves after every step, all but one inside a rollout batch. One checkpoint is kept, so
# that a wrong order of writing and removing loses everything.
OPTIONS: dict[str, Any] = (
    RUN | SPLITS["inside a rollout batch"] | {"reward_funcs": half, "save_steps": 1, "save_total_limit": 1}
)
ACCUMULATING = RUN | SPLITS["one step a batch"] | {"reward_funcs": half, "save_steps": 1}
RESULT = "result.pt"

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["killed_runs"])


# ------------------------------------------------------------------ moments at which a run kills itself


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(
    owner: Any, name: str, number: int, do: Callable[..., None] = lambda *args, **kwargs: kill()
) -> None:
    """Let the call of this number, from 1, do something else."""
    original, calls = getattr(owner, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return (do if len(calls) == number else original)(*args, **kwargs)

    setattr(owner, name, counted)


def after_call(owner: Any, name: str, number: int, do: Callable[..., None]) -> None:
    original = getattr(owner, name)

    def called(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        do(*args, **kwargs)
        kill()

    at_call(owner, name, number, called)


def in_the_file(name: str, number: int) -> None:
    """Leave half of what `torch.save` would write to a file of this name, the `number`-th time."""
    original, writes = torch.save, []

    def save(values: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).name == name:
            writes.append(path)
            if len(writes) == number:
                whole = BytesIO()
                original(values, whole)
                Path(path).write_bytes(whole.getvalue()[: whole.tell() // 2])
                kill()
        original(values, path, *args, **kwargs)

    torch.save = save


def limited(save: Callable[..., None]) -> Callable[..., None]:
    """Return a save under a limit on the size of files that no model of these tests fits into."""

    def limited_save(*args: Any, **kwargs: Any) -> None:
        import resource  # missing on Windows

        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        try:
            save(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    return limited_save


def halve(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def in_the_rotation(number: int) -> None:
    """Leave half of the files of a checkpoint that has become one too many."""
    original, removed = shutil.rmtree, []

    def remove(path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).name.startswith("checkpoint-"):
            removed.append(path)
            if len(removed) == number:
                for file in sorted(Path(path).iterdir())[::2]:
                    file.unlink()
                kill()
        original(path, *args, **kwargs)

    shutil.rmtree = remove


def of_model(model: Any, folder: Any, *args: Any, **kwargs: Any) -> None:
    halve(Path(folder) / "model.safetensors")


MOMENTS: dict[str, Callable[[], None]] = {
    "before the first save": lambda: at_call(SRPOTrainer, "_save_checkpoint", 1),
    "before a save": lambda: at_call(SRPOTrainer, "_save_checkpoint", 3),
    "in the model's file": lambda: after_call(PreTrainedModel, "save_pretrained", 3, of_model),
    "in the optimizer's file": lambda: in_the_file("optimizer.pt", 3),
    "in the random states' file": lambda: in_the_file("rng_state.pth", 3),
    "in the trainer's state": lambda: after_call(
        TrainerState, "save_to_json", 3, lambda state, file: halve(Path(file))
    ),
    "in the rollouts' file": lambda: in_the_file("srpo_rollouts_rank0.pt", 2),
    "in the teacher's file": lambda: after_call(
        teacher, "save_file", 3, lambda values, file, metadata: halve(file)
    ),
    "after the teacher's file": lambda: at_call(StateFile, "save", 3),
    "in the list of files": lambda: after_call(
        manifest, "write_manifest", 3, lambda folder, *args, **kwargs: halve(folder / MANIFEST_FILE)
    ),
    "before the checkpoint has its name": lambda: at_call(checkpointing, "publish", 3),
    "before older ones go": lambda: at_call(checkpointing, "rotate_checkpoints", 3),
    "while older ones go": lambda: in_the_rotation(2),
    "after a save": lambda: after_call(SRPOTrainer, "_save_checkpoint", 3, lambda *args: None),
    "in a generation": lambda: at_call(GenerationMixin, "_update_model_kwargs_for_generation", 12),
    "in a teacher pass": lambda: at_call(teacher_pass, "token_statistics", 3),
    "between micro-batches": lambda: at_call(SRPOTrainer, "training_step", 6),
    "in an optimizer step": lambda: at_call(AdamW, "step", 3),
}
# Other things that a run can be made to do.
ARMS: dict[str, Callable[[], None]] = {
    "limit on files": lambda: at_call(
        SRPOTrainer, "_save_checkpoint", 2, limited(SRPOTrainer._save_checkpoint)
    ),
    "named": lambda: None,
}


# ------------------------------------------------------------------ runs


def train(folder: Path, arm: str | None, options: dict[str, Any], environment: dict[str, str]) -> None:
    """The body of a run's process."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        if arm:
            (MOMENTS | ARMS)[arm]()
        trainer = make_trainer(folder, **options)
        named = str(folder / "checkpoint-2") if arm == "named" else None
        trainer.train(resume_from_checkpoint=named or last_complete_checkpoint(str(folder)))
        values = [value.double().reshape(-1) for value in trainer.teacher.weights.state_dict().values()]
        result = {"student": flat_parameters(trainer.model), "teacher": torch.cat(values)}
        torch.save(result, folder / f"{environment.get('RANK', '0')}{RESULT}")
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # as a crash, without waiting for other processes
    os._exit(0)


def start(folder: Path, arm: str | None = None, options: dict[str, Any] = OPTIONS, **environment: str) -> Any:
    folder.mkdir(exist_ok=True)
    process = PROCESSES.Process(target=train, args=(folder, arm, options, environment))
    process.start()
    return process


def run(folder: Path, arm: str | None = None, options: dict[str, Any] = OPTIONS) -> int:
    """Train in a process of its own, and return its exit code."""
    process = start(folder, arm, options)
    process.join()
    return process.exitcode


def log_of(folder: Path) -> str:
    return (folder.parent / f"{folder.name}.log").read_text()


def run_two(folder: Path, arms: Sequence[str | None], options: dict[str, Any]) -> list[int]:
    """Train in two processes that work together, and return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        start(folder, arm, options, **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank, arm in enumerate(arms)
    ]
    for process in ranks:
        process.join()
    return [process.exitcode for process in ranks]


def result(folder: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"{rank}{RESULT}", weights_only=True)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """Mount a file system of this size at `folder`; gives a function that changes its options.

    Raises:
        PermissionError: this process has no right to mount.
    """
    folder.mkdir(exist_ok=True)
    if os.system(f"mount -t tmpfs -o size={size} tmpfs '{folder}' 2>/dev/null"):
        raise PermissionError(f"no right to mount a file system at {folder}")
    try:
        yield lambda options: check_call(f"mount -o remount,{options} '{folder}'")
    finally:
        check_call(f"umount -l '{folder}'")


def check_call(command: str) -> None:
    assert os.system(command) == 0, command
