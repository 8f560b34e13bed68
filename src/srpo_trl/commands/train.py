"""`srpo-trl train`: options from a YAML file and the command line, checked together, then one run."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from datasets import Dataset, IterableDataset
from trl import ModelConfig, get_peft_config, get_quantization_config

from srpo_trl.commands.inputs import (
    DataArguments,
    RewardFunction,
    data_problems,
    load_eval_rows,
    load_rows,
    loading_options,
    model_problems,
    reward_functions,
    reward_name,
    reward_problems,
    stream_problems,
)
from srpo_trl.commands.launch import Launch, as_one_of, read_launch
from srpo_trl.commands.options import collect_error, exit_with_errors, parse_options
from srpo_trl.config import SRPOConfig
from srpo_trl.data.smoke_model import TINY_RANDOM_QWEN3, save_tiny_random_qwen3
from srpo_trl.host.callbacks import TrainingClock
from srpo_trl.host.manifest import flaw_of, newest_whole
from srpo_trl.host.staging import unwritable
from srpo_trl.runs.durations import parse_duration
from srpo_trl.trainer import SRPOTrainer

logger = logging.getLogger(__name__)


@dataclass
class TrainArguments(DataArguments):
    """What to train on and how it is scored; all else is an option of `SRPOConfig` or `trl.ModelConfig`."""

    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    max_train_rows: int | None = field(
        default=None, metadata={"help": "Train on the first rows only. None: on all of them."}
    )
    max_training_time: str | None = field(
        default=None,
        metadata={
            "help": "Stop after this much time in training steps, such as 90s, 30m or 10h, with a last evaluation and "
            "checkpoint; earlier parts of a resumed run count. None: max_steps or num_train_epochs decide."
        },
    )


@dataclass(frozen=True)
class Training:
    """Everything one run is made of, checked."""

    script: TrainArguments
    config: SRPOConfig
    model_config: ModelConfig
    rewards: list[RewardFunction]
    train_rows: Dataset | IterableDataset
    eval_rows: Dataset | None
    max_seconds: float | None
    launch: Launch | None = None  # through which it is to start; None: in this process


def train(argv: Sequence[str]) -> int:
    """Train as the command line `argv` and the YAML file it names say, and return the exit status.

    Every problem that can be seen without a model is reported in one message, and nothing is started.
    """
    training, problems = prepare(argv)
    if training is None:
        return exit_with_errors("srpo-trl train", problems)
    if training.launch is not None:
        return training.launch.start()
    _run(training)
    return 0


def prepare(argv: Sequence[str]) -> tuple[Training | None, list[str]]:
    """Read and check everything that a command line asks for, up to the model; return it, or every problem."""
    launch, problems = read_launch("train", argv)
    with as_one_of(launch.num_processes) if launch else nullcontext():
        script, config, model_config, found = read_arguments(argv)
    problems += found
    if script is None:
        return None, problems
    problems_of_data = list(data_problems(script))
    problems += problems_of_data
    rewards = reward_functions(script, problems)
    max_seconds = collect_error(problems, _max_seconds, script)
    if model_config is not None:
        problems += model_problems(model_config)
    if config is not None:
        problems += reward_problems(config, list(map(reward_name, rewards)))
        problems += [*_folder_problems(config), *stream_problems(script, config)]
    evaluates = config is not None and config.eval_strategy != "no"
    train_rows = eval_rows = None
    if not problems_of_data:
        train_rows = collect_error(
            problems, load_rows, script, script.dataset_train_split, script.max_train_rows
        )
    if not problems_of_data and evaluates:
        eval_rows = collect_error(problems, load_eval_rows, script)
    if problems or not train_rows or config is None or model_config is None:
        return None, problems
    rows = (train_rows[0], eval_rows[0] if eval_rows else None)
    return Training(script, config, model_config, rewards, *rows, max_seconds[0], launch), []


def read_arguments(
    argv: Sequence[str],
) -> tuple[TrainArguments | None, SRPOConfig | None, ModelConfig | None, list[str]]:
    """Return the script's, the trainer's and the model's arguments (None where they were refused), the problems.

    Raises:
        SystemExit: for `--help`, or a value that cannot be read as its option's type.
    """
    (script, config, model_config), problems = parse_options(
        argv,
        (TrainArguments, SRPOConfig, ModelConfig),
        prog="srpo-trl train",
        usage="srpo-trl train --config NAME|FILE.yaml [--num_processes N] [--accelerate_config NAME|FILE.yaml] "
        "[--any_option VALUE ...]",
    )
    return script, config, model_config, problems


def last_complete_checkpoint(output_dir: str, *, reads_contents: bool = True) -> str | None:
    """Return the checkpoint folder with the highest step that is whole and can be resumed, or None.

    Each that is passed over is logged with the file that is wrong.

    Args:
        output_dir: the run's folder, which need not exist.
        reads_contents: whether files are compared with their checksums, or their sizes alone.
    """
    chosen = newest_whole(Path(output_dir), partial(flaw_of, reads_contents=reads_contents))
    for reason in chosen.passed_over:
        logger.warning(reason)
    return str(chosen.folder) if chosen.folder else None


def _max_seconds(script: TrainArguments) -> float | None:
    """Return the seconds of training after which the run stops, or None."""
    if script.max_training_time is None:
        return None
    try:
        return parse_duration(script.max_training_time)
    except ValueError as error:
        raise ValueError(f"max_training_time={error}") from error


def _folder_problems(config: SRPOConfig) -> Iterator[str]:
    reason = unwritable(str(config.output_dir))
    if reason:
        yield f"output_dir={config.output_dir!r} cannot take the model: {reason}. Give another folder."
    resume = config.resume_from_checkpoint
    if resume in (None, "auto"):
        return
    if flaw := flaw_of(
        Path(str(resume)), reads_contents=False
    ):  # contents are read once, when training begins
        yield (
            f"resume_from_checkpoint={resume!r} is not a complete checkpoint folder: {flaw}. Give one, or 'auto' for "
            "the last complete one in output_dir, where there is one."
        )


def _run(training: Training) -> None:
    """Build the trainer as TRL's own scripts do, train, and save the model to `output_dir`."""
    config, model_config, rewards = training.config, training.model_config, training.rewards
    output_dir = str(config.output_dir)
    model = str(model_config.model_name_or_path)
    if model == TINY_RANDOM_QWEN3:
        with config.main_process_first(desc="tiny random model"):
            model = str(save_tiny_random_qwen3(Path(output_dir) / TINY_RANDOM_QWEN3))
    config.model_init_kwargs = loading_options(config, model_config)
    trainer = SRPOTrainer(
        model=model,
        reward_funcs=list(rewards),  # TRL puts a reward model in place of its name
        args=config,
        train_dataset=training.train_rows,
        eval_dataset=training.eval_rows,
        quantization_config=get_quantization_config(model_config),
        peft_config=get_peft_config(model_config),
    )
    TrainingClock.of(trainer).limit = training.max_seconds
    resume = config.resume_from_checkpoint
    if resume == "auto":
        resume = trainer.checkpoints.newest_whole()
    say = trainer.accelerator.print
    rows = training.train_rows
    say(
        f"[srpo-trl] method {config.method}; model {model}; "
        f"{'streamed' if isinstance(rows, IterableDataset) else len(rows)} training prompts; "
        f"rewards {', '.join(map(reward_name, rewards))}; "
        + (f"resuming from {resume}" if resume else "starting anew")
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(output_dir)
    trainer.create_model_card()
    last = last_complete_checkpoint(output_dir, reads_contents=False)
    say(f"[srpo-trl] model saved to {output_dir}; last checkpoint: {last}")
    if config.push_to_hub:
        trainer.push_to_hub()
        say(f"[srpo-trl] model pushed to the hub as {trainer.hub_model_id}")
    if hasattr(trainer, "end"):  # from transformers 5.18 on
        trainer.end()
