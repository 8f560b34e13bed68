"""Evaluation during training: scores, sampling parameters, random numbers, the best checkpoint, several processes."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evaluation_runs import ALIKE, answering, peaking_trainer, scores_of_alike
from harness import (
    ROLLOUTS,
    chat_dataset,
    config,
    contains_answer,
    flat_parameters,
    logged,
    make_trainer,
    tiny_model,
    tiny_tokenizer,
)
from srpo_trl import SRPOTrainer

HERE = Path(__file__).parents[1] / "support"
ANSWERS = dict(ROLLOUTS)


def sampling_trainer(folder, **options):
    """A trainer whose completions the tiny model samples."""
    parameters = {name: options.pop(name) for name in ("reward_funcs", "eval_dataset") if name in options}
    return SRPOTrainer(
        model=tiny_model(),
        args=config(folder, **({"num_generations_eval": 3, "max_completion_length": 8} | options)),
        train_dataset=chat_dataset(),
        processing_class=tiny_tokenizer(),
        **({"reward_funcs": contains_answer, "eval_dataset": chat_dataset()} | parameters),
    )


def texts(trainer):
    return [sample.text for sample in trainer.evaluated_samples]


# ------------------------------------------------------------------ scores


def test_scores_of_known_completions(tmp_path):
    """Batches of few rows: every question still gets its four samples, each counted once."""
    tokenizer = tiny_tokenizer()
    trainer = make_trainer(
        tmp_path,
        eval_dataset=chat_dataset(),
        rollout_func=answering(tokenizer, ANSWERS),
        num_generations_eval=4,
        eval_tokens_per_batch=120,
    )
    metrics = trainer.evaluate()
    verdicts = [[None if "=" in text else "#" in text for text in answers] for _, answers in ROLLOUTS]
    scored = [[verdict for verdict in own if verdict is not None] for own in verdicts]
    means = [sum(own) / len(own) for own in scored]
    assert metrics["eval_avg@4"] == pytest.approx(sum(means) / 4)
    spread = math.sqrt(sum((mean - sum(means) / 4) ** 2 for mean in means) / 3)
    assert metrics["eval_avg@4_stderr"] == pytest.approx(spread / 2)
    assert metrics["eval_reward"] == pytest.approx(sum(means) / 4)
    assert (metrics["eval_questions"], metrics["eval_unscored_samples"]) == (4, 1)
    lengths = [len(tokenizer(text)["input_ids"]) + 1 for _, answers in ROLLOUTS for text in answers]
    assert metrics["eval_completions/mean_length"] == pytest.approx(sum(lengths) / 16)
    assert metrics["eval_completions/max_length"] == max(lengths)
    assert metrics["eval_completions/clipped_ratio"] == 0.0
    assert sorted(texts(trainer)) == sorted(text for _, answers in ROLLOUTS for text in answers)
    assert "eval_maj@4" not in metrics  # the reward function does not say what an answer is
    assert "eval_format_rate" not in metrics
    assert "eval_loss" not in metrics
    assert trainer.state.log_history[-1].items() >= metrics.items() - {"epoch": 0}.items()


def test_majority_and_format_come_from_the_reward_function(tmp_path):
    def graded(completions, **kwargs):
        return contains_answer(completions)

    graded.extract_answer = lambda text: text.partition("#")[0]
    graded.follows_format = lambda text: ";" not in text
    tokenizer = tiny_tokenizer()
    trainer = make_trainer(
        tmp_path,
        eval_dataset=chat_dataset([("1+1", [])]),
        reward_funcs=graded,
        rollout_func=answering(tokenizer, {"1+1": ["2#2", "2#", "7", "8;8"]}),
        num_generations_eval=4,
    )
    metrics = trainer.evaluate()
    assert metrics["eval_maj@4"] == 1.0
    assert metrics["eval_avg@4"] == 0.5
    assert metrics["eval_format_rate"] == 0.75


def test_correctness_is_decided_as_in_training(tmp_path):
    def length(completions, **kwargs):
        return [float(len(completion[0]["content"])) for completion in completions]

    length.extract_answer = lambda text: "the same for all"
    contains_answer_too = contains_answer
    tokenizer = tiny_tokenizer()
    options = {
        "eval_dataset": chat_dataset([("1+1", [])]),
        "reward_funcs": [length, contains_answer_too],
        "rollout_func": answering(tokenizer, {"1+1": ["2#2", "7"]}),
        "num_generations_eval": 2,
    }
    summed = make_trainer(tmp_path / "summed", **options).evaluate()
    assert summed["eval_avg@2"] == 1.0
    named = make_trainer(tmp_path / "named", correctness_reward="contains_answer", **options).evaluate()
    assert named["eval_avg@2"] == 0.5
    assert named["eval_maj@2"] == 0.5
    assert named["eval_rewards/length/mean"] == 2.0


def test_several_data_sets_have_a_mean(tmp_path):
    tokenizer = tiny_tokenizer()
    right, wrong = chat_dataset([("1+1", [])]), chat_dataset([("3+3", [])]).to_iterable_dataset()
    trainer = make_trainer(
        tmp_path,
        eval_dataset={"easy": right, "hard": wrong},
        rollout_func=answering(tokenizer, {"1+1": ["2#2", "0"], "3+3": ["7"]}),
        num_generations_eval=2,
    )
    metrics = trainer.evaluate()
    assert (metrics["eval_easy_avg@2"], metrics["eval_hard_avg@2"], metrics["eval_avg@2"]) == (0.5, 0.0, 0.25)
    assert logged(trainer, "eval_avg@2") == [0.25]
    assert trainer.predict(right).metrics["test_avg@2"] == 0.5


def test_an_empty_or_missing_data_set_is_an_error(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match="give SRPOTrainer an eval_dataset"):
        trainer.evaluate()
    with pytest.raises(ValueError, match="eval_dataset has no rows"):
        trainer.evaluate(chat_dataset().select([]))


# ------------------------------------------------------------------ sampling


class StopError(Exception):
    pass


def sampling_state(trainer):
    return {
        "trainer": (trainer.temperature, trainer.top_p, trainer.num_generations_eval),
        "config": (trainer.generation_config.temperature, trainer.generation_config.top_p),
        "random": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize("fails", [False, True])
def test_evaluation_has_its_own_sampling_and_gives_trainings_back(tmp_path, monkeypatch, fails):
    def grader(completions, **kwargs):
        if fails:
            raise StopError
        return contains_answer(completions)

    trainer = sampling_trainer(
        tmp_path,
        reward_funcs=grader,
        temperature=1.3,
        top_p=0.9,
        eval_temperature=0.7,
        eval_top_p=0.8,
        generation_kwargs={"temperature": 1.3},
    )
    used = []
    generate = trainer.model.generate

    def spy(*args, **kwargs):
        used.append((kwargs["generation_config"].temperature, kwargs["generation_config"].top_p))
        return generate(*args, **kwargs)

    monkeypatch.setattr(trainer.model, "generate", spy)
    before = sampling_state(trainer)
    if fails:
        with pytest.raises(StopError):
            trainer.evaluate()
    else:
        trainer.evaluate()
    assert set(used) == {(0.7, 0.8)}
    assert sampling_state(trainer) == before
    used.clear()
    trainer.reward_funcs[0] = contains_answer
    trainer.train()
    assert set(used) == {(1.3, 0.9)}


class Engine:
    """Stands in for TRL's `VLLMGeneration`."""

    def __init__(self, ends_with):
        self.temperature, self.top_p = 1.0, 1.0
        self.generation_kwargs = {"temperature": 1.0, "stop": ["."]}
        self.calls = []
        self._ends_with = ends_with

    def generate(self, prompts, images, num_generations, profiler):
        self.calls.append(
            (len(prompts), num_generations, self.temperature, self.top_p, self.generation_kwargs)
        )
        ids = [[5, 6, self._ends_with] for _ in prompts]
        return prompts, ids, [[[-1.0]] * 3 for _ in prompts], None


