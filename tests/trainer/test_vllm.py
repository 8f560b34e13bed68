"""TRL's vLLM path in this trainer, with a stand-in for vLLM: what weights are sent, when, and what the ratio does.

No vLLM runs here: it needs a GPU.
"""

import copy
import inspect
import os
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from trl.generation.vllm_client import VLLMClient

import oracle
from harness import LORA, ROLLOUTS, flat_parameters, logged, make_trainer, tiny_model, update
from objective_cases import OPTIONS, build, rows, spy_on_demonstrations
from vllm_stand_in import PROBE, ScoringEngine, ServerClient, install, probe

MODES = ("colocate", "server")


@pytest.fixture(autouse=True)
def _environment():
    """TRL writes a process's rank into the environment for vLLM."""
    with mock.patch.dict(os.environ):
        yield


def vllm_trainer(monkeypatch, folder, engine, mode, **options):
    install(monkeypatch, engine)
    return make_trainer(folder, use_vllm=True, vllm_mode=mode, rollout_func=None, **options)


class Students(TrainerCallback):
    """Keeps what the student, and its teacher, answer to the probe at the start and after every step."""

    def __init__(self):
        self.trainer = None
        self.students = []
        self.teachers = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.students.append(probe(self.trainer.model, PROBE))
        with self.trainer.teacher.weights.swapped_in():
            self.teachers.append(probe(self.trainer.model, PROBE))

    on_step_end = on_train_begin


@pytest.mark.parametrize("options", [{}, {"peft_config": LORA}], ids=["full", "lora"])
@pytest.mark.parametrize("mode", MODES)
def test_engine_is_sent_the_students_weights_before_every_rollout_batch(monkeypatch, tmp_path, mode, options):
    """Never the teacher's, which are in the student's place while the teacher scores."""
    engine, seen = ScoringEngine(), Students()
    trainer = vllm_trainer(
        monkeypatch, tmp_path, engine, mode, max_steps=3, learning_rate=0.3, callbacks=[seen], **options
    )
    seen.trainer = trainer
    trainer.train()
    assert engine.events == ["weights", "generate"] * 3
    students, teachers = seen.students[:-1], seen.teachers[:-1]
    for sent, student in zip(engine.probes, students, strict=True):
        torch.testing.assert_close(sent, student, rtol=1e-5, atol=1e-5)
    for student, teacher in zip(students[1:], teachers[1:], strict=True):
        assert float((student - teacher).abs().max()) > 1e-3
    # so the sampler is the policy that is trained, and nothing is corrected
    for bound in ("min", "max"):
        ratios = logged(trainer, f"sampling/importance_sampling_ratio/{bound}")
        assert ratios == pytest.approx([1.0] * 3, abs=1e-4)
    assert all(loss > 0 for loss in logged(trainer, "srpo/loss/distilled"))


@pytest.mark.parametrize(
    ("options", "generations"),
    [
        ({"num_iterations": 2, "max_steps": 4}, 2),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_steps": 2}, 2),
        ({"per_device_train_batch_size": 8, "steps_per_generation": 2, "max_steps": 4}, 2),
    ],
    ids=["iterations", "accumulation", "steps of a batch"],
)
@pytest.mark.parametrize("mode", MODES)
def test_weights_are_sent_once_per_rollout_batch(monkeypatch, tmp_path, mode, options, generations):
    engine = ScoringEngine()
    vllm_trainer(monkeypatch, tmp_path, engine, mode, learning_rate=0.1, **options).train()
    assert engine.events == ["weights", "generate"] * generations


def test_sleeping_engine_is_sent_weights_when_it_wakes(monkeypatch, tmp_path):
    engine = ScoringEngine()
    options = {"vllm_enable_sleep_mode": True, "max_steps": 2, "learning_rate": 0.3}
    trainer = vllm_trainer(monkeypatch, tmp_path, engine, "colocate", **options)
    trainer.train()
    assert engine.events == ["weights", "generate"] * 2
    assert logged(trainer, "sampling/importance_sampling_ratio/max") == pytest.approx([1.0] * 2, abs=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_update_is_that_of_generation_without_vllm(monkeypatch, tmp_path, mode):
    """Where the sampler's log-probabilities are the student's own."""
    options = {"max_steps": 2, "learning_rate": 0.1}
    expected = update(make_trainer(tmp_path / "without", **options))
    found = update(vllm_trainer(monkeypatch, tmp_path / mode, ScoringEngine(), mode, **options))
    assert float((found - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_ratio_of_a_sampler_that_is_off_multiplies_both_branches(monkeypatch, tmp_path, mode):
    """The cap is 2, token by token; the losses of both branches are the oracle's."""
    generator = np.random.default_rng(0)
    lengths = {answer: len(ids) for answer, ids in completion_lengths().items()}
    noise = {answer: generator.normal(0, 0.8, length) for answer, length in lengths.items()}
    student = tiny_model(dtype=torch.float64)
    engine = ScoringEngine(model=tiny_model(seed=1, dtype=torch.float64), noise=noise)
    trainer = vllm_trainer(
        monkeypatch,
        tmp_path,
        engine,
        mode,
        model=student,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
    )
    before = copy.deepcopy(trainer.model)
    before.__dict__.pop("forward", None)
    shown = spy_on_demonstrations(trainer)
    trainer.train()
    ratios = {answer: np.minimum(np.exp(off), 2.0) for answer, off in noise.items()}
    rollouts = [
        replace(rollout, sampler_ratio=ratios[row[1]])
        for row, rollout in zip(rows(), build(before, before, shown), strict=True)
    ]
    expected = oracle.joint_objective(rollouts, OPTIONS)
    total = expected.num_routed_tokens
    assert max(ratio.max() for ratio in ratios.values()) == 2.0
    assert logged(trainer, "srpo/loss/policy")[0] == pytest.approx(expected.policy_sum / total, rel=1e-4)
    assert logged(trainer, "srpo/loss/distilled")[0] == pytest.approx(
        expected.distillation_sum / total, rel=1e-4
    )
    assert not torch.equal(flat_parameters(trainer.model), flat_parameters(before))


def completion_lengths():
    engine = ScoringEngine()
    return {answer: ids for completions in engine._completions.values() for ids, answer in completions}


def test_completions_of_the_stand_in_differ():
    assert len(completion_lengths()) == sum(len(answers) for _, answers in ROLLOUTS)


@pytest.mark.parametrize(
    "name", ["init_communicator", "get_server_info", "update_named_params", "reset_prefix_cache"]
)
def test_stand_in_has_the_signatures_of_trls_client(name):
    expected = inspect.signature(getattr(VLLMClient, name)).parameters
    assert list(inspect.signature(getattr(ServerClient, name)).parameters) == list(expected)


def test_stand_in_takes_what_trls_client_generates_from():
    given = set(inspect.signature(ServerClient.generate).parameters) - {"sampling"}
    assert given <= set(inspect.signature(VLLMClient.generate).parameters)
