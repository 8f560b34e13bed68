"""Options of `accelerate launch` in the YAML file and the words of `srpo-trl train`, as `trl grpo` has them."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from trl import ModelConfig

from srpo_trl.cli import main
from srpo_trl.commands import launch
from srpo_trl.commands.evaluate import EvalArguments
from srpo_trl.commands.launch import launcher_options, profile_path, read_launch
from srpo_trl.commands.plan.arguments import read_request
from srpo_trl.commands.train import read_arguments
from srpo_trl.config import SRPOConfig
from srpo_trl.data.smoke_model import save_tiny_random_qwen3

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ON_CPU = {"use_cpu": True, "bf16": False, "report_to": "none"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words that the launcher gets in place of being started."""
    calls: list[list[str]] = []

    def replace(program: str, words: list[str], environment: dict[str, str]) -> None:
        assert program == words[0] == sys.executable
        assert words[1:3] == ["-m", "srpo_trl.commands.launcher"]
        assert environment["SRPO_TRL_LAUNCHED"] == "1"
        calls.append(words[3:])
        raise SystemExit(0)  # nothing after it is executed

    monkeypatch.setattr(os, "execve", replace)
    monkeypatch.setattr(launch, "default_config_file", "/nowhere")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return calls


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and rows, and the run's YAML file without the launcher's options."""
    folder = tmp_path_factory.mktemp("files")
    save_tiny_random_qwen3(folder / "model")
    rows = "".join(
        json.dumps({"prompt": [{"role": "user", "content": f"What is {n} + 1?"}], "solution": f"${n + 1}$"})
        + "\n"
        for n in range(8)
    )
    (folder / "rows.jsonl").write_text(rows, encoding="utf-8")
    return folder


def replaced(argv: list[str]) -> None:
    """Run a command whose process becomes the launcher's."""
    with pytest.raises(SystemExit):
        main(argv)


def write(folder: Path, **options: object) -> list[str]:
    values = ON_CPU | {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / "rows.jsonl"),
        "reward_funcs": "trl.rewards.accuracy_reward",
        "output_dir": str(folder / "run"),
        "max_completion_length": 8,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_steps": 1,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values | options), encoding="utf-8")
    return ["--config", str(folder / "run.yaml")]


def test_one_letter_with_two_dashes_is_no_option_of_the_launcher(files: Path) -> None:
    problems = read_arguments([*write(files), "--q", "--h"])[3]
    assert [problem.split()[:2] for problem in problems] == [["q", "is"], ["h", "is"]]


def test_options_of_training_are_not_the_launchers() -> None:
    kinds = (EvalArguments, SRPOConfig, ModelConfig)
    training = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert not training & set(launcher_options())
    assert {"num_processes", "num_machines", "main_process_port", "accelerate_config"} <= set(
        launcher_options()
    )


@pytest.mark.parametrize("in_file", [True, False], ids=["file", "words"])
def test_train_starts_itself_again_through_the_launcher(
    files: Path, launched: list[list[str]], in_file: bool
) -> None:
    options = {"accelerate_config": "ddp", "num_processes": 4, "main_process_port": 29511}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    own = write(files, **(options if in_file else {}))
    replaced(["train", *own, *([] if in_file else words), "--max_steps", "2"])
    (argv,) = launched
    given = launch_command_parser().parse_args(argv)
    assert Path(given.config_file).samefile(CONFIGS / "accelerate" / "ddp.yaml")
    assert (given.num_processes, given.main_process_port) == (4, 29511)
    assert (given.module, given.training_script) == (True, "srpo_trl.cli")
    assert given.training_script_args == ["train", *own, "--max_steps", "2"]


def test_words_win_over_the_file_and_flags_are_flags(files: Path, launched: list[list[str]]) -> None:
    own = write(files, num_processes=4, use_fsdp=False, same_network=True, multi_gpu=True)
    replaced(["train", *own, "--num-processes=2"])
    given = launch_command_parser().parse_args(launched[0])
    assert (given.num_processes, given.use_fsdp, given.same_network, given.multi_gpu) == (
        2,
        False,
        True,
        True,
    )
    assert given.training_script_args == ["train", *own]