def test_vllm_gets_the_same_parameters_in_one_call_and_no_pass_of_the_model(tmp_path, monkeypatch):
    trainer = sampling_trainer(tmp_path, eval_tokens_per_batch=20)
    engine = Engine(trainer.processing_class.eos_token_id)
    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, engine, 0
    trainer.vllm_importance_sampling_correction = True
    passes = []
    monkeypatch.setattr(trainer.model, "forward", lambda *a, **k: passes.append(1))
    trainer.evaluate()
    sampling = {"temperature": 0.6, "top_p": 0.95}
    assert engine.calls == [(12, 1, 0.6, 0.95, {"stop": ["."], **sampling})]
    assert passes == []
    assert (engine.temperature, engine.top_p) == (1.0, 1.0)
    assert engine.generation_kwargs == {"temperature": 1.0, "stop": ["."]}
    assert trainer.vllm_importance_sampling_correction


def test_no_pass_for_a_loss(tmp_path, monkeypatch):
    """Also where training would take log-probabilities of its rollouts."""
    tokenizer = tiny_tokenizer()
    trainer = make_trainer(
        tmp_path,
        eval_dataset=chat_dataset(),
        rollout_func=answering(tokenizer, ANSWERS),
        num_iterations=2,
    )
    passes = []
    monkeypatch.setattr(trainer.model, "forward", lambda *args, **kwargs: passes.append(1))
    trainer.evaluate()
    assert passes == []


