"""Earlier correct answers as teacher information for groups that fail as a whole."""

import pytest

from harness import ROLLOUTS, logged, make_trainer, replay, tiny_tokenizer
from srpo_trl.rollout.solved_prompts import SolvedPrompt, SolvedPrompts, prompt_key
from tiny_vlm import question, random_image

ALL_FAILED = tuple((prompt, ["7", "1;2", "5;5", "9 wrong"]) for prompt, _ in ROLLOUTS)


def test_the_newest_answer_is_kept_and_the_oldest_prompt_makes_room():
    answers = SolvedPrompts(capacity=2)
    answers.remember([("a", "A1"), ("b", "B1")], step=1)
    answers.remember([("a", "A2")], step=2)
    answers.remember([("c", "C3")], step=3)
    assert len(answers) == 2
    assert answers.recall("a") == SolvedPrompt("A2", 2)
    assert answers.recall("b") is None
    assert answers.recall("c") == SolvedPrompt("C3", 3)


def test_memory_survives_a_checkpoint_in_order(tmp_path):
    answers = SolvedPrompts(capacity=2)
    answers.remember([("a", "A {prompt} <|im_end|>"), ("b", "B")], step=1)
    answers.remember([("a", "A again \ud800")], step=4)
    answers.save(tmp_path)
    restored = SolvedPrompts(capacity=2)
    restored.load(tmp_path)
    assert restored.recall("a") == SolvedPrompt("A again \ud800", 4)
    restored.remember([("c", "C")], step=5)
    assert restored.recall("b") is None
    restored.load(tmp_path / "nowhere")
    assert len(restored) == 0


def test_keys_tell_prompts_apart():
    chat = [{"role": "user", "content": "1+1"}]
    assert prompt_key(chat) == prompt_key([dict(reversed(chat[0].items()))])
    assert len({prompt_key(p) for p in (chat, "1+1", [*chat, *chat], "\ud800")}) == 4


def test_an_image_counts_by_its_content():
    """A data set decodes an image anew each time it is read."""
    keys = [prompt_key(question("what", [random_image(seed)])) for seed in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2]
    palettes = [random_image(1).convert("P") for _ in range(2)]
    palettes[1].putpalette([255, 0, 0] * 256)
    assert len({prompt_key(question("what", [image])) for image in palettes}) == 2


def run_of_two_steps(tmp_path, sources, **options):
    """Right answers in the first step, none in the second."""
    tokenizer = tiny_tokenizer()
    first, then = replay(tokenizer), replay(tokenizer, ALL_FAILED)
    trainer = make_trainer(
        tmp_path,
        rollout_func=lambda prompts, trainer: (first if trainer.state.global_step == 0 else then)(
            prompts, trainer
        ),
        processing_class=tokenizer,
        teacher_context=sources,
        max_steps=2,
        **options,
    )
    trainer.train()
    return trainer


def test_a_group_that_fails_is_shown_an_answer_of_before(tmp_path):
    trainer = run_of_two_steps(tmp_path, ["sibling", "earlier"])
    # three of the four prompts were solved in the first step; all sixteen rollouts fail in the second
    assert logged(trainer, "srpo/route/distilled_frac")[1] == pytest.approx(12 / 16)
    assert logged(trainer, "srpo/teacher/earlier_frac") == [0.0, 1.0]
    assert logged(trainer, "srpo/teacher/earlier_age") == [1.0]


def test_without_the_source_it_has_no_teacher(tmp_path):
    trainer = run_of_two_steps(tmp_path, ["sibling"])
    assert logged(trainer, "srpo/route/distilled_frac")[1] == 0.0


def test_only_as_many_prompts_as_asked_for_are_kept(tmp_path):
    trainer = run_of_two_steps(tmp_path, ["sibling", "earlier"], earlier_answers_kept=1)
    assert logged(trainer, "srpo/route/distilled_frac")[1] == pytest.approx(4 / 16)


def test_an_answer_of_the_same_batch_is_not_an_earlier_one(tmp_path):
    trainer = make_trainer(tmp_path, teacher_context=["earlier"])
    trainer.train()
    assert logged(trainer, "srpo/route/distilled_frac") == [0.0]


def test_resumed_runs_remember(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1}
    tokenizer = tiny_tokenizer()
    context = ["sibling", "earlier"]
    make_trainer(tmp_path, teacher_context=context, **options).train()
    resumed = make_trainer(
        tmp_path,
        teacher_context=context,
        max_steps=2,
        rollout_func=replay(tokenizer, ALL_FAILED),
        processing_class=tokenizer,
        **options,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert logged(resumed, "srpo/route/distilled_frac")[-1] == pytest.approx(12 / 16)
