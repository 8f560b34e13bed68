"""One call of a reward function, wherever it runs: its scores are checked, its logs held back, its exits errors."""

import asyncio
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any, NamedTuple

from srpo_trl.host.rewards.arguments import private_arguments, private_copy
from srpo_trl.host.rewards.scores import FLOAT32_MAX, Scores, checked_scores

LOGS = ("log_extra", "log_metric")


class LogCall(NamedTuple):
    """What a function logged: with which of `LOGS`, under which name, and what."""

    log: str
    name: str
    values: Any


class Outcome(NamedTuple):
    """What one call gave: a score or None per completion, and what the function logged."""

    scores: Scores
    logged: list[LogCall]


def private_call(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments that TRL passes as a function's own, without its logs, and the names of those."""
    arguments = {name: value for name, value in given.items() if name not in LOGS}
    return private_arguments(arguments), [name for name in LOGS if name in given]


class NamedFunction(NamedTuple):
    """A reward function as a run needs it.

    Attributes:
        function: TRL's reward function.
        name: that TRL gives it.
        limit: the largest size of a finite score.
    """

    function: Callable[..., Any]
    name: str
    limit: float = FLOAT32_MAX

    def run(self, arguments: dict[str, Any], logs: Sequence[str]) -> Outcome:
        """Return what a synchronous function gives.

        Args:
            arguments: by name, `completions` among them; the function may change them.
            logs: those of `LOGS` that it is given.
        Raises:
            ValueError: it gave something else than scores.
            RuntimeError: it wanted to end the process or the thread (`SystemExit` and the like).
        """
        num_rows, logged, held = len(arguments["completions"]), *_held_logs(logs)
        try:
            scores = self.function(**arguments, **held)
            return Outcome(checked_scores(scores, num_rows, self.name, self.limit), logged)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise self._exit(error) from error

    async def run_async(self, arguments: dict[str, Any], logs: Sequence[str]) -> Outcome:
        """Return what an asynchronous function gives; see `run`.

        An event loop that a `SystemExit` or a `KeyboardInterrupt` goes through stops, and whoever waits for it waits
        forever. So neither leaves; nor does a `CancelledError` that nobody asked for.
        """
        num_rows, logged, held = len(arguments["completions"]), *_held_logs(logs)
        try:
            scores = await self.function(**arguments, **held)
            return Outcome(checked_scores(scores, num_rows, self.name, self.limit), logged)
        except Exception:
            raise
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            raise self._exit(error) from error

    def _exit(self, error: BaseException) -> RuntimeError:
        return RuntimeError(
            f"The reward function {self.name!r} raised {error!r}, which would end the process and not the call. A "
            "reward function raises an Exception, or returns None where it cannot grade."
        )


def _kept(values: Any) -> Any:
    """Return values that are still there later, and in another process: of an iterator or a view, a list."""
    return list(values) if isinstance(values, Iterator | KeysView | ValuesView | ItemsView) else values


def _held_logs(logs: Sequence[str]) -> tuple[list[LogCall], dict[str, Callable[[str, Any], None]]]:
    """Return the list that fills, and the functions that fill it with copies: a list may be used again."""
    logged: list[LogCall] = []

    def held(log: str) -> Callable[[str, Any], None]:
        return lambda name, values: logged.append(LogCall(log, name, private_copy(_kept(values))))

    return logged, {log: held(log) for log in logs}
