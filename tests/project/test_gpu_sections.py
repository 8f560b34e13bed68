"""Every section of `benchmarks.gpu` on a CPU at its smallest sizes: the rows that it is to give, and what it can see.

The tests' own section is run by test_gpu_command.py, in processes.
"""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # benchmarks are no part of the installed package

from benchmarks.gpu import (
    card,
    engine,
    kernels,
    learns,
    losses,
    problems,
    sections,
    steps,
    suite,
    teacher,
)
from benchmarks.gpu.record import DONE, Record
from benchmarks.gpu.sections import Part, Setting
from benchmarks.peers import TOPK, Contender, Size
from benchmarks.real_model.study import Study
from benchmarks.step_rollouts import Case

import vllm_stand_in
from srpo_trl.data.smoke_model import save_tiny_random_qwen3
from srpo_trl.loss.ops import DistillationSpec

CPU = torch.device("cpu")
TINY = Setting("cpu", True, None, 60.0)
FULL = Setting("cuda", False, Path("model"), 100.0)


def rows_of(module, setting=TINY):
    """All rows by part, which the JSON file and the tables can hold."""
    made = {part.name: list(part.rows()) for part in module.parts(setting)}
    assert all(made.values())
    json.dumps(made)
    return made


@pytest.mark.parametrize("section", sections.SECTIONS, ids=lambda section: section.name)
def test_parts_are_named_once_and_cheap_to_list(section):
    """Also those for a GPU: what they are is known before the device is touched."""
    module = importlib.import_module(section.module)
    for setting in (TINY, FULL):
        parts = module.parts(setting)
        assert parts
        assert len({part.name for part in parts}) == len(parts)


def test_card():
    made = rows_of(card)
    facts = {row["what"]: row["value"] for row in made["machine"]}
    assert facts["torch"] == torch.__version__
    assert [row["rate"].split()[1] for row in made["bandwidth"]] == ["GB/s"] * 2
    assert len(made["square product"]) == len(made["product of a head"]) == 3


# --- Kernels ---


def test_kernels_agree_with_the_reference():
    made = rows_of(kernels)
    rows = [row for rows in made.values() for row in rows]
    assert {row["verdict"] for row in rows} == {"ok", "bit-equal"}
    assert {row["dtype"] for row in rows} == {"bfloat16", "float16", "float32"}
    names = {row["problem"] for row in rows}
    assert {
        f"{support}, alpha {alpha}" for support in list(kernels.SUPPORTS)[:2] for alpha in (0, 0.5, 1)
    } <= names
    assert {f"log-sum-exp carried, {support}" for support in kernels.SUPPORTS} <= names
    assert {"mix, top K + tail", "clip, full vocabulary", "mix and clip, top K + tail"} <= names
    assert {"N = 0", "N = 1", "tied, top K + tail", "frozen head, as under LoRA, top K + tail"} <= names


def test_all_of_a_gpus_kernel_problems_are_there():
    groups = kernels.grouped(tiny=False)
    dtypes, others = (
        {"bfloat16", "float16", "float32"},
        {"heads", "mix and clip", "numbers of tokens", "N = 8,192"},
    )
    assert set(groups) == dtypes | others
    assert [len(groups[name]) for name in ("bfloat16", "float16", "float32")] == [10] * 3
    assert groups["N = 8,192"][0].sizes == (8192, 1024, 151_936)


@pytest.mark.parametrize("off", ["value", "gradient"])
def test_a_wrong_kernel_is_seen(monkeypatch, off):
    right = problems.outcome

    def wrong(*arguments):
        found = right(*arguments)
        if off == "value":
            return found._replace(result=found.result._replace(divergence_N=found.result.divergence_N * 1.01))
        return found._replace(gradients=tuple(1.01 * gradient for gradient in found.gradients))

    monkeypatch.setattr(kernels, "outcome", wrong)
    (problem, *_) = kernels.grouped(tiny=True)["bfloat16"]
    (row,) = kernels.compared([problem], "chunked", CPU)
    assert row["verdict"] == "OFF"


