"""`python -m benchmarks.real_model` with tiny models made here: GGUF, what is measured before training, refusals,
runs that go on where they were killed, and the tables."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # benchmarks are no part of the installed package

from benchmarks.real_model import __main__ as command
from benchmarks.real_model import headroom, seed, start, tables, task, warmup, weights
from benchmarks.real_model import study as studies
from benchmarks.real_model.sampling import Prompts
from benchmarks.real_model.study import FolderError, Study
from benchmarks.real_model.task import LEVELS, make_questions

from srpo_trl.data.smoke_model import build_byte_tokenizer, save_tiny_random_qwen3
from srpo_trl.data.tiny_model import build_model
from srpo_trl.methods import TABLE_1
from srpo_trl.runs.read import RunHistory

# --- The model ---


def write_gguf(path: Path, model, tokenizer) -> None:
    """Weights as they are, and the vocabulary as byte-level BPE, with a merge as there must be: of two tildes."""
    gguf = pytest.importorskip("gguf", reason="pip install 'srpo-trl[real]'")
    config = model.config
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*(token for token, _ in vocabulary), "~~"])
    special = tokenizer.all_special_tokens
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([*(control if token in special else normal for token, _ in vocabulary), normal])
    writer.add_token_merges(["~ ~"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if name != "lm_head.weight":  # tied
            writer.add_tensor(f"{names.get_name(stem)}.{kind}", tensor.numpy())
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()


def test_weights_of_a_gguf_file_can_be_trained_and_saved(tmp_path):
    tokenizer = build_byte_tokenizer()
    # transformers' reader leaves Qwen3's size of a head at its default
    original = build_model(tokenizer, head_dim=128, vocab_size=len(tokenizer) + 1)
    write_gguf(tmp_path / "tiny.gguf", original, tokenizer)
    read = weights.load_model(str(tmp_path), "tiny.gguf")
    ids = torch.tensor([[5, 80, 33, 7]])
    torch.testing.assert_close(read(ids).logits, original(ids).logits)
    assert not hasattr(read, "hf_quantizer")
    assert not hasattr(read.config, "quantization_config")
    read_tokenizer = weights.load_tokenizer(str(tmp_path), "tiny.gguf")
    prompt = Prompts.of(read_tokenizer).student(make_questions(LEVELS[0], 1, 0)[0])
    assert prompt == Prompts.of(tokenizer).student(make_questions(LEVELS[0], 1, 0)[0])
    read.save_pretrained(tmp_path / "saved")
    assert torch.equal(weights.load_model(str(tmp_path / "saved"))(ids).logits, read(ids).logits)


# --- Questions and the start ---


def test_questions():
    for level in LEVELS:
        ours, others = (
            task.held_out_questions(level, 40),
            make_questions(level, 40, 7, without=task.held_out_questions(level)),
        )
        assert ours == task.held_out_questions(level)[:40]
        assert len(set(ours)) == 40
        assert not set(others) & set(task.held_out_questions(level))
        for question in ours:
            text = question.text.removeprefix("What is ").removesuffix("?")
            assert eval(text) == int(question.answer)
            assert len(text.split()) == 2 * level.terms - 1
            assert all(len(term) == level.digits for term in text.split()[::2])
    assert task.is_right(" -12\n", "-12")
    assert not task.is_right("The answer is -12", "-12")
    completions = [[{"role": "assistant", "content": text}] for text in ("12", "13")]
    assert task.reward(completions, ["12", "12"]) == [1.0, 0.0]


def test_warm_up_trains_both_prompts_and_the_answers_tokens_alone():
    tokenizer = build_byte_tokenizer()
    prompts = Prompts.of(tokenizer)
    model = build_model(tokenizer, max_position_embeddings=2048)
    pair = make_questions(LEVELS[0], 2, 3)
    losses, count = [], 0
    for shown, question in enumerate(pair):
        prompt = prompts.teacher(question, question.answer) if shown else prompts.student(question)
        target = [*tokenizer(question.answer)["input_ids"], tokenizer.eos_token_id]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1].float()
        losses.append(functional.cross_entropy(logits, torch.tensor(target), reduction="sum"))
        count += len(target)
    found = warmup.answer_loss(model, prompts, pair)
    torch.testing.assert_close(found, sum(losses) / count, rtol=2e-3, atol=0)
    steps = []
    warmup.warm_up(model, prompts, pair * 12, lambda *step: steps.append(step))
    assert steps == [(1, 2), (2, 2)]
    assert warmup.answer_loss(model, prompts, pair) < found


@pytest.fixture
def answers(monkeypatch):
    """Let the test say what is sampled: by the prompt's text and how often it was asked before."""

    def install(say):
        def sample(model, tokenizer, prompts, max_new_tokens):
            texts = tokenizer.batch_decode(prompts)
            return [say(text, texts[:index].count(text)) for index, text in enumerate(texts)]

        monkeypatch.setattr(headroom, "sample", sample)

    return install


