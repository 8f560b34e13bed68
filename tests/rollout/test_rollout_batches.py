"""Rollout batches are counted as such: whatever the batch options, and also where a resume changes them."""

import copy
import dataclasses
import itertools
import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from trl import GRPOTrainer

from harness import ROLLOUTS, chat_dataset, flat_parameters, make_trainer, replay, tiny_model, tiny_tokenizer
from resumed_runs import GIVEN, RUN, half, states
from srpo_trl.host.checkpoint_parts import STATE_FILE
from srpo_trl.host.manifest import names_in, write_manifest
from srpo_trl.loss.head import STUDENT_HEAD
from srpo_trl.loss.ops import Head
from srpo_trl.rollout import batch as trl_batch
from srpo_trl.rollout.batch_counter import (
    BatchOptions,
    RolloutBatchCounter,
    next_of_epoch,
    resume_note,
    resume_problem,
    resumed_micro_batches,
)
from srpo_trl.teacher.heads import HeadsInUse
from srpo_trl.teacher.weights import TeacherWeights

OPTIONS = BatchOptions("srpo", 8, 1, 1, 1, 4, 1, 24)
COMBINATIONS = list(
    itertools.product(range(1, 5), range(1, 5), range(1, 3))
)  # accumulation, generation, iterations
STRADDLING = [
    (2, 3, 1),
    (4, 5, 1),
    (3, 2, 2),
    (4, 3, 2),
]  # an optimizer step ends one rollout batch and begins another


def batch_options(accumulation, per_generation, iterations):
    return {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": per_generation,
        "num_iterations": iterations,
    }


# ---------------------------------------------------------------- the counter


@pytest.mark.parametrize(("accumulation", "per_generation", "iterations"), COMBINATIONS)
def test_each_rollout_batch_is_complete_once(accumulation, per_generation, iterations):
    """Against a simulation that trains on rollout batches one micro-batch at a time."""
    counter = RolloutBatchCounter(per_generation * iterations)
    left, completed, micro_batches = 0, 0, 0
    for _step in range(24):
        complete_in_step = 0
        for _ in range(accumulation):
            left = left or per_generation * iterations  # TRL generates where nothing is left
            assert counter.number_of(micro_batches) == completed + complete_in_step
            left, micro_batches = left - 1, micro_batches + 1
            complete_in_step += left == 0
        assert counter.take_complete(micro_batches) == complete_in_step
        assert counter.take_complete(micro_batches) == 0
        assert counter.is_under_way(micro_batches) == (left > 0)
        completed += complete_in_step


def test_rollouts_are_numbered_one_after_the_other():
    counter = RolloutBatchCounter(3)
    counter.resume(num_micro_batches=6, num_rollouts=16)
    assert [counter.take_rollouts(n) for n in (8, 4, 4)] == [16, 24, 28]
    assert counter.num_rollouts == 32
    assert counter.take_complete(9) == 1


@pytest.mark.parametrize(
    ("micro_batches", "saved", "now", "has_rollouts", "expected"),
    [
        (5, {}, {"gradient_accumulation_steps": 2, "steps_per_generation": 2}, False, 10),
        (10, {"steps_per_generation": 2}, {"steps_per_generation": 1}, False, 5),
        (12, {"steps_per_generation": 3, "num_iterations": 2}, {"num_iterations": 4}, False, 8),
        (13, {"steps_per_generation": 4}, {"steps_per_generation": 4}, True, 13),
        (13, {"steps_per_generation": 4}, {"steps_per_generation": 4}, False, 12),  # the rest was not saved
        (13, {"steps_per_generation": 4}, {"steps_per_generation": 2}, False, 6),
    ],
)
def test_a_resumed_count_has_as_many_rollout_batches(micro_batches, saved, now, has_rollouts, expected):
    saved, now = (dataclasses.replace(OPTIONS, **options) for options in (saved, now))
    found = resumed_micro_batches(micro_batches, saved, now, has_rollouts=has_rollouts)
    assert found == expected