def test_a_kernel_that_hides_an_overflow_is_seen(monkeypatch):
    right = problems.outcome

    def clamped(*arguments):
        found = right(*arguments)
        return found._replace(gradients=tuple(g.clamp(-60_000, 60_000) for g in found.gradients))

    monkeypatch.setattr(kernels, "outcome", clamped)
    large, overflow = kernels.beyond_float16("chunked", CPU, True)
    assert (large["verdict"], overflow["verdict"]) == ("ok", "OFF")


def test_the_reference_is_the_same_in_pieces(monkeypatch):
    problem = problems.Problem("", DistillationSpec(topk=5), torch.float32, (9, 8, 50), bias=True)
    inputs = problems.make_inputs(problem, CPU)
    whole = problems.exact(inputs, problem.spec)
    monkeypatch.setattr(problems, "_REFERENCE_ELEMENTS", 100)
    pieces = problems.exact(inputs, problem.spec)
    for ours, theirs in zip(
        (*pieces.result, *pieces.gradients), (*whole.result, *whole.gradients), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_calls_that_differ_are_seen():
    problem = problems.Problem("", DistillationSpec(topk=5), torch.float32, (9, 8, 50))
    makes = iter([problems.make_inputs(problem, CPU)] * 2)
    assert problems.repeated(lambda: problems.outcome(next(makes), problem.spec, "chunked"))
    scales = iter((1.0, 1.0 + 2**-20))

    def drifting():
        inputs = problems.make_inputs(problem, CPU)
        scaled = inputs._replace(coefficient_N=inputs.coefficient_N * next(scales))
        return problems.outcome(scaled, problem.spec, "chunked")

    assert not problems.repeated(drifting)


# --- Loss, steps, teacher ---


def test_losses():
    made = rows_of(losses)
    floors = [row for row in made["D = 32"] if row["loss"].startswith("floor")]
    assert (floors[0]["x three"], floors[1]["x four"]) == (1.0, 1.0)
    assert {"TRL chunked_divergence", "TRL SDPO", "srpo_trl chunked"} <= {
        row["loss"] for row in made["D = 32"]
    }
    assert [made[f"chunks of {n}, chunked"][0]["bound, tokens"] for n in (16, 64)] == [16, 64]


def test_the_published_head_is_that_size():
    names = [part.name for part in losses.parts(FULL)]
    assert names[:2] == ["head alone", "D = 4096"]  # in order of worth
    assert {"D = 2560", "D = 1024", "chunks of 512, chunked", "chunks of 8192, chunked"} <= set(names)


def test_a_peer_that_fails_is_left_out_and_said():
    def fails(case):
        raise TypeError("another signature")

    good = losses.all_contenders(CPU)[0]
    found, refusals = losses.tried(
        [Contender("peer", TOPK, fails), good], Size(8, 8, 100, torch.float32), CPU
    )
    assert found == [good]
    assert refusals == [{"loss": "peer", "support": TOPK, "seconds": "fails: TypeError: another signature"}]


def test_steps():
    made = rows_of(steps)
    assert list(made) == [f"tiny, {name}" for name in steps.CONTENDERS]
    for (row,) in made.values():
        assert row["seconds"] > row["forward, backward"] > 0
    # Off Triton, TRL's own head scores every position and SRPO's the policy's tokens alone: neither is always larger.
    assert all(made[f"tiny, {name}"][0]["GB planned"] > 0 for name in ("srpo", "grpo"))
    assert made["tiny, TRL SDPO"][0]["GB planned"] == ""


def test_steps_take_the_micro_batch_that_fits(monkeypatch):
    tried = []

    def fits_four(contender, case, device, num_steps):
        tried.append(case.micro_batch)
        if case.micro_batch > 4:
            raise torch.OutOfMemoryError
        return train(contender, case, device, num_steps)

    train = steps.train
    monkeypatch.setattr(steps, "train", fits_four)
    (row,) = steps.measured("tiny", "grpo", CPU, True)
    assert (tried, row["rows at once"]) == ([8, 4], 4)
    monkeypatch.setattr(steps, "MICRO_BATCHES", (8,))
    (row,) = steps.measured("tiny", "grpo", CPU, True)
    assert row["seconds"] == "does not fit"


def test_a_gpus_forecast_is_made_without_one():
    from benchmarks.gpu.planned import forecast

    case = Case("tiny", 24, 40, 16, 8, num_generations=8, prompt_tokens=96)
    assert 0 < forecast("srpo", case, torch.device("cuda")) < forecast("srpo", case, CPU)


def test_teacher():
    made = rows_of(teacher)
    (average,) = made["average"]
    assert average["verdict"] == "ok"
    assert average["in bfloat16"] == 0
    assert average["of the way"] == pytest.approx(1 - (1 - teacher.RATE) ** teacher.UPDATES, rel=0.01)
    assert {row["student's weights afterwards"] for row in made["swap"]} == {"the same"}
    assert all(row["ratio"] > 0 for row in made["pass, (24, 16)"])


def test_an_average_in_bfloat16_is_seen(monkeypatch):
    monkeypatch.setattr(teacher.TeacherWeights, "_store_dtype", lambda self, parameter: parameter.dtype)
    (row,) = teacher.average("tiny", CPU)
    assert (row["dtype of the average"], row["verdict"]) == ("bfloat16", "OFF")


# --- Tests, vLLM, learning ---


def test_the_tests_of_a_gpu_are_found():
    files = [part.name for part in suite.parts(FULL)]
    on_device = ["test_resume_on_device", "test_scaled_loss", "test_updates_on_device"]
    assert files == [*on_device, "test_ops_triton", "test_compiled_on_device"]


class RandomEngine(vllm_stand_in.ScoringEngine):
    """Samples random letters, and scores them with the weights that it was sent."""

    def __init__(self, model):
        super().__init__(model=model)
        self._completions = {(): range(8)}
        self._letters = torch.Generator().manual_seed(0)

    def sample(self, prompt_ids, number, temperature):
        ids = [*torch.randint(60, 90, (9,), generator=self._letters).tolist()]
        logits_TV = (
            vllm_stand_in.probe(self.model, [*prompt_ids, *ids])[len(prompt_ids) - 1 : -1] / temperature
        )
        logps_T = logits_TV.log_softmax(-1).gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)
        return ids, logps_T.tolist()


