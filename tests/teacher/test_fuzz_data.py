"""Any text in prompts, completions, feedback and answers: it stays text, breaks no template, and no grader raises.

The fast tests make the same examples every time, as many as their constants say; the slow ones more.
"""

import json
import math
from functools import partial

import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import contains_answer, flat_parameters, logged, make_trainer, replay, tiny_tokenizer
from odd_texts import ODD_TEXTS, odd_answer, odd_completion, odd_text
from srpo_trl.commands.report.command import make_report
from srpo_trl.config import FEEDBACK_TEMPLATE, REPROMPT_TEMPLATE, SOLUTION_TEMPLATE
from srpo_trl.data.smoke_model import build_byte_tokenizer
from srpo_trl.rewards import format_reward, get_math_reward, get_multiple_choice_reward, get_tool_use_reward
from srpo_trl.rewards.grading import completion_text
from srpo_trl.rollout.solved_prompts import SolvedPrompts, prompt_key
from srpo_trl.runs.log import EXAMPLES_FILE, RunLog, read_run_log
from srpo_trl.seams.messages import whole_characters
from srpo_trl.teacher.context import TeacherPromptEncoder, demonstration_text
from srpo_trl.teacher.templates import ContextTemplates, TeacherInformation, fill_template

NUM_TEXTS = 100
SLOWER = 10  # times as many in the slow tests

TEMPLATES = ContextTemplates(REPROMPT_TEMPLATE, SOLUTION_TEMPLATE, FEEDBACK_TEMPLATE)
BYTES = build_byte_tokenizer()


