"""The notebooks: every cell runs, what is stored is what comes out, and what they promise of a T4."""

import importlib.metadata
import importlib.util
import re
import tomllib
from collections.abc import Callable
from types import SimpleNamespace

import nbformat
import pytest
import torch
import yaml
from IPython.core.inputtransformer2 import TransformerManager

from notebooks import BY_HAND, FOLDER, NAMES, OWN_TASK, SIDE_BY_SIDE, STORED, execute, printed, read, sources
from planned import fitting_plan

ROOT = FOLDER.parent
TRAINED = (SIDE_BY_SIDE, OWN_TASK)
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?|-?\d+e-\d+")
# Random bytes are never right. Every seventh answer is called right, so that some are distilled and scores change.
EVERY_SEVENTH = """
from itertools import count

turn = count()

def {reward}(completions, log_extra=None, **kwargs):
    if log_extra is not None:
        log_extra("feedback", ["It is not the seventh." for _ in completions])
    return [float(next(turn) % 7 == 0) for _ in completions]
"""
ALIVE = "print(sum(isinstance(thing, SRPOTrainer) for thing in gc.get_objects()))"


def table(text: str) -> list[list[str]]:
    rows = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in rows]


def address() -> str:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    if "Repository" not in urls:
        pytest.skip("pyproject.toml names no repository")
    return str(urls["Repository"])


# ------------------------------------------------------------------ every cell runs


def test_by_hand_prints_what_is_stored(tmp_path) -> None:
    stored, fresh = printed(read(BY_HAND)), printed(execute(read(BY_HAND), tmp_path))
    assert stored.keys() == fresh.keys()
    for cell, text in stored.items():
        assert NUMBER.sub("#", text) == NUMBER.sub("#", fresh[cell]), cell
        numbers = [list(map(float, NUMBER.findall(it))) for it in (text, fresh[cell])]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=2e-3), cell


@pytest.mark.parametrize(("name", "reward"), [(SIDE_BY_SIDE, "math_reward"), (OWN_TASK, "json_reward")])
def test_both_methods_are_trained_and_compared(name: str, reward: str, tmp_path) -> None:
    notebook = read(name)
    places = {cell.id: index for index, cell in enumerate(notebook.cells)}
    for place, text in (
        (places["srpo"], ALIVE),
        (places["trainer"] + 1, EVERY_SEVENTH.format(reward=reward)),
    ):
        notebook.cells.insert(place, nbformat.v4.new_code_cell(text, id=f"added-{place}"))
    said = printed(execute(notebook, tmp_path))
    assert said[f"added-{places['srpo']}"].strip() == "0", "the first trainer still holds its memory"
    assert "right before training: " in said["start"]
    changes = re.findall(
        r"[+-][\d.]+% ± ([\d.]+)%, [\d.]+ standard errors, (?:larger|not larger) than two", said["result"]
    )
    assert len(changes) == 3
    assert any(float(error) > 0 for error in changes)
    if name == SIDE_BY_SIDE:
        curves = next(cell for cell in notebook.cells if cell.id == "curves")
        assert any("image/png" in output.get("data", {}) for output in curves.outputs)
    for method in ("grpo", "srpo"):
        assert list(tmp_path.glob(f"outputs/*/{method}/log.jsonl"))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_names_no_machine_and_no_warning(name: str) -> None:
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert bool(outputs) == (name in STORED)
    assert {cell.execution_count is not None for cell in cells} == {name in STORED}
    assert not any("execution" in cell.metadata for cell in cells)
    for output in outputs:
        assert (output.output_type, output.name) == ("stream", "stdout")
        assert not re.search(r"/(home|root|tmp|usr|work)\b|site-packages|[Ww]arning|it/s", output.text), (
            output
        )


# ------------------------------------------------------------------ install and check


@pytest.mark.parametrize("name", NAMES)
def test_install_line_and_badge_lead_to_the_repository(name: str) -> None:
    owner_and_name = address().removeprefix("https://github.com/")
    assert f'%pip install -q "srpo-trl @ git+{address()}"\n' in sources(name)["install"]
    link = f"https://colab.research.google.com/github/{owner_and_name}/blob/main/notebooks/{name}.ipynb"
    assert f"]({link})" in sources(name)["title"]
    assert f"]({link})" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("cell", ["install", "check", "examine"])
def test_common_cells_are_the_same(cell: str) -> None:
    assert len({sources(name).get(cell, sources(OWN_TASK)[cell]) for name in NAMES}) == 1


@pytest.mark.parametrize(
    ("is_there", "torch_before", "expected"),
    [
        (True, "2.9.0", []),
        (False, "2.12.0", ["install", "torchao"]),
        (False, None, ["install", "torchao"]),
        (False, "2.9.0", ["install", "torchao", "torchvision torchaudio"]),
    ],
)
def test_install_cell_replaces_no_good_torch(is_there, torch_before, expected, monkeypatch, capsys) -> None:
    called: list[str] = []
    versions = iter([*[torch_before] * (torch_before is not None), "2.9.0" if is_there else "2.12.0"])
    found = {"srpo_trl": is_there, "torch": torch_before is not None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found[name] or None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: next(versions))
    shell = SimpleNamespace(run_line_magic=lambda name, line: called.append(f"{name} {line}"))
    cell = TransformerManager().transform_cell(sources(BY_HAND)["install"])
    exec(cell, {"get_ipython": lambda: shell})
    assert len(called) == len(expected)
    for line, words in zip(called, expected, strict=True):
        assert line.startswith("pip ")
        assert words in line
    assert ("2.9.0 is too old" in capsys.readouterr().out) == (len(expected) == 3)


