"""`srpo-trl slurm`: one sbatch script for training on several nodes, with vLLM on a node of its own."""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from srpo_trl.commands.config_file import config_path, read_config_file, read_mapping
from srpo_trl.commands.launch import PROFILE, profile_path
from srpo_trl.commands.options import exit_with_errors

PROG = "srpo-trl slurm"
_BODY = Path(__file__).with_suffix(".sh")
_SEVERAL_NODES = "multi_node"  # the profile where none is given
_MAIN_PORT = 29500
_VLLM_SECONDS = 1800  # to load a model from shared storage and compile it


def slurm(argv: Sequence[str]) -> int:
    """Print the job's script, or submit it, and return the exit status."""
    parser = _parser()
    given, more = parser.parse_known_args(argv)
    try:
        values = read_config_file(given.config) | _overridden(more)
        script = job_script(given, more, values)
    except ValueError as error:
        return exit_with_errors(PROG, str(error).splitlines())
    if given.dry_run:
        sys.stdout.write(script)
        return 0
    if shutil.which("sbatch") is None:
        return exit_with_errors(
            PROG, ["There is no sbatch here. Submit from a login node, or print the script with --dry_run."]
        )
    return subprocess.run(["sbatch"], input=script, text=True, check=False).returncode


def job_script(given: argparse.Namespace, more: Sequence[str], values: dict[str, Any]) -> str:
    """Return the script of a job.

    Args:
        given: the command's own options.
        more: options of the training, passed on as they are.
        values: what stands in the YAML file and in `more`.
    Raises:
        ValueError: with one line for each problem.
    """
    if problems := list(_problems(given, values)):
        raise ValueError("\n".join(problems))
    output_dir = Path(str(values["output_dir"])).expanduser().absolute()
    head = {
        "job-name": output_dir.name,
        "nodes": given.train_nodes + given.vllm_nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": given.num_gpus,
        "mem": 0,  # all
        "time": given.time,
        "partition": given.partition,
        "output": "%x-%j.out",
        "open-mode": "append",  # a job that Slurm puts back in the queue keeps its number
    }
    settings = {
        "BIN": Path(sys.executable).parent,
        "OUTPUT_DIR": output_dir,
        "TRAIN_NODES": given.train_nodes,
        "VLLM_NODES": given.vllm_nodes,
        "MAX_RESTARTS": given.max_restarts,
        "MAIN_PORT": values.get("main_process_port", _MAIN_PORT),
        "VLLM_PORT": values.get("vllm_server_port", 8000),
        "VLLM_SECONDS": _VLLM_SECONDS,
    }
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{name}={value}" for name, value in head.items() if value is not None),
        "#SBATCH --exclusive",
        "#SBATCH --requeue",
        "",
        "# Every node must see BIN, OUTPUT_DIR, the recipe, the model and the data at the same paths. Ports that nodes",
        f"# must reach each other at: MAIN_PORT, VLLM_PORT and {values.get('vllm_group_port', 51216)}, where the "
        "weights are sent from.",
        *(f"{name}={shlex.quote(str(value))}" for name, value in settings.items()),
        f"TRAIN=({shlex.join(_training_words(given, more, values, output_dir))})",
        f"VLLM=({shlex.join(_server_words(given, values))})",
        "",
        _BODY.read_text(encoding="utf-8"),
    ]
    return "\n".join(lines)


def _training_words(
    given: argparse.Namespace, more: Sequence[str], values: dict[str, Any], output_dir: Path
) -> list[str]:
    """Return the options of `srpo-trl train` that are the same on every node."""
    profile = str(values.get(PROFILE, _SEVERAL_NODES))
    engine = read_mapping(profile_path(profile), f"--{PROFILE} {profile}").get("distributed_type")
    options = {
        "num_machines": given.train_nodes,
        "num_processes": given.train_nodes * given.num_gpus,
        "output_dir": output_dir,
        "resume_from_checkpoint": "auto",
    }
    if engine == "DEEPSPEED":  # whose own launcher would want ssh
        options["deepspeed_multinode_launcher"] = "standard"
    if PROFILE not in values:
        options[PROFILE] = profile
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["--config", str(config_path(given.config).absolute()), *more, *words, "--same_network"]


