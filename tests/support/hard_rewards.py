"""Reward functions for the processes that grade; a module without torch, so that those start at once."""

import ctypes
import os
import re
import signal
import threading
import time


def has_mark(completions, **kwargs):
    return [float("#" in text) for text in completions]


def tower(completions, **kwargs):
    return [float(9**9**9 > 0)]


def pattern(completions, **kwargs):
    return [float(re.match(r"(a+)+$", "a" * 60 + "b") is None)]


def iterator(completions, **kwargs):
    return (float(9**9**9 > 0) for _ in completions)


def deaf(completions, **kwargs):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            time.sleep(100)
        except BaseException:
            continue


async def coroutine(completions, **kwargs):
    return [float(9**9**9 > 0)]


def exits(completions, **kwargs):
    os._exit(3)


def crashes(completions, **kwargs):
    ctypes.string_at(0)


def is_killed(completions, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


class Counting:
    def __init__(self):
        self.calls = 0

    def __call__(self, completions, **kwargs):
        self.calls += 1
        if "hang" in completions:
            threading.Event().wait()
        return [float(self.calls)] * len(completions)

    def method(self, completions, **kwargs):
        return self(completions)


def scaled(completions, scale, **kwargs):
    return [scale] * len(completions)


class TwoArgumentsError(Exception):
    def __init__(self, first, second):
        super().__init__(first + second)


class UnspeakableError(Exception):
    """Neither pickled nor shown."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def __repr__(self):
        raise ValueError("no text")

    __str__ = __repr__


def unspeakable(completions, **kwargs):
    raise UnspeakableError


def logs_iterators(completions, log_extra, **kwargs):
    log_extra("lengths", (len(text) for text in completions))
    log_extra("texts", dict.fromkeys(completions).keys())
    return [1.0] * len(completions)
