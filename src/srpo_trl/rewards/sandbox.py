"""One run of an untrusted Python program, with bounded time, memory, processes and output.

What a machine offers decides how far the program is kept apart (`isolation`):

    "bubblewrap"  no network, its own process tree, an own small /tmp, and nothing else of the file system but the
                  interpreter and the system's libraries, read-only
    "namespaces"  (util-linux's `unshare`) no network, its own process tree; the file system is this user's
    "limits"      the limits of `Limits` alone; on macOS without that of memory, on Windows those of time and output

Where this process is the superuser's, a program runs as a user of its own, whose processes can be counted.

The program never sees what it is compared with: the caller compares.
"""

import contextlib
import functools
import itertools
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

# Standard input begins with two lengths, what to run and what runs; the rest is the program's. A function's value goes
# to the real standard output, and what the program prints beside it to standard error. Starter code takes the imports
# of published graders for granted: they are built-in names to it, so that they are no functions of the program's.
_DRIVER = r"""
import json, os, sys

def read(count):
    data = bytearray()
    while len(data) < count:
        part = os.read(0, min(count - len(data), 1 << 20))
        if not part:
            sys.exit("The task ended early.")
        data += part
    return data

task = json.loads(read(int(read(12))))
try:
    import resource
    for name, value in task["limits"].items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
except ImportError:
    pass
source, file = task["program"], "solution.py"
names = {"__name__": "__main__", "__file__": file}
if task["function"] is None:
    exec(compile(source, file, "exec"), names)
else:
    import builtins, types
    known = types.ModuleType("builtins")
    modules = "string re math heapq bisect itertools functools operator collections typing".split()
    for module in modules:
        exec(f"from {module} import *", known.__dict__)
    for module in modules:
        exec(f"import {module}", known.__dict__)
    known.__dict__.update(vars(builtins))
    names["__builtins__"] = known
    answer = os.dup(1)
    os.dup2(2, 1)
    sys.stdin = open(os.devnull)
    exec(compile(source, file, "exec"), names)
    holder = names["Solution"]() if "Solution" in names else None
    function = getattr(holder, task["function"], None) or names[task["function"]]
    value = json.dumps(function(*task["arguments"])).encode()
    while value:
        value = value[os.write(answer, value):]
"""

_PLACE = re.compile(r'File "solution.py", line (\d{1,6})')
_FIRST_UID, _RUNS = 200_000, itertools.count()
_WAIT_FOR_READERS = 1.0  # seconds
_KEPT_ERRORS, _MOST_ERRORS = 64 << 10, 64 << 20  # bytes of standard error
_FLOOD = b"It wrote more than 64 MB of errors."
_KILLED = (-9, 128 + 9)  # as the limit of the processor does
_KILLED_IN_UNSHARE = b"unshare: sigprocmask"  # which cannot pass this signal on


class Limits(NamedTuple):
    """What one run may take.

    Attributes:
        seconds: of each process on the processor, in whole ones; the run ends after three times as many, and 2, on the
            clock, so that a busy machine fails no program.
        memory_mb: of each process's address space; not on macOS, which refuses the limit.
        processes: that exist at once, threads included, where they can be counted (see `Isolation`).
        output_kb: of standard output; a run that writes more is stopped. Of standard error the end is kept.
        file_mb: of each file, and of the scratch folder where there is one.
    """

    seconds: float = 6.0
    memory_mb: int = 1024
    processes: int = 16
    output_kb: int = 256
    file_mb: int = 16


class Task(NamedTuple):
    """What to run.

    Attributes:
        program: Python source, run as `__main__`.
        stdin: its standard input.
        function: name of the function, or method of its class `Solution`, whose value is the output, as JSON; None: the
            output is what the program prints.
        arguments: of the function.
    """

    program: str
    stdin: str = ""
    function: str | None = None
    arguments: Sequence[object] = ()


class Execution(NamedTuple):
    """What a run left.

    Attributes:
        output: what it printed, or the function's value as JSON text.
        error: why it did not end well, such as the exception with its line; empty where it did.
    """

    output: str
    error: str = ""


Executor = Callable[[Task, Limits], Execution]