@pytest.mark.parametrize(
    ("changed", "is_refused"),
    [
        ({"per_device_train_batch_size": 4}, True),
        ({"gradient_accumulation_steps": 2}, True),
        ({"steps_per_generation": 2}, True),
        ({"num_iterations": 2}, True),
        ({"num_processes": 2}, True),
        ({"num_generations": 8}, False),
        ({"num_prompts": 23}, False),
        ({"num_prompts": None}, False),
    ],
)
def test_what_rollouts_in_use_cannot_be_resumed_under_is_named_with_both_values(changed, is_refused):
    now = dataclasses.replace(OPTIONS, **changed)
    problem = resume_problem(OPTIONS, now, has_rollouts=True)
    ((name, value),) = changed.items()
    before = f"{name}={getattr(OPTIONS, name)!r}"
    assert (before in problem and f"{name}={value!r}" in problem) == is_refused == bool(problem)
    assert resume_problem(OPTIONS, now, has_rollouts=False) == ""
    note = resume_note(OPTIONS, now, 7)
    assert before in note
    assert f"{name}={value!r}" in note
    assert "after 7 rollout batches" in note
    assert resume_note(OPTIONS, OPTIONS, 7) == ""


@pytest.mark.parametrize("has_rollouts", [True, False])
def test_another_method_is_refused_with_both_names(has_rollouts):
    now = dataclasses.replace(OPTIONS, method="paced, method_options={'powers': [2, 1]}")
    problem = resume_problem(OPTIONS, now, has_rollouts=has_rollouts)
    assert (
        "method='srpo' and cannot be resumed with method=\"paced, method_options={'powers': [2, 1]}\""
        in problem
    )
    assert resume_problem(now, now, has_rollouts=has_rollouts) == ""


@pytest.mark.parametrize("each", range(1, 7))
def test_next_rollout_batch_of_an_epoch(each):
    """The first micro-batch from the one at `skipped` on before which TRL generates, and whose prompts it has."""
    for skipped, micro_batches in itertools.product(range(20), range(12)):
        position = next(p for p in itertools.count(skipped) if (micro_batches + p - skipped) % each == 0)
        assert next_of_epoch(skipped, micro_batches, each) == position // each


# ---------------------------------------------------------------- heads


def test_heads_stay_as_they_were_when_their_rollouts_were_scored():
    model = tiny_model()
    teacher, heads = TeacherWeights(model, "ema", 0.5), HeadsInUse()
    weight = teacher.value_of(model.get_output_embeddings().weight)
    before = weight.clone()
    heads.add(3, "teacher", Head(weight, None), "first")
    heads.add(4, "teacher", Head(weight.clone(), None), "first")
    assert heads.of(4, "teacher") is heads.of(3, "teacher")
    heads.keep_apart_from(teacher.state_dict().values())
    assert heads.of(4, "teacher") is heads.of(3, "teacher")
    assert heads.past(3, "teacher", "first") is None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    teacher.update()
    assert not torch.equal(weight, before)  # the teacher's own memory
    assert torch.equal(heads.of(3, "teacher").weight_VD, before)
    assert torch.equal(heads.past(3, "teacher", "second")[0], before)
    heads.forget_before(4)
    with pytest.raises(KeyError):
        heads.of(3, "teacher")
    heads.restore(9, "teacher", Head(weight, None), "second", (before, None))
    assert torch.equal(heads.of(9, "teacher").weight_VD, before)
    heads.add(10, "teacher", Head(weight, None), "second")
    assert heads.of(10, "teacher").weight_VD is weight
    heads.add(11, "teacher", STUDENT_HEAD, "third")
    heads.keep_apart_from([weight])
    assert heads.of(11, "teacher") is STUDENT_HEAD
    assert heads.past(11, "teacher", "fourth") is None