def right_answer(text):
    return str(eval(text.partition("What is ")[2].partition("?")[0]))


def measured(count=6):
    facts = headroom.measure(
        None, Prompts.of(build_byte_tokenizer()), task.held_out_questions(LEVELS[0], count)
    )
    return json.loads(json.dumps(facts | {"level": "2x2", "base": [0.0, 0.0], "warmup_examples": 0}))


def test_a_teacher_that_is_better_on_mixed_groups(answers):
    always = {q.text for q in task.held_out_questions(LEVELS[0], 2)}

    def say(text, number):
        if "Correct solution" in text:
            return right_answer(text) if number else "no"  # three of four
        return right_answer(text) if number < 2 or any(question in text for question in always) else "no"

    answers(say)
    facts = measured()
    # Two of six questions are right in all eight rollouts, four in two of eight.
    assert facts["student"][0] == pytest.approx((2 * 1 + 4 * 0.25) / 6)
    assert facts["mixed"][0] == pytest.approx(4 / 6)
    assert facts["mixed"][1] == pytest.approx(math.sqrt(4 / 6 * 2 / 6 / 5))
    assert facts["student_on_mixed"] == [0.25, 0.0]
    assert facts["teacher_on_mixed"] == [0.75, 0.0]
    assert headroom.reason_to_refuse(facts) is None
    assert "0.750 ± 0.000" in "\n".join(headroom.describe(facts))


@pytest.mark.parametrize(
    ("student", "teacher", "reason"),
    [(2, 2, "has nothing to teach"), (2, 3, None), (0, 0, "is mixed"), (8, 4, "is mixed")],
)
def test_what_is_refused(answers, student, teacher, reason):
    """The student is right in so many of eight rollouts, the teacher in as many of four as twice that of eight."""
    answers(
        lambda text, number: (
            right_answer(text) if number < (teacher / 2 if "Correct solution" in text else student) else "no"
        )
    )
    refused = headroom.reason_to_refuse(measured())
    assert refused is None if reason is None else reason in refused


def test_the_command_ends_where_there_is_nothing_to_teach(tmp_path, answers, capsys, monkeypatch):
    model = save_tiny_random_qwen3(tmp_path / "model")
    monkeypatch.setattr(Study, "train", lambda *args: pytest.fail("trains"))
    answers(lambda text, number: "no")
    words = [
        "--model",
        str(model),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--warmup_examples",
        "0",
    ]
    assert command.main([*words, "--start_questions", "4"]) == command.REFUSED
    printed = capsys.readouterr()
    assert "mixed groups 0.000 ± 0.000" in printed.out
    assert "not trained, as no group of 8 rollouts is mixed" in printed.err
    assert command.main([*words, "--start_questions", "5"]) == command.WRONG
    assert "'questions': 4" in capsys.readouterr().err
    facts = json.loads((tmp_path / "out" / "start" / start.FACTS_FILE).read_text())
    assert facts["level"] == "2x2"  # the first, as the model is right nowhere


