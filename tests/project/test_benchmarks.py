"""Every benchmark runs at its smallest sizes and gives the rows it is to give; no timing is asserted."""

import importlib
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import pytest
import torch

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # benchmarks are no part of the installed package

from benchmarks import accuracy, earlier, loss, step, step_measure, step_trainers, teacher_pass
from benchmarks import loss_table as bench
from benchmarks.peers import ANEW, FULL, TOPK, BenchmarkCase, Contender, Losses, Size
from benchmarks.step_rollouts import Case, Replay
from benchmarks.step_trainers import make_model, make_trainer
from benchmarks.tables import commit

from srpo_trl.data.smoke_model import build_byte_tokenizer
from srpo_trl.loss.ops import Backend, distillation_loss

CPU = torch.device("cpu")
SMALL = Size(16, 8, 300, torch.float32)
EXTRA = 200 * 2**20
OURS = [f"srpo_trl {b}" for b in get_args(Backend) if b not in ("auto", "reference", "triton")]
PEERS = {
    ("dense, float32 logits (srpo_trl reference)", TOPK),
    ("TRL chunked_divergence", FULL),
    ("Liger chunked JSD (torch)", FULL),
}
SDPO = {("TRL SDPO", TOPK), ("TRL SDPO", FULL)}
CONTENDERS = {(name, support) for name in OURS for support in (TOPK, FULL)} | PEERS
CONTENDERS |= {(name + ANEW, TOPK) for name in OURS}


def run(main, tmp_path, capsys, *arguments):
    """The tables of one benchmark at its smallest size, after a look at what it prints."""
    path = tmp_path / "figures.json"
    assert main([*arguments, "--device", "cpu", "--quick", "--json", str(path)]) == 0
    content = json.loads(path.read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    for value in content["environment"].values():
        assert value in printed
    for table in content["tables"]:
        assert f"### {table['title']}" in printed
        assert "| " + " | ".join(table["rows"][0]) + " |" in printed
    return content["environment"], content["tables"]


def test_command_prints_the_loss_table(tmp_path, capsys):
    environment, (table,) = run(bench.main, tmp_path, capsys, "--tokens", "16")
    assert set(environment) == {"date", "hardware", "versions"}
    assert f"torch {torch.__version__}" in environment["versions"]
    assert table["title"] == "Loss and gradients, N=16 D=32 V=1,000 float32"
    *floors, rows = table["rows"][0], table["rows"][1], table["rows"][2:]
    three, four = floors
    assert (three["support"], three["x three"], four["support"], four["x four"]) == (TOPK, 1.0, FULL, 1.0)
    assert [floor["loss"] for floor in floors] == [f"floor: {n} matrix products" for n in ("three", "four")]
    assert all(row["x three"] == pytest.approx(row["seconds"] / three["seconds"]) for row in rows)
    assert all(row["x four"] == pytest.approx(row["seconds"] / four["seconds"]) for row in rows)
    assert {(row["loss"], row["support"]) for row in rows} == CONTENDERS
    assert all(row["seconds"] > 0 for row in rows)


def test_loss(tmp_path, capsys):
    environment, (times, memory) = run(loss.main, tmp_path, capsys)
    assert environment["commit"] == commit()
    assert {(row["loss"], row["support"]) for row in times["rows"][2:]} == CONTENDERS | SDPO
    assert [list(row) for row in memory["rows"]] == [["N", *OURS]]


def test_an_earlier_commit_is_measured_beside_this_tree(tmp_path, capsys):
    _, (times, memory) = run(loss.main, tmp_path, capsys, "--before", "HEAD")
    added = {("srpo_trl chunked at HEAD", support) for support in (TOPK, FULL)}
    assert {(row["loss"], row["support"]) for row in times["rows"][2:]} == CONTENDERS | SDPO | added
    assert "srpo_trl chunked at HEAD" in memory["rows"][0]


def package_file():
    return importlib.import_module("srpo_trl").__file__


def test_an_earlier_package_leaves_this_one_in_place():
    ops = earlier.operators("HEAD")
    assert ops.distillation_loss is not distillation_loss
    assert ops.__file__ != sys.modules["srpo_trl.loss.ops"].__file__
    assert sys.modules["srpo_trl.loss.ops"].distillation_loss is distillation_loss
    with earlier.found_first("HEAD"), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        assert Path(process.submit(package_file).result()).parents[1] == Path(ops.__file__).parents[3]
    assert not any(str(Path(ops.__file__).parents[3]) == path for path in sys.path)


def test_accuracy_meets_its_bar(tmp_path, capsys):
    _, tables = run(accuracy.main, tmp_path, capsys)
    assert [table["title"].partition(", ")[2].partition(":")[0] for table in tables] == [
        "near the self-teacher",
        "far from it",
    ]
    for table in tables:
        rows = {(row["loss"], row["support"]): row for row in table["rows"]}
        assert set(rows) == CONTENDERS | SDPO
        for name, support in rows:
            if name.startswith("srpo_trl"):
                row = rows[name, support]
                assert max(float(row["sum"]), float(row["worst token"])) < 0.02
                assert float(row["smallest divergence"]) >= 0
                assert max(float(row["hidden gradient"]), float(row["head gradient"])) < 0.005


def test_teacher_pass(tmp_path, capsys):
    _, (table,) = run(teacher_pass.main, tmp_path, capsys)
    assert [row["tokens per pass"] for row in table["rows"]] == ["16,384 (default)", "280 (all rows at once)"]
    assert all(row["ratio"] == pytest.approx(row["without"] / row["shared"]) for row in table["rows"])


def test_step(tmp_path, capsys):
    _, (table,) = run(step.main, tmp_path, capsys)
    rows = {row["trainer"]: row for row in table["rows"]}
    assert list(rows) == list(step.CONTENDERS)
    for name, peer in step.PEERS.items():
        assert rows[name]["x"] == pytest.approx(rows[name]["seconds"] / rows[peer]["seconds"])
        assert rows[name]["x GB"] == pytest.approx(rows[name]["GB"] / rows[peer]["GB"])
    for name, row in rows.items():
        parts = [value for column, value in row.items() if column.endswith(" s")]
        assert sum(parts) == pytest.approx(row["seconds"])  # of one step
        assert (row["teacher s"] > 0) == (name in ("srpo", "sdpo", "TRL SDPO"))
        assert row["forward, backward s"] > 0


CASE = Case("tiny", 12, 50, 8, 4, num_generations=8, prompt_tokens=100)


def test_share_of_failed_rollouts_is_exact():
    tokenizer = build_byte_tokenizer()
    completions = Replay(CASE._replace(routed_percent=60, num_generations=10), tokenizer).completions(20)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in completions]
    assert [text[0] for text in texts] == (["r"] * 4 + ["w"] * 6) * 2
    assert {len(ids) for ids in completions} == {12}
    assert len(set(texts)) == 20


