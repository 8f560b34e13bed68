"""A run, a resume and a report with what Windows lacks taken away; a script with the folder of the run.

torch, TRL and what they import come first: they know a machine by more than can be taken away here. Then standard
modules, functions and signals of POSIX are gone, `os.name` and `sys.platform` are those of Windows, a file that was
opened for reading cannot be flushed, and nothing is renamed over a file that is there. Start it with an encoding other
than UTF-8.
"""

import errno
import fcntl
import locale
import os
import pathlib
import signal
import sys
from pathlib import Path
from typing import Any

import datasets  # noqa: F401
import matplotlib.figure  # noqa: F401
import peft  # noqa: F401
import transformers
import trl

MODULES = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty")
OF_OS = (
    "fork",
    "forkpty",
    "getpgrp",
    "getuid",
    "geteuid",
    "killpg",
    "setsid",
    "statvfs",
    "sync",
    "uname",
    "O_ASYNC",
)
SIGNALS = ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "alarm", "setitimer")

imported = (transformers.Trainer, trl.GRPOTrainer)  # which are when they are first asked for
fsync, rename, fcntl_call, F_GETFL = os.fsync, os.rename, fcntl.fcntl, fcntl.F_GETFL


def fsync_of_windows(descriptor: int) -> None:
    if fcntl_call(descriptor, F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "opened for reading")
    fsync(descriptor)


def rename_of_windows(source: Any, target: Any, **given: Any) -> None:
    if os.path.exists(target):
        raise FileExistsError(errno.EEXIST, "there is such a file", str(target))
    rename(source, target, **given)


os.fsync, os.rename = fsync_of_windows, rename_of_windows
for name in OF_OS:
    delattr(os, name)
for name in SIGNALS:
    delattr(signal, name)
for name in MODULES:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
pathlib.WindowsPath = pathlib.PosixPath
os.name, sys.platform = "nt", "win32"

from harness import make_trainer  # noqa: E402
from srpo_trl.cli import main  # noqa: E402
from srpo_trl.rewards.maths import math_reward  # noqa: E402

assert locale.getencoding().lower() != "utf-8"
folder = Path(sys.argv[1])
options: dict[str, Any] = {
    "log_examples_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
}
for steps, resumes in ((2, None), (3, True)):
    trainer = make_trainer(folder, max_steps=steps, **options)
    trainer.train(resume_from_checkpoint=resumes)
assert trainer.state.global_step == 3
assert main(["report", str(folder), "--output", str(folder / "report.html")]) == 0
assert math_reward([[{"role": "assistant", "content": r"\boxed{2}"}]], answer=["2"]) == [1.0]
