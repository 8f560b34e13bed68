"""One run: a method from a start, its accuracy as it learns, and what its answers are like at the end."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM
from transformers.trainer_callback import PrinterCallback

from benchmarks.learning.tasks import TASKS, Start, Task
from benchmarks.tables import write_whole
from srpo_trl import SRPOConfig, SRPOTrainer
from srpo_trl.commands.quickstart.held_out import HeldOut, sample_completions
from srpo_trl.commands.quickstart.prompts import student_prompts
from srpo_trl.commands.quickstart.quiet import quiet_libraries, quiet_logs
from srpo_trl.commands.quickstart.task import SOLUTION_TOKENS, Question, prompt_dataset
from srpo_trl.commands.quickstart.train import SAMPLED_ONCE, SCORE
from srpo_trl.commands.quickstart.warmup import load_start, save_start
from srpo_trl.data.tiny_model import build_tokenizer
from srpo_trl.evaluation.scores import pass_at_k
from srpo_trl.host.callbacks import TrainingClock
from srpo_trl.methods import PAPER_DEFAULTS

HELD_OUT_QUESTIONS, HELD_OUT_SEED = 384, 5
PASS_QUESTIONS, PASS_SAMPLES = 128, 16
NUM_GENERATIONS = 8
EVAL_STEPS = 10
RESULT_FILE = "result.json"
# Of what is logged, what tables have: the mean over the run.
LOGGED = (
    "entropy",
    "completions/mean_length",
    "srpo/weight/ess_frac",
    "srpo/teacher/entropy",
    "srpo/distillation/divergence",
    "srpo/route/distilled_frac",
)
EXPLAINED = ("srpo", "srpo_beta0")  # rows whose distilled rollouts are logged token by token


@dataclass(frozen=True)
class Run:
    """What is to be trained: a row of a task at a rate, from the start of this number."""

    task: str
    row: str
    rate: float
    start: int
    seed: int

    def folder(self, study: Path) -> Path:
        """Return where it writes."""
        return (
            study
            / self.task
            / "runs"
            / self.row
            / f"lr-{self.rate:g}"
            / f"start-{self.start}-seed-{self.seed}"
        )

    def is_done(self, study: Path) -> bool:
        """Whether its result is there."""
        return (self.folder(study) / RESULT_FILE).is_file()


@dataclass(frozen=True)
class Given:
    """What a run has beyond its task.

    Attributes:
        options: of the trainer.
        columns: of questions, further columns of the training rows.
        extras: of prompts, completions and answers, what the reward function hands to TRL's `log_extra`, by name.
        rollout_func: TRL's.
    """

    options: Mapping[str, Any]
    columns: Callable[[Sequence[Question]], dict[str, list[str]]] = lambda questions: {}
    extras: Callable[[list[str], list[str], list[str]], dict[str, list[Any]]] = lambda *texts: {}
    rollout_func: Callable[..., dict[str, Any]] | None = None


def start_folder(study: Path, task: str, number: int) -> Path:
    """Return where a task's start of this number lies."""
    return study / task / f"start-{number}"


def make_start(study: Path, name: str, number: int) -> None:
    """Train, save and measure a task's start of this number, unless it is there."""
    task = TASKS[name]
    make_model(start_folder(study, name, number), task, lambda tokenizer: task.start(tokenizer, number))


