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

# Standard input begins with a length and what to run; the rest is the program's. A function's value goes to the real
# standard output, and what the program prints beside it to standard error.
_DRIVER = r"""
import json, os, sys

def read(count):
    data = b""
    while len(data) < count:
        data += os.read(0, count - len(data))
    return data

task = json.loads(read(int(read(12))))
try:
    import resource
    for name, value in task["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
except ImportError:
    pass
source, file = task["program"], "solution.py"
names = {"__name__": "__main__", "__file__": file}
if task["function"] is None:
    exec(compile(source, file, "exec"), names)
else:
    answer = os.dup(1)
    os.dup2(2, 1)
    sys.stdin = open(os.devnull)
    exec(compile(source, file, "exec"), names)
    holder = names["Solution"]() if "Solution" in names else None
    function = getattr(holder, task["function"], None) or names[task["function"]]
    value = json.dumps(function(*task["arguments"]))
    os.write(answer, value.encode())
"""

_PLACE = re.compile(r'File "solution.py", line (\d{1,6})')
_FIRST_UID, _RUNS = 200_000, itertools.count()
_WAIT_FOR_READERS = 1.0  # seconds


class Limits(NamedTuple):
    """What one run may take.

    Attributes:
        seconds: of wall clock and, as a second line, of the processor.
        memory_mb: of each process's address space; not on macOS, which refuses the limit.
        processes: that exist at once, threads included.
        output_kb: of standard output, and of standard error; a run that writes more is stopped.
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
    body = json.dumps({**task._asdict(), "limits": _resource_limits(limits)}).encode()
    given = f"{len(body):012d}".encode() + body + task.stdin.encode(errors="replace")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        os.chmod(scratch, 0o777)  # for a user of its own
        process = subprocess.Popen(
            [*_wrapper(isolation(), limits), sys.executable, "-I", "-c", _DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=scratch,  # bubblewrap has one of its own
            env={"PYTHONIOENCODING": "utf-8", **_WINDOWS_NEEDS},
        )
        outputs, size = {"stdout": bytearray(), "stderr": bytearray()}, limits.output_kb * 1024
        workers = [
            threading.Thread(target=_give, args=(process, given), daemon=True),
            *(
                threading.Thread(target=_take, args=(process, name, written, size), daemon=True)
                for name, written in outputs.items()
            ),
        ]
        for worker in workers:
            worker.start()
        status = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(limits.seconds)
        _stop(process)
        for worker in workers:  # a process that has left its session may hold the other ends
            worker.join(_WAIT_FOR_READERS)
    if any(len(written) > size for written in outputs.values()):
        error = f"It wrote more than {limits.output_kb} KB."
    elif status is None:
        error = f"It did not end within {limits.seconds:g} seconds."
    else:
        error = _last_error(bytes(outputs["stderr"]), task.program, status) if status else ""
    return Execution(bytes(outputs["stdout"][:size]).decode(errors="replace"), error)


class Isolation(NamedTuple):
    """How programs are kept apart.

    Attributes:
        kind: "bubblewrap", "namespaces" or "limits" (see the module's docstring).
        has_own_user: whether a superuser's programs run as users of their own.
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
                return found
    raise RuntimeError(f"{sys.executable} -I -c '' does not run.")


_WARNINGS = {
    "namespaces": "Programs that the model writes run without network, but with this machine's files in reach. Install "
    "bubblewrap to keep them apart, or give an executor that runs them elsewhere.",
    "limits": "PROGRAMS THAT THE MODEL WRITES RUN WITH NETWORK AND FILES IN REACH, limited in time and memory alone. "
    "Install bubblewrap (Linux), or give an executor that runs them elsewhere.",
}
_UNSHARE = ["unshare", "--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child"]
_UNSHARE += ["--mount-proc"]
_WINDOWS_NEEDS = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}


def _works(found: Isolation) -> bool:
    command = _wrapper(found, Limits())
    if command and shutil.which(command[0]) is None:
        return False
    trial = subprocess.run([*command, sys.executable, "-I", "-c", ""], capture_output=True)
    return trial.returncode == 0


def _wrapper(found: Isolation, limits: Limits) -> list[str]:
    """Return the command that runs what follows it."""
    user = str(_FIRST_UID + (os.getpid() * 1009 + next(_RUNS)) % 1_000_000)
    own_user = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"] if found.has_own_user else []
    if found.kind == "bubblewrap":
        return [*_bubblewrap(limits), *own_user]
    return own_user + (_UNSHARE if found.kind == "namespaces" else [])


def _bubblewrap(limits: Limits) -> list[str]:
    """Return the command for a file system of the interpreter, the system's libraries and a scratch folder alone."""
    interpreter = {
        sys.base_prefix,
        sys.prefix,
        str(Path(sys.executable).parent),
        sysconfig.get_path("stdlib"),
    }
    command = [
        "bwrap",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-uts",
        "--die-with-parent",
    ]
    for folder in ("/usr", "/lib", "/lib64", "/bin", *sorted(interpreter)):
        command += ["--ro-bind-try", folder, folder]
    command += ["--proc", "/proc", "--dev", "/dev", "--new-session"]
    command += ["--perms", "1777", "--size", str(limits.file_mb << 20), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    return command if os.geteuid() == 0 else [*command, "--unshare-user", "--cap-drop", "ALL"]


def _resource_limits(limits: Limits) -> dict[str, int]:
    """Return the limits by their names in `resource`, each a process's own."""
    of_memory = {} if sys.platform == "darwin" else {"RLIMIT_AS": limits.memory_mb << 20}  # macOS refuses it
    return of_memory | {
        "RLIMIT_CPU": int(limits.seconds) + 1,
        "RLIMIT_FSIZE": limits.file_mb << 20,
        "RLIMIT_NPROC": limits.processes,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
    }


def _give(process: "subprocess.Popen[bytes]", data: bytes) -> None:
    assert process.stdin is not None, "asked for"
    with contextlib.suppress(OSError), process.stdin:  # a program may end without reading
        process.stdin.write(data)


def _take(process: "subprocess.Popen[bytes]", name: str, written: bytearray, size: int) -> None:
    """Read one of its outputs to the end, or until it has written too much."""
    with getattr(process, name) as stream:
        while len(written) <= size and (part := stream.read1()):
            written += part
    if len(written) > size:
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
