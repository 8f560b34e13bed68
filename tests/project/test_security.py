"""Nothing that a run reads is executed: no pickles, no code of a model's folder, no path made of text."""

import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

import srpo_trl
from harness import LORA, chat_dataset, config, contains_answer, make_trainer
from odd_texts import ODD_TEXTS, PATHS
from resumed_runs import RUN, SPLITS, half
from srpo_trl.cli import main
from srpo_trl.data.smoke_model import save_tiny_random_qwen3
from srpo_trl.host.manifest import MANIFEST_FILE
from srpo_trl.seams.messages import whole_characters
from srpo_trl.teacher.weights import TEACHER_FILE

SOURCE = Path(srpo_trl.__file__).parent


# ------------------------------------------------------------------ the source

UNSAFE_CALLS = {
    *(
        "eval",
        "exec",
        "compile",
        "pickle.load",
        "pickle.loads",
        "marshal.loads",
        "yaml.load",
        "yaml.unsafe_load",
    ),
    *("os.system", "os.popen", "shelve.open", "joblib.load", "numpy.load", "np.load", "importlib.reload"),
}


def calls():
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", ast.unparse(node.func), node


def constant(call, name):
    values = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def test_source_reads_no_pickle_and_runs_no_text():
    seen = {name: place for place, name, _ in calls()}
    assert not {name: place for name, place in seen.items() if name in UNSAFE_CALLS}
    loads = [(place, call) for place, name, call in calls() if name == "torch.load"]
    assert loads
    assert not [place for place, call in loads if constant(call, "weights_only") is not True]
    assert not [place for place, _, call in calls() if constant(call, "shell") is True]


def test_source_never_switches_remote_code_on():
    assert not [place for place, _, call in calls() if constant(call, "trust_remote_code") is True]
    for path in SOURCE.rglob("*.py"):
        assert "trust_remote_code = True" not in path.read_text(encoding="utf-8")
        assert "trust_remote_code: bool = True" not in path.read_text(encoding="utf-8")
    assert config("unused").trust_remote_code is False


# ------------------------------------------------------------------ checkpoints


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_the_malicious_pickle_works(tmp_path):
    torch.save(Malicious(tmp_path / "marker"), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "marker").is_dir()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A checkpoint inside a rollout batch of the whole model, and one of an adapter.

    Without the list of their files, which would give a changed file away before anything is read.
    """
    made = {}
    for name, options in {"full": {}, "lora": {"peft_config": LORA}}.items():
        folder = tmp_path_factory.mktemp(name)
        trainer = make_trainer(
            folder,
            **RUN | SPLITS["inside a rollout batch"] | {"reward_funcs": half, "max_steps": 2} | options,
        )
        trainer.train()
        made[name] = folder / "checkpoint-2"
        (made[name] / MANIFEST_FILE).unlink()
    return made


def resumed(folder, checkpoint, **options):
    options = RUN | SPLITS["inside a rollout batch"] | {"reward_funcs": half, "max_steps": 3} | options
    make_trainer(folder, **options).train(resume_from_checkpoint=str(checkpoint))


READ = [
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "srpo_rollouts_rank0.pt",
    "model.safetensors",
    TEACHER_FILE,
]
REFUSALS = (pickle.UnpicklingError, RuntimeError, ValueError, OSError)


@pytest.mark.parametrize("how", ["torch", "pickle"])
@pytest.mark.parametrize("name", READ)
def test_pickle_in_a_checkpoint_is_refused_and_not_run(tmp_path, checkpoints, name, how):
    checkpoint, marker = tmp_path / "checkpoint-2", tmp_path / "marker"
    shutil.copytree(checkpoints["full"], checkpoint)
    assert (checkpoint / name).is_file()
    poison(checkpoint / name, marker, how)
    with pytest.raises(Exception) as error:  # torch's, safetensors' and pickle's own
        resumed(tmp_path, checkpoint)
    assert not isinstance(error.value, AssertionError)
    assert not marker.exists()


def poison(file, marker, how):
    if how == "torch":
        torch.save({"state": Malicious(marker)}, file)
    else:
        file.write_bytes(pickle.dumps(Malicious(marker)))


@pytest.mark.parametrize("case", ["full", "lora"])
def test_weights_in_torchs_own_format_are_read_as_weights_only(tmp_path, checkpoints, case):
    checkpoint, marker = tmp_path / "checkpoint-2", tmp_path / "marker"
    shutil.copytree(checkpoints[case], checkpoint)
    stem = "adapter_model" if case == "lora" else "model"
    (checkpoint / f"{stem}.safetensors").unlink()
    poison(checkpoint / ("adapter_model.bin" if case == "lora" else "pytorch_model.bin"), marker, "torch")
    with pytest.raises(Exception) as error:
        resumed(tmp_path, checkpoint, **({"peft_config": LORA} if case == "lora" else {}))
    assert not isinstance(error.value, AssertionError)
    assert not marker.exists()


def test_files_of_a_checkpoint_that_nothing_reads_are_not_run(tmp_path, checkpoints):
    """`training_args.bin`, which transformers writes as a pickle, among them."""
    checkpoint, marker = tmp_path / "checkpoint-2", tmp_path / "marker"
    shutil.copytree(checkpoints["full"], checkpoint)
    assert (checkpoint / "training_args.bin").is_file()
    for name in ("training_args.bin", "other.pkl"):
        poison(checkpoint / name, marker, "torch")
    resumed(tmp_path, checkpoint)
    assert not marker.exists()


# ------------------------------------------------------------------ code in a model's folder


CODE = """
import os
os.mkdir({marker!r})
from transformers import Qwen3Config, Qwen3ForCausalLM, PreTrainedTokenizerFast
class TheirConfig(Qwen3Config):
    model_type = {model_type!r}
