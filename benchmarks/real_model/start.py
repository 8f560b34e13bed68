"""The common start of all runs: the model, warmed up where it needs that, and what was measured of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.real_model.headroom import Share, accuracy, measure, share
from benchmarks.real_model.sampling import Prompts
from benchmarks.real_model.task import LEVELS, Level, held_out_questions, make_questions
from benchmarks.real_model.warmup import warm_up
from benchmarks.real_model.weights import load_model, load_tokenizer
from srpo_trl.commands.quickstart.warmup import save_whole

FACTS_FILE = "start.json"
TOO_HARD = 0.1  # accuracy below which a model is warmed up first
WANTED = 0.35  # accuracy that the level is chosen for
WARMUP_SEED = 1
WARMUP_EXAMPLES = 384


class StartOptions(NamedTuple):
    """What the start depends on.

    Attributes:
        model: hub id or folder.
        gguf: name of the file in it that holds the weights, or None.
        level: of the questions, by name; None: chosen by the model's accuracy.
        warmup_examples: None: `WARMUP_EXAMPLES` where the model is right in less than `TOO_HARD`, else 0.
        questions: that the start is measured with.
        device: "cuda" or "cpu".
    """

    model: str
    gguf: str | None
    level: str | None
    warmup_examples: int | None
    questions: int
    device: str


def make_start(options: StartOptions, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Return what is known of the start in `folder`, which is made where it is missing, and appears whole."""
    if (folder / FACTS_FILE).is_file():
        return _facts(folder)
    tokenizer = load_tokenizer(options.model, options.gguf)
    prompts = Prompts.of(tokenizer)
    model = load_model(options.model, options.gguf).to(options.device).eval()
    level, base = _level(options, model, prompts)
    num_examples = options.warmup_examples
    if num_examples is None:
        num_examples = WARMUP_EXAMPLES if base.mean < TOO_HARD else 0
    say(f"{options.model}, level {level.name}: right {share(base)} as it is")
    if num_examples:
        model.train()
        examples = make_questions(level, num_examples, WARMUP_SEED, without=held_out_questions(level))
        warm_up(model, prompts, examples, _progress(say))
    model = model.to(torch.bfloat16).eval()
    facts = {
        "level": level.name,
        "base": base,
        "warmup_examples": num_examples,
        **measure(model, prompts, held_out_questions(level, options.questions)),
    }
    save_whole(folder, model, tokenizer, FACTS_FILE, facts)
    return _facts(folder)


def _facts(folder: Path) -> dict[str, Any]:
    """Return what was written, with JSON's lists where tuples were measured."""
    facts: dict[str, Any] = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    return facts


def _progress(say: Callable[[str], None]) -> Callable[[int, int], None]:
    def on_step(step: int, num_steps: int) -> None:
        if step % 8 == 0 or step == num_steps:
            say(f"warm-up: {step} of {num_steps} steps")

    return on_step


def _level(options: StartOptions, model: Any, prompts: Prompts) -> tuple[Level, Share]:
    """Return the level and the model's accuracy there: of those that are not too hard the best fit, else the first."""
    found: dict[Level, Share] = {}
    for level in LEVELS:
        if options.level not in (None, level.name):
            continue
        questions = held_out_questions(level, options.questions)
        found[level] = accuracy(model, prompts, questions)
        if found[level].mean < TOO_HARD:
            break  # and the next ones are harder
    fit = [level for level in found if found[level].mean >= TOO_HARD] or list(found)
    best = min(fit, key=lambda level: abs(found[level].mean - WANTED))
    return best, found[best]
