"""Processes of one thread that share a study's runs."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch


def workers(jobs: int) -> ProcessPoolExecutor:
    """Return so many processes of one thread."""
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread)


def do_all(
    pool: ProcessPoolExecutor, title: str, call: Callable[..., None], arguments: Sequence[tuple[Any, ...]]
) -> None:
    """Do all calls, and say how far they have come; the first error ends the command."""
    began, jobs = time.monotonic(), [pool.submit(call, *each) for each in arguments]
    try:
        for number, job in enumerate(as_completed(jobs), 1):
            job.result()
            minutes = (time.monotonic() - began) / 60
            print(f"{title}: {number} of {len(jobs)}, {minutes:.1f} min", flush=True)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _one_thread() -> None:
    torch.set_num_threads(1)
