"""Rows of datasets: refused when the trainer is made as far as they can be seen then; later none of them ends a run."""

import numpy as np
import pytest
import torch
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    LargeList,
    Value,
    concatenate_datasets,
)

from harness import (
    ROLLOUTS,
    chat_dataset,
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
from srpo_trl.host.datasets import environment_problems
from srpo_trl.host.rows import first_row, image_rows, prompt_shapes

TOKENIZER = tiny_tokenizer()
SAMPLED = {"rollout_func": None}  # TRL itself generates


def user(text):
    return [{"role": "user", "content": text}]


def system(text):
    return [{"role": "system", "content": text}]


def chats(*prompts, **columns):
    return Dataset.from_dict({"prompt": list(prompts), **columns})


def stream(*rows):
    """A dataset whose rows are seen one by one, and can be anything."""
    return IterableDataset.from_generator(lambda: iter(rows))


def prompt_stream(*prompts):
    return stream(*({"prompt": prompt} for prompt in prompts))


def odd_rewards(completions, **kwargs):
    return [float(row % 2) for row in range(len(completions))]


# ------------------------------------------------------------------ what a row holds is what indexing gives


def from_question(batch):
    return {"prompt": list(map(user, batch["question"]))}


def questions():
    return Dataset.from_dict({"question": [prompt for prompt, _ in ROLLOUTS]})


AS_A_TABLE = {
    "transform": lambda: questions().with_transform(from_question),
    "transform over a column of that name": lambda: (
        questions().add_column("prompt", [None] * 4).with_transform(from_question)
    ),
    "torch": lambda: chat_dataset(number=[1, 2, 3, 4]).with_format("torch"),
    "stream": lambda: questions().to_iterable_dataset().map(from_question, batched=True),
    "torch stream": lambda: chat_dataset().to_iterable_dataset().with_format("torch"),
    "concatenated": lambda: concatenate_datasets(
        [chat_dataset(ROLLOUTS[i : i + 1]) for i in (2, 0, 3, 1)]
    ).select([1, 3, 0, 2]),
    "large lists": lambda: chat_dataset().cast(
        Features(prompt=LargeList({"role": Value("large_string"), "content": Value("large_string")}))
    ),
}


@pytest.mark.parametrize("method", ["srpo", "grpo"])
@pytest.mark.parametrize("kind", AS_A_TABLE)
def test_rows_train_alike_however_a_dataset_gives_them(tmp_path, kind, method):
    options = {"method": method, "reward_funcs": contains_answer}
    expected = update(make_trainer(tmp_path, **options))
    assert torch.equal(update(make_trainer(tmp_path, train_dataset=AS_A_TABLE[kind](), **options)), expected)


WRONG_ROWS = {
    "transform without prompts": (
        {"train_dataset": questions().with_transform(lambda batch: {"text": batch["question"]})},
        "no column 'prompt'; its columns are 'text'",
    ),
    "stream without prompts": (
        {"train_dataset": questions().to_iterable_dataset().map(lambda row: {"text": 1})},
        "no column 'prompt'; its columns are 'question', 'text'",
    ),
    "transform of columns that are dropped": (
        {"train_dataset": AS_A_TABLE["transform"](), "remove_unused_columns": True},
        "its columns are none",
    ),
    "transform of some columns that are dropped": (
        {
            "train_dataset": AS_A_TABLE["transform over a column of that name"](),
            "remove_unused_columns": True,
        },
        "The first row of train_dataset cannot be read: 'question'. With remove_unused_columns=True",
    ),
    "format of some columns": (
        {"train_dataset": chat_dataset(number=[1] * 4).with_format("torch", columns=["number"])},
        "no column 'prompt'; its columns are 'number'",
    ),
    "arrays": ({"train_dataset": chat_dataset().with_format("numpy")}, "prompts are given as ndarray"),
    "tables": ({"train_dataset": chat_dataset().with_format("arrow")}, "train_dataset gives tables"),
    "prompts of a transform": (
        {"train_dataset": questions().with_transform(lambda batch: {"prompt": [{"a": 1}] * len(batch["question"])})},
        "prompts are given as dict; give texts",
    ),
    "lists of texts": (
        {"train_dataset": questions().with_transform(lambda batch: {"prompt": [["a"]] * len(batch["question"])})},
        "prompts are given as list of str; give texts",
    ),
    "reference of a transform": (
        {
            "train_dataset": AS_A_TABLE["transform"](),
            "reference_column": "question",
            "teacher_context": ["reference"],
        },
        "reference_column='question' is not a column of train_dataset, which has 'prompt'",
    ),
    "column of a reward function": (
        {"train_dataset": AS_A_TABLE["transform"](), "reward_funcs": lambda completions, question, **kwargs: []},
        "missing a required argument: 'question'",
    ),
    "a column that is passed twice": (
        {"train_dataset": chat_dataset(completions=["a"] * 4)},
        "train_dataset has the column(s) completions",
    ),
    "evaluation": (
        {"eval_dataset": {"one": questions().with_transform(lambda batch: {"text": batch["question"]})}},
        "eval_dataset['one'] has no column 'prompt'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_rows_that_do_not_fit_are_refused_before_the_model_is_loaded(tmp_path, case):
    options, message = WRONG_ROWS[case]
    with pytest.raises(ValueError) as error:
        make_trainer(tmp_path, model="no/such-model", **(SAMPLED | options))
    assert message in str(error.value)


def test_first_row_of_a_stream_is_read_and_given_back():
    dataset = prompt_stream("a", "b")
    assert first_row(dataset, drops_unused=False) == {"prompt": "a"}
    assert [row["prompt"] for row in dataset] == ["a", "b"]
    assert first_row(chat_dataset().select([]), drops_unused=False) is None
    assert list(first_row(chat_dataset(answer=["1"] * 4), drops_unused=True)) == ["prompt"]


# ------------------------------------------------------------------ refused by row


REFUSES = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)
REFUSED = {
    "empty text": (
        ["1", "", "3", ""], {}, "train_dataset has 2 row(s) whose prompt cannot be sampled for, row 1 first (it has no"
    ),
    "a message without content": (
        [user("1"), user(None), user("3"), user(None)],
        {},
        "2 row(s) whose prompt cannot be sampled for, row 1 first (",
    ),
    "a role that the template refuses": (
        [user("1"), user("2"), [*system("a"), *user("3")], user("4")],
        {"chat_template": REFUSES},
        "1 row(s) whose prompt cannot be sampled for, row 2 first (TemplateError: No system)",
    ),
    "longer than the context": (
        ["1", "2", "3" + ";3" * 300, "3" + ";3" * 400],
        {},
        "A prompt of 601 tokens (row 2 of train_dataset, the first of 2 that are too long)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_cannot_be_sampled_for_are_refused_by_row(tmp_path, case):
    prompts, options, message = REFUSED[case]
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = options.get("chat_template", tokenizer.chat_template)
    options = {"processing_class": tokenizer, "train_dataset": chats(*prompts), **SAMPLED}
    with pytest.raises(ValueError) as error:
        make_trainer(tmp_path, **options)
    assert message in str(error.value)


def test_rows_of_evaluation_are_looked_at_too(tmp_path):
    rows = DatasetDict(a=chats("1", "2"), b=chats("1", ""))
    with pytest.raises(
        ValueError, match=r"eval_dataset\['b'\] has 1 row\(s\) whose prompt cannot be sampled"
    ):
        make_trainer(tmp_path, train_dataset=chats("1", "2", "3", "4"), eval_dataset=rows, **SAMPLED)


def test_an_empty_text_is_a_prompt_where_the_tokenizer_begins_it(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", tokenizer.convert_tokens_to_ids("<|user|>"))]
    )
    make_trainer(tmp_path, processing_class=tokenizer, train_dataset=chats("", "1", "2", "3"), **SAMPLED)


def test_a_rollout_func_looks_after_its_prompts(tmp_path):
    make_trainer(tmp_path, train_dataset=chats("", "1", "2", "3"))


def test_shapes_of_prompts_tell_apart_what_a_template_may_refuse():
    rows = chats(user("ab"), [*system("é"), *user(None)], user("c"), None, [])
    shapes = prompt_shapes(rows)
    assert shapes.first == {"user": 0, "system, user without content": 1, "": 3}
    assert shapes.count == {"user": 2, "system, user without content": 1, "": 2}
    assert shapes.num_bytes.tolist() == [2, 2, 1, 0, 0]
    assert prompt_shapes(rows.select([2, 1])).first == {"user": 0, "system, user without content": 1}
    texts = prompt_shapes(chats("a", " ", "bc", "", " "))
    assert (texts.first, texts.count) == ({"text": 0, " ": 1, "": 3}, {"text": 2, " ": 2, "": 1})
    parts = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    assert prompt_shapes(chats(parts, parts)).first == {"user": 0}
    many = Dataset.from_dict({"prompt": [user("a")] * 5000 + [system("b")]})
    assert prompt_shapes(many).first == {"user": 0, "system": 5000}
    assert np.array_equal(prompt_shapes(many).num_bytes, np.ones(5001))


# ------------------------------------------------------------------ images that are none


@pytest.mark.parametrize("method", ["srpo", "grpo"])
@pytest.mark.parametrize(
    "columns", [{"image": [None] * 4}, {"images": [None, [], None, []]}, {"images": [[]] * 4}], ids=str
)
def test_empty_columns_of_images_change_nothing_for_a_text_model(tmp_path, columns, method):
    """A reward function is still given them."""
    seen = []

    def grade(completions, **given):
        seen.append(given.get(next(iter(columns))))
        return odd_rewards(completions)

    options = {"method": method, "max_steps": 2, **SAMPLED}
    plain = make_trainer(tmp_path, reward_funcs=odd_rewards, train_dataset=chat_dataset(), **options)
    expected = update(plain)
    rows = chat_dataset(**columns)
    assert torch.equal(
        update(make_trainer(tmp_path, reward_funcs=grade, train_dataset=rows, **options)), expected
    )
    assert [len(values) for values in seen] == [16, 16]


def test_images_for_a_text_model_are_refused_by_column(tmp_path):
    rows = chat_dataset(image=[None, "a.png", None, "b.png"])
    message = "train_dataset has something in its column 'image' in 2 row.s., row 1 first"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, train_dataset=rows, **SAMPLED)
    assert image_rows(chat_dataset(images=[[], None, ["x"], []]), "images") == (1, 2)
    assert image_rows(rows.select([0, 2]), "image") == (0, -1)


# ------------------------------------------------------------------ rows without a user turn


def test_rows_without_a_user_turn_train_by_grpo(tmp_path):
    """As `GRPOTrainer` trains them; those that would have had a teacher are counted."""
    rows = chats(*(system(prompt) for prompt, _ in ROLLOUTS))
    with pytest.warns(
        UserWarning, match="The first prompt of train_dataset has no user turn; its roles are 'system'"
    ):
        trainer = make_trainer(tmp_path, train_dataset=rows, reward_funcs=odd_rewards)
    change = update(trainer)
    assert change.any()
    assert logged(trainer, "srpo/teacher/prompts_without_turn") == [8.0]
    assert logged(trainer, "srpo/teacher/prompts_too_long") == [0.0]
    policy = {"method": "grpo", "scale_rewards": "none", "epsilon_high": 0.28}
    expected = update(make_trainer(tmp_path, train_dataset=rows, reward_funcs=odd_rewards, **policy))
    assert relative_error(change, expected) < 1e-6


def test_a_template_without_the_users_text_is_refused_when_the_trainer_is_made(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="does not render the text of the last user turn exactly once"):
        make_trainer(tmp_path, processing_class=tokenizer, **SAMPLED)
    make_trainer(tmp_path, processing_class=tokenizer, method="grpo", **SAMPLED)


def test_rendered_prompts_that_are_not_recognized_are_warned_of(tmp_path):
    rows = chats(*["<|user|>1+1"] * 4)
    with pytest.warns(
        UserWarning, match=r"text with the marker\(s\) <\|user\|>, but not as the tokenizer's chat template"
    ):
        make_trainer(tmp_path, train_dataset=rows, **SAMPLED)


# ------------------------------------------------------------------ what is seen later


def test_a_row_that_shows_itself_later_is_left_out(tmp_path):
    """Its rollouts are those of another row without a score: the same update as where these two are the case."""
    prompts = [user(prompt) for prompt, _ in ROLLOUTS]
    left_out = make_trainer(tmp_path, train_dataset=prompt_stream(prompts[0], None, *prompts[2:]))
    change = update(left_out)

    def unscored(completions, **kwargs):
        return [None if 4 <= row < 8 else score for row, score in enumerate(contains_answer(completions))]

    twice = chats(prompts[0], prompts[0], *prompts[2:])
    expected = update(make_trainer(tmp_path, train_dataset=twice, reward_funcs=unscored))
    assert expected.any()
    assert torch.equal(change, expected)
    assert logged(left_out, "rows/excluded_frac") == [0.25]


LATER = {
    "nothing": None,
    "no message": [],
    "no role": [{"content": "1"}],
    "no content": [{"role": "user"}],
    "half a character": user("\ud800"),
    "a text": "1+1",
    "longer than the context": user("3" + ";3" * 300),
    "a number": 7,
}


@pytest.mark.parametrize("kind", LATER)
def test_no_row_of_a_stream_ends_a_run(tmp_path, kind, caplog):
    good = [user(prompt) for prompt, _ in ROLLOUTS[:3]]
    rows = prompt_stream(good[0], LATER[kind], *good[1:], *good[:2], LATER[kind], LATER[kind])
    trainer = make_trainer(tmp_path, train_dataset=rows, reward_funcs=odd_rewards, max_steps=2, **SAMPLED)
    trainer.train()
    assert torch.isfinite(flat_parameters(trainer.model)).all()
    assert logged(trainer, "rows/excluded_frac") == [0.25, 0.5]
    assert sum("A row of the dataset is left out" in record.message for record in caplog.records) == 1


def test_no_row_of_a_transform_ends_a_run(tmp_path):
    rows = Dataset.from_dict({"number": [1, 2, 3, 4]}).with_transform(
        lambda batch: {"prompt": [user(str(n)) if n < 3 else "" for n in batch["number"]]}
    )
    trainer = make_trainer(tmp_path, train_dataset=rows, reward_funcs=odd_rewards, **SAMPLED)
    trainer.train()
    assert logged(trainer, "rows/excluded_frac") == [0.5]


def test_a_batch_without_any_usable_row_changes_nothing(tmp_path):
    rows = prompt_stream(user("1"), *[None] * 3, *[None] * 4)
    trainer = make_trainer(tmp_path, train_dataset=rows, reward_funcs=odd_rewards, max_steps=2, **SAMPLED)
    trainer.train()
    assert logged(trainer, "rows/excluded_frac") == [0.75, 1.0]
    assert logged(trainer, "grad_norm")[1] == 0.0


def test_a_row_of_an_evaluation_has_no_score(tmp_path):
    rows = prompt_stream(user("1"), None)
    options = {"reward_funcs": odd_rewards, "num_generations_eval": 4, **SAMPLED}
    trainer = make_trainer(tmp_path, eval_dataset=rows, **options)
    trainer.evaluate()
    assert [sample.score is None for sample in trainer.evaluated_samples] == [False] * 4 + [True] * 4


def test_context_of_a_stream_counts_from_the_models_own_limit(tmp_path):
    """A prompt that just fits is no fault."""
    prompt = "3;3;3"
    length = len(TOKENIZER(prompt)["input_ids"])
    for room, excluded in ((length, []), (length - 1, [0.25])):
        model = tiny_model(max_position_embeddings=16 + room)
        trainer = make_trainer(
            tmp_path,
            model=model,
            train_dataset=prompt_stream("1", "2", prompt, "4"),
            reward_funcs=odd_rewards,
            **SAMPLED,
        )
        trainer.train()
        assert logged(trainer, "rows/excluded_frac") == excluded


def test_rollouts_of_a_rollout_func_keep_their_rows(tmp_path):
    rows = chat_dataset().to_iterable_dataset()
    trainer = make_trainer(tmp_path, train_dataset=rows, rollout_func=replay(TOKENIZER))
    assert torch.equal(update(trainer), update(make_trainer(tmp_path)))


# ------------------------------------------------------------------ environments


def test_names_of_environments_that_there_are_not_are_found():
    problems = list(environment_problems("rows", chat_dataset(environment=["a", "b", "a", None]), ["a"]))
    assert problems == ["rows names the environment(s) 'None', 'b'; environment_factory has 'a'."]
    assert not list(environment_problems("rows", chat_dataset(environment=["a"] * 4), ["a", "b"]))
    assert not list(environment_problems("rows", chat_dataset(), ["a"]))