@pytest.fixture
def stand_in(monkeypatch):
    model = engine.random_qwen3("tiny", CPU, 2048)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)  # until it is sent the student's
    found = RandomEngine(model)
    vllm_stand_in.install(monkeypatch, found)
    return found


def test_two_steps_with_the_stand_in_for_vllm(stand_in, monkeypatch):
    for name in (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    ):  # TRL writes them for vLLM
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    made = rows_of(engine)
    assert [row["verdict"] for row in made["two steps"]] == ["ok", "ok"]
    assert [row["step"] for row in made["two steps"]] == [1, 2]
    assert stand_in.events == ["weights", "generate"] * 2


def test_an_engine_that_missed_the_update_is_seen():
    log = [
        {"step": 1, "loss": 0.1}
        | {f"sampling/importance_sampling_ratio/{b}": 1.3 for b in ("min", "mean", "max")}
    ]
    (row,) = engine.ratio_rows(log)
    assert row["verdict"] == "OFF"


def test_learning(tmp_path, monkeypatch):
    """In a process of its own; what a call has done, the next one finds."""
    model = save_tiny_random_qwen3(tmp_path / "model")
    setting = TINY._replace(model=model, folder=tmp_path, seconds=600.0)
    made = rows_of(learns, setting)
    assert list(made) == ["start", "2 steps"]
    assert [row["method"] for row in made["2 steps"]] == ["GRPO", "SDPO", "SRPO"]
    weights = (tmp_path / learns.FOLDER / "start" / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(Study, "train", lambda *args: None)
    assert rows_of(learns, setting) == made
    assert (tmp_path / learns.FOLDER / "start" / "model.safetensors").stat().st_mtime_ns == weights


# --- What is written ---


def test_a_record_keeps_rows_with_other_columns(tmp_path):
    record = Record(tmp_path, "a_section")
    record.announce([Part("one", "Table", list), Part("two", "Table", list)], {"hardware": "none"}, "1")
    record.note_part("one", DONE, rows=[{"x": 1}])
    record.note_part("two", DONE, rows=[{"y": 2.5}])
    text = (tmp_path / "a_section.md").read_text()
    assert "| x | y |\n|---|---|\n| 1 |  |\n|  | 2.5 |" in text
    assert Record(tmp_path, "a_section").content == record.content
