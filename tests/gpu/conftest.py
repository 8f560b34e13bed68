"""Tests that a GPU changes the answer of: marked `gpu`, and skipped where there is none."""

import os

import pytest
import torch

# Read when CUDA's libraries are first used: the same product twice, the same bits.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run by `make gpu`"),
    ],
)


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    """Each in turn."""
    return request.param


@pytest.fixture(params=[CUDA])
def gpu(request):
    """A GPU alone, for what torch does on no CPU."""
    return request.param


@pytest.fixture(autouse=True)
def _the_same_bits_twice():
    """Let torch take kernels that give the same bits each time, where it has them."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
