"""What a trainer is called with, bound and checked before there is a trainer."""

import inspect

import pytest
import torch
from trl import GRPOTrainer

from harness import chat_dataset, config, contains_answer, tiny_model
from srpo_trl import SRPOTrainer
from srpo_trl.host import arguments
from srpo_trl.host.arguments import bound_arguments, correctness_problems


def test_the_signature_is_grpo_trainers():
    assert inspect.signature(SRPOTrainer) == inspect.signature(GRPOTrainer)


def test_positions_keywords_and_defaults_are_bound_by_name(tmp_path):
    model, args = tiny_model(), config(tmp_path)
    bound = bound_arguments((model, contains_answer), {"args": args, "train_dataset": chat_dataset()})
    assert list(bound) == list(inspect.signature(GRPOTrainer).parameters)
    assert (bound["model"], bound["reward_funcs"], bound["args"]) == (model, contains_answer, args)
    assert (bound["optimizers"], bound["tools"]) == ((None, None), None)


@pytest.mark.parametrize(
    ("args", "keywords", "message"),
    [
        ((), {}, "missing a required argument: 'model'"),
        (("m",), {"reward_function": 1}, "got an unexpected keyword argument 'reward_function'"),
        (("m",), {"args": {}}, r"args is a dict; SRPOTrainer needs an srpo_trl\.SRPOConfig"),
    ],
)
def test_what_is_no_call_is_refused(args, keywords, message):
    with pytest.raises(TypeError, match=message):
        bound_arguments(args, keywords)


WRONG = {
    "model": (7, "model is of type int; give a hub id, a local folder, or a transformers model."),
    "reward_funcs": ([7], "reward_funcs holds something of type int; give a function, a reward model"),
    "train_dataset": ({"train": []}, "train_dataset is of type dict; give a datasets.Dataset or IterableDataset, one"),
    "eval_dataset": ({"a": 7}, "eval_dataset['a'] is of type int; give a datasets.Dataset, or a dictionary"),
    "processing_class": (7, "processing_class is of type int; give a tokenizer or a processor."),
    "callbacks": ([int], "must be a list of transformers.TrainerCallback objects."),
    "peft_config": (7, "peft_config is of type int; give a peft.PeftConfig, peft.LoraConfig for one."),
    "tools": (contains_answer, "must be a list of functions."),
    "rollout_func": (7, "rollout_func is of type int; give a function."),
    "environment_factory": ({}, "environment_factory={} must be a function, or a dictionary of at least one."),
}  # fmt: skip


def test_wrong_arguments_are_told_together():
    given = {name: value for name, (value, _) in WRONG.items()}
    with pytest.raises(ValueError, match=r"SRPOTrainer has 10 wrong argument\(s\)") as error:
        bound_arguments((), given)
    assert all(message in str(error.value) for _, message in WRONG.values()), str(error.value)


def test_arguments_that_do_not_fit_together_are_told_together(tmp_path):
    args = config(
        tmp_path,
        correctness_reward="judge",
        reference_column="answer",
        remove_unused_columns=True,
        resample_failed_frac=0.5,
        teacher_context=["reference"],
    )
    rows = chat_dataset().to_iterable_dataset()
    with pytest.raises(ValueError) as error:
        bound_arguments(("m", contains_answer, args, rows), {})
    for message in (
        "correctness_reward='judge' must name exactly one reward function; the trainer has 'contains_answer'.",
        "reference_column='answer' is not a column of train_dataset",
        "remove_unused_columns=True would drop reference_column='answer'",
        "resample_failed_frac=0.5 needs a dataset whose rows can be looked up, not an IterableDataset",
    ):
        assert message in str(error.value)


def test_the_reward_that_decides_is_named_once():
    assert not list(correctness_problems(None, [])) + list(correctness_problems("a", ["a", "b"]))
    assert "the trainer has 'a', 'a'." in next(correctness_problems("a", ["a", "a"]))
    assert "the trainer has none." in next(correctness_problems("a", []))


# --- A GPU that emulates bfloat16 ---


@pytest.fixture
def said_on(tmp_path, monkeypatch, caplog):
    """What binding the arguments says twice on a device of the given capability."""

    def said(capability, device="cuda:0", process_index=0, **options):
        args = config(tmp_path, **options)
        for name, value in {"device": torch.device(device), "process_index": process_index}.items():
            monkeypatch.setattr(type(args), name, value)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
        arguments._warn_of_slow_bfloat16.cache_clear()
        for _ in range(2):
            bound_arguments(("a model that is not loaded", contains_answer, args, chat_dataset()), {})
        return [record.message for record in caplog.records]

    yield said
    arguments._warn_of_slow_bfloat16.cache_clear()


def test_emulated_bfloat16_is_told_once_with_the_remedy(said_on):
    (message,) = said_on((7, 5), bf16=True)
    assert "Tesla T4 (compute capability 7.5)" in message
    assert message.endswith("Set bf16=False, fp16=True.")


@pytest.mark.parametrize(
    "case",
    [
        {"capability": (8, 0), "bf16": True},
        {"capability": (7, 5), "bf16": False},
        {"capability": (7, 5), "bf16": True, "device": "cpu"},
        {"capability": (7, 5), "bf16": True, "process_index": 1},
    ],
    ids=["Ampere", "float32", "CPU", "another process"],
)
def test_nothing_is_told_where_bfloat16_is_not_emulated(said_on, case):
    assert not said_on(**case)
