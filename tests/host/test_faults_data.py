"""Datasets, prompts and completions at their edges: refused when the trainer is made, or trained as they should be."""

import functools
import types

import pytest
import torch
from datasets import Dataset

from harness import (
    NUM_GENERATIONS,
    ROLLOUTS,
    chat_dataset,
    config,
    contains_answer,
    flat_parameters,
    logged,
    make_trainer,
    relative_error,
    replay,
    tiny_model,
    tiny_tokenizer,
    update,
)
from srpo_trl.host.datasets import context_problems, max_prompt_length
from srpo_trl.methods.record import Route

TOKENIZER = tiny_tokenizer()
SAMPLED = {"rollout_func": None}  # TRL itself generates
ANSWERS = {"answer": ["2", "4", "6", "8"]}


# ------------------------------------------------------------------ columns and rows


def needs_answer(completions, answer, **kwargs):
    return contains_answer(completions)


def takes_no_more(prompts, completions, completion_ids, trainer_state, log_extra, log_metric):
    return contains_answer(completions)


class NeedsGold:
    def __call__(self, completions, gold, **kwargs):
        return contains_answer(completions)


async def needs_style(completions, *, style, **kwargs):
    return contains_answer(completions)


def questions():
    return Dataset.from_dict({"question": ["1+1", "2+2", "3+3", "4+4"]})


