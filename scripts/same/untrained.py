"""The rows that train nothing: the command line's help, the options, and a report of a log that is written here."""

import dataclasses
import io
import json
import math
import os
import re
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from recording import Values, flat, of_folder
from renamed import OPTIONS, new_key
from rows import Row

from srpo_trl import SRPOConfig
from srpo_trl.cli import main

METRICS = (
    *("srpo/route/sdpo_frac", "srpo/route/grpo_frac", "srpo/correct_frac", "srpo/teacher/available_frac"),
    *("srpo/loss/grpo", "srpo/loss/sdpo", "srpo/teacher/entropy", "srpo/distillation/student_entropy"),
    *("srpo/distillation/divergence", "srpo/teacher/distance", "srpo/weight/raw_mean", "srpo/weight/raw_std"),
    *(
        "srpo/weight/ess_frac",
        "srpo/teacher/prompt_length",
        "srpo/seconds/generation",
        "srpo/seconds/rewards",
    ),
    *(
        "srpo/seconds/teacher",
        "srpo/seconds/loss",
        "srpo/memory/peak_gb",
        "completions/mean_length",
        "reward",
    ),
    *("grad_norm", "entropy", "loss", "srpo/gradient/grpo_norm", "srpo/gradient/sdpo_norm"),
)
EXAMPLE = {
    "step": 2,
    "rollout": 5,
    "is_correct": False,
    "prompt": "1+1",
    "solution": "#2",
    "feedback": " wrong",
    "tokens": ["1", ":", "\n", "3"],
    "divergence": [0.5, 0.1, 0.0, 0.3],
    "weight": [1.5, 1.0, 0.5, 1.0],
    "teacher_entropy": [0.2, 0.6, 1.3, 0.6],
    "student_probability": [0.1, 0.4, 0.9, 0.3],
    "teacher_choices": [[0, "#", 0.8], [3, "2", 0.7]],
}


def train_help(row: Row, folder: Path) -> Values:
    """Return the lines of `srpo-trl train --help` and `srpo-trl --help`."""
    os.environ["COLUMNS"] = "100"
    texts = {}
    for arguments in (["--help"], ["train", "--help"]):
        printed = io.StringIO()
        with redirect_stdout(printed), suppress(SystemExit):
            main(arguments)
        texts["-".join(arguments).replace("--", "")] = printed.getvalue()
    return texts


def config_fields(row: Row, folder: Path) -> Values:
    """Return every option's default."""
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(SRPOConfig):
        missing = field.default_factory is dataclasses.MISSING
        defaults[field.name] = field.default if missing else field.default_factory()
    return dict(flat(defaults, "fields"))


def report(row: Row, folder: Path) -> Values:
    """Return the tables behind every figure of a report on two runs, and its text without the figures."""
    renamed = not any(field.name == "routing" for field in dataclasses.fields(SRPOConfig))
    for number, routing in enumerate(("srpo", "grpo")):
        _write_log(folder / routing, number, renamed)
    page = folder / "page.html"
    runs = [str(folder / "srpo"), str(folder / "grpo")]
    code = main(["report", *runs, "-o", str(page), "--figures", str(folder / "figures")])
    text = re.sub(r"<svg.*?</svg>|<style>.*?</style>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    figures = of_folder(folder / "figures")
    return {"code": code, "page": text, **figures}


def _write_log(folder: Path, number: int, renamed: bool) -> None:
    """Write a log of six steps, its metrics under their old and new names: a report passes over those it lacks."""
    option = OPTIONS["routing"].name if renamed else "routing"
    facts = {"model": "tiny", "options": {option: folder.name, "learning_rate": 0.01 * (number + 1)}}
    records: list[dict[str, Any]] = [{"begin": {"step": 0, "num_processes": 1, "device": "cpu", **facts}}]
    for step in range(1, 7):
        values = {name: 0.5 + 0.4 * math.sin(step + number + i) for i, name in enumerate(METRICS)}
        logs = values | {new_key(name): value for name, value in values.items()}
        records.append({"step": step, "seconds": 700.0 * step, "logs": logs})
        if step % 2 == 0:
            evaluated = {"eval_avg@4": 0.1 * step + 0.05 * number, "eval_avg@4_stderr": 0.02}
            records.append({"step": step, "seconds": 700.0 * step, "logs": evaluated})
    folder.mkdir()
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "log.jsonl").write_text(text, encoding="utf-8")
    (folder / "examples.jsonl").write_text(json.dumps(EXAMPLE) + "\n", encoding="utf-8")


UNTRAINED: dict[str, Callable[[Row, Path], Values]] = {
    "train_help": train_help,
    "config_fields": config_fields,
    "report": report,
}