def test_same_seed_same_samples(tmp_path):
    first = sampling_trainer(tmp_path / "first", eval_tokens_per_batch=40)
    first.evaluate()
    drawn = texts(first)
    assert len(drawn) == 12
    assert len(set(drawn)) > 4
    first.evaluate()
    assert texts(first) == drawn
    second = sampling_trainer(tmp_path / "second", eval_tokens_per_batch=40)
    torch.rand(7)
    second.evaluate()
    assert texts(second) == drawn
    third = sampling_trainer(tmp_path / "third", eval_tokens_per_batch=40, seed=7)
    third.evaluate()
    assert texts(third) != drawn


@pytest.mark.parametrize("method", ["srpo", "grpo"])
def test_evaluation_does_not_change_training(tmp_path, method):
    options = {"method": method, "max_steps": 3, "learning_rate": 0.05, "temperature": 1.2}
    options |= {"eval_temperature": 0.6, "scale_rewards": "none"}
    plain = sampling_trainer(tmp_path / "plain", **options)
    plain.train()
    evaluated = sampling_trainer(tmp_path / "evaluated", eval_strategy="steps", eval_steps=1, **options)
    evaluated.train()
    assert logged(evaluated, "loss") == logged(plain, "loss")
    assert len(logged(evaluated, "eval_avg@3")) == 3
    assert torch.equal(flat_parameters(evaluated.model), flat_parameters(plain.model))


def test_generation_that_leaves_training_mode_on_is_still_evaluation(tmp_path):
    """As continuous batches of transformers do."""
    tokenizer = tiny_tokenizer()
    answer = answering(tokenizer, ANSWERS)

    def rollout(prompts, trainer):
        rollouts = answer(prompts, trainer)
        trainer.model.train()
        return rollouts

    trainer = make_trainer(
        tmp_path, eval_dataset=chat_dataset(), rollout_func=rollout, eval_tokens_per_batch=100
    )
    metrics = trainer.evaluate()
    assert metrics["eval_questions"] == 4
    assert not trainer.model.training
    assert not any(name.startswith("srpo/") for name in trainer.state.log_history[-1])


def test_tool_output_is_not_the_models(tmp_path):
    """Of TRL's `env_mask`: 0 on tokens that the environment wrote."""
    tokenizer = tiny_tokenizer()
    answer = answering(tokenizer, ANSWERS)

    def rollout(prompts, trainer):
        rollouts = answer(prompts, trainer)
        masks = [[1, *[0] * (len(ids) - 1)] for ids in rollouts["completion_ids"]]
        return rollouts | {"env_mask": masks}

    metrics = make_trainer(tmp_path, eval_dataset=chat_dataset(), rollout_func=rollout).evaluate()
    assert metrics["eval_completions/max_length"] == 1
    assert metrics["eval_completions/clipped_ratio"] == 0.0


# ------------------------------------------------------------------ the best checkpoint


def step_folders(run):
    return sorted(folder.name for folder in run.glob("checkpoint-*"))


def saved_weights(folder):
    return load_file(folder / "model.safetensors")


def test_best_checkpoint_is_kept_and_loaded(tmp_path):
    trainer = peaking_trainer(tmp_path, best_step=2)
    trainer.train()
    assert trainer.args.metric_for_best_model == "eval_avg@3"
    assert logged(trainer, "eval_avg@3") == [0.0, 1.0, 0.0, 0.0]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    last = tmp_path / f"checkpoint-{trainer.state.global_step}"
    assert trainer.args.save_total_limit == 1
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", last.name}
    assert trainer.state.global_step > 2  # a run goes on from its end, whatever was best
    assert "checkpoint-2" in step_folders(tmp_path)
    best = saved_weights(tmp_path / "checkpoint-2")
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(best[name], parameter), name