REFUSED = {
    "no prompts": ({"train_dataset": questions()}, ["train_dataset has no column 'prompt'", "'question'"]),
    "no prompts in a stream": ({"train_dataset": questions().to_iterable_dataset()}, ["no column 'prompt'"]),
    "no column for a function": (
        {"reward_funcs": needs_answer},
        ["'needs_answer' cannot be called on train_dataset: missing a required argument: 'answer'"],
    ),
    "no column for an object": ({"reward_funcs": NeedsGold()}, ["'NeedsGold'", "'gold'"]),
    "no column for an async function": ({"reward_funcs": [contains_answer, needs_style]}, ["'style'"]),
    "no column for a partial function": (
        {"reward_funcs": functools.partial(needs_answer, style=1)},
        ["'needs_answer'", "'answer'"],
    ),
    "a column that a function does not take": (
        {"reward_funcs": takes_no_more, "train_dataset": chat_dataset(**ANSWERS)},
        ["'takes_no_more'", "got an unexpected keyword argument 'answer'"],
    ),
    "a column that is dropped": (
        {
            "reward_funcs": needs_answer,
            "train_dataset": chat_dataset(**ANSWERS),
            "remove_unused_columns": True,
        },
        ["missing a required argument: 'answer'", "remove_unused_columns=False"],
    ),
    "no column for evaluation": (
        {
            "reward_funcs": needs_answer,
            "train_dataset": chat_dataset(**ANSWERS),
            "eval_dataset": {"held out": chat_dataset()},
        },
        ["cannot be called on eval_dataset['held out']"],
    ),
    "several at once": (
        {"train_dataset": questions(), "reward_funcs": needs_answer},
        ["no column 'prompt'", "'answer'"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_datasets_that_do_not_fit_are_refused_before_the_model_is_loaded(tmp_path, case):
    options, messages = REFUSED[case]
    with pytest.raises(ValueError) as error:
        make_trainer(tmp_path, model="no/such-model", **(SAMPLED | options))
    assert all(message in str(error.value) for message in messages), str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        dict.fromkeys(["train_dataset", "eval_dataset"], chat_dataset(**ANSWERS)) | {"reward_funcs": needs_answer},
        {"reward_funcs": takes_no_more},
        {"reward_funcs": takes_no_more, "train_dataset": chat_dataset(**ANSWERS), "remove_unused_columns": True},
        {"reward_funcs": functools.partial(needs_answer, answer=None)},
        {"reward_funcs": needs_answer, "rollout_func": replay(TOKENIZER)},  # it may bring the column
        {"train_dataset": chat_dataset().to_iterable_dataset()},
        {
            "train_dataset": chat_dataset(**ANSWERS),
            "eval_dataset": chat_dataset(),  # evaluation has no teacher
            "reference_column": "answer",
            "teacher_context": ["reference"],
        },
    ],
)  # fmt: skip
def test_datasets_that_fit_are_taken(tmp_path, options):
    make_trainer(tmp_path, **(SAMPLED | options))


@pytest.mark.parametrize(
    "options", [{"num_generations": 3}, {"num_generations": 32}, {"num_generations": 1}], ids=str
)
def test_a_group_size_that_does_not_divide_is_refused(tmp_path, options):
    with pytest.raises(ValueError, match=r"divisible by num_generations|num_generations=1 must be"):
        config(tmp_path, **options)


def test_too_few_rows_to_train_on_are_refused_before_the_first_batch(tmp_path):
    """Evaluation alone needs none."""
    rows = chat_dataset(ROLLOUTS[:3])
    trainer = make_trainer(tmp_path, train_dataset=rows, eval_dataset=rows, **SAMPLED)
    trainer.evaluate()
    with pytest.raises(
        ValueError, match="train_dataset has 3 rows, fewer than the 4 prompts of one rollout batch"
    ):
        trainer.train()


def test_a_row_without_a_prompt_is_named(tmp_path):
    """A stream is not looked through beforehand: there such a row is left out when it comes."""
    dataset = Dataset.from_dict({"prompt": ["1+1", None, "3+3", "4+4"]})
    with pytest.raises(ValueError, match="train_dataset has no prompt in 1 of its rows, row 1 first"):
        make_trainer(tmp_path, train_dataset=dataset, **SAMPLED)
    trainer = make_trainer(tmp_path, train_dataset=dataset.to_iterable_dataset(), **SAMPLED)
    trainer.train()
    assert logged(trainer, "rows/excluded_frac") == [0.25]


def test_groups_of_the_same_prompt_never_mix(tmp_path):
    """Each failed rollout is shown the right one of its own group, and advantages are those of its own group."""
    texts = [
        *("2#2", "33", "0", "4;4"),
        *("wrong", "5", "2#2#2", "6;6"),
        *("7", "8", "9", "7;7"),
        *("1;1", "2", "3", "4"),
    ]
    dataset = chat_dataset([("1+1", [])] * 4)

    def rollouts(prompts, trainer):
        prompt = TOKENIZER.apply_chat_template(prompts[0], add_generation_prompt=True)["input_ids"]
        completions = [[*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id] for text in texts]
        return {"prompt_ids": [prompt] * 16, "completion_ids": completions, "logprobs": None}

    trainer = make_trainer(tmp_path, train_dataset=dataset, rollout_func=rollouts)
    seen = {}
    original = trainer._score

    def score(output, routed):
        prompts = [prompt and TOKENIZER.decode(list(prompt.ids)) for prompt in routed.teacher_prompts]
        seen.update(prompts=prompts, routes=routed.route_B.tolist(), advantages=output["advantages"].tolist())
        return original(output, routed)

    trainer._score = score
    trainer.train()
    assert seen["routes"] == [
        Route.POLICY,
        *[Route.DISTILLED] * 5,
        Route.POLICY,
        Route.DISTILLED,
        *[Route.POLICY] * 8,
    ]
    for row, own in ((1, "2#2"), (2, "2#2"), (3, "2#2"), (4, "2#2#2"), (5, "2#2#2"), (7, "2#2#2")):
        assert f"Correct solution:\n\n{own}\n\n" in seen["prompts"][row]
    assert seen["advantages"] == pytest.approx([0.75, *[-0.25] * 5, 0.75, -0.25, *[0.0] * 8])


# ------------------------------------------------------------------ tokenizers


def without_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


def test_conversations_need_a_chat_template_when_the_trainer_is_made(tmp_path):
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        make_trainer(tmp_path, processing_class=without_template(), **SAMPLED)


def test_plain_text_needs_no_chat_template(tmp_path):
    rollouts = [(f"{prompt}=", answers) for prompt, answers in ROLLOUTS]
    dataset = Dataset.from_dict({"prompt": [prompt for prompt, _ in rollouts]})
    tokenizer = without_template()
    options = {"train_dataset": dataset, "rollout_func": replay(tokenizer, rollouts)}
    trainer = make_trainer(tmp_path, processing_class=tokenizer, **options)
    assert update(trainer).any()
    assert logged(trainer, "srpo/route/distilled_frac")[0] > 0


def test_padding_with_the_end_token_changes_nothing(tmp_path):
    tokenizer = tiny_tokenizer()
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    apart = update(make_trainer(tmp_path, mask_truncated_completions=True))
    tokenizer.pad_token = tokenizer.eos_token
    trainer = make_trainer(tmp_path, mask_truncated_completions=True, processing_class=tokenizer)
    batches = []
    original = trainer._compute_loss

    def compute(model, inputs):
        batches.append(inputs)
        return original(model, inputs)

    trainer._compute_loss = compute
    assert relative_error(update(trainer), apart) < 1e-6
    lengths = {len(TOKENIZER(answer)["input_ids"]) + 1 for _, answers in ROLLOUTS for answer in answers}
    assert (
        set(batches[0]["completion_mask"].sum(1).tolist()) == lengths
    )  # the end token counts, padding does not
    sampled = make_trainer(tmp_path, processing_class=tokenizer, max_steps=2, **SAMPLED)
    sampled.train()
    assert torch.isfinite(flat_parameters(sampled.model)).all()


# ------------------------------------------------------------------ lengths


def test_a_context_without_room_for_a_prompt_is_refused_when_the_trainer_is_made(tmp_path):
    model = tiny_model(max_position_embeddings=16)
    with pytest.raises(ValueError, match="no room for a prompt in the model's context of 16 tokens"):
        make_trainer(tmp_path, model=model, max_completion_length=16)
    make_trainer(tmp_path, model=model, max_completion_length=15)


def test_a_prompt_longer_than_the_context_is_refused_with_the_limit_when_the_trainer_is_made(tmp_path):
    model = tiny_model(max_position_embeddings=24)
    questions = ["1", "2", "3;3;3;3", "4"]
    length = len(TOKENIZER(questions[2])["input_ids"])
    given = {"model": model, "train_dataset": Dataset.from_dict({"prompt": questions}), **SAMPLED}
    with pytest.raises(ValueError, match=f"Drop prompts of more than {length - 1} tokens") as error:
        make_trainer(tmp_path, max_completion_length=25 - length, **given)
    assert f"A prompt of {length} tokens (row 2 of train_dataset" in str(error.value)
    make_trainer(tmp_path, max_completion_length=24 - length, **given).train()


def text_config(**values):
    made = types.SimpleNamespace(**values)
    made.get_text_config = lambda: made
    return made


@pytest.mark.parametrize(
    ("values", "room"),
    [
        ({}, None),
        ({"max_position_embeddings": 100}, 90),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 90),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 190),
        (  # YaRN as Qwen3 documents it: the configured maximum is not the stretched one
            {
                "max_position_embeddings": 125,
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100},
            },
            390,
        ),
        (  # Llama 3.1: it is
            {
                "max_position_embeddings": 1000,
                "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64},
            },
            990,
        ),
        (
            {
                "max_position_embeddings": 100,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0},
                    "sliding_attention": {"rope_type": "default"},
                },
            },
            790,
        ),
    ],
)  # fmt: skip
def test_stretched_rotary_embeddings_count(values, room):
    assert max_prompt_length(text_config(**values), 10) == room
    assert list(context_problems(text_config(**values), 10)) == []
    assert max_prompt_length(text_config(**values), None) == (room and room + 10)


