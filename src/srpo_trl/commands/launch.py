"""Options of `accelerate launch` among those of a command, and the start of that launcher with them.

As with `trl grpo`, a YAML file or the command line may hold `num_processes`, `accelerate_config` (a file, or a profile
by name) and the launcher's other options. The command then starts itself again through the launcher, without them.
"""

import argparse
import contextlib
import functools
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser

from srpo_trl.commands.config_file import (
    config_path,
    engine_profiles,
    nearest,
    read_config_file,
    read_mapping,
)
from srpo_trl.config import SRPOConfig

PROFILE = "accelerate_config"
# Options of the launcher that a training run has itself, or that say what is launched.
_NOT_PASSED_ON = ("help", "debug", "gradient_accumulation_steps", "env", "m", "module", "no_python")
# torch keeps the launcher's store over restarts, so that new processes may read the addresses of those that ended. With
# this and the rendezvous c10d they get a store of their own.
_OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
LAUNCHED = "SRPO_TRL_LAUNCHED"  # environment variable of the processes that were started here
_KINDS = ("multi_gpu", "cpu", "tpu", "use_deepspeed", "use_fsdp", "use_megatron_lm")


@dataclass(frozen=True)
class Launch:
    """What to start.

    Attributes:
        words: the launcher's options.
        command: the words of `srpo-trl` without them.
        num_processes: that it starts, over all machines.
        environment: of the launcher, with the YAML file's `env`.
    """

    words: list[str]
    command: list[str]
    num_processes: int
    environment: dict[str, str] = field(repr=False)

    def start(self) -> int:
        """Replace this process by the launcher's; where that cannot be, wait for it and return its exit status."""
        words = ["-m", "srpo_trl.commands.launcher", *self.words, "-m", "srpo_trl.cli", *self.command]
        environment = self.environment | {LAUNCHED: "1"}
        sys.stdout.flush()
        if os.name == "nt":  # there exec leaves the terminal to the shell while the new process runs
            return subprocess.call([sys.executable, *words], env=environment)
        os.execve(sys.executable, [sys.executable, *words], environment)


@functools.cache
def launcher_options() -> dict[str, argparse.Action]:
    """Return the options of `accelerate launch` that are passed on to it, by name, and `accelerate_config`."""
    actions = {
        word.lstrip("-").replace("-", "_"): action
        for action in launch_command_parser()._actions
        for word in action.option_strings
        if word.startswith("--")
    }
    return {PROFILE: argparse.Action([], PROFILE)} | {
        name: action for name, action in actions.items() if name not in _NOT_PASSED_ON
    }


