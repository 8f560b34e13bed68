"""`accelerate launch` with each file of configs/accelerate/ runs the engine of its name, on one or two machines.

On CPUs, with gloo in place of NCCL: nothing in the files is changed but the number of processes.
"""

import os
import re
import socket
import subprocess
import sys

import pytest
import torch

from engine_launch import HERE, assert_same
from engine_options import ENGINES
from engine_processes import results

CONFIGS = HERE.parents[1] / "configs" / "accelerate"
SCRIPT = str(HERE / "engine_processes.py")
LARGE = "large"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return results(tmp_path_factory.mktemp("alone"), 1, [LARGE])[LARGE]


def environment(**more):
    paths = filter(None, [str(HERE), os.environ.get("PYTHONPATH")])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)} | more


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def assert_runs(config, folder, alone, num_processes=2):
    engine = {"multi_node": "fsdp2"}.get(config, config)
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
    for rank in range(num_processes):
        found = torch.load(folder / f"rank{rank}.pt", weights_only=True)["scenarios"][LARGE]
        assert_same(found, alone, engine, num_processes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", sorted({path.stem for path in CONFIGS.glob("*.yaml")} - {"single", "multi_node"})
)
def test_config_starts_its_engine_on_two_processes(tmp_path, alone, config):
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        CONFIGS / f"{config}.yaml",
    ]
    command += ["--main_process_port", free_port(), SCRIPT, "launched", tmp_path, LARGE]
    done = subprocess.run(command, env=environment(), capture_output=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr.decode()[-6000:]
    assert_runs(config, tmp_path, alone)


@pytest.mark.slow
def test_config_of_one_process(tmp_path, alone):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / "single.yaml"]
    command += [SCRIPT, "launched", tmp_path, LARGE]
    subprocess.run(command, env=environment(), capture_output=True, check=True, timeout=900)
    found = torch.load(tmp_path / "rank0.pt", weights_only=True)["scenarios"][LARGE]
    assert (found["engine"], found["num_processes"]) == ("NO", 1)
    assert torch.equal(found["update"], alone["update"])


def documented_commands():
    """The commands in the comments of multi_node.yaml, by their profile."""
    text = (CONFIGS / "multi_node.yaml").read_text(encoding="utf-8").replace("\\\n#", "")
    commands = re.findall(r"^# +(srpo-trl train .*)$", text, re.MULTILINE)
    return {re.search(r"--accelerate_config (\S+)", command)[1]: command for command in commands}


# `srpo-trl train --config NAME OPTIONS_OF_THE_LAUNCHER SCRIPT ...`, with the script in place of training
AS_TRAIN_LAUNCHES = """
import os, sys
from srpo_trl.commands.launch import read_launch
launch, problems = read_launch(sys.argv[1], sys.argv[2:])
assert problems == [], problems
words = [*launch.words, *launch.command[3:]]
os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *words])
"""


@pytest.mark.slow
@pytest.mark.parametrize("config", ["multi_node", "zero3"])
def test_two_machines_with_rank_and_address_from_the_environment(tmp_path, alone, config):
    """Two launches of the documented command, each of one process, that differ in the environment alone."""
    command = documented_commands()[config].replace("* 8", "* 1")
    (tmp_path / "launch.py").write_text(AS_TRAIN_LAUNCHES, encoding="utf-8")
    launch = f'srpo-trl() {{ "{sys.executable}" "{tmp_path}/launch.py" "$@"; }}\n{command}'
    machines = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = [
        subprocess.Popen(
            ["bash", "-euc", f"{launch} {SCRIPT} launched {tmp_path} {LARGE!r}"],
            env=environment(NODE_RANK=str(rank), **machines),
            cwd=HERE.parents[1],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    for machine in started:
        errors = machine.communicate(timeout=900)[1].decode()
        assert machine.returncode == 0, errors[-6000:]
    assert_runs(config, tmp_path, alone)


def test_every_config_has_an_engine_that_is_asserted():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} - {"single", "multi_node"} <= set(ENGINES)
    assert set(documented_commands()) == {"multi_node", "zero3"}