@pytest.mark.parametrize(
    ("wanted", "right", "chosen"),
    [
        (None, {"2x2": 8, "3x2": 4, "4x2": 0, "4x3": 3}, "3x2"),  # the harder ones after 4x2 are not asked
        (None, {"2x2": 8, "3x2": 7}, "3x2"),
        ("4x2", {"2x2": 3}, "4x2"),
    ],
)
def test_the_level_is_the_one_nearest_to_what_is_wanted(answers, wanted, right, chosen):
    asked = {
        q.text: (level.name, index)
        for level in LEVELS
        for index, q in enumerate(task.held_out_questions(level, 8))
    }

    def say(text, number):
        (place,) = (place for question, place in asked.items() if question in text)
        level, index = place
        return right_answer(text) if index < right.get(level, 0) else "no"

    answers(say)
    options = start.StartOptions("model", None, wanted, 0, 8, "cpu")
    level, found = start._level(options, None, Prompts.of(build_byte_tokenizer()))
    assert level.name == chosen
    assert found.mean == right.get(chosen, 0) / 8


@pytest.mark.parametrize(("right", "count"), [(0, start.WARMUP_EXAMPLES), (8, 0)])
def test_a_model_that_fails_is_warmed_up(tmp_path, answers, monkeypatch, right, count):
    seen = []
    monkeypatch.setattr(start, "warm_up", lambda model, prompts, questions, on_step: seen.extend(questions))
    answers(lambda text, number: right_answer(text) if right else "no")
    model = save_tiny_random_qwen3(tmp_path / "model")
    options = start.StartOptions(str(model), None, "2x2", None, 4, "cpu")
    facts = start.make_start(options, tmp_path / "start", lambda text: None)
    assert facts["warmup_examples"] == len(seen) == count
    assert not set(seen) & set(task.held_out_questions(LEVELS[0]))


# --- Runs ---


@pytest.fixture(scope="module")
def study_of(tmp_path_factory):
    model = save_tiny_random_qwen3(tmp_path_factory.mktemp("model"))

    def make(name: str) -> Study:
        folder = tmp_path_factory.mktemp(name)
        made = Study(
            folder,
            start.StartOptions(str(model), None, "2x2", 0, 2, "cpu"),
            seeds=1,
            max_steps=4,
            piece=1,
            prompts=1,
            eval_questions=2,
        )
        made.claim()
        made.begin(lambda text: None)
        return made

    return make


def plan_of(study: Study, until: int, deadline: float = math.inf) -> seed.Plan:
    return study.plan(0, "2x2", until, deadline)


