"""The surroundings of the run: no network, no foreign progress bars, one thread. All undone at the end."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# Read once, when the libraries are imported; hence set before that. What the user has set stays.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "OMP_WAIT_POLICY": "passive",  # idle threads that spin are slow where another program wants the core
}


def set_environment() -> None:
    """Put the run's environment variables in place, before torch and transformers are imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Run the block with Python's warnings and every logger's messages below ERROR off."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Run the block with the libraries' progress bars off, on one thread: a model this small gains nothing from more.

    Two threads would also count twice in the processor's seconds.
    """
    import datasets
    import torch
    from transformers.utils import logging as transformers_logging

    with ExitStack() as undo:
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        if transformers_logging.is_progress_bar_enabled():
            undo.callback(transformers_logging.enable_progress_bar)
        transformers_logging.disable_progress_bar()
        if not datasets.are_progress_bars_disabled():
            undo.callback(datasets.enable_progress_bars)
        datasets.disable_progress_bars()
        yield