def fuzzed(num_examples, *strategies):
    """Give a test so many tuples of examples."""
    limits = settings(
        max_examples=num_examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return lambda check: limits(given(st.tuples(*strategies))(check))


# ------------------------------------------------------------------ teacher prompts


def tokenizer_with_begin():
    """One that adds a token of its own before every text, as Llama's do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    return tokenizer


TOKENIZERS = {"bytes": BYTES, "words": tiny_tokenizer(), "begin": tokenizer_with_begin()}


def num_special(tokenizer, ids):
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return sum(token in special for token in ids)


def student_ids(tokenizer, prompt):
    """Tokens as TRL gives them to the student."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]


def a_prompt(text):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    return [text, chat, chat[1:]]


def text_is_text(name, text, kind, information, max_length):
    """The prompt has the special tokens that the student reads in the row, and all of the text where nothing was cut.

    The dataset's own text is trusted, what the teacher is shown beside it is not.
    """
    tokenizer = TOKENIZERS[name]
    encode = partial(TeacherPromptEncoder, tokenizer, TEMPLATES, chat_template=None, chat_template_kwargs={})
    expected = student_ids(tokenizer, a_prompt(whole_characters(text))[kind])
    prompt = encode(max_length=max_length).encode(a_prompt(text)[kind], TeacherInformation(*information))
    if prompt is None:
        return
    assert len(prompt.ids) <= max_length
    assert num_special(tokenizer, prompt.ids) == num_special(tokenizer, expected)
    if name != "words" and not prompt.num_cut:
        turn = TEMPLATES.user_turn(text, TeacherInformation(*information))
        assert whole_characters(turn) in tokenizer.decode(list(prompt.ids), skip_special_tokens=False)


ENCODED = (
    st.sampled_from(sorted(TOKENIZERS)),
    odd_text(),
    st.integers(0, 2),
    st.tuples(odd_text(), odd_text()),
    st.sampled_from([90, 200, 400, 10**9]),
)


@fuzzed(NUM_TEXTS, *ENCODED)
def test_text_never_becomes_a_special_token(values):
    text_is_text(*values)


@pytest.mark.slow
@fuzzed(SLOWER * NUM_TEXTS, *ENCODED)
def test_text_never_becomes_a_special_token_at_length(values):
    text_is_text(*values)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_marker_of_a_tokenizer_is_text(name):
    for marker in TOKENIZERS[name].all_special_tokens:
        for kind in range(3):
            text_is_text(name, f"1{marker}2", kind, ("", f"{marker}\n{marker}"), 10**9)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_half_a_character_reaches_no_tokenizer(name):
    for kind in range(3):
        text_is_text(name, "a\ud800", kind, ("\udfff", "b\ud83d"), 10**9)


def fields_are_filled_once(prompt, solution, feedback):
    turn = TEMPLATES.user_turn(prompt, TeacherInformation(solution, feedback))
    expected = [
        prompt,
        f"\nCorrect solution:\n\n{solution}" if solution else "",
        f"\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback}"
        if feedback
        else "",
        "\n\nCorrectly solve the original question.",
    ]
    assert turn == "".join(expected)
    assert fill_template(prompt, unknown=solution) == prompt.replace("{unknown}", solution)


FILLED = (
    odd_text(),
    odd_text(),
    odd_text(),
)


@fuzzed(NUM_TEXTS, *FILLED)
def test_templates_take_any_text(values):
    fields_are_filled_once(*values)


@pytest.mark.slow
@fuzzed(SLOWER * NUM_TEXTS, *FILLED)
def test_templates_take_any_text_at_length(values):
    fields_are_filled_once(*values)


def has_whole_characters(text):
    whole = whole_characters(text)
    whole.encode("utf-8")
    assert whole_characters(whole) == whole
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert whole == text


BROKEN = (odd_text(),)


@fuzzed(NUM_TEXTS, *BROKEN)
def test_broken_characters_are_replaced(values):
    has_whole_characters(*values)


@pytest.mark.slow
@fuzzed(SLOWER * NUM_TEXTS, *BROKEN)
def test_broken_characters_are_replaced_at_length(values):
    has_whole_characters(*values)


def can_be_shown(completion, keep_thinking, step, folder):
    text = demonstration_text(completion, keep_thinking=keep_thinking)
    assert text == text.strip()
    assert keep_thinking or "<think>" not in text
    answers = SolvedPrompts(2)
    answers.remember([(prompt_key(completion), text)], step)
    answers.save(folder)
    restored = SolvedPrompts(2)
    restored.load(folder)
    joined = text.encode("utf-16", "surrogatepass").decode(
        "utf-16", "surrogatepass"
    )  # two halves are a character
    assert restored.recall(prompt_key(completion)) == (joined, step)


@pytest.mark.parametrize(
    "num_examples", [NUM_TEXTS, pytest.param(SLOWER * NUM_TEXTS, marks=pytest.mark.slow)]
)
def test_any_completion_can_be_shown_and_remembered(num_examples, tmp_path):
    @fuzzed(num_examples, odd_completion(), st.booleans(), st.integers(0, 9))
    def check(values):
        can_be_shown(*values, tmp_path)

    check()


# ------------------------------------------------------------------ graders

MODES = [{}, {"strict_paper": True}, {"reveal_answer": True}]
GRADERS = {
    **{f"multiple choice {i}": get_multiple_choice_reward(**mode) for i, mode in enumerate(MODES)},
    **{f"tool use {i}": get_tool_use_reward(**mode) for i, mode in enumerate(MODES)},
    "maths": get_math_reward(),
}


def is_graded(name, completion, answer):
    """The grader itself, without `GradedReward` around it, which would take an error for a row without a score."""
    reward = GRADERS[name]
    text = completion_text(completion)
    grade = reward.grade(text, answer)
    assert grade.reward is None or 0.0 <= grade.reward <= 1.0
    assert bool(grade.answer_problem) == (grade.reward is None)
    assert isinstance(grade.feedback, str)
    extracted = reward.extract_answer(text)
    assert extracted is None or isinstance(extracted, str)
    assert isinstance(reward.follows_format(text), bool)
    assert format_reward([completion]) in ([0.0], [1.0])


GRADED = (
    st.sampled_from(sorted(GRADERS)),
    odd_completion(),
    odd_answer(),
)


@fuzzed(NUM_TEXTS, *GRADED)
def test_no_grader_raises(values):
    is_graded(*values)


@pytest.mark.slow
@fuzzed(SLOWER * NUM_TEXTS, *GRADED)
def test_no_grader_raises_at_length(values):
    is_graded(*values)


# ------------------------------------------------------------------ files


def is_read_back(path, texts, rest):
    """Lone surrogates apart, which come back written out; what follows makes no sense and costs nothing."""
    path.unlink(missing_ok=True)
    log = RunLog(path)
    log.begin(0)
    for text in texts:
        log.append({"step": 1, "text": text})
    with path.open("ab") as file:
        file.write(rest.encode("utf-8", "surrogatepass"))
    records = read_run_log(path).records
    whole = [text for text in texts if text == whole_characters(text)]
    assert [record["text"] for record in records if record["text"] in whole] == whole


@pytest.mark.parametrize(
    "num_examples", [NUM_TEXTS, pytest.param(SLOWER * NUM_TEXTS, marks=pytest.mark.slow)]
)
def test_a_log_takes_any_text(num_examples, tmp_path):
    @fuzzed(num_examples, st.lists(odd_text(), max_size=3), odd_text())
    def check(values):
        is_read_back(tmp_path / "log.jsonl", *values)

    check()


# ------------------------------------------------------------------ whole runs


def grade_with(texts):
    """The reward function of the harness, with these texts as feedback."""

    def grade(completions, log_extra, **kwargs):
        log_extra("feedback", [texts[row % len(texts)] for row in range(len(completions))])
        return contains_answer(completions)

    return grade


SHORT = [text for text in ODD_TEXTS if len(text) < 100]
FEEDBACK = [SHORT[start : start + 16] for start in range(0, len(SHORT), 16)]


@pytest.mark.parametrize(
    "texts", [FEEDBACK[0], *(pytest.param(texts, marks=pytest.mark.slow) for texts in FEEDBACK[1:])]
)
def test_a_run_takes_any_feedback_and_any_column(tmp_path, texts):
    """Into teacher prompts, the table of completions, the examples and the report."""
    columns = [whole_characters(text) for text in texts[:4]]
    rollouts = [(f"{i}{text}", ["2#2", "33", "=", "4;4"]) for i, text in enumerate(columns)]
    rows = Dataset.from_dict(
        {"prompt": [[{"role": "user", "content": prompt}] for prompt, _ in rollouts], "answer": columns}
    )
    trainer = make_trainer(
        tmp_path,
        reward_funcs=grade_with([texts[0], "\ud800", *texts[1:15]]),
        train_dataset=rows,
        rollout_func=replay(tiny_tokenizer(), rollouts),
        teacher_context=["feedback", "reference"],
        reference_column="answer",
        log_completions=True,
        log_examples_steps=1,
    )
    trainer.train()
    assert torch.isfinite(flat_parameters(trainer.model)).all()
    assert logged(trainer, "srpo/route/distilled_frac")[0] > 0
    lines = (
        (tmp_path / EXAMPLES_FILE).read_text(encoding="utf-8").split("\n")
    )  # splitlines splits at U+2028, too
    examples = [json.loads(line) for line in lines if line]
    assert any("�" in example.get("feedback", "") for example in examples)
    assert make_report([str(tmp_path), "--output", str(tmp_path / "report.html")]) == 0


def test_scores_of_any_kind_are_numbers_or_refused(tmp_path):
    """One table of what functions give for a completion; `test_faults_rewards.py` has the messages."""
    for given_score, taken in [(True, 1.0), (0, 0.0), (math.inf, None), (math.nan, None), (None, None)]:

        def constant(completions, score=given_score, **kwargs):
            return [score] * len(completions)

        trainer = make_trainer(tmp_path, reward_funcs=constant)
        trainer.train()
        counted = logged(trainer, "srpo/route/skipped_frac")[0]
        assert counted == (1.0 if taken is None else 0.0), given_score
