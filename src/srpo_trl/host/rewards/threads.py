"""A reward function in a thread, or in an event loop, of this process: for what cannot be sent to another one.

A thread cannot be killed: a late call continues until it returns, beside the next call, and what it gives is dropped.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from multiprocessing.pool import ThreadPool
from threading import Thread
from typing import Any

from srpo_trl.host.rewards.run import NamedFunction, Outcome, private_call
from srpo_trl.seams.trl import start_event_loop_in_daemon


class RewardThread:
    """A synchronous function in a thread, the same one until it is late."""

    def __init__(self, function: NamedFunction) -> None:
        self._function = function
        self._pool: ThreadPool | None = None

    def submit(self, given: Mapping[str, Any]) -> tuple[Future[None], Future[Outcome]]:
        """Return what ends when the function has its batch (now), and the outcome, which raises what it raised."""
        outcome: Future[Outcome] = Future()
        # Its threads are daemons: one that hangs does not keep the process alive at its end.
        self._pool = self._pool or ThreadPool(1)
        self._pool.apply_async(_set_outcome, (outcome, self._function.run, *private_call(given)))
        return _done(), outcome

    def kill(self) -> None:
        """Leave the thread that is late alone; the next call gets one that is free."""
        if self._pool is not None:
            self._pool.terminate()  # returns at once
            self._pool = None


class RewardLoop:
    """An asynchronous function in an event loop of its own, always the same: connections are bound to their loop."""

    def __init__(self, function: NamedFunction) -> None:
        self._function = function
        self._loop: asyncio.AbstractEventLoop | None = None
        self._latest: Future[Outcome] | None = None

    def submit(self, given: Mapping[str, Any]) -> tuple[Future[None], Future[Outcome]]:
        """Return what ends when the function has its batch (now), and the outcome, which raises what it raised."""
        if self._loop is None:
            _, self._loop, is_running = start_event_loop_in_daemon(name=f"reward {self._function.name}")
            is_running.wait()
        coroutine = self._function.run_async(*private_call(given))
        self._latest = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return _done(), self._latest

    def kill(self) -> None:
        """Cancel the call that is late."""
        if self._latest is not None:
            self._latest.cancel()


def in_daemon_thread(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Return what a function gives in a thread that does not keep the process alive."""
    result: Future[Any] = Future()
    Thread(target=_set_outcome, args=(result, function, *arguments), daemon=True).start()
    return result


def _set_outcome(future: Future[Any], function: Callable[..., Any], *arguments: Any) -> None:
    try:
        future.set_result(function(*arguments))
    except BaseException as error:  # whoever waits for the future raises it
        future.set_exception(error)


def _done() -> Future[None]:
    done: Future[None] = Future()
    done.set_result(None)
    return done
