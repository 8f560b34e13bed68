"""What is measured, in order of worth. Nothing here imports torch."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
FULL_MINUTES = (
    8.0  # that the limits below are for; together they are more, since most sections end before theirs
)


class Setting(NamedTuple):
    """What a section is run with.

    Attributes:
        device: "cuda" or "cpu".
        tiny: smallest sizes: whether it runs, not how fast.
        model: folder with a model of real weights, or None.
        seconds: that the section has.
        folder: of the figures, for what a section keeps from one call to the next.
    """

    device: str
    tiny: bool
    model: Path | None
    seconds: float
    folder: Path = Path()


class Part(NamedTuple):
    """What a section measures and writes at once. It is taken again as a whole, or not at all.

    Attributes:
        name: unique in its section.
        table: title of the table that its rows belong to; parts may share one.
        rows: measures.
        note: under the table.
    """

    name: str
    table: str
    rows: Callable[[], Iterable[Row]]
    note: str = ""


def _nothing_lacks(setting: Setting) -> str | None:
    return None


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        name: of its files, its letter first.
        module: has `parts(setting) -> list[Part]`, which is cheap and touches no device.
        limit: seconds that it may take of `FULL_MINUTES`.
        lacks: why it cannot be run here, or None.
        on_cpu: environment variables of its process with `--device cpu`.
    """

    name: str
    module: str
    limit: float
    lacks: Callable[[Setting], str | None] = _nothing_lacks
    on_cpu: Mapping[str, str] = field(default_factory=dict)


def _lacks_vllm(setting: Setting) -> str | None:
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed: pip install 'srpo-trl[vllm]'"
    return None if setting.device == "cuda" else "vLLM's colocate mode needs a GPU"


def _lacks_tests(setting: Setting) -> str | None:
    return (
        None if importlib.util.find_spec("pytest") else "pytest is not installed: pip install 'srpo-trl[dev]'"
    )


def _lacks_model(setting: Setting) -> str | None:
    return None if setting.model else "no folder with real weights is given: --model DIR"


SECTIONS = (
    Section("a_card", "benchmarks.gpu.card", 30),
    # Triton's interpreter, which runs its kernels where there is no GPU.
    Section("b_kernels", "benchmarks.gpu.kernels", 100, on_cpu={"TRITON_INTERPRET": "1"}),
    Section("c_loss", "benchmarks.gpu.losses", 140),
    Section("d_step", "benchmarks.gpu.steps", 140),
    Section("e_teacher", "benchmarks.gpu.teacher", 60),
    Section("f_tests", "benchmarks.gpu.suite", 100, _lacks_tests),
    Section("g_vllm", "benchmarks.gpu.engine", 100, _lacks_vllm),
    Section("h_learning", "benchmarks.gpu.learns", 230, _lacks_model),
)
