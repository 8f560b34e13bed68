"""What a run leaves for its report: costs, the JSON-lines logs, examples token by token, columns of the table."""

import json
import math
import shutil
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness import NUM_GENERATIONS, ROLLOUTS, chat_dataset, contains_answer, logged, make_trainer
from harness import tiny_tokenizer as new_tokenizer
from srpo_trl.config import SRPOConfig
from srpo_trl.host import callbacks
from srpo_trl.host.callbacks import PEAK_MEMORY, changed_options
from srpo_trl.logs import examples_log
from srpo_trl.logs.completions_table import RolloutMeans
from srpo_trl.logs.examples_log import token_texts
from srpo_trl.runs.guards import GuardThresholds
from srpo_trl.runs.log import EXAMPLES_FILE, GUARDS_FILE, LOG_FILE, TRAINING_SECONDS, RunLog, read_run_log
from srpo_trl.teacher.templates import TeacherInformation

DISTILLED = 6  # of the 16 rollouts
SPLIT = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}


@pytest.fixture
def clock(monkeypatch):
    """The clock of `callbacks`, which a test can put forward."""
    ahead = SimpleNamespace(seconds=0.0)
    real = time.perf_counter
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: real() + ahead.seconds))
    return ahead


def read(folder, name=LOG_FILE):
    return read_run_log(folder / name)


# ---------------------------------------------------------------- JSON-lines logs


def test_a_part_that_goes_on_takes_back_what_was_logged_beyond_its_start(tmp_path):
    log = RunLog(tmp_path / "new" / "log.jsonl")
    log.begin(0, options={"seed": 1})
    for step in (0, 10, 20, 30):
        log.append({"step": step, "part": 1})
    log.begin(20)
    log.append({"step": 30, "part": 2})
    contents = read_run_log(tmp_path / "new" / "log.jsonl")
    assert [(r["step"], r["part"]) for r in contents.records] == [(0, 1), (10, 1), (20, 1), (30, 2)]
    assert contents.begins == [{"step": 0, "options": {"seed": 1}}, {"step": 20}]
    log.begin(0)
    log.append({"step": 10, "part": 3})
    assert [r["part"] for r in read_run_log(tmp_path / "new" / "log.jsonl").records] == [3]


def test_a_line_cut_off_by_a_kill_costs_itself_alone(tmp_path):
    path = tmp_path / "log.jsonl"
    log = RunLog(path)
    log.begin(0)
    log.append({"step": 1})
    log.append({"step": 2, "text": "é" * 50})
    path.write_bytes(path.read_bytes()[:-30])
    assert read_run_log(path).num_unreadable == 1
    log.begin(1)
    log.append({"step": 2, "text": "again"})
    path.write_bytes(path.read_bytes()[:-1])  # the line is whole, its end is not
    log.append({"step": 3})
    contents = read_run_log(path)
    assert contents.records == [{"step": 1}, {"step": 2, "text": "again"}, {"step": 3}]
    assert len(contents.begins) == 2
    assert len(json_lines(path)) == 5


def json_lines(path):
    """What anyone reads of a file of JSON lines."""
    with open(path) as file:
        return [json.loads(line) for line in file]


def test_every_line_of_a_resumed_runs_files_is_json(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "log_examples_steps": 1, "max_steps": 1}
    make_trainer(tmp_path, **options).train()
    for name in (LOG_FILE, EXAMPLES_FILE):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-10])  # as a kill can leave it
    second = make_trainer(tmp_path, **(options | {"max_steps": 2}))
    (tmp_path / GUARDS_FILE).write_bytes(b'{"step": 1, "gua')
    (watch,) = (c for c in second.callback_handler.callbacks if isinstance(c, callbacks.GuardCallback))
    watch._thresholds = GuardThresholds(window=1, distilled_low=1.0)
    second.train(resume_from_checkpoint=True)
    assert [record["step"] for record in read(tmp_path, GUARDS_FILE).records] == [2]
    assert len(json_lines(tmp_path / GUARDS_FILE)) == 2
    for name in (LOG_FILE, EXAMPLES_FILE):
        lines = json_lines(tmp_path / name)
        assert [line["begin"]["step"] for line in lines if "begin" in line] == [0, 1]
        assert read(tmp_path, name).num_unreadable == 0


