"""The process that grades: it is given one reward function, then batches one by one, until its parent ends.

`reward_process` starts it as a fresh interpreter, so it shares no lock, no thread and no device with the training
process, and imports no script again. The function runs in the main thread, where alarms work.
"""

import asyncio
import contextlib
import logging.handlers
import os
import queue
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

from srpo_trl.host.rewards.run import NamedFunction, Outcome
from srpo_trl.host.rewards.transport import read_function

MAX_LOG_RECORDS = 1000  # of one batch; the newest are kept


class Setting(NamedTuple):
    """What the worker is told first."""

    function: bytes
    is_async: bool
    log_level: int


class Answer(NamedTuple):
    """What the worker says about one batch.

    Attributes:
        outcome: scores and logs; None where the function raised.
        error: what it raised, a `RuntimeError` with the same text where that cannot be sent.
        trace: the traceback of it as text.
        records: of Python's logging.
    """

    outcome: Outcome | None
    error: BaseException | None
    trace: str
    records: list[logging.LogRecord]


def serve(connection_fd: int, life_fd: int) -> None:
    """Serve batches until the parent closes its end of the connection.

    Args:
        connection_fd: of the connection over which functions, batches and answers go.
        life_fd: of a pipe whose other end is the parent's: it is closed when the parent ends, however it ends.
    """
    _end_with_parent(life_fd)
    connection = Connection(connection_fd)
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):  # the parent has ended
        setting: Setting = connection.recv()
        records = _collected_records(setting.log_level)
        try:
            function = read_function(setting.function)
        except BaseException as error:  # importing the user's modules can raise anything, SystemExit too
            connection.send(f"{type(error).__name__}: {error}")
            return
        connection.send(None)
        run = _async_run(function) if setting.is_async else function.run
        while True:
            _answer_one(connection, run, records)


def _answer_one(
    connection: Connection, run: Callable[..., Outcome], records: deque[logging.LogRecord]
) -> None:
    try:
        arguments, logs = connection.recv()
    except (EOFError, OSError):
        raise
    except (
        Exception
    ) as error:  # an argument's class cannot be imported here, or does not take what it was made of
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)  # from here on the time limit counts
    records.clear()
    try:
        answer = Answer(run(arguments, logs), None, "", [])
    except BaseException as raised:  # all that a function may raise is the parent's to judge
        answer = Answer(None, raised, traceback.format_exc(), [])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(
            OSError, ValueError, AttributeError
        ):  # closed, or redirected, by the function
            stream.flush()
    connection.send_bytes(_answer_bytes(answer._replace(records=list(records))))


def _answer_bytes(answer: Answer) -> bytes:
    """Return the answer; what of it cannot be sent is left out, an exception or a result becomes a RuntimeError."""
    bare = answer._replace(records=[])
    for sendable in (answer, bare):
        try:
            data = bytes(ForkingPickler.dumps(sendable))
            ForkingPickler.loads(data)  # an exception may not take what it was made of
        except BaseException:  # whatever the methods raise by which an object is pickled
            continue
        return data
    what = "it logged what cannot be pickled" if answer.error is None else _described(answer.error)
    return bytes(ForkingPickler.dumps(bare._replace(outcome=None, error=RuntimeError(what))))


def _described(error: BaseException) -> str:
    try:
        return repr(error)
    except BaseException:  # whatever a method of the user's class raises
        return f"{type(error).__name__}, whose text cannot be shown"


def _async_run(function: NamedFunction) -> Callable[..., Outcome]:
    loop = asyncio.new_event_loop()  # always the same: connections are bound to their loop
    asyncio.set_event_loop(loop)

    def run(arguments: dict[str, Any], logs: list[str]) -> Outcome:
        return loop.run_until_complete(function.run_async(arguments, logs))

    return run


def _collected_records(level: int) -> deque[logging.LogRecord]:
    """Return where the process's log records gather from now on."""
    records: deque[logging.LogRecord] = deque(maxlen=MAX_LOG_RECORDS)

    class Collector(logging.handlers.QueueHandler):
        def enqueue(self, record: logging.LogRecord) -> None:
            records.append(record)

    logging.basicConfig(level=level, format="%(message)s", handlers=[Collector(queue.Queue())], force=True)
    return records


def _end_with_parent(life_fd: int) -> None:
    """Let the process and its children end when the parent does.

    The kernel's signal also ends a process that keeps the interpreter; the thread serves where there is none.
    """
    import fcntl  # which Windows lacks, where no such process is started

    if hasattr(fcntl, "F_SETSIG"):  # Linux, Python 3.11 or later
        fcntl.fcntl(life_fd, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(life_fd, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(life_fd, fcntl.F_GETFL)
        fcntl.fcntl(life_fd, fcntl.F_SETFL, flags | os.O_ASYNC)

    def wait() -> None:
        os.read(life_fd, 1)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True, name="ends with the parent").start()
