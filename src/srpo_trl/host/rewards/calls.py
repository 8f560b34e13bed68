"""How the trainer calls reward functions: what they are given is their own, what they return is checked, and how long
they take is bounded.

TRL calls one with keywords and takes whatever comes back. Here an error names the function and its batch, only
numbers and None come through, and with `reward_timeout` a function that hangs gives no scores in place of holding up
the run: it has a process of its own, which can be killed whatever it does.
"""

import asyncio
import concurrent.futures
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple

from torch import nn

from srpo_trl.host.rewards.columns import reward_columns
from srpo_trl.host.rewards.feedback import Feedback
from srpo_trl.host.rewards.process import START_SECONDS, ProcessDiedError, RewardProcess
from srpo_trl.host.rewards.run import NamedFunction, Outcome, private_call
from srpo_trl.host.rewards.scores import FLOAT32_MAX, Scores, score_limits
from srpo_trl.host.rewards.threads import RewardLoop, RewardThread, in_daemon_thread
from srpo_trl.host.rewards.transport import CannotBeSentError
from srpo_trl.seams.messages import whole_characters
from srpo_trl.seams.trl import is_async_callable

logger = logging.getLogger(__name__)

MAX_SQUARED = 1e18  # from about here on the squares of a group's rewards are too large for float32
MAX_TIMEOUTS_IN_A_ROW = 3  # each spends a batch of rollouts on nothing


class Rewards:
    """The reward functions of a trainer, with checked calls.

    Args:
        functions: as TRL holds them.
        names: that TRL gives them.
        timeout: seconds that a call may take; None: forever.
        weights: `reward_weights`, with which the scores must fit into float32; None: 1 each, unsummed.
        joins_feedback: keep what the functions log as "feedback" for `take_feedback`, in place of TRL's table.

    Attributes:
        functions: for TRL; reward models, which it calls in another way, are themselves.
        columns: of a dataset's rows, that the functions need and take.
    """

    def __init__(
        self,
        functions: Sequence[Any],
        names: Sequence[str],
        timeout: float | None,
        weights: Sequence[float] | None = None,
        *,
        joins_feedback: bool = False,
    ) -> None:
        self.columns = reward_columns(functions)
        self._feedback = Feedback() if joins_feedback else None
        limits = [FLOAT32_MAX] * len(functions) if weights is None else score_limits(weights)
        self.functions = [
            function
            if isinstance(function, nn.Module)
            else (CheckedAsyncReward if is_async_callable(function) else CheckedReward)(
                function, name, timeout, limit, self._feedback
            )
            for function, name, limit in zip(functions, names, limits, strict=True)
        ]

    def take_feedback(self, environments: Sequence[Any] | None = None) -> list[str | None] | None:
        """Return the feedback of the batch that was graded last, joined by rollout; None where there is none.

        Args:
            environments: of the rollouts, which may have some too; None: there are none.
        """
        if self._feedback is None:
            return None
        self._feedback.read(environments or ())
        return self._feedback.take()


class _Call(AbstractContextManager[Any]):
    """One call: its arguments, and the note that an error in it gets.

    What is logged is held back until the function has returned in time, so that one that timed out and continues in
    its thread writes nothing into a later batch.
    """

    def __init__(self, name: str, given: dict[str, Any], feedback: Feedback | None = None) -> None:
        self._name = name
        self._given = given
        self._feedback = feedback
        self.num_rows = len(given["completions"])

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

    def finished(self, outcome: Outcome) -> Scores:
        """Return the scores, and log what the function logged."""
        for log, name, values in outcome.logged:
            if log == "log_extra":
                values = [whole_characters(text) if isinstance(text, str) else text for text in values]
            if self._feedback is not None and (log, name) == ("log_extra", "feedback"):
                self._feedback.add(values, self.num_rows)
            else:
                self._given[log](name, values)
        return outcome.scores

    def log_lost(self, *, timed_out: bool = False, died: bool = False) -> None:
        """Count the batch among those that were lost or not; TRL averages over batches and processes."""
        for name, value in (("timed_out_frac", timed_out), ("died_frac", died)):
            self._given["log_metric"](f"rewards/{self._name}/{name}", float(value))


class _Lost(NamedTuple):
    """A batch that got no scores because its call was late (`died` is None) or its process ended (how)."""

    died: str | None = None


