"""The training process's side of a process that grades: it starts it, asks it, and kills it when it is late."""

import contextlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from srpo_trl.host.rewards.run import NamedFunction, Outcome
from srpo_trl.host.rewards.transport import CannotBeSentError, arguments_bytes, function_bytes
from srpo_trl.host.rewards.worker import Answer, Setting

START_SECONDS = (
    300.0  # for imports from a slow disk; a function's own limit counts from when it has its batch
)

_BOOTSTRAP = (
    "import sys; sys.path[:] = {path!r}; "
    "from srpo_trl.host.rewards.worker import serve; serve({connection}, {life})"
)


class ProcessDiedError(RuntimeError):
    """The process that graded ended by itself; the message says how."""


class RewardProcess:
    """A reward function in a process of its own, started at the first batch and again after each kill.

    Args:
        function: the function, which is sent once per start: what it remembers, it remembers in its process.
        is_async: it is a coroutine function.
    Raises:
        CannotBeSentError: it holds something that lives in this process.
    """

    def __init__(self, function: NamedFunction, *, is_async: bool) -> None:
        if os.name != "posix":
            raise CannotBeSentError("processes that grade are started on Linux and macOS only")
        self._setting = Setting(function_bytes(function), is_async, logging.getLogger().getEffectiveLevel())
        self._worker: _Worker | None = None

    def submit(self, given: Mapping[str, Any]) -> tuple[Future[None], Future[Outcome]]:
        """Return what ends when the function has its batch, and the outcome.

        Either may raise `CannotBeSentError` (the process cannot read the function or the batch) or
        `ProcessDiedError`, the outcome also what the function raised.

        Raises:
            CannotBeSentError: an argument cannot be taken to another process.
        """
        data = arguments_bytes(given)
        if (
            self._worker is None or self._worker.owner != os.getpid()
        ):  # which belongs to the process that forked
            self._worker = _Worker(self._setting)
        has_begun: Future[None] = Future()
        outcome: Future[Outcome] = Future()
        # A daemon: a process that answers nothing does not hold up this one's end.
        threading.Thread(target=self._worker.ask, args=(data, has_begun, outcome), daemon=True).start()
        return has_begun, outcome

    def kill(self) -> None:
        """End the process and those that it started; the next batch gets a new one."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None


class _Worker:
    """One process and the connection to it."""

    def __init__(self, setting: Setting) -> None:
        self.owner = os.getpid()
        self._setting: Setting | None = setting
        connection, theirs = multiprocessing.Pipe()
        their_life, life = os.pipe()
        code = _BOOTSTRAP.format(path=list(map(str, sys.path)), connection=theirs.fileno(), life=their_life)
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), their_life),
            start_new_session=True,  # an interrupt at the terminal is for the training process
        )
        theirs.close()
        os.close(their_life)
        self._connection = connection
        self.end = weakref.finalize(self, _end, self._process, life, self.owner)

    def ask(self, data: bytes, has_begun: Future[None], outcome: Future[Outcome]) -> None:
        """Send one batch and set the futures."""
        try:
            self._begin(data)
            has_begun.set_result(None)
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._fail(ProcessDiedError(self._ending()), has_begun, outcome)
        except Exception as error:  # reading an answer runs methods of whatever the function raised or logged
            self._fail(error, has_begun, outcome)
        else:
            _take(answer, outcome)

    def _begin(self, data: bytes) -> None:
        if self._setting is not None:
            self._connection.send(self._setting)
            self._setting = None
            _raise_if_unsent("the function", self._connection.recv())
        self._connection.send_bytes(data)
        _raise_if_unsent("its arguments", self._connection.recv())

    @staticmethod
    def _fail(error: Exception, *futures: Future[Any]) -> None:
        for future in futures:
            if not future.done():
                future.set_exception(error)

    def _ending(self) -> str:
        self.end()
        status = self._process.returncode
        if status is None:
            return "closed its connection"
        if status >= 0:
            return f"exited with status {status}"
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        return f"was killed by {name}"


def _raise_if_unsent(what: str, problem: str | None) -> None:
    if problem is not None:
        raise CannotBeSentError(f"the process that grades cannot read {what} ({problem})")


def _take(answer: Answer, outcome: Future[Outcome]) -> None:
    for record in answer.records:
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    if answer.outcome is not None:
        outcome.set_result(answer.outcome)
        return
    error = answer.error or RuntimeError("the process that grades gave no answer")
    error.add_note(f"In the process that grades:\n{answer.trace}")
    outcome.set_exception(error)


def _end(process: subprocess.Popen[bytes], life: int, owner: int) -> None:
    """Kill the process with all that it started, and leave no zombie.

    The connection is closed with its last reference: a thread may still wait for an answer on it.
    """
    if os.getpid() != owner:  # a fork of the training process has no say
        return
    if process.returncode is None:  # as long as it is not waited for, its number is its own
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # which leaves the status of one that has ended as it is
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10.0)
    os.close(life)