def test_several_processes_without_a_profile_are_really_started(
    files: Path, launched: list[list[str]]
) -> None:
    """Without a GPU accelerate's launcher starts one process where it is not told the kind."""
    replaced(["train", *write(files, num_processes=2)])
    assert launched[0][:3] == ["--multi_gpu", "--num_processes", "2"]
    replaced(["train", *write(files, num_processes=1)])
    assert "--multi_gpu" not in launched[1]


@pytest.mark.parametrize(
    ("words", "backend"),
    [
        (["--num_processes", "2"], "static"),
        (["--num_processes", "2", "--max_restarts", "1"], "c10d"),
        (["--accelerate_config", "ddp", "--max_restarts", "1"], "c10d"),
        (["--accelerate_config", "multi_node", "--max_restarts", "1"], "static"),
        (["--accelerate_config", "ddp", "--num_machines", "2", "--max_restarts", "1"], "static"),
    ],
)
def test_restarted_processes_meet_anew(
    words: list[str], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one machine; torch's static rendezvous would show them the addresses of those that ended."""
    monkeypatch.setattr(launch, "default_config_file", "/nowhere")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    started, problems = read_launch("train", words)
    assert problems == []
    assert started is not None
    assert launch_command_parser().parse_args([*started.words, "script"]).rdzv_backend == backend
    assert started.environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--accelerate_config", "zero3"], 8),
        (["--accelerate_config", "zero3", "--num_processes", "3"], 3),
        (["--accelerate_config", "single"], 1),
        (["--accelerate_config", "multi_node"], 16),
        (["--accelerate_config", "multi_gpu"], 8),
        (["--mixed_precision", "no"], 8),
        (["--cpu"], 1),
    ],
)
def test_a_profile_takes_all_gpus(words: list[str], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr(launch, "default_config_file", "/nowhere")
    started, _ = read_launch("train", words)
    assert started is not None
    assert started.num_processes == expected
    given = launch_command_parser().parse_args([*started.words, "srpo_trl"])
    assert "zero3" not in words or given.num_processes == expected


def test_all_problems_come_before_anything_is_launched(
    files: Path, launched: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    own = write(files, num_processes="two", max_stepz=3, learning_rate=-1.0, num_process=2)
    assert main(["train", *own]) == 2
    message = capsys.readouterr().err
    for part in (
        "argument --num_processes/--num-processes: invalid int value: 'two'",
        "max_stepz is not an option. Did you mean max_steps?",
        "num_process is not an option. Did you mean num_processes?",
        "learning_rate=-1.0",
    ):
        assert part in message, part
    assert main(["train", *write(files), "--accelerate_config", "zer3"]) == 2
    assert (
        "accelerate_config='zer3' is neither a file nor a profile. Did you mean zero3"
        in capsys.readouterr().err
    )
    assert launched == []


def test_groups_are_counted_over_all_processes(
    files: Path, launched: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A group of 8 is two processes' rows of 4; one process has no whole group."""
    options = {"num_generations": 8, "gradient_accumulation_steps": 1}
    replaced(["train", *write(files, num_processes=2, **options)])
    assert main(["train", *write(files, **options)]) == 2
    assert "num_generations" in capsys.readouterr().err
    assert len(launched) == 1


def test_processes_that_were_launched_leave_the_files_options_alone(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write(files, num_processes=2, accelerate_config="zero3")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert read_launch("train", own) == (None, [])
    _, problems = read_launch("train", [*own, "--num_processes", "2"])
    assert problems == [
        "--num_processes belongs to accelerate's launcher, which runs already. Give it to the launcher."
    ]
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setenv("SRPO_TRL_LAUNCHED", "1")  # accelerate sets no LOCAL_RANK for a single process
    assert read_launch("train", own) == (None, [])


def test_the_launcher_gets_the_files_environment(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRPO_TEST_KEPT", "yes")
    started, _ = read_launch("train", write(files, num_processes=2, env={"SRPO_TEST_SET": 3}))
    assert started is not None
    assert (started.environment["SRPO_TEST_SET"], started.environment["SRPO_TEST_KEPT"]) == ("3", "yes")


def test_without_such_options_nothing_is_launched(files: Path) -> None:
    assert read_launch("train", write(files)) == (None, [])


@pytest.mark.parametrize("command", ["eval", "train"])
def test_evaluation_is_launched_too(
    command: str, files: Path, launched: list[list[str]], tmp_path: Path
) -> None:
    own = write(files, num_processes=2, dataset_test_split="train", output_dir=str(tmp_path))
    model = [str(files / "model")] if command == "eval" else []
    replaced([command, *model, *own])
    assert launched[0][launched[0].index("srpo_trl.cli") + 1 :] == [command, *model, *own]


def test_profiles_are_this_packages_then_trls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert profile_path("zero3").samefile(CONFIGS / "accelerate" / "zero3.yaml")
    for name in ("multi_gpu", "single_gpu", "fsdp1"):
        assert (profile_path(name).parent.name, profile_path(name).stem) == ("accelerate_configs", name)
    (tmp_path / "zero3").write_text("distributed_type: NO\n", encoding="utf-8")
    assert profile_path("zero3") == Path("zero3")


def test_a_plan_counts_the_files_processes(files: Path) -> None:
    own = write(files, num_processes=4, accelerate_config="zero3", num_generations=8)
    request, problems = read_request([*own, "--gpu_memory", "16"])
    assert problems == []
    assert request is not None
    assert (request.run.engine.kind, request.run.engine.num_processes) == ("zero3", 4)
    request, _ = read_request(
        [*own, "--gpu_memory", "16", "--num_processes", "2", "--accelerate_config", "ddp"]
    )
    assert request is not None
    assert (request.run.engine.kind, request.run.engine.num_processes) == ("ddp", 2)


def test_launcher_options_are_no_unknown_ones(files: Path) -> None:
    assert (
        read_arguments([*write(files, num_processes=2, mixed_precision="no"), "--num_machines", "1"])[3] == []
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must hold `option: value` lines"),
        ("- 1", "must hold `option: value` lines"),
        ("a: [1", "is not valid YAML"),
        ("num_processes: 2", "A `distributed_type` must be specified"),
        ("distributed_type: SUPER", "'SUPER' is not a valid DistributedType"),
        ("foo: 3\ndistributed_type: 'NO'", "had unknown keys (['foo'])"),
        ("distributed_type: MULTI_CPU\nnum_processes: two", "num_processes='two' must be a whole number"),
        ("distributed_type: MULTI_CPU\nnum_processes: 0", "num_processes=0 must be a whole number"),
    ],
)
def test_a_broken_accelerate_config_is_told(text: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(text, encoding="utf-8")
    started, problems = read_launch("train", ["--accelerate_config", str(file)])
    assert started is None
    assert len(problems) == 1
    assert expected in problems[0]
    assert str(file) in problems[0] or "num_processes" in problems[0]


def test_an_accelerate_config_without_a_number_takes_all_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "engine.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: null\n", "utf-8")
    for gpus in (0, 3):
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        started, problems = read_launch("train", ["--accelerate_config", "~/engine.yaml"])
        assert problems == []
        assert started is not None
        assert started.num_processes == max(gpus, 1)
        assert started.words[:2] == ["--num_processes", str(max(gpus, 1))]


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_of_processes_below_one_is_refused(number: int) -> None:
    assert read_launch("train", ["--num_processes", str(number)])[1] == [
        f"num_processes={number} must be a whole number of at least 1."
    ]


def environment_alone() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}


@pytest.mark.slow
def test_trls_documented_file_trains_on_two_processes(files: Path, tmp_path: Path) -> None:
    """The keys of the file in TRL's page of its command line: model, data, reward, `num_processes`."""
    own = write(
        files, num_processes=2, main_process_port=0, output_dir=str(tmp_path / "run"), logging_steps=1
    )
    done = subprocess.run(
        [sys.executable, "-m", "srpo_trl.cli", "train", *own],
        env=environment_alone(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("[srpo-trl] model saved") == 1
    assert (tmp_path / "run" / "model.safetensors").is_file()
    log = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8")
    begun = next(json.loads(line) for line in log.splitlines() if line)["begin"]
    assert (begun["num_processes"], begun["device"]) == (2, "cpu")
    assert "find_unused_parameters" not in done.stderr
