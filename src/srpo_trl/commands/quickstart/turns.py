"""Jobs of one process that take turns: other work on the machine slows all alike, and no job changes another."""

import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Semaphore, Thread, current_thread, main_thread
from typing import Any

import numpy as np
import torch

Job = Callable[[Callable[[], None]], None]


def take_turns(jobs: Sequence[Job]) -> None:
    """Run the jobs, one at a time, until all have ended; an error of one ends all, and is raised.

    Every job starts with the caller's random state (Python's, NumPy's, torch's on the CPU) and keeps its own, so its
    numbers are those of a run alone. Afterwards the caller's is as it was.

    Args:
        jobs: each is given a function that it calls wherever the next one may go on.
    """
    state = _random_state()
    waiting = [_Turns(job, state) for job in jobs]
    try:
        while waiting:
            waiting = [turns for turns in waiting if turns.take_one()]
    finally:
        with _uninterrupted():
            for turns in waiting:
                turns.cancel()
        _set_random_state(state)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait: a program that ends while one of its threads is inside torch is aborted."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Cancelled(BaseException):  # which a job's own handlers of errors let through
    """Another job has failed, or the user has interrupted."""


class _Turns:
    """A job in a thread of its own, which waits between its turns."""

    def __init__(self, job: Job, state: tuple[Any, ...]) -> None:
        self._job, self._state = job, state
        self._begin, self._end = Semaphore(0), Semaphore(0)
        self._is_cancelled = self._has_ended = False
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def take_one(self) -> bool:
        """Let the job go on until it passes on or ends; return whether there is more of it."""
        self._begin.release()
        self._end.acquire()
        if self._error is not None:
            raise self._error
        return not self._has_ended

    def cancel(self) -> None:
        """End the job where it waits, or where it passes on next."""
        self._is_cancelled = True
        self._begin.release()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._wait()
            self._job(self._pass_on)
        except BaseException as error:  # raised again by `take_one`, in the caller's thread
            self._error = error
        self._has_ended = True
        self._end.release()

    def _pass_on(self) -> None:
        self._state = _random_state()
        self._end.release()
        self._wait()

    def _wait(self) -> None:
        self._begin.acquire()
        if self._is_cancelled:
            raise _Cancelled
        _set_random_state(self._state)


def _random_state() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_random_state(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