GPUS: dict[str, tuple[tuple[int, int] | None, str]] = {
    "Tesla T4": ((7, 5), "fp16"),
    "NVIDIA A100": ((8, 0), "bf16"),
    "none": (None, "fp32"),
}


@pytest.mark.parametrize("card", GPUS)
def test_check_cell_chooses_what_the_card_computes_in(card, monkeypatch, capsys) -> None:
    capability, precision = GPUS[card]
    properties = SimpleNamespace(name=card, total_memory=int(14.7 * 2**30))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.delenv("SRPO_STAND_IN", raising=False)
    names = run("check")
    assert names["PRECISION"] == {
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": precision == "fp32",
    }
    assert names["STAND_IN"] == (capability is None)
    said = capsys.readouterr().out
    assert precision in said
    assert f"torch {importlib.metadata.version('torch')}" in said
    assert ("14.7 GiB" in said) == (capability is not None)
    assert ("nothing is learned" in said) == names["STAND_IN"]


def run(cell: str, name: str = SIDE_BY_SIDE, **names: object) -> dict:
    exec(sources(name)[cell], names)
    return names


# ------------------------------------------------------------------ what is promised and said


CHANCE_SAID = "not larger than two: it may be chance."


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ([False] * 10, [True] * 5 + [False] * 5, "+50.0% ± 16.7%, 3.0 standard errors, larger than two."),
        ([True] * 5 + [False] * 5, [False] * 10, "-50.0% ± 16.7%, 3.0 standard errors, larger than two."),
        (
            [False] * 10,
            [True] + [False] * 9,
            "+10.0% ± 10.0%, 1.0 standard errors, not larger than two: it may be chance.",
        ),
        (
            [True, False],
            [True, False],
            "+0.0% ± 0.0%, 0.0 standard errors, not larger than two: it may be chance.",
        ),
        (
            [None] + [False] * 10,
            [True] * 6 + [False] * 5,
            "+50.0% ± 16.7%, 3.0 standard errors, larger than two.",
        ),
    ],
)
def test_a_change_is_said_to_be_chance_or_not(before, after, said, capsys) -> None:
    say_change: Callable[..., None] = run("examine")["say_change"]
    say_change("SRPO", before, after)
    assert capsys.readouterr().out == f"SRPO: {said}\n"


def settings(name: str) -> dict:
    """A notebook's settings on a T4."""
    return run("settings", name, PRECISION={"bf16": False, "fp16": True, "use_cpu": False}, STAND_IN=False)


@pytest.mark.parametrize("name", TRAINED)
def test_promises_are_those_of_the_table(name: str) -> None:
    title = sources(name)["title"]
    row = next(
        row
        for row in table((FOLDER / "README.md").read_text(encoding="utf-8"))
        if f"({name}.ipynb)" in row[0]
    )
    memory, minutes = (
        re.search(r"([\d.]+) GiB at the peak", title)[1],
        re.search(r"about (\d+) minutes", title)[1],
    )
    assert row[3:5] == [f"{memory} GiB", minutes]
    assert row[0].startswith(f"[{title.splitlines()[0].removeprefix('# ')}]")
    assert settings(name)["SETTINGS"]["max_steps"] == 40
    assert int(minutes) < 25


PROMPTS = {SIDE_BY_SIDE: 256, OWN_TASK: 64}  # tokens of the longest one


@pytest.mark.parametrize("name", TRAINED)
def test_an_evaluation_samples_no_more_at_a_time_than_training(name: str) -> None:
    """`srpo-trl plan` counts training alone."""
    options = settings(name)["SETTINGS"]
    sampled = options["per_device_train_batch_size"] * options["steps_per_generation"]
    longest = PROMPTS[name] + options["max_completion_length"]
    assert options["eval_tokens_per_batch"] == sampled * longest


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_memory_is_what_plan_says(name: str, tmp_path) -> None:
    cell = settings(name)
    options, lora = cell["SETTINGS"], cell["LORA"]
    adapter = {"use_peft": True, "lora_alpha": lora["lora_alpha"]}
    adapter |= {f"lora_{key}": lora[key] for key in ("r", "target_modules")}
    file = tmp_path / "notebook.yaml"
    file.write_text(
        yaml.safe_dump({**options, **options.pop("model_init_kwargs"), **adapter}), encoding="utf-8"
    )
    arguments = ["--config", str(file)]
    _, plan = fitting_plan([*arguments, "--prompt_length", str(PROMPTS[name])], "14.7", name)
    assert f" {plan.peak / 2**30:.1f} GiB at the peak" in sources(name)["title"]