def trained_on(name, folder):
    """The completions and the teacher's prompts of one step in which every rollout is distilled."""
    seen = {}
    trainer = make_trainer(name, CASE, make_model(CASE, CPU), CPU, str(folder), 1)
    if name == "sdpo":
        score = trainer._score

        def scored(output, rollouts):
            seen["completions"] = output["completion_ids"].tolist()
            seen["prompts"] = [list(prompt.ids) for prompt in rollouts.teacher_prompts]
            return score(output, rollouts)

        trainer._score = scored
    else:
        build = trainer.teacher_context_builder.build

        def built(output, *args, **kwargs):
            made = build(output, *args, **kwargs)
            num_prompt = made["teacher_input_ids"].shape[1] - output["completion_ids"].shape[1]
            seen["completions"] = output["completion_ids"].tolist()
            seen["prompts"] = [
                ids[:num_prompt][mask[:num_prompt].bool()].tolist()
                for ids, mask in zip(made["teacher_input_ids"], made["teacher_attention_mask"], strict=True)
            ]
            assert made["self_distillation_mask"].all()
            return made

        trainer.teacher_context_builder.build = built
    trainer.train()
    return seen


def test_trls_sdpo_and_ours_have_the_same_rollouts_and_teacher_prompts(tmp_path):
    ours, trls = [trained_on(name, tmp_path / name) for name in ("sdpo", "TRL SDPO")]
    assert ours["completions"] == trls["completions"]
    assert [len(prompt) for prompt in ours["prompts"]] == [len(prompt) for prompt in trls["prompts"]]
    assert len(ours["prompts"]) == 8


def test_trainers_take_turns_in_both_orders(monkeypatch):
    order = []

    def train(name, case, device, num_steps):
        order.append(name)
        if name == "c":
            raise torch.OutOfMemoryError
        return step_measure.Run([dict.fromkeys(step_trainers.PARTS, 1.0)], len(order))

    monkeypatch.setattr(step_measure, "train", train)
    runs = step_measure.alternate(["a", "b", "c"], CASE, CPU, num_steps=1, rounds=2, apart=False)
    assert order == ["a", "b", "c", "b", "a"]
    assert runs["c"] is None
    assert [run.seconds for run in runs["a"]] == [5.0, 5.0]
    row = step._row("c", runs)
    assert set(row.values()) == {"c", "does not fit"}
    assert list(row) == list(step._row("a", runs))


def holding(case: BenchmarkCase, num_bytes: int) -> Losses:
    """A loss that needs so many bytes on the way."""
    torch.full((num_bytes,), 1, dtype=torch.uint8)
    return Losses(case.student_hidden_ND.sum() + case.student_weight_VD.sum(), None)


def test_peak_memory_is_what_the_loss_needs():
    contender = Contender("holding", FULL, partial(holding, num_bytes=EXTRA))
    assert bench.extra_bytes(contender, SMALL, CPU) == pytest.approx(EXTRA, rel=0.1)


def test_calls_alternate_and_one_that_does_not_fit_is_left_out():
    order = []

    def too_large():
        order.append("c")
        raise torch.OutOfMemoryError

    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b"), "c": too_large}
    timings = bench.time_alternately(calls, CPU, repeats=2, warmup=1)
    assert "".join(order) == "abcabab"
    assert timings["c"] is None
    assert timings["a"] is not None
    assert timings["a"].low <= timings["a"].median <= timings["a"].high


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr("benchmarks.peers._peer", lambda module, name: None)
    names = {contender.name for contender in bench.contenders(CPU)}
    assert names == {*OURS, *(name + ANEW for name in OURS), "dense, float32 logits (srpo_trl reference)"}


def test_what_does_not_fit_is_said():
    row = bench._timing_row("dense", TOPK, None, bench.Timing(1.0, 1.0, 1.0))
    assert row["seconds"] == bench.gigabytes(None) == "does not fit"