def test_teacher_prompt_and_rollout_fit_into_the_context(tmp_path):
    """A demonstration longer than the context is cut to what is left beside the longest completion."""
    rollouts = (("1+1", ["2#" + "2" * 60, "33;12", "0", "4;4"]), ROLLOUTS[1])
    context, longest = 120, 66
    trainer = make_trainer(
        tmp_path,
        model=tiny_model(max_position_embeddings=context),
        max_completion_length=longest,
        per_device_train_batch_size=8,
        train_dataset=chat_dataset(rollouts),
        rollout_func=replay(TOKENIZER, rollouts),
    )
    lengths = []
    original = trainer._score

    def score(output, routed):
        lengths.extend(len(prompt.ids) for prompt in routed.teacher_prompts if prompt)
        return original(output, routed)

    trainer._score = score
    assert update(trainer).any()
    assert max(lengths) == context - longest
    assert logged(trainer, "srpo/teacher/prompts_cut_frac")[0] > 0


# ------------------------------------------------------------------ completions


def altered(alter):
    """The given rollouts with their output altered in place."""

    def rollout(prompts, trainer):
        output = replay(TOKENIZER)(prompts, trainer)
        alter(output)
        return output

    return rollout


def emptied(rows, logprobs=False):
    def alter(output):
        if logprobs:
            output["logprobs"] = [[-1.0] * len(ids) for ids in output["completion_ids"]]
        for row in rows:
            output["completion_ids"][row] = []
            if logprobs:
                output["logprobs"][row] = []

    return altered(alter)


