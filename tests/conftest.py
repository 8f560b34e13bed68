"""Settings of every test: no network, no trackers, one thread a process (pytest-xdist fills the cores)."""

import os
import tempfile

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    WANDB_MODE="disabled",
    TRACKIO_DIR=os.path.join(tempfile.gettempdir(), "srpo-trl-tests", "trackio"),  # read when it is imported
    TRL_EXPERIMENTAL_SILENCE="1",  # tests use trl.experimental's losses as an oracle
    OMP_NUM_THREADS="1",  # for subprocesses, too
)

import torch  # after the environment: thread pools and hub clients read it once

torch.set_num_threads(1)