def make_model(folder: Path, task: Task, make: Callable[[PreTrainedTokenizerFast], Start]) -> None:
    """Make and save a model, unless it is there; measure it alone and with a solution shown."""
    tokenizer = build_tokenizer(task.words)
    with quiet_logs(), quiet_libraries():
        if load_start(folder) is not None:
            return
        model, result = make(tokenizer)
        held_out = HeldOut(tokenizer, held_out_questions(task), HELD_OUT_SEED, task.is_right)
        facts = {
            "alone": held_out.accuracy(model),
            "shown": held_out.accuracy(model, shown=True),
            **asdict(result),
            **answers_of(model, tokenizer, task),
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_start(folder, model, tokenizer, result)
    _write(folder / RESULT_FILE, facts)


def train(run: Run, study: Path, given: Given) -> Qwen3ForCausalLM:
    """Train the run, write its result, and return the model."""
    task, folder = TASKS[run.task], run.folder(study)
    tokenizer = build_tokenizer(task.words)
    with quiet_logs(), quiet_libraries():
        loaded = load_start(start_folder(study, run.task, run.start))
        assert loaded is not None, "starts are made before runs"
        trainer = SRPOTrainer(
            model=loaded[0],
            reward_funcs=_reward(task, given),
            args=config(run, folder, given.options),
            train_dataset=training_rows(run, given),
            eval_dataset=prompt_dataset(held_out_questions(task)),
            processing_class=tokenizer,
            rollout_func=given.rollout_func,
        )
        trainer.remove_callback(PrinterCallback)
        TrainingClock.of(trainer).now = time.process_time
        trainer.train()
        history = trainer.state.log_history
        answers = answers_of(trainer.model.eval(), tokenizer, task)
    logged = {name: [entry[name] for entry in history if name in entry] for name in LOGGED}
    write_result(
        run,
        study,
        points=[(entry["step"], entry[SCORE]) for entry in history if SCORE in entry],
        seconds=[entry["training_seconds"] for entry in history if "training_seconds" in entry][-1],
        rollouts=task.num_steps * task.prompts_per_step * NUM_GENERATIONS,
        tokens=[entry["num_tokens"] for entry in history if "num_tokens" in entry][-1],
        logged={name: fmean(values) for name, values in logged.items() if values},
        **answers,
    )
    model: Qwen3ForCausalLM = trainer.model
    return model


def training_questions(run: Run) -> list[Question]:
    """Return the questions that the run trains on, each once."""
    task = TASKS[run.task]
    return task.questions(task.num_steps * task.prompts_per_step, 1000 + run.seed)


def training_rows(run: Run, given: Given) -> Dataset:
    """Return the run's rows."""
    questions = training_questions(run)
    rows = prompt_dataset(questions)
    for name, values in given.columns(questions).items():
        rows = rows.add_column(name, values)
    return rows


def config(run: Run, folder: Path, options: Mapping[str, Any]) -> SRPOConfig:
    """Return the trainer's configuration with the options; what is not named has SRPO's default."""
    task = TASKS[run.task]
    return SRPOConfig(
        **(PAPER_DEFAULTS | SAMPLED_ONCE | {"learning_rate": run.rate} | dict(options)),
        output_dir=str(folder),
        seed=run.seed,
        max_steps=task.num_steps,
        per_device_train_batch_size=task.prompts_per_step * NUM_GENERATIONS,
        num_generations=NUM_GENERATIONS,
        max_completion_length=SOLUTION_TOKENS + 1,
        lr_scheduler_type="linear",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        eval_strategy="steps",
        eval_steps=EVAL_STEPS,
        eval_on_start=True,
        logging_steps=EVAL_STEPS,
        log_examples_steps=EVAL_STEPS if run.row in EXPLAINED else None,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def held_out_questions(task: Task) -> list[Question]:
    """Return the questions that accuracy is measured on."""
    return task.questions(HELD_OUT_QUESTIONS, HELD_OUT_SEED, held_out=True)


def _reward(task: Task, given: Given) -> Any:
    def reward(
        prompts: list[list[dict[str, str]]],
        completions: list[list[dict[str, str]]],
        answer: list[str],
        log_extra: Callable[[str, list[Any]], None],
        **_: Any,
    ) -> list[float]:
        asked, texts = ([messages[-1]["content"] for messages in each] for each in (prompts, completions))
        for name, values in given.extras(asked, texts, answer).items():
            log_extra(name, values)
        return [float(task.is_right(text, key)) for text, key in zip(texts, answer, strict=True)]

    return reward


def answers_of(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task) -> dict[str, Any]:
    """Return what the model's answers are like: pass@n, and how many different ones there are among right ones."""
    questions = held_out_questions(task)[:PASS_QUESTIONS]
    prompts = [prompt for prompt in student_prompts(tokenizer, questions) for _ in range(PASS_SAMPLES)]
    texts = sample_completions(model, tokenizer, prompts, HELD_OUT_SEED)
    verdicts, distinct = [], []
    for place, question in enumerate(questions):
        mine = texts[place * PASS_SAMPLES : (place + 1) * PASS_SAMPLES]
        right = [text for text in mine if task.is_right(text, question.answer)]
        verdicts.append([text in right for text in mine])
        distinct += [len(set(right)) / len(right)] if right else []
    return {
        "pass": {n: fmean(pass_at_k(each, n) for each in verdicts) for n in (1, 2, 4, 8, 16)},
        "distinct_share": fmean(distinct) if distinct else 0.0,
    }


def write_result(run: Run, study: Path, **facts: Any) -> None:
    """Write what the run came to: `points` (step and accuracy), `seconds` of training, what tables have besides."""
    _write(run.folder(study) / RESULT_FILE, {**asdict(run), **facts})


def _write(path: Path, facts: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(facts))
