"""`srpo-trl eval`: a model's scores on a benchmark or data set, sampled as evaluation during training samples.

It leaves a table on the terminal, a JSON file of the scores, and a JSON line of every completion.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from datasets import Dataset
from peft import AutoPeftModelForCausalLM
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer
from trl import ModelConfig, get_quantization_config

from srpo_trl.commands.inputs import (
    RewardFunction,
    data_name,
    data_problems,
    load_eval_rows,
    loading_options,
    model_problems,
    reward_functions,
    reward_name,
    reward_problems,
)
from srpo_trl.commands.launch import as_one_of, read_launch
from srpo_trl.commands.options import collect_error, exit_with_errors, parse_options
from srpo_trl.commands.train import TrainArguments
from srpo_trl.config import SRPOConfig
from srpo_trl.evaluation.samples import Sample
from srpo_trl.host.manifest import MANIFEST_FILE, flaw_of
from srpo_trl.methods import GRPO, METHODS, PAPER_DEFAULTS
from srpo_trl.trainer import SRPOTrainer
from srpo_trl.version import __version__

PROG = "srpo-trl eval"
# Large files of a checkpoint that an evaluation has no use for.
NOT_READ = ("optimizer*", "global_step*", "srpo_*")
ADAPTER_FILE = "adapter_config.json"
# The model as it was saved. TRL's defaults are those of training: float32 weights, and bf16 autocast for its passes.
# With any method that a training run's file names, samples are drawn.
DEFAULTS = {"dtype": "auto", "bf16": False, "eval_temperature": PAPER_DEFAULTS["eval_temperature"]}
# Options, and groups of them, that `--help` leaves out.
OF_TRAINING = (
    *(
        "Method",
        "Distillation",
        "Teacher",
        "Optimization",
        "Logging and saving",
        "eval_strategy",
        "eval_steps",
    ),
    *("dataset_train_split", "max_train_rows", "num_generations", "temperature", "fp16", "load_in_4bit"),
)
STDERR = "_stderr"
# What transformers and TRL log beside the scores and says nothing of them.
NOT_SCORES = ("model_preparation_time", "samples_per_second", "steps_per_second", "num_tokens")
# A training run's metric can be a loss, which chooses TRL's evaluation.
SAMPLES = ("--metric_for_best_model", "eval_avg@16")
VLLM_SEQUENCES = 256  # that vLLM works on at a time; TRL lets it have those of a training step only


@dataclass
class EvalArguments(TrainArguments):
    """What to evaluate on, as for training; a training run's YAML file serves, training's own options unused."""

    output: str | None = field(
        default=None,
        metadata={
            "help": "A .json file for every score with its standard error; the completions go beside it, as JSON "
            "lines (.jsonl). None: the table on the terminal only."
        },
    )


def evaluate(argv: Sequence[str]) -> int:
    """Evaluate as the command line `argv` and the YAML file it names say, and return the exit status.

    Every problem that can be seen without a model is reported in one message, and nothing is started.
    """
    launch, problems = read_launch("eval", argv)
    with as_one_of(launch.num_processes) if launch else nullcontext():
        script, config, model_config, found = read_evaluation(argv)
    problems += found
    if script is None:
        return exit_with_errors(PROG, problems)
    problems_of_data = list(data_problems(script))
    problems += [*problems_of_data, *_output_problems(script)]
    rewards = reward_functions(script, problems)
    if model_config is not None:
        problems += model_problems(model_config)
        problems += _checkpoint_problems(Path(str(model_config.model_name_or_path)))
    if config is not None:
        problems += reward_problems(config, list(map(reward_name, rewards)))
    rows = None
    if not problems_of_data:
        rows = collect_error(problems, load_eval_rows, script)
    if problems or not rows or config is None or model_config is None:
        return exit_with_errors(PROG, problems)
    if launch is not None:
        return launch.start()
    _run(script, config, model_config, rewards, rows[0])
    return 0


def read_evaluation(
    argv: Sequence[str],
) -> tuple[EvalArguments | None, SRPOConfig | None, ModelConfig | None, list[str]]:
    """Return the script's, the trainer's and the model's arguments (None where they were refused), the problems.

    A first word that is no option is the model.

    Raises:
        SystemExit: for `--help`, or a value that cannot be read as its option's type.
    """
    if argv and not argv[0].startswith("-"):
        argv = ["--model_name_or_path", *argv]
    (script, config, model_config), problems = parse_options(
        [*argv, *SAMPLES],
        (EvalArguments, SRPOConfig, ModelConfig),
        prog=PROG,
        usage=f"{PROG} MODEL (--benchmark NAME --data_dir DIR | --dataset_name FILE --reward_funcs PATH ...) "
        "[--output FILE.json] [--config FILE.yaml] [--any_option VALUE ...]",
        defaults=DEFAULTS,
        hidden=OF_TRAINING,
    )
    return script, config, model_config, problems


def _checkpoint_problems(model: Path) -> Iterator[str]:
    """Yield what is wrong with the model where it is a checkpoint of a run, which lists its files."""
    flaw = flaw_of(model, to_resume=False, without=NOT_READ) if (model / MANIFEST_FILE).is_file() else ""
    if flaw:
        yield f"model_name_or_path={str(model)!r} is a broken checkpoint: {flaw}. Copy it again, or give another one."


def _output_problems(script: EvalArguments) -> Iterator[str]:
    if script.output is not None and Path(script.output).suffix != ".json":
        yield f"output={script.output!r} must end in .json; the completions go into a .jsonl file beside it."


def _run(
    script: EvalArguments,
    config: SRPOConfig,
    model_config: ModelConfig,
    rewards: list[RewardFunction],
    rows: Dataset,
) -> None:
    model = str(model_config.model_name_or_path)
    with TemporaryDirectory(prefix="srpo-trl-eval-") as folder:
        trainer = _trainer(_for_evaluation_alone(config, folder), model_config, rewards, rows)
        metrics = trainer.evaluate()
    if trainer.accelerator.is_main_process:
        scores = paired(metrics)
        console = Console()
        console.print(_table(scores, title=f"{model} on {data_name(script)}"))
        if script.output is not None:
            output = Path(script.output)
            run = _description(script, config, model, rewards)
            _write_report(output, run, scores, trainer.evaluated_samples, rows["prompt"])
            console.print(
                f"[srpo-trl] scores in {output}, completions in {output.with_suffix('.jsonl')}", markup=False
            )
    if hasattr(trainer, "end"):  # from transformers 5.18 on
        trainer.end()


def _for_evaluation_alone(config: SRPOConfig, folder: str) -> SRPOConfig:
    """Take out what a training run would write, report, or load beside the model."""
    config.output_dir = folder
    config.report_to, config.push_to_hub = [], False
    config.method, config.beta = GRPO, 0.0  # neither a teacher nor a reference model
    config.method_record = METHODS[GRPO].factory()
    config.guard_action, config.run_log = "off", False
    config.eval_strategy, config.load_best_model_at_end = "no", False
    config.steps_per_generation = -(-VLLM_SEQUENCES // config.per_device_train_batch_size)
    return config


def _trainer(
    config: SRPOConfig, model_config: ModelConfig, rewards: list[RewardFunction], rows: Dataset
) -> SRPOTrainer:
    model: Any = str(model_config.model_name_or_path)
    options = loading_options(config, model_config)
    quantization = get_quantization_config(model_config)
    tokenizer = None
    if (Path(model) / ADAPTER_FILE).is_file():
        tokenizer = AutoTokenizer.from_pretrained(model)
        if quantization is not None:
            options["quantization_config"] = quantization
        model = AutoPeftModelForCausalLM.from_pretrained(model, **options)
    else:
        config.model_init_kwargs = options
    trainer: SRPOTrainer = SRPOTrainer(
        model=model,
        reward_funcs=list(rewards),  # TRL puts a reward model in place of its name
        args=config,
        train_dataset=rows,  # TRL wants one; it is not trained on
        eval_dataset=rows,
        processing_class=tokenizer,
        quantization_config=quantization if isinstance(model, str) else None,
    )
    return trainer


def _description(
    script: EvalArguments, config: SRPOConfig, model: str, rewards: list[RewardFunction]
) -> dict[str, Any]:
    return {
        "model": model,
        "srpo_trl": __version__,
        "data": {
            "benchmark": script.benchmark,
            "dataset_name": script.dataset_name or [one.path for one in script.datasets] or None,
            "split": script.dataset_test_split,
            "max_rows": script.max_eval_rows,
        },
        "reward_funcs": list(map(reward_name, rewards)),
        "sampling": {
            "samples": config.num_generations_eval or config.num_generations,
            "temperature": config.eval_temperature,
            "top_p": config.eval_top_p,
            "top_k": config.top_k,
            "max_completion_length": config.max_completion_length,
            "chat_template_kwargs": config.chat_template_kwargs,
            "seed": config.seed,
            "vllm": config.use_vllm,
        },
    }


class Score(NamedTuple):
    """A score and its standard error over questions, None where it has none."""

    value: float
    standard_error: float | None


def paired(metrics: Mapping[str, float], prefix: str = "eval_") -> dict[str, Score]:
    """Return the scores among metrics, and the seconds they took, without `prefix`, each with its standard error."""
    names = [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)]
    return {
        name: Score(metrics[f"{prefix}{name}"], metrics.get(f"{prefix}{name}{STDERR}"))
        for name in names
        if not name.endswith(STDERR) and name not in NOT_SCORES
    }


def _table(scores: Mapping[str, Score], title: str) -> Table:
    """Return a table with a line for each score."""
    table = Table(title=title, title_justify="left")
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("standard error", justify="right")
    for name, (value, standard_error) in scores.items():
        table.add_row(name, _written(value), "" if standard_error is None else _written(standard_error))
    return table


def _write_report(
    output: Path,
    run: Mapping[str, Any],
    scores: Mapping[str, Score],
    samples: Iterable[Sample],
    prompts: Any,
) -> None:
    """Write scores to `output`, whose folder is made, and completions beside it; `prompts` are by question."""
    output.parent.mkdir(parents=True, exist_ok=True)
    report = {**run, "scores": {name: score._asdict() for name, score in scores.items()}}
    output.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with output.with_suffix(".jsonl").open("w", encoding="utf-8") as file:
        for sample in samples:
            line = {"prompt": prompts[sample.question], **asdict(sample)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _written(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