def unmasked(rows):
    """One end token in these rows, which counts in no loss."""

    def alter(output):
        for row in rows:
            output["completion_ids"][row] = [TOKENIZER.eos_token_id]
        output["env_mask"] = [
            [int(row not in rows)] * len(ids) for row, ids in enumerate(output["completion_ids"])
        ]

    return altered(alter)


@pytest.mark.parametrize("method", ["srpo", "grpo", "advantage_mix"])
@pytest.mark.parametrize("logprobs", [False, True])
def test_an_empty_completion_is_an_end_token_that_nothing_is_trained_on(tmp_path, method, logprobs):
    rows = (0, 2, 5, 9)  # a right one and failed ones
    empty = make_trainer(tmp_path, method=method, rollout_func=emptied(rows, logprobs))
    expected = update(make_trainer(tmp_path, method=method, rollout_func=unmasked(rows)))
    assert expected.any()
    assert relative_error(update(empty), expected) < 1e-6
    assert logged(empty, "completions/min_length") == [0.0]


@pytest.mark.parametrize("method", ["srpo", "sdpo", "advantage_mix"])
def test_a_batch_of_empty_completions_changes_nothing(tmp_path, method):
    trainer = make_trainer(tmp_path, method=method, rollout_func=emptied(range(16)))
    assert not update(trainer).any()
    assert logged(trainer, "loss") == [0.0]


@pytest.mark.parametrize("method", ["srpo", "sdpo", "advantage_mix"])
@pytest.mark.parametrize("rows", [(1, 6), range(16)], ids=["some", "all"])
@pytest.mark.parametrize("layout", [{}, {"teacher_tokens_per_pass": 1}], ids=["shared prompts", "one by one"])
def test_completions_of_one_token_train(tmp_path, method, rows, layout):
    def alter(output):
        for row in rows:
            output["completion_ids"][row] = output["completion_ids"][row][:1]

    def grade(completion_ids, **kwargs):
        return [float(row % NUM_GENERATIONS == 0) for row in range(len(completion_ids))]

    options = {"method": method, "reward_funcs": grade, **layout}
    trainer = make_trainer(tmp_path, rollout_func=altered(alter), **options)
    change = update(trainer)
    assert change.any()
    assert torch.isfinite(change).all()
    assert logged(trainer, "srpo/distillation/divergence")[0] > 0
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    assert (
        relative_error(
            update(make_trainer(tmp_path, rollout_func=altered(alter), **options, **split)), change
        )
        < 1e-5
    )


@pytest.mark.parametrize("method", ["srpo", "sdpo", "advantage_mix", "grpo"])
@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "vespo"])
def test_a_batch_of_truncated_completions_alone_changes_nothing(tmp_path, method, loss_type):
    """No valid token at all: no division by zero, a loss of 0."""

    def alter(output):
        output["completion_ids"] = [ids[:-1] or ids for ids in output["completion_ids"]]
        assert not any(TOKENIZER.eos_token_id in ids for ids in output["completion_ids"])

    options = {"loss_type": loss_type, "epsilon_high": 5.0, "mask_truncated_completions": True}
    trainer = make_trainer(tmp_path, method=method, rollout_func=altered(alter), **options)
    assert not update(trainer).any()
    assert logged(trainer, "loss") == [0.0]
    assert logged(trainer, "completions/clipped_ratio") == [1.0]
    if method != "grpo":
        assert "srpo/teacher/entropy" not in trainer.state.log_history[0]
