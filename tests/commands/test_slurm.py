"""`srpo-trl slurm`: its script, and what the script does on three fake nodes."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import fake_slurm
from srpo_trl.cli import main
from srpo_trl.data.smoke_model import save_tiny_random_qwen3

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the script is for bash")
RECIPE = ["--config", "qwen3_0.6b_full_80gb", "--train_nodes", "2"]
# In place of `srpo-trl`: whether the server answers, the words, and what the test wants of this attempt.
TRAIN = """
import os, pathlib, sys, time, urllib.request
words = dict(zip(sys.argv, sys.argv[1:]))
server = f"http://{words['--vllm_server_host']}:{os.environ['PORT']}/health"
assert urllib.request.urlopen(server, timeout=2).status == 200
folder = pathlib.Path(os.environ["NODES_FOLDER"])
node = words["--machine_rank"]
attempt = len(list(folder.glob(f"{node}.*")))
(folder / f"{node}.{attempt}").write_text(" ".join(sys.argv[1:]) + " on " + os.environ["SLURMD_NODENAME"])
ending = os.environ["ENDINGS"].split()[attempt]
pathlib.Path(words["--output_dir"], f"checkpoint-{attempt}").mkdir(exist_ok=True)
if ending == "0" or node == "1":
    sys.exit(int(ending))
time.sleep(60)  # until srun ends the node whose neighbour has failed
"""


def script(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["slurm", *RECIPE, "--dry_run", *words]) == 0
    return capsys.readouterr().out


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture
def cluster(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script's text on the fake nodes, with `program` in place of `srpo-trl`."""

    def run(text: str, program: str, **environment: str) -> subprocess.CompletedProcess[str]:
        bin_folder = fake_slurm.install(tmp_path / "bin")
        (bin_folder / "srpo-trl").write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
        (bin_folder / "srpo-trl").chmod(0o755)
        (bin_folder / "python").symlink_to(sys.executable)
        bin_line = next(line for line in text.splitlines() if line.startswith("BIN="))
        text = text.replace(bin_line, f"BIN={bin_folder}").replace("sleep 2", "sleep 0.2")
        found = os.environ | fake_slurm.JOB | {"SERVER_STARTS": str(tmp_path / "starts")} | environment
        return subprocess.run(
            ["bash"], input=text, capture_output=True, text=True, env=found, cwd=tmp_path, timeout=500
        )

    return run