def split_words(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words of `argv` that are the launcher's options and their values, and the others."""
    launcher: list[str] = []
    own: list[str] = []
    takes_value = False
    for word in argv:
        name, equals, _ = word.removeprefix("--").replace("-", "_").partition("=")
        action = launcher_options().get(name) if word.startswith("--") else None
        (launcher if action is not None or takes_value else own).append(word)
        takes_value = action is not None and action.nargs != 0 and not equals
    return launcher, own


def read_launch(command: str, argv: Sequence[str]) -> tuple[Launch | None, list[str]]:
    """Return what a command is to be launched with (None: it runs in this process), and the problems.

    Processes that a launcher has started leave the YAML file's options of the launcher alone.

    Args:
        command: of `srpo-trl`.
        argv: its words.
    """
    words, own = split_words(argv)
    if is_launched():
        names = " ".join(word for word in words if word.startswith("--"))
        problem = f"{names} belongs to accelerate's launcher, which runs already. Give it to the launcher."
        return None, [problem] if words else []
    values = options_in_file(own)
    words = [*_as_words(values), *words]
    if not words:
        return None, []
    if (pipe := _pipe(own)) is not None:
        problem = f"--config {pipe} is a pipe, which other processes cannot read: give a file."
        return None, [problem]
    try:
        words = _with_profile(words)
        num_processes, more = _processes(words)
    except (ValueError, OSError) as error:
        return None, [str(error)]
    environment = (
        os.environ | _OWN_STORE | {name: str(value) for name, value in values.get("env", {}).items()}
    )
    return Launch([*more, *words], [command, *own], num_processes, environment), []


def is_launched() -> bool:
    """Return whether a launcher has started this process."""
    return LAUNCHED in os.environ or "LOCAL_RANK" in os.environ


def profile_path(name: str) -> Path:
    """Return the accelerate config that `name` names: a file, or a profile of this package or else of TRL.

    Raises:
        ValueError: there is none.
    """
    trls = resources.files("trl.accelerate_configs")
    known = {Path(str(file)).stem: Path(str(file)) for file in trls.iterdir() if file.name.endswith(".yaml")}
    known |= engine_profiles()
    if Path(name).expanduser().is_file():
        return Path(name).expanduser()
    if name in known:
        return known[name]
    raise ValueError(
        f"{PROFILE}={name!r} is neither a file nor a profile.{nearest(name, known)} Profiles: "
        f"{', '.join(sorted(known))}."
    )


def options_in_file(argv: Sequence[str]) -> dict[str, Any]:
    """Return the YAML file's options; none where it cannot be read, which whoever reads the options reports."""
    path, _ = split_config(argv)
    if path is None:
        return {}
    with contextlib.suppress(ValueError):
        return read_config_file(path)
    return {}


def split_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return what `--config` names, and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    found, others = parser.parse_known_args(argv)
    return found.config, others


def _pipe(argv: Sequence[str]) -> str | None:
    """Return what `--config` names where it is a pipe."""
    path, _ = split_config(argv)
    with contextlib.suppress(ValueError):
        if path is not None and (file := config_path(path)).exists() and not file.is_file():
            return path
    return None


@contextlib.contextmanager
def as_one_of(num_processes: int) -> Iterator[None]:
    """Let configs be checked as by one of so many processes: TRL counts groups over all of them."""
    SRPOConfig.world_size = property(lambda self: num_processes)  # type: ignore[assignment]
    try:
        yield
    finally:
        del SRPOConfig.world_size


def _as_words(values: dict[str, Any]) -> list[str]:
    """Return the YAML file's options of the launcher as words of a command line."""
    words: list[str] = []
    for name, value in values.items():
        action = launcher_options().get(name)
        if action is None or value is None or (action.nargs == 0 and not value):
            continue
        words += [f"--{name}"] if action.nargs == 0 else [f"--{name}", str(value)]
    return words


def _with_profile(words: list[str]) -> list[str]:
    """Return the words with the file of the last `--accelerate_config` as the launcher's `--config_file`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--accelerate_config", "--accelerate-config")
    found, rest = parser.parse_known_args(words)
    name = found.accelerate_config
    return rest if name is None else ["--config_file", str(profile_path(name)), *rest]


def _processes(words: list[str]) -> tuple[int, list[str]]:
    """Return how many processes the launcher starts, and the words that it needs for that.

    Raises:
        ValueError: the launcher refuses the words.
    """
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            given = launch_command_parser().parse_args([*words, "srpo_trl"])
    except SystemExit:
        raise ValueError(
            f"accelerate launch: {messages.getvalue().rpartition('error: ')[2].strip()}."
        ) from None
    file = given.config_file or (default_config_file if os.path.isfile(default_config_file) else None)
    gpus = 0 if given.cpu else torch.cuda.device_count()
    config = None if file is None else _engine_file(str(file))
    more: list[str] = []
    if given.max_restarts and given.rdzv_backend == "static" and _machines(given, config) == 1:
        more = ["--rdzv_backend", "c10d"]  # with the variable of `_OWN_STORE`
    for number in (given.num_processes, getattr(config, "num_processes", None)):
        if number is not None and (not isinstance(number, int) or number < 1):
            raise ValueError(f"num_processes={number!r} must be a whole number of at least 1.")
    if given.num_processes is None and config is not None:
        is_profile = Path(str(file)) in engine_profiles().values()
        if config.num_processes is None or (
            gpus and is_profile and config.num_machines == 1 < config.num_processes
        ):
            count = max(gpus, 1)  # the number in a profile stands for all GPUs
            return count, [*more, "--num_processes", str(count)]
        number_in_file: int = config.num_processes
        return number_in_file, more
    count = max(gpus if given.num_processes is None else given.num_processes, 1)
    if file is None and count > 1 and not any(getattr(given, kind) for kind in _KINDS):
        # without it the launcher starts one process where there is one GPU or none
        return count, [*more, "--multi_gpu"]
    return count, more


def _machines(given: argparse.Namespace, config: Any) -> int:
    """Return how many machines the launcher's words, or else its file, name."""
    return given.num_machines or getattr(config, "num_machines", None) or 1


def _engine_file(file: str) -> Any:
    """Return what accelerate reads in one of its config files.

    Raises:
        ValueError: it cannot be read, or accelerate refuses it.
    """
    read_mapping(Path(file), f"{PROFILE} {file}")
    try:
        return load_config_from_file(file)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{PROFILE} {file}: {error}") from error