@pytest.mark.parametrize("num_updates", [1, 2, 5])
def test_several_updates_toward_one_student_are_as_many_ticks(num_updates):
    model = tiny_model()
    at_once, one_by_one = (TeacherWeights(model, "ema", 0.2) for _ in range(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    at_once.update(num_updates)
    for _ in range(num_updates):
        one_by_one.update()
    assert at_once.num_updates == one_by_one.num_updates == num_updates
    for name, value in at_once.state_dict().items():
        torch.testing.assert_close(value, one_by_one.state_dict()[name], rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------- runs


def counted_run(folder, accumulation, per_generation, iterations):
    """A run of a few rollout batches that ends at the end of one; returns the trainer, and how many were made."""
    each = per_generation * iterations
    num_steps = 2 * each // torch.gcd(torch.tensor(each), torch.tensor(accumulation)).item()
    trainer = make_trainer(
        folder,
        train_dataset=chat_dataset(ROLLOUTS * 12),
        max_steps=num_steps,
        learning_rate=0.01,
        **batch_options(accumulation, per_generation, iterations),
    )
    generated, original = [], trainer._score

    def score(output, rollouts):
        generated.append(trainer._step)
        original(output, rollouts)

    trainer._score = score
    trainer.train()
    return trainer, len(generated)


def assert_one_update_per_rollout_batch(trainer, num_generated):
    assert trainer.teacher.weights.num_updates == num_generated > 0
    steps_with = {
        name: len([entry for entry in trainer.state.log_history if name in entry])
        for name in ("srpo/route/distilled_frac", "srpo/teacher/distance")
    }
    assert len(set(steps_with.values())) == 1


@pytest.mark.parametrize(
    ("accumulation", "per_generation", "iterations"), [*STRADDLING[:3], (3, 1, 1), (2, 2, 2)]
)
def test_the_teacher_moves_once_per_rollout_batch(tmp_path, accumulation, per_generation, iterations):
    assert_one_update_per_rollout_batch(*counted_run(tmp_path, accumulation, per_generation, iterations))


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        (batch_options(4, 1, 1), [(1, 4), (2, 4), (3, 4)]),
        (batch_options(4, 2, 1), [(1, 2), (2, 2), (3, 2)]),
        (batch_options(2, 3, 1), [(2, 1), (3, 1)]),
        (batch_options(2, 1, 3), [(2, 1), (3, 1)]),
    ],
    ids=str,
)
def test_all_updates_come_after_the_optimizer_step_toward_its_student(tmp_path, options, calls):
    data = chat_dataset(ROLLOUTS * 6)
    trainer = make_trainer(
        tmp_path, max_steps=3, learning_rate=0.1, teacher_update_rate=0.2, train_dataset=data, **options
    )
    expected, found, tick = states(trainer)[1], [], trainer.teacher.weights.update

    def recorded_tick(num_updates):
        nonlocal expected
        found.append((trainer.state.global_step, num_updates))
        for _ in range(num_updates):
            expected = 0.8 * expected + 0.2 * flat_parameters(trainer.model)
        return tick(num_updates)

    trainer.teacher.weights.update = recorded_tick
    trainer.train()
    assert found == calls
    torch.testing.assert_close(states(trainer)[1], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("accumulation", "per_generation", "iterations"), COMBINATIONS)
def test_the_teacher_moves_once_per_rollout_batch_of_every_combination(
    tmp_path, accumulation, per_generation, iterations
):
    assert_one_update_per_rollout_batch(*counted_run(tmp_path, accumulation, per_generation, iterations))


def logits_of(weights, prompt_ids, completion_ids):
    model = tiny_model()
    model.load_state_dict(weights, strict=False)  # the LM head is the embeddings
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt_ids, *completion_ids]])).logits[0]
    return logits[len(prompt_ids) - 1 : -1].double()


def jensen_shannon(logits, others):
    p, q = logits.softmax(-1), others.softmax(-1)
    m = (p + q) / 2
    return (p * (p / m).log() + q * (q / m).log()).sum(-1) / 2