@pytest.mark.parametrize("words", [(), ("--vllm_nodes", "0"), ("--accelerate_config", "zero3")])
def test_script_is_valid_bash(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    text = script(capsys, *words)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert f"#SBATCH --nodes={2 if '0' in words else 3}\n" in text
    assert ("--deepspeed_multinode_launcher standard" in text) == ("zero3" in words)
    assert text.count("--accelerate_config") == 1


def test_script_holds_what_was_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["--output_dir", "my runs/a", "--vllm_tensor_parallel_size", "4", "--learning_rate=1e-6"]
    text = script(capsys, "--time", "1-00:00:00", "--partition", "gpu", *more)
    assert "#SBATCH --time=1-00:00:00\n#SBATCH --partition=gpu\n" in text
    assert f"OUTPUT_DIR='{tmp_path}/my runs/a'\n" in text
    assert "--tensor-parallel-size 4 --data-parallel-size 2" in text
    assert "--learning_rate=1e-6" in text
    assert "--num_machines 2 --num_processes 16" in text
    assert "--resume_from_checkpoint auto" in text


def test_vllm_gets_the_options_of_trls_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    from trl.generation.vllm_client import VLLMClient

    (line,) = (line for line in script(capsys).splitlines() if line.startswith("VLLM=("))
    example = (VLLMClient.__doc__ or "").partition("vllm serve Qwen/Qwen2.5-7B ")[2].partition("...")[0]
    wanted = example.replace("\\\n", " ").split("--")[1:]
    assert len(wanted) == 3
    assert all(f"--{option.strip()}" in line for option in wanted)


def test_ranks_server_and_clean_up(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    cluster: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Each node has its own rank; the server answers before training starts, starts anew with it, and ends."""
    port = str(free_port())
    text = script(capsys, "--output_dir", str(tmp_path / "run"), "--vllm_server_port", port)
    (tmp_path / "train.py").write_text(TRAIN, encoding="utf-8")
    (tmp_path / "nodes").mkdir()
    environment = {"PORT": port, "NODES_FOLDER": str(tmp_path / "nodes"), "ENDINGS": "1 0"}
    done = cluster(text, f'exec "{sys.executable}" "{tmp_path}/train.py" "$@"', **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    started = {file.name: file.read_text() for file in (tmp_path / "nodes").iterdir()}
    assert set(started) == {"0.0", "1.0", "0.1", "1.1"}
    for name, words in started.items():
        rank = int(name[0])
        assert words.endswith(f"on {fake_slurm.NODES[rank]}")
        assert "--use_vllm true --vllm_mode server --vllm_server_host 127.0.0.3" in words
        assert f"--machine_rank {rank} --main_process_ip 127.0.0.1 --main_process_port 29500" in words
    assert len((tmp_path / "starts").read_text().splitlines()) == 2
    assert "restart 1 of 3" in done.stdout
    with socket.socket() as connection:
        assert connection.connect_ex(("127.0.0.1", int(port))) != 0


def test_a_run_that_has_saved_nothing_is_not_tried_again(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    cluster: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    text = script(capsys, "--output_dir", str(tmp_path / "run"), "--vllm_server_port", str(free_port()))
    done = cluster(text, "exit 2")
    assert done.returncode != 0
    assert "after 0 restarts" in done.stdout
    assert "restart 1" not in done.stdout


def test_a_cancelled_job_leaves_nothing_running(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    cluster: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    port = free_port()
    text = script(capsys, "--output_dir", str(tmp_path / "run"), "--vllm_server_port", str(port))
    text = text.replace("set -euo pipefail", "set -euo pipefail\nexport JOB=$$")
    done = cluster(text, f'echo $$ >> "{tmp_path}/tasks"; kill "$JOB"; exec sleep 60')
    assert done.returncode == 143
    for pid in (tmp_path / "tasks").read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
    with socket.socket() as connection:
        assert connection.connect_ex(("127.0.0.1", port)) != 0


def test_a_server_that_does_not_start_ends_the_job(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    cluster: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    words = ["--output_dir", str(tmp_path / "run"), "--model_name_or_path", "absent"]
    done = cluster(script(capsys, *words, "--vllm_server_port", str(free_port())), "exit 0")
    assert done.returncode == 1
    assert "no such model" in done.stderr


def test_script_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bin_folder = fake_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SUBMITTED", str(tmp_path / "job.sh"))
    assert main(["slurm", *RECIPE]) == 0
    assert (tmp_path / "job.sh").read_text() == script(capsys)
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["slurm", *RECIPE]) == 2
    assert "There is no sbatch here" in capsys.readouterr().err


def test_every_problem_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--vllm_nodes", "2", "--num_gpus", "0", "--accelerate_config", "zero33", "--max_restarts", "-1"]
    assert main(["slurm", *RECIPE, *words, "--output_dir", ""]) == 2
    problems = capsys.readouterr().err
    for text in ("--vllm_nodes=2 must be 0 or 1", "--num_gpus=0", "Did you mean zero3", "--max_restarts=-1"):
        assert text in problems
    assert "output_dir is missing" in problems
    assert main(["slurm", *RECIPE, "--vllm_server_base_url", "http://other:8000", "--num_gpus", "3"]) == 2
    assert "vllm_server_base_url names a server" in capsys.readouterr().err


# ------------------------------------------------------------------ training, on CPUs

REWARD = """
import os, signal

def once_killed(completions, trainer_state, **kwargs):
    marker = os.environ["KILL_MARKER"]
    if os.environ["RANK"] == "1" and trainer_state.global_step == 2 and not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return [float(len(completion[0]["content"]) % 2) for completion in completions]
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """The options of a run of four steps with a checkpoint after each, whose second process is killed once."""
    save_tiny_random_qwen3(tmp_path / "model")
    rows = [{"prompt": [{"role": "user", "content": f"{n} + 1?"}]} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "killing.py").write_text(REWARD, encoding="utf-8")
    values = {
        "model_name_or_path": str(tmp_path / "model"),
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "reward_funcs": "killing.once_killed",
        "output_dir": str(tmp_path / "run"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "max_completion_length": 4,
        "per_device_train_batch_size": 2,
        "num_generations": 4,
        "max_steps": 4,
        "save_steps": 1,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return tmp_path / "run.yaml"


def assert_resumed(output: str, folder: Path) -> None:
    assert (folder / "killed").is_file()
    assert "starting anew" in output
    assert "resuming from" in output
    assert "checkpoint-2" in output.partition("resuming from")[2].splitlines()[0]
    state = json.loads((folder / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4


@pytest.mark.slow
def test_two_nodes_train_and_go_on_after_one_was_killed(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    run_file: Path,
    cluster: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """The script with processes that train; vLLM, which is not here, is switched off again."""
    port = free_port()
    words = ["--config", str(run_file), "--train_nodes", "2", "--num_gpus", "1", "--dry_run"]
    ports = ["--vllm_server_port", str(port), "--main_process_port", str(free_port())]
    assert main(["slurm", *words, *ports]) == 0
    program = f'exec "{sys.executable}" -m srpo_trl.cli "$@" --use_vllm false'
    done = cluster(capsys.readouterr().out, program, KILL_MARKER=str(tmp_path / "killed"))
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert_resumed(done.stdout + done.stderr, tmp_path)
    with socket.socket() as connection:
        assert connection.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
def test_launcher_restarts_after_a_process_was_killed(tmp_path: Path, run_file: Path) -> None:
    words = ["train", "--config", str(run_file), "--num_processes", "2", "--resume_from_checkpoint", "auto"]
    words += ["--max_restarts", "1", "--main_process_port", str(free_port())]
    done = subprocess.run(
        [sys.executable, "-m", "srpo_trl.cli", *words],
        env=os.environ | {"KILL_MARKER": str(tmp_path / "killed")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert_resumed(done.stdout + done.stderr, tmp_path)