def test_a_killed_process_loses_one_piece_and_no_number(study_of, monkeypatch):
    """Killed in the last method's second step, when the others have taken theirs: all go on from the first."""
    whole, killed = study_of("whole"), study_of("killed")
    seed.train(plan_of(whole, 2, deadline=0.0))
    assert whole.steps_done() == 0
    seed.train(plan_of(whole, 2))
    passes = []

    def on_step_end(turn, args, state, control, **kwargs):
        passes.append(state.global_step)
        if passes == [1, 1, 1, 2, 2, 2]:
            raise KeyboardInterrupt
        original(turn, args, state, control, **kwargs)

    original = seed.Turn.on_step_end
    monkeypatch.setattr(seed.Turn, "on_step_end", on_step_end)
    with pytest.raises(KeyboardInterrupt):
        seed.train(plan_of(killed, 2))
    assert killed.steps_done() == 1
    seed.train(plan_of(killed, 2))
    assert passes[6:] == [2, 2, 2]
    assert killed.steps_done() == whole.steps_done() == 2
    for method in TABLE_1:
        ours, theirs = (
            load_file(seed.run_folder(study.folder, 0, method) / "checkpoint-2" / "adapter_model.safetensors")
            for study in (killed, whole)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    report = tables.write_report(
        whole, json.loads((whole.folder / "start" / start.FACTS_FILE).read_text()), {}
    )
    assert "| SRPO | " in report
    assert (whole.folder / tables.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_pace():
    pace = seed.Pace(piece=2, until=6, deadline=math.inf)
    assert [pace.goes_on(step) for step in range(1, 7)] == [True] * 5 + [False]
    late = seed.Pace(piece=2, until=6, deadline=0.0)
    assert [late.goes_on(step) for step in (1, 1, 2, 2)] == [True, True, False, False]


def test_other_settings_are_refused_and_more_seeds_are_not(tmp_path):
    options = start.StartOptions("model", None, None, None, 4, "cpu")
    Study(tmp_path, options, seeds=1).claim()
    Study(tmp_path, options, seeds=3, jobs=2).claim()
    with pytest.raises(FolderError, match="piece 10, now 5"):
        Study(tmp_path, options, piece=5).claim()


def test_a_seed_that_fails_is_named_and_the_others_are_ended(tmp_path, monkeypatch):
    codes = {0: "import time; time.sleep(60)", 1: "raise SystemExit(7)"}
    begun = []

    def process(plan):
        begun.append(subprocess.Popen([sys.executable, "-S", "-c", codes[plan.seed]]))
        return begun[-1]

    monkeypatch.setattr(studies, "_process", process)
    study = Study(tmp_path, start.StartOptions("model", None, None, None, 4, "cpu"), seeds=3, jobs=2)
    with pytest.raises(RuntimeError, match="seed 1 ended with status 7"):
        study.train("2x2", 10, math.inf)
    assert len(begun) == 2
    assert begun[0].returncode


@pytest.mark.parametrize(("given", "seen"), [(None, "0"), ("3", "3")])
def test_a_seed_uses_one_card(tmp_path, monkeypatch, given, seen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(studies.subprocess, "Popen", lambda command, env: env)
    study = Study(tmp_path, start.StartOptions("model", None, None, None, 4, "cuda"))
    assert studies._process(study.plan(0, "2x2", 10, math.inf))["CUDA_VISIBLE_DEVICES"] == seen


def test_adapters_of_the_last_layers():
    model = build_model(build_byte_tokenizer())
    assert {name.split(".")[2] for name in seed.adapted(model, 1)} == {"1"}
    assert {name.split(".")[2] for name in seed.adapted(model, 0)} == {"0", "1"}
    assert not any("lm_head" in name for name in seed.adapted(model, 0))


# --- Tables ---


def run(*scores: float, seconds: float = 2.0) -> RunHistory:
    records = [
        {"step": 10 * index, "seconds": seconds * 10 * index, "logs": {seed.SCORE: score}}
        for index, score in enumerate(scores)
    ]
    for step, same, reward in ((1, 0.7, 0.1), (10, 0.8, 0.3), (11, 0.5, 0.5), (20, 0.5, 0.7), (21, 0.0, 1.0)):
        logs = {tables.SAME_REWARDS: same, "reward": reward}
        records.append({"step": step, "seconds": 0.0, "logs": logs})
    return RunHistory("run", Path(), records)


def test_tables():
    runs = {
        "grpo": {0: run(0.1, 0.2, 0.4), 1: run(0.2, 0.3, 0.7, 0.9)},
        "sdpo": {0: run(0.1, 0.5, 0.02), 1: run(0.2, 0.54, 0.0)},
        "srpo": {0: run(0.1, 0.5, 0.6, seconds=3.0), 1: run(0.2, 0.4, 0.7, seconds=4.0)},
    }
    rows = tables.summary(runs, 20, 10, 100).rows
    assert [row["method"] for row in rows] == ["GRPO", "SDPO", "SRPO"]
    assert rows[0]["start"] == "0.150 ± 0.050"
    assert rows[0]["after 10 steps"] == "0.250 ± 0.050"
    assert rows[0]["after 20 steps"] == "0.550 ± 0.150"  # the second seed's later evaluation is left out
    assert rows[1]["mean of the curve"] == "0.300 ± 0.020"
    sampled = tables.rollouts(runs, 20, 10).rows[2]
    assert sampled["mixed groups, first 10 steps"] == "0.250 ± 0.000"
    assert sampled["mixed groups, last 10 steps"] == "0.500 ± 0.000"
    assert sampled["right, first 10 steps"] == "0.200 ± 0.000"
    assert sampled["right, last 10 steps"] == "0.600 ± 0.000"
    assert rows[2]["seconds a step"] == "3.5"
    differences = {row["difference"]: row for row in tables.differences(runs, 20, 10).rows}
    assert differences["SRPO - GRPO"]["after 10 steps"] == "+0.200 ± 0.100"
    assert differences["SRPO - GRPO"]["after 20 steps"] == "+0.100 ± 0.100"
    assert differences["SDPO - GRPO"]["after 20 steps"] == "-0.540 ± 0.160"