@pytest.mark.parametrize("kind", ["ema", "live"])
@pytest.mark.parametrize(("accumulation", "per_generation", "iterations"), STRADDLING)
def test_each_rollout_is_distilled_from_the_teacher_that_scored_it(
    tmp_path, accumulation, per_generation, iterations, kind
):
    """The divergence of every token of straddling steps, from two plain models and the formula."""
    trainer = make_trainer(
        tmp_path,
        train_dataset=chat_dataset(ROLLOUTS * 6),
        max_steps=5,
        learning_rate=0.5,
        teacher_model_kind=kind,
        teacher_update_rate=0.5,
        distillation_topk=None,
        **batch_options(accumulation, per_generation, iterations),
    )
    scored, errors, teachers_of_step = {}, [], []
    score, add = trainer._score, trainer._rollout_log.add

    def recorded_score(output, rollouts):
        values = trainer.model.state_dict() if kind == "live" else trainer.teacher.weights.state_dict()
        weights = {name: value.clone() for name, value in values.items()}
        numbers = trainer._rollout_log.numbers_B.tolist()
        completions = trl_batch.completion_rows(output)
        for number, prompt, completion in zip(numbers, rollouts.teacher_prompts, completions, strict=True):
            scored[number] = (weights, prompt and prompt.ids, completion)
        score(output, rollouts)

    def checked_add(step, inputs, routed, result, mean_unnormalized_weight, head):
        student = copy.deepcopy(trainer.model.state_dict())
        expected = []
        for row, number in enumerate(trl_batch.rollout_numbers(inputs).tolist()):
            if routed.distilled_BT[row].any():
                weights, teacher_prompt, completion = scored[number]
                prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist()
                expected.append(
                    jensen_shannon(
                        logits_of(student, prompt, completion), logits_of(weights, teacher_prompt, completion)
                    )
                )
                teachers_of_step.append((step, id(weights)))
        if expected:
            found, expected = result.divergence_N.double(), torch.cat(expected)
            errors.append(float((found - expected).abs().max() / expected.max()))
        add(step, inputs, routed, result, mean_unnormalized_weight, head)

    trainer._score, trainer._rollout_log.add = recorded_score, checked_add
    trainer.train()
    assert max(errors) < 1e-4
    teachers = {step: {t for s, t in teachers_of_step if s == step} for step, _ in teachers_of_step}
    assert max(map(len, teachers.values())) > 1  # steps with rollouts of two passes


# ---------------------------------------------------------------- resuming


def half_of_some(prompts, completions, **kwargs):
    """`half`, but for every third prompt, whose groups fail as a whole."""
    numbers = [int(prompt[-1]["content"].split("+")[0]) for prompt in prompts]
    return [r * (n % 3 > 0) for r, n in zip(half(completions), numbers, strict=True)]


def trained(folder, checkpoint=None, *, max_steps, rows=12, **options):
    """A run on different prompts; outcomes that are reported are of the prompts that the sampler takes them for."""
    data = chat_dataset([(f"{i}+1", []) for i in range(rows)])
    defaults = {"reward_funcs": half_of_some, "train_dataset": data}
    trainer = make_trainer(
        folder, **RUN | defaults | {"save_steps": 1, "max_steps": max_steps, "num_generations": 4} | options
    )
    route = trainer._router.route

    def checked_route(graded, *others, **more):
        sampler = trainer.prompt_order.sampler
        drawn = sampler._drawn[sampler._num_reported]
        expected = [trainer.train_dataset[row]["prompt"] for row in drawn]
        assert graded.prompts[:: trainer.num_generations] == expected
        return route(graded, *others, **more)

    trainer._router.route = checked_route
    trainer.train(resume_from_checkpoint=checkpoint and str(folder / checkpoint))
    return trainer


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
@pytest.mark.parametrize(("kind", "interval"), [("ema", 1), ("ema", 2), ("live", 1)])
def test_a_run_resumed_in_straddling_steps_equals_the_uninterrupted_one(
    tmp_path, stopped_after, kind, interval
):
    options = batch_options(2, 3, 1) | {"teacher_model_kind": kind, "teacher_update_interval": interval}
    whole = trained(tmp_path, max_steps=5, **options)
    resumed = trained(tmp_path, f"checkpoint-{stopped_after}", max_steps=5, **options)
    assert torch.equal(flat_parameters(resumed.model), flat_parameters(whole.model))
    for name, value in whole.teacher.weights.state_dict().items():
        assert torch.equal(resumed.teacher.weights.state_dict()[name], value)
    assert resumed.teacher.weights.num_updates == whole.teacher.weights.num_updates == 3
    assert resumed._counter.num_rollouts == whole._counter.num_rollouts == 4 * 12


