"""The study: a start, whether it can be learned from, then each seed in a process of its own, and the tables."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.children import environment_of
from benchmarks.real_model.seed import Plan, common_step, run_folder
from benchmarks.real_model.start import StartOptions, make_start
from srpo_trl.methods import TABLE_1

SETTINGS_FILE = "settings.json"
_LOOK_SECONDS = 0.5


class FolderError(Exception):
    """The folder holds a study with other settings."""


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared, and in which folder.

    Attributes:
        folder: of the start, the runs and the results; may hold an earlier part of the same study.
        start: what all runs begin with.
        seeds: how many, from 0.
        jobs: seeds at a time, one process each.
        max_steps, piece, prompts, eval_questions, learning_rate, layers: see `Plan`.
    """

    folder: Path
    start: StartOptions
    seeds: int = 2
    jobs: int = 1
    max_steps: int = 200
    piece: int = 10
    prompts: int = 8
    eval_questions: int = 128
    learning_rate: float = 2e-4
    layers: int = 0

    def claim(self) -> None:
        """Write the settings to the folder, or refuse it where it holds others, whose figures would not be comparable.

        More seeds, and more of them at a time, are no other settings.

        Raises:
            FolderError: it does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / SETTINGS_FILE
        given = dataclasses.asdict(self) | {"start": self.start._asdict()}
        settings = {name: value for name, value in given.items() if name not in ("folder", "seeds", "jobs")}
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else settings
        if differing := [name for name in settings if settings[name] != held.get(name)]:
            texts = ", ".join(f"{name} {held.get(name)!r}, now {settings[name]!r}" for name in differing)
            raise FolderError(
                f"{self.folder} holds a study with other settings ({texts}). Give another --out."
            )
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    def begin(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Return what was measured of the start, which is made first where it is missing."""
        return make_start(self.start, self.folder / "start", say)

    def plan(self, seed: int, level: str, until: int, deadline: float) -> Plan:
        """Return what one seed's process does."""
        return Plan(
            folder=str(self.folder),
            level=level,
            seed=seed,
            max_steps=self.max_steps,
            until=until,
            piece=self.piece,
            prompts=self.prompts,
            eval_questions=self.eval_questions,
            learning_rate=self.learning_rate,
            layers=self.layers,
            device=self.start.device,
            deadline=deadline,
        )

    def train(self, level: str, until: int, deadline: float) -> None:
        """Train all seeds to a step, as far as there is time for; see `Plan`.

        Raises:
            RuntimeError: a seed's process has failed.
        """
        left = [seed for seed in range(self.seeds) if common_step(self.run_folders(seed)) < until]
        waiting = [self.plan(seed, level, until, deadline) for seed in left]
        running: dict[int, subprocess.Popen[bytes]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    plan = waiting.pop(0)
                    running[plan.seed] = _process(plan)
                time.sleep(_LOOK_SECONDS)
                for seed, process in list(running.items()):
                    if process.poll() is not None:
                        del running[seed]
                        if process.returncode:
                            raise RuntimeError(f"seed {seed} ended with status {process.returncode}")
        finally:
            for process in running.values():
                process.kill()
                process.wait()

    def steps_done(self) -> int:
        """Return the step that all runs have come to."""
        return min(common_step(self.run_folders(seed)) for seed in range(self.seeds))

    def run_folders(self, seed: int) -> list[Path]:
        """Return the folders of a seed's runs, method by method."""
        return [run_folder(self.folder, seed, method) for method in TABLE_1]


def _process(plan: Plan) -> "subprocess.Popen[bytes]":
    command = [
        sys.executable,
        "-m",
        "benchmarks.real_model.seed",
        str(os.getpid()),
        json.dumps(plan._asdict()),
    ]
    return subprocess.Popen(command, env=environment_of(plan.device))
