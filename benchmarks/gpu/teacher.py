"""e: the teacher's pass with shared prompts against separate ones, and whether its average moves in bfloat16."""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch

from benchmarks.common import random_qwen3
from benchmarks.gpu.sections import Part, Row, Setting
from benchmarks.measure import seconds, time_alternately
from benchmarks.teacher_pass import NOTE, compare_layouts
from srpo_trl.teacher.weights import TeacherWeights

LENGTHS = ((1200, 1024), (2200, 2048), (4300, 4096))  # tokens of prompt and completion
UPDATES, RATE = 100, 1e-3
STEP = 2.0**-6  # of every weight, relative: at this rate an update is below bfloat16's resolution
AVERAGE_NOTE = (
    f"{UPDATES} updates at a rate of {RATE:g} toward a student whose weights were all multiplied by 1 + 2^-6. "
    "Expected: 1 - (1 - rate)^updates of the way. In bfloat16: the same average kept in the weights' own dtype, which "
    "cannot hold an update so small."
)


def parts(setting: Setting) -> list[Part]:
    """The average first, as it takes no time."""
    device = torch.device(setting.device)
    shape = "tiny" if setting.tiny else "Qwen3-0.6B"
    lengths = ((24, 16),) if setting.tiny else LENGTHS
    longest = 2 * max(map(sum, lengths))
    title = f"Teacher pass, 7 failed siblings per demonstration, 2 groups: {shape} shape"
    return [
        Part("average", "Average of bfloat16 weights", partial(average, shape, device), AVERAGE_NOTE),
        Part("swap", "Teacher's weights", partial(swaps, shape, device, setting.tiny)),
        *(
            Part(
                f"pass, {length}", title, partial(_passes, shape, longest, length, device, setting.tiny), NOTE
            )
            for length in lengths
        ),
    ]


@cache
def _model(shape: str, longest: int, device: torch.device) -> Any:
    return random_qwen3(shape, device, longest).eval()


def _passes(shape: str, longest: int, length: tuple[int, int], device: torch.device, tiny: bool) -> list[Row]:
    return compare_layouts(_model(shape, longest, device), 2, length, device, repeats=1 if tiny else 3)


def average(shape: str, device: torch.device) -> Iterator[Row]:
    """How far the teacher has come, against how far it is to come."""
    model = random_qwen3(shape, device, 64).bfloat16()
    teacher = TeacherWeights(model, "ema", RATE, device=device)
    initial = {name: value.clone() for name, value in teacher.state_dict().items()}
    narrow = {name: value.bfloat16() for name, value in initial.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + STEP)
        students = {name: p.detach() for name, p in model.named_parameters() if name in initial}
        for _ in range(UPDATES):
            teacher.update()
            for name, value in narrow.items():
                value.lerp_(students[name], RATE)
    held = teacher.state_dict()
    expected = 1 - (1 - RATE) ** UPDATES
    share = _share_of_way(initial, held, students)
    yield {
        "dtype of the weights": "bfloat16",
        "dtype of the average": str(next(iter(held.values())).dtype).removeprefix("torch."),
        "expected": expected,
        "of the way": share,
        "in bfloat16": _share_of_way(initial, narrow, students),
        "verdict": "ok" if abs(share - expected) <= 0.01 * expected else "OFF",
    }


def _share_of_way(initial: dict[str, Any], now: dict[str, Any], goal: dict[str, Any]) -> float:
    """The part of the way from the initial weights to the goal, over all of them."""
    done = sum(
        ((now[n].float() - v) * (goal[n].float() - v)).sum(dtype=torch.float64) for n, v in initial.items()
    )
    whole = sum((goal[n].float() - v).square().sum(dtype=torch.float64) for n, v in initial.items())
    return float(done / whole)


def swaps(shape: str, device: torch.device, tiny: bool) -> Iterator[Row]:
    """Seconds of an update and of bringing the teacher's weights in and out again, which must change no bit."""
    model = random_qwen3(shape, device, 64).bfloat16()
    teacher = TeacherWeights(model, "ema", 0.05, device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + STEP)
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def swap() -> None:
        with teacher.swapped_in():
            seconds(device)

    repeats = 1 if tiny else 5
    timings = time_alternately({"update": teacher.update, "swap": swap}, device, repeats=repeats, warmup=1)
    is_same = all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    for name, timing in timings.items():
        assert timing is not None
        row: Row = {"shape": shape, "what": name, "seconds": timing.median}
        yield row | {"student's weights afterwards": "the same" if is_same else "OFF"}