EIGHT = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
OTHER_OPTIONS = {
    "half the batch, twice the accumulation": (EIGHT, batch_options(2, 2, 1)),
    "half the batch": (EIGHT, batch_options(1, 1, 1)),
    "twice the batch": (batch_options(1, 1, 1), EIGHT),
    "more steps of a rollout batch": (EIGHT, batch_options(1, 2, 1)),
    "fewer": (batch_options(1, 2, 1), batch_options(2, 2, 1)),
    "iterations": (EIGHT, EIGHT | {"num_iterations": 3}),
    "no iterations": (EIGHT | {"num_iterations": 2}, EIGHT),
    "steps across rollout batches": (EIGHT, batch_options(2, 3, 1)),
    "several rollout batches a step": (EIGHT, batch_options(2, 1, 1)),
    "generations": (EIGHT, EIGHT | {"num_generations": 2}),
    "fewer rows": (EIGHT, EIGHT | {"rows": 8}),
    "from the first row": (EIGHT, batch_options(2, 1, 1) | {"ignore_data_skip": True}),
}
SELDOM = (
    "twice the batch",
    "fewer",
    "generations",
    "fewer rows",
)  # tested with the slow ones


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(*options, id=name, marks=[pytest.mark.slow] * (name in SELDOM))
        for name, options in OTHER_OPTIONS.items()
    ],
)
def test_a_run_resumed_under_other_options_counts_on(tmp_path, caplog, before, after):
    """One update of the teacher per rollout batch, before and after, and outcomes told to the right prompts."""
    first = trained(tmp_path, max_steps=4, resample_failed_frac=1.0, **before)
    ticks = first.teacher.weights.num_updates
    assert ticks == first._step // first._batches.micro_batches_per_rollout_batch > 0
    with caplog.at_level(logging.WARNING, "srpo_trl"):
        resumed = trained(tmp_path, "checkpoint-4", max_steps=10, **after | {"resample_failed_frac": 1.0})
    each = resumed._batches.micro_batches_per_rollout_batch
    assert resumed.state.global_step == 10
    num_trained = 6 * after["gradient_accumulation_steps"]
    # an epoch's last step can be short
    assert ticks * each < resumed._step <= ticks * each + num_trained
    assert resumed.teacher.weights.num_updates == resumed._step // each > ticks
    assert "The checkpoint was written under" in caplog.text
    assert resumed._counter.num_rollouts > first._counter.num_rollouts