def run_python(task: Task, limits: Limits = Limits()) -> Execution:  # noqa: B008 (immutable)
    """Run a program apart from this one (see the module's docstring), and return what it left.

    Nothing it does raises here; programs can run at once in several threads.
    """
    found = isolation()
    head = {**task._asdict(), "stdin": None, "limits": _resource_limits(found, limits)}
    body = json.dumps(head).encode()
    given = (f"{len(body):012d}".encode(), body, task.stdin.encode(errors="replace"))
    outputs, size = {"stdout": bytearray(), "stderr": bytearray()}, limits.output_kb * 1024
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        os.chmod(scratch, 0o777)  # for a user of its own
        process = subprocess.Popen(
            [*_wrapper(found, limits), sys.executable, "-I", "-c", _DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=scratch,  # bubblewrap has one of its own
            env={"PYTHONIOENCODING": "utf-8", **_WINDOWS_NEEDS},
        )
        workers = [
            threading.Thread(target=work, args=(process, *arguments), daemon=True)
            for work, *arguments in (
                (_give, given),
                (_take, outputs["stdout"], size),
                (_take_end, outputs["stderr"]),
            )
        ]
        for stream in (process.stdin, process.stdout, process.stderr) if found.has_own_user else ():
            assert stream is not None, "asked for"
            os.fchmod(stream.fileno(), 0o666)  # so that the user of its own can open /dev/stdin
        for worker in workers:
            worker.start()
        status = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(3 * limits.seconds + 2)
        _stop(process)
        for worker in workers:  # a process that has left its session may hold the other ends
            worker.join(_WAIT_FOR_READERS)
    if len(outputs["stdout"]) > size:
        error = f"It wrote more than {limits.output_kb} KB."
    elif outputs["stderr"] == _FLOOD:
        error = _FLOOD.decode()
    elif status is None or status in _KILLED or outputs["stderr"].startswith(_KILLED_IN_UNSHARE):
        error = f"It did not end within {limits.seconds:g} seconds."
    else:
        error = _last_error(bytes(outputs["stderr"]), task.program, status) if status else ""
    return Execution(bytes(outputs["stdout"][:size]).decode(errors="replace"), error)


class Isolation(NamedTuple):
    """How programs are kept apart.

    Attributes:
        kind: "bubblewrap", "namespaces" or "limits" (see the module's docstring).
        has_own_user: whether a superuser's programs run as users of their own. Processes are counted there, and in the
            user namespaces of the first two kinds unless they are the superuser's.
    """

    kind: str
    has_own_user: bool


@functools.cache
def isolation() -> Isolation:
    """Return the strongest that works on this machine; a warning is logged once where it is not all there is."""
    is_superuser = sys.platform != "win32" and os.geteuid() == 0
    for kind in ("bubblewrap", "namespaces", "limits"):
        for has_own_user in (True, False) if is_superuser else (False,):
            found = Isolation(kind, has_own_user)
            if _works(found):
                if kind != "bubblewrap":
                    logger.warning(_WARNINGS[kind])
                if is_superuser and not has_own_user:
                    logger.warning(_NO_OWN_USER)
                return found
    raise RuntimeError(f"{sys.executable} -I -c '' does not run.")


_WARNINGS = {
    "namespaces": "Programs that the model writes run without network, but with this machine's files in reach. Install "
    "bubblewrap to keep them apart, or give an executor that runs them elsewhere.",
    "limits": "PROGRAMS THAT THE MODEL WRITES RUN WITH NETWORK AND FILES IN REACH, limited in time and memory alone. "
    "Install bubblewrap (Linux), or give an executor that runs them elsewhere.",
}
_NO_OWN_USER = (
    "Programs that the model writes run as the superuser, because other users cannot run this Python or util-linux's "
    "setpriv is missing: their processes are not counted. Train as another user, or give an executor."
)
_UNSHARE = ["--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
_NO_RIGHTS = ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
_WINDOWS_NEEDS = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}


def _works(found: Isolation) -> bool:
    """Whether this very interpreter runs so: one that cannot reach its own files may find those of another."""
    try:
        command = [
            *_wrapper(found, Limits()),
            sys.executable,
            "-I",
            "-c",
            "import sys; print(ascii(sys.prefix))",
        ]
        trial = subprocess.run(command, capture_output=True, text=True, timeout=60, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return False
    return trial.returncode == 0 and trial.stdout.strip() == ascii(sys.prefix)


def _wrapper(found: Isolation, limits: Limits) -> list[str]:
    """Return the command that runs what follows it.

    Raises:
        FileNotFoundError: one of its programs is not installed.
    """
    user = str(_FIRST_UID + (os.getpid() * 1009 + next(_RUNS)) % 1_000_000)
    own_user: list[str] = []
    if found.has_own_user:
        own_user = [_installed("setpriv"), "--reuid", user, "--regid", user, "--clear-groups"]
    if found.kind == "bubblewrap":
        return [*_bubblewrap(limits, found.has_own_user), *own_user, *(_NO_RIGHTS if own_user else ())]
    if found.kind == "namespaces":
        return [*own_user, _installed("unshare"), *_UNSHARE, _installed("setpriv"), *_NO_RIGHTS]
    return [*own_user, "--no-new-privs"] if own_user else []


def _installed(name: str) -> str:
    if path := shutil.which(name):
        return os.path.abspath(path)
    raise FileNotFoundError(f"{name} is not installed")


def _bubblewrap(limits: Limits, has_own_user: bool) -> list[str]:
    """Return the command for a file system of the interpreter, the system's libraries and scratch folders alone."""
    interpreter = {
        sys.base_prefix,
        sys.prefix,
        str(Path(sys.executable).parent),
        str(Path(sys.executable).resolve().parent),
        sysconfig.get_path("stdlib"),
    }
    command = [_installed("bwrap"), "--unshare-net", "--unshare-ipc", "--unshare-pid", "--unshare-uts"]
    command += ["--die-with-parent", "--new-session", "--proc", "/proc", "--dev", "/dev"]
    for folder in ("/dev/shm", "/tmp"):
        command += ["--perms", "1777", "--size", str(limits.file_mb << 20), "--tmpfs", folder]
    for folder in ("/usr", "/lib", "/lib64", "/bin"):
        command += ["--ro-bind-try", folder, folder]
    # After /tmp, where it may be. Levels that bubblewrap makes by itself are closed to other users.
    for level in sorted({str(level) for folder in interpreter for level in Path(folder).parents} - {"/"}):
        command += ["--perms", "0755", "--dir", level]
    for folder in sorted(interpreter):
        command += ["--ro-bind-try", folder, folder]
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
    # Who stays the superuser could otherwise mount anew what is read-only.
    return command if has_own_user else [*command, "--unshare-user", "--cap-drop", "ALL"]


def _resource_limits(found: Isolation, limits: Limits) -> dict[str, int]:
    """Return the limits by their names in `resource`, each a process's own."""
    values = {
        "RLIMIT_CPU": math.ceil(limits.seconds),
        "RLIMIT_FSIZE": limits.file_mb << 20,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
    }
    if sys.platform != "darwin":  # which refuses it
        values["RLIMIT_AS"] = limits.memory_mb << 20
    if (
        found.has_own_user or found.kind != "limits"
    ):  # else all processes of this user count, the trainer's with them
        values["RLIMIT_NPROC"] = limits.processes
    return values


def _give(process: "subprocess.Popen[bytes]", parts: Sequence[bytes]) -> None:
    assert process.stdin is not None, "asked for"
    with contextlib.suppress(OSError), process.stdin:  # a program may end without reading
        for part in parts:
            process.stdin.write(part)


def _take(process: "subprocess.Popen[bytes]", written: bytearray, size: int) -> None:
    """Read standard output to the end, or until it is too much."""
    assert process.stdout is not None, "asked for"
    with process.stdout as stream:
        while len(written) <= size and (part := os.read(stream.fileno(), 1 << 16)):
            written += part
    if len(written) > size:
        _stop(process)


def _take_end(process: "subprocess.Popen[bytes]", written: bytearray) -> None:
    """Read standard error and keep its end; a program that writes without end is stopped."""
    assert process.stderr is not None, "asked for"
    total = 0
    with process.stderr as stream:
        while total <= _MOST_ERRORS and (part := os.read(stream.fileno(), 1 << 16)):
            total += len(part)
            written += part
            del written[:-_KEPT_ERRORS]
    if total > _MOST_ERRORS:
        written[:] = _FLOOD
        _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End a program and what it has started, which its session or process tree holds together."""
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_error(stderr: bytes, program: str, status: int) -> str:
    """Return the last line of a traceback, and the last line of the program that it names."""
    lines = stderr.decode(errors="replace").strip().splitlines()
    if not lines:
        return f"It ended with exit status {status}."
    numbers = [int(number) for line in lines for number in _PLACE.findall(line)]
    code = program.splitlines()
    if not numbers or not 0 < numbers[-1] <= len(code):
        return lines[-1]
    return f"{lines[-1]} (line {numbers[-1]}: {code[numbers[-1] - 1].strip()})"