class TheirModel(Qwen3ForCausalLM):
    config_class = TheirConfig
class TheirTokenizer(PreTrainedTokenizerFast):
    pass
"""


def model_with_code(folder, marker, model_type):
    """A model's folder whose files ask for code beside them."""
    save_tiny_random_qwen3(folder)
    (folder / "theirs.py").write_text(CODE.format(marker=str(marker), model_type=model_type))
    auto_map = {"AutoConfig": "theirs.TheirConfig", "AutoModelForCausalLM": "theirs.TheirModel"}
    add_to(folder / "config.json", auto_map=auto_map, model_type=model_type, architectures=["TheirModel"])
    add_to(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "theirs.TheirTokenizer"]})


def add_to(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def rows(tmp_path):
    """Prompts to train on, as a file."""
    path = tmp_path / "rows.jsonl"
    row = {"prompt": [{"role": "user", "content": "1+1?"}], "answer": "B"}
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(4)))
    return path


COMMANDS = {
    "train": ["train", "--max_steps", "1", "--num_generations", "2", "--output_dir"],
    "eval": ["eval", "--num_generations", "2", "--dataset_test_split", "train", "--output_dir"],
    "plan": ["plan", "--num_generations", "2", "--output_dir"],
}
ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--max_completion_length", "4", "--report_to", "none"]


def run_command(command, folder, model, rows):
    data = ["--dataset_name", str(rows), "--reward_funcs", "srpo_trl.rewards.multiple_choice_reward"]
    batch = ["--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "2"]
    arguments = [*COMMANDS[command], str(folder), *ON_CPU, *batch, "--model_name_or_path", str(model)]
    return main([*arguments, *data])


@pytest.mark.parametrize("model_type", ["theirs", "qwen3"])
@pytest.mark.parametrize("command", COMMANDS)
def test_code_in_a_models_folder_is_not_run(tmp_path, rows, command, model_type):
    """An architecture of the folder's own is refused; for a known one transformers' code is used."""
    marker, model = tmp_path / "marker", tmp_path / "model"
    model_with_code(model, marker, model_type)
    if model_type == "qwen3" or command == "plan":
        assert run_command(command, tmp_path / "run", model, rows) == (0 if model_type == "qwen3" else 2)
    else:
        with pytest.raises(ValueError, match="trust_remote_code"):
            run_command(command, tmp_path / "run", model, rows)
    assert not marker.exists()


def test_code_in_a_models_folder_is_run_where_it_is_asked_for(tmp_path, rows):
    """So the tests above would see it."""
    marker, model = tmp_path / "marker", tmp_path / "model"
    model_with_code(model, marker, "theirs")
    data = ["--dataset_name", str(rows), "--reward_funcs", "srpo_trl.rewards.multiple_choice_reward"]
    options = [*COMMANDS["plan"], str(tmp_path / "run"), *ON_CPU, "--per_device_train_batch_size", "2", *data]
    main([*options, "--model_name_or_path", str(model), "--trust_remote_code", "true"])
    assert marker.is_dir()


# ------------------------------------------------------------------ names of files


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_names_of_files_come_from_numbers_alone(tmp_path, monkeypatch):
    """Prompts, completions, feedback and answers that look like paths: the same files as of harmless ones."""
    written = []
    for number, texts in enumerate([["plain"] * 4, [PATHS[0], f"{tmp_path}/outside", PATHS[2], PATHS[3]]]):
        folder = tmp_path / f"case{number}" / "run"
        monkeypatch.chdir(folder.parent.mkdir() or folder.parent)
        rows = chat_dataset([(f"{i}+{text}", []) for i, text in enumerate(texts)], answer=texts)

        def grade(completions, log_extra, texts=texts, **kwargs):
            log_extra("feedback", [texts[i % 4] for i in range(len(completions))])
            log_extra(texts[1], [texts[i % 4] for i in range(len(completions))])
            return contains_answer(completions)

        trainer = make_trainer(
            folder,
            reward_funcs=grade,
            train_dataset=rows,
            rollout_func=None,
            teacher_context=["feedback", "reference"],
            reference_column="answer",
            log_completions=True,
            log_examples_steps=1,
            save_strategy="steps",
            save_steps=1,
        )
        trainer.train()
        written.append(files_below(folder.parent))
    assert written[0] == written[1]
    assert not (tmp_path / "outside").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"case0", "case1"}


def test_text_that_looks_like_code_stays_text_in_the_report(tmp_path):
    """`test_report.py` reads the whole page as a browser does; here the texts of the fuzz tests go through a run."""
    (tmp_path / "run").mkdir()
    texts = [whole_characters(text) for text in ODD_TEXTS if len(text) < 100]
    example = {
        "step": 1,
        **{"prompt": "".join(texts), "solution": "<script>alert(1)</script>", "feedback": "{{ 7 * 7 }}"},
        "tokens": ["<script>alert(2)</script>", *texts],
        **{name: [1.0] * (len(texts) + 1) for name in ("divergence", "weight")},
    }
    lines = [{"begin": {"step": 0}}, example]
    (tmp_path / "run" / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"begin": {"step": 0}}, {"step": 1, "loss": 1.0}]
    (tmp_path / "run" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert") >= 3
    assert "{{ 7 * 7 }}" in page