class CheckedReward:
    """A synchronous reward function, called with checks; with a timeout, in a process of its own.

    What cannot be sent to another process stays in this one, in a thread, and a warning says so.

    Args:
        function: TRL's reward function.
        name: that TRL gives it.
        timeout: seconds that a call may take; None: forever, in the thread that calls.
        limit: the largest size of a finite score.
        feedback: takes what is logged as "feedback"; None: TRL's table does.
    """

    _is_async = False

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        timeout: float | None,
        limit: float = FLOAT32_MAX,
        feedback: Feedback | None = None,
    ) -> None:
        self.function = function
        self.__name__ = name
        self.timeout = timeout
        self.limit = limit
        self._feedback = feedback
        self._num_lost_in_a_row = 0
        self._warned: set[str] = set()
        self._runner: RewardProcess | RewardThread | RewardLoop | None = None

    def __getattr__(self, name: str) -> Any:
        """Return what the function itself has, such as how evaluation reads an answer."""
        if name == "function":  # not there yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.function, name)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy of it takes over; where the function runs is not shared."""
        return {**self.__dict__, "_runner": None}

    @property
    def _named(self) -> NamedFunction:
        return NamedFunction(self.function, self.__name__, self.limit)

    def __call__(self, **given: Any) -> Scores:
        """Return one number or None per completion.

        Raises:
            ValueError: the function returned something else.
            TimeoutError: it timed out in too many batches in a row.
            RuntimeError: its process ended in too many batches in a row, or it raised `SystemExit` or the like.
        """
        with _Call(self.__name__, given, self._feedback) as call:
            if self.timeout is None:
                return self._scores(call, self._named.run(*private_call(given)))
            return self._finished(call, self._within_limit(given))

    def _within_limit(self, given: dict[str, Any]) -> Outcome | _Lost:
        """Return the outcome of the function, or how it was lost; raise what the function raised."""
        future = self._begun(given)
        assert self._runner is not None
        try:
            concurrent.futures.wait([future], self.timeout)
            if future.done():
                return future.result()
        except ProcessDiedError as error:
            self._runner.kill()
            return _Lost(died=str(error))
        except KeyboardInterrupt:
            self._runner.kill()  # whose answer would be taken for the next batch's
            raise
        self._runner.kill()
        return _Lost()

    def _begun(self, given: dict[str, Any]) -> concurrent.futures.Future[Outcome]:
        """Return the future of the outcome once the function has its batch: until then the limit does not count."""
        reason = ""
        for _ in range(2):  # a process may have been killed while it had nothing to do
            try:
                self._runner = self._runner or RewardProcess(self._named, is_async=self._is_async)
                has_begun, outcome = self._runner.submit(given)
                has_begun.result(START_SECONDS)
                return outcome
            except CannotBeSentError as error:
                reason = str(error)
                break
            except ProcessDiedError as error:
                reason = f"its process {error} before it had a batch"
            except TimeoutError:
                reason = f"its process took more than {START_SECONDS:.0f} seconds to start"
                break
            except KeyboardInterrupt:
                self._kill()
                raise
            self._kill()
        self._kill()
        self._warn_once(
            "thread",
            "The reward function %r runs in a thread of the training process, where reward_timeout cannot interrupt "
            "code that keeps the interpreter, such as one long call into C: %s. This is said once.",
            self.__name__,
            reason,
        )
        self._runner = (RewardLoop if self._is_async else RewardThread)(self._named)
        return self._runner.submit(given)[1]

    def _kill(self) -> None:
        if self._runner is not None:
            self._runner.kill()
            self._runner = None

    def _finished(self, call: _Call, outcome: Outcome | _Lost) -> Scores:
        if isinstance(outcome, _Lost):
            return self._lost(call, outcome.died)
        self._num_lost_in_a_row = 0
        scores = self._scores(call, outcome)
        call.log_lost()
        return scores

    def _scores(self, call: _Call, outcome: Outcome) -> Scores:
        largest = max((abs(score) for score in outcome.scores if score and math.isfinite(score)), default=0.0)
        if largest > MAX_SQUARED:
            self._warn_once(
                "large",
                "The reward function %r returned %.4g: from about %.0e on, a group's standard deviation is infinite"
                " in float32, so that its advantages are 0. Scale the rewards. This is said once.",
                self.__name__,
                largest,
                MAX_SQUARED,
            )
        return call.finished(outcome)

    def _lost(self, call: _Call, died: str | None) -> Scores:
        self._num_lost_in_a_row += 1
        if died is None:
            kind = "timed_out"
            error: type[Exception] = TimeoutError
            limit = f"reward_timeout={self.timeout} seconds"
            message = f"The reward function {self.__name__!r} did not return within {limit}"
            remedy = "See what it waits for, or give it more time."
        else:
            kind = "died"
            error = RuntimeError
            message = f"The process of the reward function {self.__name__!r} {died} before it returned"
            remedy = "See what ends it: memory, a crash in a library, os._exit."
        if self._num_lost_in_a_row == MAX_TIMEOUTS_IN_A_ROW:
            raise error(f"{message} in {MAX_TIMEOUTS_IN_A_ROW} batches in a row. {remedy}")
        self._warn_once(
            kind,
            "%s, so that %d rollouts have no score from it. The metric rewards/%s/%s_frac counts such "
            "batches; %d in a row stop the run. This is said once.",
            message,
            call.num_rows,
            self.__name__,
            kind,
            MAX_TIMEOUTS_IN_A_ROW,
        )
        call.log_lost(timed_out=died is None, died=died is not None)
        return [None] * call.num_rows

    def _warn_once(self, kind: str, message: str, *arguments: Any) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message, *arguments)


class CheckedAsyncReward(CheckedReward):
    """An asynchronous reward function, called with checks; with a timeout, in the event loop of its own process.

    Its own, because a function that blocks the loop it runs in must not block the one that TRL waits for; and always
    the same, because connections are bound to their loop.
    """

    _is_async = True

    async def __call__(self, **given: Any) -> Scores:  # type: ignore[override]
        """Return one number or None per completion; see `CheckedReward.__call__`."""
        with _Call(self.__name__, given, self._feedback) as call:
            if self.timeout is None:
                return self._scores(call, await self._named.run_async(*private_call(given)))
            # Other functions of the batch run in this loop while this one is waited for.
            outcome = await asyncio.wrap_future(in_daemon_thread(self._within_limit, given))
            return self._finished(call, outcome)