def test_best_checkpoint_outlives_a_resume(tmp_path):
    run = tmp_path / "run"
    peaking_trainer(run, best_step=1, max_steps=2, save_total_limit=2).train()
    assert step_folders(run) == ["checkpoint-1", "checkpoint-2"]
    moved = tmp_path / "moved"
    shutil.move(run, moved)
    resumed = peaking_trainer(moved, best_step=1, max_steps=5, save_total_limit=2)
    resumed.train(resume_from_checkpoint=str(moved / "checkpoint-2"))
    assert resumed.state.best_metric == 1.0
    assert resumed.state.best_model_checkpoint == str(moved / "checkpoint-1")
    assert step_folders(moved) == ["checkpoint-1", "checkpoint-5"]
    recorded = json.loads((moved / "checkpoint-5" / "trainer_state.json").read_text(encoding="utf-8"))
    assert recorded["best_model_checkpoint"] == str(moved / "checkpoint-1")


def test_save_strategy_best_saves_the_best_only(tmp_path):
    trainer = peaking_trainer(
        tmp_path, best_step=3, save_strategy="best", save_total_limit=None, load_best_model_at_end=False
    )
    trainer.train()
    assert step_folders(tmp_path) == ["checkpoint-1", "checkpoint-3"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-3")


# ------------------------------------------------------------------ options


def test_defaults_are_the_papers(tmp_path):
    args = config(tmp_path, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=5)
    assert (args.num_generations_eval, args.eval_temperature, args.eval_top_p) == (16, 0.6, 0.95)
    assert args.metric_for_best_model == "eval_avg@16"
    assert args.greater_is_better
    assert args.per_device_eval_batch_size == 16
    assert config(tmp_path).metric_for_best_model is None
    own = config(tmp_path, eval_strategy="steps", eval_steps=1, metric_for_best_model="eval_maj@16")
    assert own.metric_for_best_model == "eval_maj@16"


def test_wrong_options_are_reported_together(tmp_path):
    with pytest.raises(ValueError) as error:
        config(
            tmp_path,
            num_generations_eval=-1,
            eval_strategy="steps",
            eval_temperature=0.0,
            eval_top_p=1.5,
            eval_tokens_per_batch=0,
        )
    for part in (
        "num_generations_eval=-1 must be a whole number or None, at least 0.",
        "eval_temperature=0.0 must be a number or None, at least 0.0001 and at most 10000.",
        "eval_top_p=1.5 must be a number or None, above 0 and at most 1.",
        "eval_tokens_per_batch=0 must be a whole number or None, at least 1.",
    ):
        assert part in str(error.value)


# ------------------------------------------------------------------ two processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(HERE / "evaluation_runs.py"), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    found = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    return folder, found


@pytest.mark.slow
def test_two_processes_count_every_sample_once(ranks, tmp_path):
    """Nine samples on two processes: one of the ten that are drawn is padding."""
    _, found = ranks
    alone = scores_of_alike(tmp_path, num_samples=3)
    assert [question for question, _, _ in alone["samples"]] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert {text for _, text, _ in alone["samples"]} == {answer for _, answer in ALIKE}
    assert alone["metrics"]["eval_avg@3"] == 0.5
    unlike = ("runtime", "per_second", "preparation_time")
    for rank in found:
        assert rank["uneven"]["samples"] == alone["samples"]
        expected = {k: v for k, v in alone["metrics"].items() if not k.endswith(unlike)}
        metrics = {k: v for k, v in rank["uneven"]["metrics"].items() if not k.endswith(unlike)}
        assert metrics == pytest.approx(expected)


@pytest.mark.slow
def test_two_processes_end_with_the_same_best_checkpoint(ranks):
    folder, found = ranks
    for rank in found:
        assert rank["peak"]["best"] == str(folder / "peak" / "checkpoint-2")
    assert torch.equal(found[0]["peak"]["weights"], found[1]["peak"]["weights"])
    assert "checkpoint-2" in step_folders(folder / "peak")
