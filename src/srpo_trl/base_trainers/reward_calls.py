"""How the trainer calls reward functions: what they return is checked, and how long they take is bounded.

TRL calls one with keywords and takes whatever comes back. Here an error names the function and its batch, only
numbers and None come through, and with `reward_timeout` a function that hangs gives no scores in place of holding up
the run.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from multiprocessing.pool import ThreadPool
from numbers import Real
from types import TracebackType
from typing import Any

from torch import nn

from srpo_trl.trl_seams import is_async_callable, start_event_loop_in_daemon

logger = logging.getLogger(__name__)

MAX_TIMEOUTS_IN_A_ROW = 3  # each spends a batch of rollouts on nothing

Scores = list[float | None]


def checked_rewards(functions: Sequence[Any], names: Sequence[str], timeout: float | None) -> list[Any]:
    """Return the reward functions with their calls checked; reward models, which TRL calls in another way, as they are.

    Args:
        functions: as TRL holds them.
        names: that TRL gives them.
        timeout: seconds that a call may take; None: for ever.
    """
    return [
        function
        if isinstance(function, nn.Module)
        else (CheckedAsyncReward if is_async_callable(function) else CheckedReward)(function, name, timeout)
        for function, name in zip(functions, names, strict=True)
    ]


def checked_scores(scores: Any, num_rows: int, name: str) -> Scores:
    """Return what a reward function gave, one number or None per rollout.

    Raises:
        ValueError: it is no sequence, of another length, or holds something else.
    """
    if hasattr(scores, "tolist"):  # tensors and arrays
        scores = scores.tolist()
    if isinstance(scores, str | bytes | Mapping | Set) or not isinstance(scores, Iterable):
        raise ValueError(
            f"The reward function {name!r} returned {_shown(scores)}; it must return a list with one number, or None, "
            "per completion."
        )
    scores = list(scores)
    if len(scores) != num_rows:
        raise ValueError(
            f"The reward function {name!r} returned {len(scores)} rewards for {num_rows} completions; it must return "
            "one number, or None, per completion."
        )
    return [_checked_score(score, row, name) for row, score in enumerate(scores)]


def _checked_score(score: Any, row: int, name: str) -> float | None:
    number = score.item() if hasattr(score, "item") else score
    if number is None:
        return None
    if not isinstance(number, Real):
        raise ValueError(
            f"The reward function {name!r} returned {_shown(score)} for completion {row}; it must return a number, or "
            "None where it cannot tell."
        )
    return float(number)


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


class _Call(AbstractContextManager):
    """One call: its arguments, what the function logs, and the note that an error in it gets.

    What is logged is held back until the function has returned in time, so that one that timed out and goes on in
    its thread writes nothing into a later batch.
    """

    def __init__(self, name: str, given: dict[str, Any]) -> None:
        self._name = name
        self._given = given
        self._logged: list[tuple[Callable, tuple]] = []
        self.num_rows = len(given["completions"])
        self.arguments = given | {
            log: self._held(given[log]) for log in ("log_extra", "log_metric") if log in given
        }

    def _held(self, log: Callable[[str, Any], None]) -> Callable[[str, Any], None]:
        return lambda name, values: self._logged.append((log, (name, values)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            step = getattr(self._given.get("trainer_state"), "global_step", None)
            error.add_note(
                f"Raised by the reward function {self._name!r} on a batch of {self.num_rows} completions, after {step} "
                "optimizer steps. A function that cannot grade a completion returns None for it. The last checkpoint "
                "is whole; training can be resumed from it."
            )

    def finished(self, scores: Any) -> Scores:
        """Return the checked scores, and log what the function logged."""
        checked = checked_scores(scores, self.num_rows, self._name)
        for log, arguments in self._logged:
            log(*arguments)
        return checked

    def log_timeout(self, has_timed_out: bool) -> None:
        """Count the batch among those that timed out or did not; TRL averages over batches and processes."""
        self._given["log_metric"](f"rewards/{self._name}/timed_out_frac", float(has_timed_out))


class CheckedReward:
    """A synchronous reward function, called with checks; with a timeout, in a thread of its own.

    Args:
        function: TRL's reward function.
        name: that TRL gives it.
        timeout: seconds that a call may take; None: for ever, in the thread that calls.
    """

    def __init__(self, function: Callable[..., Any], name: str, timeout: float | None) -> None:
        self.function = function
        self.__name__ = name
        self.timeout = timeout
        self._num_timeouts_in_a_row = 0
        self._has_warned = False
        self._pool: ThreadPool | None = None

    def __getattr__(self, name: str) -> Any:
        """Return what the function itself has, such as how evaluation reads an answer."""
        if name == "function":  # not there yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.function, name)

    def __call__(self, **given: Any) -> Scores:
        """Return one number or None per completion.

        Raises:
            ValueError: the function returned something else.
            TimeoutError: it timed out in too many batches in a row.
        """
        with _Call(self.__name__, given) as call:
            if self.timeout is None:
                return call.finished(self.function(**call.arguments))
            # Its threads are daemons: one that hangs does not keep the process alive at its end.
            self._pool = self._pool or ThreadPool(1)
            result = self._pool.apply_async(self.function, kwds=call.arguments)
            result.wait(self.timeout)
            if result.ready():
                return self._in_time(call, result.get())
            self._pool.terminate()  # returns at once; the next call gets a thread that is free
            self._pool = None
            return self._too_late(call)

    def _in_time(self, call: _Call, scores: Any) -> Scores:
        self._num_timeouts_in_a_row = 0
        checked = call.finished(scores)
        call.log_timeout(False)
        return checked

    def _too_late(self, call: _Call) -> Scores:
        self._num_timeouts_in_a_row += 1
        message = f"The reward function {self.__name__!r} did not return within reward_timeout={self.timeout} seconds"
        if self._num_timeouts_in_a_row == MAX_TIMEOUTS_IN_A_ROW:
            raise TimeoutError(
                f"{message} in {MAX_TIMEOUTS_IN_A_ROW} batches in a row. See what it waits for, or give it more time."
            )
        if not self._has_warned:
            logger.warning(
                "%s, so that %d rollouts have no score from it. The metric rewards/%s/timed_out_frac counts such "
                "batches; %d in a row stop the run. This is said once.",
                message,
                call.num_rows,
                self.__name__,
                MAX_TIMEOUTS_IN_A_ROW,
            )
            self._has_warned = True
        call.log_timeout(True)
        return [None] * call.num_rows


class CheckedAsyncReward(CheckedReward):
    """An asynchronous reward function, called with checks; with a timeout, in an event loop of its own.

    Its own, because a function that blocks the loop it runs in must not block the one that TRL waits for; and always
    the same, because connections are bound to their loop.
    """

    _loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, **given: Any) -> Scores:  # type: ignore[override]
        """Return one number or None per completion.

        Raises:
            ValueError: the function returned something else.
            TimeoutError: it timed out in too many batches in a row.
        """
        with _Call(self.__name__, given) as call:
            if self.timeout is None:
                return call.finished(await self.function(**call.arguments))
            if self._loop is None:
                _, self._loop, is_running = start_event_loop_in_daemon(name=f"reward {self.__name__}")
                is_running.wait()
            future = asyncio.run_coroutine_threadsafe(self.function(**call.arguments), self._loop)
            done, _ = await asyncio.wait([asyncio.wrap_future(future)], timeout=self.timeout)
            if done:
                return self._in_time(call, future.result())
            future.cancel()
            return self._too_late(call)