def test_lines_that_are_no_records_are_counted_and_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [b"[1]", b"7", b'{"step": "1"}', b'{"begin": {}}', b'{"begin": 1}', b"\xff", b"[" * 100_000]
    path.write_bytes(b"\n".join([*lines, b"", b'{"step": 5}']))
    contents = read_run_log(path)
    assert contents == ([{"step": 5}], [], len(lines))


def test_text_without_utf_8_does_not_end_a_run(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.append({"step": 1, "text": "\ud800 line\u2028end"})
    assert "line\u2028end" in read_run_log(tmp_path / "log.jsonl").records[0]["text"]


# ---------------------------------------------------------------- costs


def test_evaluation_is_off_the_clock(tmp_path, clock):
    def slow_in_evaluation(completions, is_eval, **kwargs):
        clock.seconds += 1000.0 if is_eval[0] else 1.0
        return contains_answer(completions)

    trainer = make_trainer(
        tmp_path,
        reward_funcs=slow_in_evaluation,
        train_dataset=chat_dataset(is_eval=[False] * 4),
        eval_dataset=chat_dataset(is_eval=[True] * 4),
        per_device_eval_batch_size=16,
        eval_strategy="steps",
        eval_steps=1,
        max_steps=2,
    )
    trainer.train()
    assert clock.seconds >= 2002
    elapsed = logged(trainer, TRAINING_SECONDS)
    assert 2 <= elapsed[-1] < 1000
    assert elapsed == sorted(elapsed)


def test_seconds_go_on_after_a_resume_without_the_pause(tmp_path, clock):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}

    def one_second_each(completions, **kwargs):
        clock.seconds += 100.0
        return contains_answer(completions)

    first = make_trainer(tmp_path, reward_funcs=one_second_each, **options)
    first.train()
    clock.seconds += 100_000.0  # the pause
    second = make_trainer(tmp_path, reward_funcs=one_second_each, **options)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    by_step = {entry["step"]: entry[TRAINING_SECONDS] for entry in second.state.log_history}
    assert {step: round(seconds / 100) for step, seconds in by_step.items()} == {1: 1, 2: 2, 3: 3, 4: 4}
    records = read(tmp_path).records
    assert [r["step"] for r in records if "loss" in r["logs"]] == [1, 2, 3, 4]
    seconds = [r["logs"][TRAINING_SECONDS] for r in records if "loss" in r["logs"]]
    assert [round(s / 100) for s in seconds] == [1, 2, 3, 4]
    third = make_trainer(tmp_path / "anew", reward_funcs=one_second_each, max_steps=1)
    third.train()
    third.train()  # a second call starts anew, and so does its clock
    assert logged(third, TRAINING_SECONDS)[-1] < 200


# ---------------------------------------------------------------- log.jsonl


@pytest.mark.parametrize("method", ["srpo", "grpo"])
def test_log_file_has_every_log_and_the_options(tmp_path, method):
    trainer = make_trainer(
        tmp_path,
        method=method,
        run_log=True,
        eval_temperature=0.6,
        max_steps=2,
        eval_dataset=chat_dataset(),
        per_device_eval_batch_size=16,
    )
    trainer.evaluate()  # before training: belongs to no run
    assert not (tmp_path / LOG_FILE).exists()
    trainer.train()
    trainer.evaluate()
    contents = read(tmp_path)
    history = [entry for entry in trainer.state.log_history if entry["step"] > 0]
    assert [{**r["logs"], "step": r["step"]} for r in contents.records] == history
    for entry in history:
        assert entry[TRAINING_SECONDS] >= 0
        assert (PEAK_MEMORY in entry) == ("eval_reward" not in entry)
    assert contents.records[0]["logs"][PEAK_MEMORY] > 0.05
    (begin,) = contents.begins
    assert begin["options"]["method"] == method
    assert begin["options"]["distillation_topk"] == 5
    assert "output_dir" not in begin["options"]
    assert begin["versions"].keys() == {"srpo-trl", "trl", "transformers", "torch"}


