"""Runs with made-up logs, and the report's page about them."""

import math
import shutil
from html.parser import HTMLParser
from pathlib import Path

from srpo_trl.cli import main
from srpo_trl.commands.report.figures import FIGURES
from srpo_trl.runs.log import EXAMPLES_FILE, LOG_FILE, RunLog

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def write_run(folder: Path, num_steps: int = 40, method: str = "srpo", **facts) -> Path:
    """A run's log with every metric that the catalogue draws: metric number i is i + step / 100 at each step."""
    log = RunLog(folder / LOG_FILE)
    log.begin(0, options={"method": method} | facts.pop("options", {}), model="tiny", device="cpu", **facts)
    metrics = sorted({name for f in FIGURES for p in f.panels for name in (p.metric, p.spread) if name})
    for step in range(0, num_steps + 1, 5):
        seconds = {"training_seconds": 3.0 * step}
        log.append({"step": step, "logs": {"eval_reward": math.sin(step / 20)} | seconds})
        if step:
            values = {name: (i + step / 100) / 30 for i, name in enumerate(metrics)}
            common = {"reward": 0.5, "completions/mean_length": 10.0, "grad_norm": 1.0} | seconds
            common |= {"step_time": 3.0, "srpo/memory/peak_gb": 1.0}
            shown = common if method == "grpo" else values | common
            log.append({"step": step, "logs": shown})
    return folder


def example_record(step: int = 1, **changes) -> dict:
    record = {
        "step": step,
        "rollout": 7,
        "route": "distilled",
        "is_correct": False,
        "prompt": "2+2",
        "solution": "it is 4",
        "feedback": "not 5",
        "tokens": ["it", " is", " 5", "\n"],
        "divergence": [0.0, 0.1, 0.6, None],
        "weight": [1.0, 0.5, 1.5, None],
        "teacher_entropy": [0.0, 0.2, 0.1, None],
        "student_probability": [1.0, 0.9, 0.8, None],
        "teacher_choices": [[2, " 4", 0.97], [1, " is", 0.5]],
    }
    return record | changes


def write_examples(folder: Path, *records: dict) -> None:
    log = RunLog(folder / EXAMPLES_FILE)
    log.begin(0)
    for record in records:
        log.append(record)


def report(folder: Path, *runs: Path, arguments: tuple[str, ...] = ()) -> str:
    page = folder / "out" / "report.html"
    assert main(["report", *map(str, runs), "-o", str(page), *arguments]) == 0
    return page.read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and text by element."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.words.append(" " if tag == "td" else "")

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.elements if attributes.get("id")]
