"""The command line of `srpo-trl plan`: everything wrong with it in one message, before a model is built."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PretrainedConfig
from transformers.training_args import OptimizerNames
from transformers.utils import strtobool
from trl import ModelConfig

from srpo_trl.commands.inputs import model_problems
from srpo_trl.commands.launch import PROFILE, as_one_of, options_in_file
from srpo_trl.commands.options import collect_error
from srpo_trl.commands.plan.engines import Engine, read_engine
from srpo_trl.commands.plan.model import is_quantized, load_config
from srpo_trl.commands.plan.run import RunSpec
from srpo_trl.commands.plan.storage import OPTIMIZERS
from srpo_trl.commands.plan.table import GIB
from srpo_trl.commands.train import read_arguments
from srpo_trl.config import SRPOConfig
from srpo_trl.loss.ops.chunk_size import MARGIN


class PlanRequest(NamedTuple):
    """What was asked for.

    Attributes:
        run: the run to plan.
        room: bytes of one GPU that may be used, where its memory is known.
        json_path: file to write the figures to, or None.
    """

    run: RunSpec
    room: int
    json_path: Path | None


def read_request(argv: Sequence[str]) -> tuple[PlanRequest | None, list[str]]:
    """Return what the command line asks for (None where it was refused), and the problems.

    Raises:
        SystemExit: for `--help`, or a value that cannot be read as its option's type.
    """
    given, training_arguments = _parser().parse_known_args(argv)
    for option, value in (("--config", given.config), ("--model_name_or_path", given.model)):
        training_arguments += [] if value is None else [option, value]
    problems = list(_own_problems(given))
    in_file = options_in_file(training_arguments)
    given.accelerate_config = given.accelerate_config or in_file.get(PROFILE)
    given.num_processes = given.num_processes or in_file.get("num_processes")
    engine = next(
        iter(collect_error(problems, read_engine, given.accelerate_config, given.num_processes)), Engine()
    )
    # A plan is made anywhere; whether bf16 can be had depends on the machine that trains.
    with as_one_of(engine.num_processes):
        _, training, model_config, found = read_arguments([*training_arguments, "--use_cpu", "true"])
    problems += found
    models: list[PretrainedConfig] = []
    if model_config is not None:
        wrong_name = list(model_problems(model_config))
        trust = bool(training and training.trust_remote_code)
        problems += wrong_name + list(_quantization_problems(model_config, engine))
        models = (
            [] if wrong_name else collect_error(problems, load_config, model_config, trust_remote_code=trust)
        )
    teachers: dict[str, PretrainedConfig] = {}
    if training is not None:
        for name, path in training.teacher_models.items():
            trust = training.trust_remote_code
            found_config = collect_error(problems, load_config, ModelConfig(path), trust_remote_code=trust)
            teachers |= dict.fromkeys([name], found_config[0]) if found_config else {}
        problems += _training_problems(training, given.prompt_length, models)
    if problems or training is None or model_config is None or not models:
        return None, problems
    given.use_cpu = in_file.get("use_cpu") if given.use_cpu is None else given.use_cpu
    on_gpu, memory = not strtobool(str(given.use_cpu or False)), None
    if given.gpu_memory:
        memory = int(given.gpu_memory * GIB)
    elif on_gpu and torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
    run = RunSpec(training, model_config, models[0], engine, given.prompt_length, on_gpu, memory, teachers)
    return PlanRequest(run, int((memory or 0) * (1 - given.margin)), given.json), []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="srpo-trl plan",
        usage="srpo-trl plan --config NAME|FILE.yaml [--model NAME] [--accelerate_config NAME|FILE.yaml] "
        "[--num_processes N] [--gpu_memory GIB] ...",
        description="Memory of a training run at its possible peaks, and the largest micro-batch that fits. Reads "
        "configs alone, no weights.",
        epilog="Every option of `srpo-trl train` can follow, and replaces the file's value.",
        allow_abbrev=False,
    )
    margin = "of the memory to leave free, for the CUDA context, libraries and fragmentation [%(default)s]"
    parser.add_argument("--config", metavar="FILE", help="recipe, or YAML file of srpo-trl train")
    parser.add_argument(
        "--model", metavar="NAME", help="folder or hub id whose config.json is read [the file's]"
    )
    parser.add_argument(
        "--accelerate_config", metavar="FILE", help="profile, or YAML file of accelerate launch [one process]"
    )
    parser.add_argument("--num_processes", type=int, metavar="N", help="in place of the accelerate config's")
    parser.add_argument("--gpu_memory", type=float, metavar="GIB", help="of one GPU [that of the GPU here]")
    parser.add_argument(
        "--prompt_length", type=int, default=1024, metavar="N", help="longest prompt, tokens [1024]"
    )
    parser.add_argument("--margin", type=float, default=MARGIN, metavar="FRACTION", help=margin)
    parser.add_argument("--use_cpu", nargs="?", const="true", help=argparse.SUPPRESS)  # of srpo-trl train
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, too")
    return parser


def _own_problems(given: argparse.Namespace) -> Iterator[str]:
    for name in ("prompt_length", "num_processes"):
        value = getattr(given, name)
        if value is not None and value < 1:
            yield f"--{name} {value} must be at least 1."
    if given.gpu_memory is not None and not 0 < given.gpu_memory < float("inf"):
        yield f"--gpu_memory {given.gpu_memory:g} must be a number of GiB above 0."
    if not 0 <= given.margin < 1:
        yield f"--margin {given.margin:g} must be a fraction from 0 to below 1."


def _training_problems(
    training: SRPOConfig, prompt_length: int, models: Sequence[PretrainedConfig]
) -> Iterator[str]:
    if (name := OptimizerNames(training.optim).value) not in OPTIMIZERS:
        yield f"optim={name!r} is not planned; {', '.join(OPTIMIZERS)} are."
    for model in models:
        longest = getattr(model.get_text_config(), "max_position_embeddings", None)
        length = prompt_length + (training.max_completion_length or 0)
        if longest and length > longest:
            yield (
                f"--prompt_length {prompt_length} and max_completion_length={training.max_completion_length} make "
                f"{length} tokens, but the model's context has {longest}. Lower one of them."
            )


def _quantization_problems(model_config: ModelConfig, engine: Engine) -> Iterator[str]:
    if is_quantized(model_config) and not model_config.use_peft:
        yield "load_in_4bit and load_in_8bit need use_peft: quantized weights are not trained themselves."
    if is_quantized(model_config) and engine.shards_parameters:
        yield f"Quantized weights under {engine.kind} are not planned. Take DDP or one process."
