"""Prompts whose whole group failed are drawn once more, on every process alike, and also after a resume."""

import pytest
import torch
from datasets import IterableDataset

from harness import ROLLOUTS, chat_dataset, flat_parameters, make_trainer, replay, tiny_tokenizer
from srpo_trl.host.prompt_order import ResumableRepeatSampler
from srpo_trl.seams.trl import RepeatSampler


def sampler_of(num_prompts, batch_size=4, max_resampled=0, shuffle=False):
    like = RepeatSampler(
        range(num_prompts),
        mini_repeat_count=2,
        batch_size=batch_size,
        repeat_count=3,
        shuffle=shuffle,
        seed=5,
    )
    made = ResumableRepeatSampler.like(like)
    made.max_resampled = max_resampled
    return made, like


def prompts_of(sampler, failing, ahead=1, stop_after=None):
    """Prompts of each rollout batch; the dataloader is `ahead` batches ahead of what is reported."""
    rows, size, batches, reported = iter(sampler), sampler.batch_size * 2 * 3, [], 0
    while len(batches) != stop_after:
        taken = [row for _, row in zip(range(size), rows, strict=False)]
        if not taken:
            break
        batches.append(taken[: sampler.batch_size * 2 : 2])
        assert taken == [row for row in batches[-1] for _ in range(2)] * 3
        if len(batches) > ahead:
            sampler.report([prompt in failing for prompt in batches[reported]])
            reported += 1
    return batches


@pytest.mark.parametrize("shuffle", [False, True])
def test_nothing_is_drawn_again_by_default(shuffle):
    sampler, trls = sampler_of(18, shuffle=shuffle)
    rows = list(trls)
    expected = [rows[start : start + 8 : 2] for start in range(0, len(rows), 24)]
    assert prompts_of(sampler, failing=range(18)) == expected


def test_failed_prompts_come_once_more_in_place_of_the_last():
    sampler, _ = sampler_of(18, max_resampled=1)
    batches = prompts_of(sampler, failing={1, 2, 9})
    # batch 0 is known once batch 1 is drawn: its failed prompts lead the batches that follow, one in each
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [1, 8, 9, 10], [2, 11, 12, 13]]


def test_a_prompt_that_fails_again_does_not_come_a_third_time():
    sampler, _ = sampler_of(40, max_resampled=4)
    drawn = [prompt for batch in prompts_of(sampler, failing={0, 1}, ahead=0) for prompt in batch]
    assert drawn.count(0) == drawn.count(1) == 2
    assert max(drawn.count(p) for p in range(2, 38)) == 1


@pytest.mark.parametrize("stop_after", [2, 3, 5])
def test_a_pass_resumed_inside_an_epoch_draws_what_was_drawn(stop_after):
    failing = {0, 3, 5, 6, 11}
    whole, _ = sampler_of(40, max_resampled=2, shuffle=True)
    expected = prompts_of(whole, failing)

    stopped, _ = sampler_of(40, max_resampled=2, shuffle=True)
    prompts_of(stopped, failing, stop_after=stop_after)
    resumed, _ = sampler_of(40, max_resampled=2, shuffle=True)
    resumed.restore(stopped.state(is_inside_epoch=True))
    resumed.set_epoch(0)
    rows, size = iter(resumed), resumed.batch_size * 6
    for position, batch in enumerate(expected):
        assert [next(rows) for _ in range(size)][:8:2] == batch
        if position >= stop_after:
            resumed.report([p in failing for p in expected[position - 1]])


def test_what_failed_at_the_end_of_an_epoch_leads_the_next_one_after_a_resume_too():
    sampler, _ = sampler_of(8, max_resampled=1)
    assert prompts_of(sampler, failing={1}, ahead=0) == [[0, 1, 2, 3], [1, 4, 5, 6]]
    at_the_end, _ = sampler_of(8, max_resampled=1)
    prompts_of(at_the_end, failing={6}, ahead=0)
    resumed, _ = sampler_of(8, max_resampled=1)
    resumed.restore(at_the_end.state(is_inside_epoch=False))
    assert (
        prompts_of(resumed, failing=set())
        == prompts_of(at_the_end, failing=set())
        == [[6, 0, 1, 2], [3, 4, 5, 6]]
    )


def test_a_run_draws_its_failed_prompt_again_and_resumes_alike(tmp_path):
    seen = []

    def run(folder, checkpoint=None, **options):
        tokenizer = tiny_tokenizer()
        answer = replay(tokenizer)

        def rollout(prompts, trainer):
            seen.append([prompt[-1]["content"] for prompt in prompts[:: trainer.num_generations]])
            return answer(prompts, trainer)

        trainer = make_trainer(
            folder,
            train_dataset=chat_dataset(ROLLOUTS[2:] + ROLLOUTS[:2] + ROLLOUTS[:2]),
            rollout_func=rollout,
            processing_class=tokenizer,
            resample_failed_frac=0.5,
            per_device_train_batch_size=8,
            learning_rate=0.1,
            save_strategy="steps",
            save_steps=1,
            **options,
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    whole = run(tmp_path / "whole", max_steps=3)
    assert seen[0] == ["3+3", "4+4"]  # all rollouts of 3+3 fail
    assert sum("3+3" in batch for batch in seen) == 2
    drawn, seen = seen, []
    run(tmp_path / "stopped", max_steps=3)
    seen.clear()
    resumed = run(tmp_path / "stopped", str(tmp_path / "stopped" / "checkpoint-1"), max_steps=3)
    assert seen == drawn[1:]
    torch.testing.assert_close(
        flat_parameters(resumed.model), flat_parameters(whole.model), rtol=0, atol=1e-6
    )


def test_options_that_do_nothing_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"of the 4 prompts of a rollout batch is none\. Give at least 0\.25"
    ):
        make_trainer(tmp_path, resample_failed_frac=0.2)
    with pytest.raises(ValueError, match="method='grpo' neither routes nor distills"):
        make_trainer(tmp_path, resample_failed_frac=0.5, method="grpo")
    stream = IterableDataset.from_generator(lambda: iter(chat_dataset()))
    with pytest.raises(ValueError, match="needs a dataset whose rows can be looked up"):
        make_trainer(tmp_path, resample_failed_frac=0.5, train_dataset=stream)