def test_a_run_resumed_with_half_the_batch_goes_on_as_if_it_had_been_so(tmp_path):
    """The same effective batch: rollouts are given, so only their split over micro-batches differs."""
    given = {
        "rollout_func": replay(tiny_tokenizer()),
        "train_dataset": chat_dataset(ROLLOUTS * 3),
        "learning_rate": 1e-3,
    }
    whole = trained(tmp_path / "whole", max_steps=5, **given, **EIGHT)
    trained(tmp_path / "parts", max_steps=2, **given, **EIGHT)
    resumed = trained(tmp_path / "parts", "checkpoint-2", max_steps=5, **given, **batch_options(2, 2, 1))
    for ours, theirs in zip(states(resumed), states(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert resumed.teacher.weights.num_updates == whole.teacher.weights.num_updates == 5


@pytest.mark.parametrize(
    ("after", "named"),
    [
        (batch_options(1, 2, 1), ("steps_per_generation=3", "steps_per_generation=2")),
        (batch_options(3, 3, 1), ("gradient_accumulation_steps=1", "gradient_accumulation_steps=3")),
        (batch_options(1, 3, 2), ("num_iterations=1", "num_iterations=2")),
        (
            batch_options(1, 3, 1) | {"per_device_train_batch_size": 8},
            ("per_device_train_batch_size=4", "per_device_train_batch_size=8"),
        ),
    ],
)
def test_inside_a_rollout_batch_other_options_are_refused_before_anything_is_loaded(
    tmp_path, monkeypatch, after, named
):
    trained(tmp_path, max_steps=4, **batch_options(1, 3, 1))
    options = RUN | {"reward_funcs": half, "train_dataset": chat_dataset(ROLLOUTS * 6)} | after
    trainer = make_trainer(tmp_path, **options)
    monkeypatch.setattr(GRPOTrainer, "_load_from_checkpoint", lambda *args: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match="lies inside a rollout batch") as error:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert all(value in str(error.value) for value in named)
    monkeypatch.undo()
    resumed = trained(tmp_path, "checkpoint-3", max_steps=9, rows=24, **after)
    each = resumed._batches.micro_batches_per_rollout_batch
    assert resumed.teacher.weights.num_updates == resumed._step // each > 1


def test_inside_a_rollout_batch_other_groups_and_data_go_on(tmp_path):
    trained(tmp_path, max_steps=4, **batch_options(1, 3, 1))
    resumed = trained(
        tmp_path, "checkpoint-4", max_steps=9, rows=24, **batch_options(1, 3, 1) | {"num_generations": 2}
    )
    assert resumed.teacher.weights.num_updates == 3


def test_a_checkpoint_of_another_version_is_refused_by_its_fields(tmp_path):
    trained(tmp_path, max_steps=1, **EIGHT)
    path = tmp_path / "checkpoint-1" / STATE_FILE
    state = json.loads(path.read_text())
    for saved, named in (
        ({name: value for name, value in state.items() if name != "counted_in"}, "counted_in"),
        (state | {"num_processes": 1}, "num_processes"),
        (state | {"counted_in": {"method": "srpo"}}, "steps_per_generation"),
    ):
        path.write_text(json.dumps(saved))
        write_manifest(path.parent, names_in(path.parent), is_resumable=True)
        with pytest.raises(ValueError, match=f"written by another version of srpo-trl.*{named}"):
            trained(tmp_path, "checkpoint-1", max_steps=2, **EIGHT)


TWO_PROCESSES = """
    import os
    import sys
    sys.path.insert(0, {tests!r})
    import torch
    from harness import make_trainer
    from resumed_runs import GIVEN
    torch.set_num_threads(1)
    options = dict(per_device_train_batch_size=4, ddp_find_unused_parameters=False)
    make_trainer({folder!r} + "/ended", max_steps=2, **options, **GIVEN).train()
    make_trainer({folder!r} + "/inside", max_steps=2, num_iterations=3, **options, **GIVEN).train()
    torch.distributed.barrier()
    os._exit(0)  # Gloo's threads abort one end of an interpreter in six
"""


def test_a_run_of_two_processes_goes_on_with_one(tmp_path):
    """Between rollout batches with the same weights as a run of one process; inside one it is refused."""
    script = tmp_path / "run.py"
    tests = str(Path(__file__).parents[1] / "support")
    script.write_text(textwrap.dedent(TWO_PROCESSES).format(tests=tests, folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script)], env=environment, capture_output=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]

    options = GIVEN | {"max_steps": 5, "per_device_train_batch_size": 8}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    resumed = make_trainer(tmp_path / "ended", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "ended" / "checkpoint-2"))
    for ours, theirs in zip(states(resumed), states(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert resumed.teacher.weights.num_updates == whole.teacher.weights.num_updates == 5

    inside = make_trainer(tmp_path / "inside", num_iterations=3, **options)
    with pytest.raises(ValueError, match=r"num_processes=2, and cannot be resumed under .*num_processes=1"):
        inside.train(resume_from_checkpoint=str(tmp_path / "inside" / "checkpoint-2"))