def _server_words(given: argparse.Namespace, values: dict[str, Any]) -> list[str]:
    """Return the words after `vllm serve`: what TRL's client asks of a server, on all GPUs of its node."""
    tensor_parallel = int(values.get("vllm_tensor_parallel_size", 1))
    options = {
        "host": "0.0.0.0",
        "port": values.get("vllm_server_port", 8000),
        "tensor-parallel-size": tensor_parallel,
        "data-parallel-size": given.num_gpus // tensor_parallel,
        "weight-transfer-config": '{"backend": "nccl"}',
        "logprobs-mode": "processed_logprobs",
        "max-logprobs": -1,
        "revision": values.get("model_revision"),
        "max-model-len": values.get("vllm_max_model_length"),
        "model-impl": values.get("vllm_model_impl"),
    }
    words = [
        word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))
    ]
    trusted = ["--trust-remote-code"] if values.get("trust_remote_code") in (True, "true", "True") else []
    return [str(values["model_name_or_path"]), *words, *trusted]


def _overridden(more: Sequence[str]) -> dict[str, str]:
    """Return the options of the training that a command line gives as `--name value` or `--name=value`."""
    found: dict[str, str] = {}
    for word, following in zip_longest(more, more[1:], fillvalue=""):
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").replace("-", "_").partition("=")
            found[name] = value if equals else following
    return found


def _problems(given: argparse.Namespace, values: dict[str, Any]) -> Iterator[str]:
    """Yield what keeps the job from starting as far as it shows here."""
    for name in ("train_nodes", "num_gpus"):
        if getattr(given, name) < 1:
            yield f"--{name}={getattr(given, name)} must be at least 1."
    if given.max_restarts < 0:
        yield f"--max_restarts={given.max_restarts} must be at least 0."
    if given.vllm_nodes not in (0, 1):
        yield (
            f"--vllm_nodes={given.vllm_nodes} must be 0 or 1: TRL sends weights and prompts to one server, and this "
            "script starts it on one node."
        )
    for name in ("model_name_or_path", "output_dir"):
        if not values.get(name):
            yield f"{name} is missing: give it in --config, or as --{name}."
    tensor_parallel = int(values.get("vllm_tensor_parallel_size", 1))
    if given.vllm_nodes and (tensor_parallel < 1 or given.num_gpus % tensor_parallel):
        yield f"vllm_tensor_parallel_size={tensor_parallel} must divide --num_gpus={given.num_gpus}."
    if given.vllm_nodes and values.get("vllm_server_base_url"):
        yield "vllm_server_base_url names a server, and --vllm_nodes starts one. Leave it out, or give --vllm_nodes 0."
    try:
        profile_path(str(values.get(PROFILE, _SEVERAL_NODES)))
    except ValueError as error:
        yield str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage=f"{PROG} --config NAME|FILE.yaml --train_nodes N [--dry_run] [--any_option_of_train VALUE ...]",
        description="Submit one Slurm job that trains on several nodes and samples with vLLM on another one.",
        epilog="All other options are passed on to `srpo-trl train`. Account, QOS and the like: sbatch reads them from "
        "the environment (SBATCH_ACCOUNT, SBATCH_QOS).",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="a recipe by name, or a YAML file")
    parser.add_argument("--train_nodes", type=int, required=True, metavar="N", help="nodes that train")
    parser.add_argument(
        "--vllm_nodes",
        type=int,
        default=1,
        metavar="N",
        help="1: vLLM on one more node (default). 0: none; use_vllm and vllm_mode of the config decide",
    )
    parser.add_argument("--num_gpus", type=int, default=8, metavar="N", help="of each node (default: 8)")
    parser.add_argument("--time", metavar="D-HH:MM:SS", help="time limit of the job")
    parser.add_argument("--partition", metavar="NAME", help="of the cluster")
    parser.add_argument(
        "--max_restarts",
        type=int,
        default=3,
        metavar="N",
        help="how often training and vLLM start again after an error, from the last complete checkpoint (default: 3)",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the script")
    return parser