def test_log_file_in_a_new_folder_starts_with_the_history_that_is_resumed(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    make_trainer(tmp_path / "old", **options).train()
    second = make_trainer(tmp_path / "new", **(options | {"max_steps": 3}))
    second.train(resume_from_checkpoint=str(tmp_path / "old" / "checkpoint-2"))
    records = read(tmp_path / "new").records
    assert [r["step"] for r in records if "loss" in r["logs"]] == [1, 2, 3]
    assert records[0]["logs"][TRAINING_SECONDS] > 0


def test_options_of_places_and_secrets_are_not_written(tmp_path):
    trainer = make_trainer(
        tmp_path,
        hub_token="hf_secret",
        hub_model_id="me/secret",
        model_init_kwargs='{"token": "hf_secret", "revision": "v2"}',
        generation_kwargs={"stop_strings": [{"api_key": "hf_secret"}]},
    )
    options = changed_options(trainer.args)
    assert options["model_init_kwargs"] == {"revision": "v2"}
    assert "secret" not in json.dumps(options, default=str)
    assert str(tmp_path) not in json.dumps(options, default=str)


def test_options_are_those_that_somebody_set_as_they_were_given(tmp_path):
    """Not what SRPO, TRL and transformers made of them, such as an `accelerator_config` or a device's defaults."""
    given = {"use_cpu": True, "bf16": False, "per_device_eval_batch_size": 96, "eval_strategy": "no"}
    config = SRPOConfig(output_dir=str(tmp_path), learning_rate=3e-4, report_to="none", **given)
    del given["eval_strategy"]  # the default
    expected = given | {"learning_rate": 3e-4}  # and report_to has its default, too
    assert changed_options(config) == expected
    config.max_steps = 7
    config.per_device_eval_batch_size = 12
    assert changed_options(config) == expected | {"max_steps": 7, "per_device_eval_batch_size": 12}


# ---------------------------------------------------------------- examples.jsonl


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """All distilled rollouts of one step over `ROLLOUTS`, by completion, and the trainer."""
    monkeypatch.setattr(examples_log, "EXAMPLES_PER_STEP", 100)
    trainer = make_trainer(
        tmp_path, log_examples_steps=1, log_completions=True, learning_rate=0.0, temperature=0.7, **SPLIT
    )
    trainer.train()
    records = read(tmp_path, EXAMPLES_FILE).records
    return SimpleNamespace(
        by_text={"".join(r["tokens"]): r for r in records}, trainer=trainer, folder=tmp_path
    )


def test_examples_are_the_distilled_rollouts_with_what_was_shown(examples):
    failed = {"33;12": "2#2", "0": "2#2", "4;4;4;4;4;4;4": "2#2", "9": None, "8;8": None, "7;7;7": None}
    assert set(examples.by_text) == {text + "<|end|>" for text in failed}
    for text, solution in failed.items():
        record = examples.by_text[text + "<|end|>"]
        prompt = next(p for p, answers in ROLLOUTS if text in answers)
        assert record["prompt"].endswith(f"<|user|>{prompt}<|end|><|assistant|>")
        correct = [answer for answer in dict(ROLLOUTS)[prompt] if "#" in answer]
        assert record["solution"] == solution or record["solution"] in correct
        assert record["feedback"] == ""
        assert (record["route"], record["is_correct"], record["step"]) == ("distilled", False, 1)


def test_corrections_add_up_to_the_branchs_loss(examples):
    corrections = weights = count = 0.0
    for record in examples.by_text.values():
        assert len({len(record[name]) for name in ("tokens", "divergence", "weight", "teacher_entropy")}) == 1
        corrections += sum(d * w for d, w in zip(record["divergence"], record["weight"], strict=True))
        weights += sum(record["weight"])
        count += len(record["tokens"])
    assert weights / count == pytest.approx(1, abs=1e-3)
    routed_tokens = sum(  # all but the rollout that nothing scores; one end-of-sequence token each
        len(new_tokenizer()(text)["input_ids"]) + 1
        for _, answers in ROLLOUTS
        for text in answers
        if "=" not in text
    )
    (loss,) = logged(examples.trainer, "srpo/loss/distilled")
    assert corrections / routed_tokens == pytest.approx(loss, rel=1e-2)
    assert loss > 0


def test_teachers_choices_are_those_of_the_model_that_reads_the_teacher_prompt(examples):
    trainer, tokenizer = examples.trainer, new_tokenizer()
    record = examples.by_text[
        "4;4;4;4;4;4;4<|end|>"
    ]  # the update was of size 0: student, teacher and model are one
    prompt = [{"role": "user", "content": "1+1"}]
    teacher_prompt = trainer._router._encoder.encode(
        prompt, TeacherInformation(solution=record["solution"])
    ).ids
    ids = [*teacher_prompt, *tokenizer("4;4;4;4;4;4;4")["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits = trainer.model(input_ids=torch.tensor([ids])).logits[0] / 0.7
    probability, token = logits[len(teacher_prompt) - 1 : -1].softmax(-1).max(-1)
    assert len(record["teacher_choices"]) == len(record["tokens"])  # fewer than 32 tokens: all of them
    for position, text, given in record["teacher_choices"]:
        assert text == tokenizer.decode([int(token[position])])
        assert given == pytest.approx(float(probability[position]), abs=2e-4)
    strengths = [record["divergence"][p] * record["weight"][p] for p, _, _ in record["teacher_choices"]]
    assert strengths == sorted(strengths, reverse=True)


def test_student_probabilities_are_those_of_the_model_alone(examples):
    trainer, tokenizer = examples.trainer, new_tokenizer()
    record = examples.by_text["33;12<|end|>"]
    prompt_ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1"}], add_generation_prompt=True
    )["input_ids"]
    completion_ids = [*tokenizer("33;12")["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits = trainer.model(input_ids=torch.tensor([[*prompt_ids, *completion_ids]])).logits[0] / 0.7
    probability = (
        logits[len(prompt_ids) - 1 : -1].softmax(-1).gather(1, torch.tensor(completion_ids)[:, None])
    )
    assert record["student_probability"] == pytest.approx(probability.squeeze(1).tolist(), abs=2e-4)


def test_examples_are_written_at_the_asked_steps_and_never_too_many(tmp_path):
    trainer = make_trainer(tmp_path, log_examples_steps=2, max_steps=4, **SPLIT)
    trainer.train()
    steps = [record["step"] for record in read(tmp_path, EXAMPLES_FILE).records]
    assert steps == [1] * 4 + [3] * 4
    make_trainer(tmp_path / "none", max_steps=1).train()
    assert not (tmp_path / "none" / EXAMPLES_FILE).exists()


def test_examples_of_a_step_that_is_made_again_stand_once(tmp_path):
    options = {"log_examples_steps": 1, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    make_trainer(tmp_path, **options).train()
    again = make_trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    steps = [record["step"] for record in read(tmp_path, EXAMPLES_FILE).records]
    assert steps == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4


def test_examples_after_a_resume_inside_a_rollout_batch_know_what_was_shown(tmp_path):
    options = {
        "per_device_train_batch_size": 4,
        "steps_per_generation": 4,
        "log_examples_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 4,
    }
    make_trainer(tmp_path, **options).train()
    shown = {r["rollout"]: r["solution"] for r in read(tmp_path, EXAMPLES_FILE).records}
    assert len(shown) == DISTILLED
    shutil.rmtree(tmp_path / "checkpoint-4")
    again = make_trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert {r["rollout"]: r["solution"] for r in read(tmp_path, EXAMPLES_FILE).records} == shown


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "1"])
def test_wrong_intervals_of_examples_are_refused(tmp_path, every):
    with pytest.raises(ValueError, match=r"log_examples_steps=.* must be a whole number or None"):
        make_trainer(tmp_path, log_examples_steps=every)


def test_texts_of_tokens_join_to_the_text_of_all():
    bytes_alone = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=bytes_alone, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    ids = fast("né ☃\n")["input_ids"]
    assert token_texts(fast, ids) == ["n", "", "é", " ", "", "", "☃", "\n"]
    assert token_texts(fast, ids[:2]) == ["n", "�"]  # a character that was cut off
    assert token_texts(fast, []) == []


# ---------------------------------------------------------------- the completions table


def table(folder, step):
    return pd.read_parquet(folder / "completions" / f"completions_{step:05d}.parquet")


def test_completions_table_has_each_rollouts_divergence(examples):
    rows = table(examples.folder, 1)
    by_number = {record["rollout"]: record for record in examples.by_text.values()}
    assert len(by_number) == DISTILLED
    assert rows["divergence"].notna().tolist() == (rows["route"] == "distilled").tolist()
    for row in rows[rows["route"] == "distilled"].itertuples():
        record = by_number[row.rollout]
        assert row.completion[-1]["content"] + "<|end|>" == "".join(record["tokens"])
        length = len(record["tokens"])
        assert row.divergence == pytest.approx(sum(record["divergence"]) / length, abs=1e-4)
        assert row.teacher_entropy == pytest.approx(sum(record["teacher_entropy"]) / length, abs=1e-4)


def test_completions_table_fills_as_the_rollout_batch_is_trained_on(tmp_path):
    options = {"per_device_train_batch_size": 4, "steps_per_generation": 4, "max_steps": 8}
    make_trainer(tmp_path, log_completions=True, **options).train()
    filled = [int(table(tmp_path, step)["divergence"].notna().sum()) for step in range(1, 9)]
    assert filled[3] == filled[7] == DISTILLED
    assert filled[:4] == sorted(filled[:4])
    assert filled[4] < DISTILLED  # new rollouts, other numbers
    assert table(tmp_path, 4)["rollout"].tolist() == list(range(16))
    assert table(tmp_path, 8)["rollout"].tolist() == list(range(16, 32))  # numbered one after the other


def test_completions_table_of_an_evaluation_has_the_columns_empty(tmp_path):
    trainer = make_trainer(
        tmp_path, eval_dataset=chat_dataset(), per_device_eval_batch_size=16, log_completions=True
    )
    trainer.train()
    trainer.evaluate()
    rows = table(tmp_path, 1)  # the evaluation's table replaces that of the step
    assert len(rows) == 4 * NUM_GENERATIONS
    assert rows[["route", "rollout", "divergence", "teacher_entropy"]].isna().all(axis=None)


def blames_one(completions, prompts, log_extra, **kwargs):
    """Feedback on answers to one prompt; to a batch without it there is none."""
    texts = ["wrong" if prompt[-1]["content"] == "1+1" else None for prompt in prompts]
    if any(texts):
        log_extra("feedback", texts)
    return contains_answer(completions)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("turn", [1, -1], ids=["feedback first", "feedback last"])
def test_feedback_of_the_table_is_that_of_its_own_rows(tmp_path, turn, accumulation):
    """TRL keeps as many of a column's values as there were: with some missing it ends the run, or shows older ones."""
    rows = chat_dataset(ROLLOUTS[:2][::turn])
    sampled = {"num_generations_eval": 4, "eval_tokens_per_batch": 1, "eval_dataset": rows}
    trainer = make_trainer(
        tmp_path,
        train_dataset=rows,
        reward_funcs=blames_one,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulation,
        max_steps=2,
        log_completions=True,
        **sampled,
    )
    for run in (trainer.evaluate, trainer.train, trainer.evaluate):
        run()
        found = pd.concat(map(pd.read_parquet, (tmp_path / "completions").iterdir()))
        for prompt, text in zip(found["prompt"], found["feedback"], strict=True):
            assert (None if pd.isna(text) else text) == ("wrong" if prompt[-1]["content"] == "1+1" else None)


def test_rollout_means_are_those_of_the_last_rollout_batch():
    means = RolloutMeans(4, torch.device("cpu"))
    means.begin(8)
    distilled = torch.tensor([[True, False], [True, True], [False, False], [True, True]])
    divergence = torch.tensor([1.0, 2.0, 4.0, 50.0, 50.0])
    entropy = torch.tensor([[0.5, 0.0], [1.0, 2.0], [0.0, 0.0], [7.0, 7.0]])
    means.add(torch.tensor([9, 8, 10, 7]), distilled, divergence, entropy)  # 7 is of the batch before
    columns = means.columns([8, 9, 10, 11, None, 7], lambda tensor: tensor)
    assert columns == {
        "divergence": [3.0, 1.0, None, None, None, None],
        "teacher_entropy": [1.5, 0.5, None, None, None, None],
    }
    twice = means.columns([8], lambda tensor: tensor + torch.tensor([[3.0], [0.0], [1.0]]).expand_as(tensor))
    assert twice["divergence"] == [pytest.approx((6 + 3) / 3)]
    means.begin(12)
    assert means.columns([12], lambda tensor: tensor)["divergence"] == [None]


# ---------------------------------------------------------------- trackers


def test_tensorboard_gets_the_scalars(tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    trainer = make_trainer(
        tmp_path / "run", report_to=["tensorboard"], max_steps=2, log_completions=True, gradient_share_steps=1
    )
    trainer.train()
    folder = next((tmp_path / "run").rglob("events.out.tfevents.*")).parent
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    logs = trainer.state.log_history
    names = {n for entry in logs for n in entry if n.startswith("srpo/")} | {TRAINING_SECONDS}
    assert len(names) > 25
    assert PEAK_MEMORY in names
    for name in names:
        scalars = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        expected = {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}
        assert scalars == pytest.approx(expected, rel=1e-5, abs=1e-12), name


def tables_of(tracker, monkeypatch):
    """The data frames that TRL makes tables of in the tracker."""
    frames, make = [], tracker.Table.__init__

    def keep(self, *args, **kwargs):
        frames.append(kwargs["dataframe"])
        make(self, *args, **kwargs)

    monkeypatch.setattr(tracker.Table, "__init__", keep)
    return frames


def check_tracker(scalars, frames):
    for name in ("srpo/route/distilled_frac", "srpo/loss/distilled", TRAINING_SECONDS, PEAK_MEMORY):
        assert math.isfinite(scalars[f"train/{name}"]), name
    assert {"route", "rollout", "divergence", "teacher_entropy"} <= set(frames[0].columns)
    assert int(frames[0]["divergence"].notna().sum()) == DISTILLED


def test_wandb_gets_the_scalars_and_the_table(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    frames = tables_of(wandb, monkeypatch)
    make_trainer(tmp_path / "run", report_to=["wandb"], log_completions=True).train()
    summary = dict(wandb.run.summary)
    wandb.finish()
    check_tracker(summary, frames)


def test_trackio_gets_the_scalars_and_the_table(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    frames = tables_of(trackio, monkeypatch)
    logged_there, log = {}, trackio.log

    def keep(values, *args, **kwargs):
        logged_there.update(values)
        return log(values, *args, **kwargs)

    monkeypatch.setattr(trackio, "log", keep)
    make_trainer(tmp_path / "run", report_to=["trackio"], log_completions=True).train()
    check_tracker(logged_there, frames)
