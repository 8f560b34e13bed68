"""Which correct sibling a rollout's teacher is shown."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_trl.rollout.demonstrations import (
    INELIGIBLE_RANK,
    NO_SIBLING,
    choose_demonstrations,
    demonstration_rank,
    demonstration_ranks,
    exchange_texts,
)

NONE = INELIGIBLE_RANK


def test_one_demonstration_serves_the_group_and_never_itself():
    keys = torch.tensor([NONE, 5, 3, NONE, NONE, NONE, NONE, 7])
    assert choose_demonstrations(keys, 4).tolist() == [2, 2, 1, 2, 7, 7, 7, NO_SIBLING]


def test_groups_without_a_correct_rollout_have_no_demonstration():
    assert choose_demonstrations(torch.tensor([NONE] * 4), 2).tolist() == [NO_SIBLING] * 4


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=8, max_size=8), st.sampled_from([2, 4, 8]))
def test_demonstrations_are_correct_siblings(keys, num_generations):
    key_B = torch.tensor([NONE if key > 3 else key for key in keys])
    for row, chosen in enumerate(choose_demonstrations(key_B, num_generations).tolist()):
        group = row // num_generations
        siblings = [
            r
            for r in range(group * num_generations, (group + 1) * num_generations)
            if r != row and key_B[r] < NONE
        ]
        assert (chosen == NO_SIBLING) if not siblings else (chosen in siblings)


def test_incomplete_groups_are_refused():
    with pytest.raises(ValueError, match="6 rollouts"):
        choose_demonstrations(torch.zeros(6, dtype=torch.int64), 4)


def test_keys_are_reproducible_and_depend_on_tokens_seed_and_step():
    key = demonstration_rank([1, 2, 3], seed=0, step=4)
    assert key == demonstration_rank((1, 2, 3), seed=0, step=4)
    others = {
        demonstration_rank([1, 2], 0, 4),
        demonstration_rank([1, 2, 3], 1, 4),
        demonstration_rank([1, 2, 3], 0, 5),
    }
    assert key not in others
    assert len(others) == 3
    assert all(0 <= k < NONE for k in (key, *others))


def test_every_correct_sibling_may_serve():
    chosen = set()
    for step in range(40):
        keys = [demonstration_rank([10 + row], 0, step) for row in range(3)]
        chosen.add(int(choose_demonstrations(torch.tensor([*keys, NONE]), 4)[3]))
    assert chosen == {0, 1, 2}


def test_ranks_are_of_rollouts_with_a_text():
    ranks = demonstration_ranks({3: "right", 4: ""}, [(1,), (2,), (3,)], first_row=3, seed=0, step=5)
    assert ranks == [demonstration_rank((1,), 0, 5), NONE, NONE]


def test_a_text_is_sent_where_it_is_needed_alone():
    """One group of four rollouts on two processes: 0 and 3 are correct, only 1 needs context, and is shown 0."""
    chosen_B = torch.tensor([3, 0, 0, 0])
    needs_B = torch.tensor([False, True, False, False])
    for own_rows, texts, sent, shown in (
        (slice(0, 2), {0: "right"}, [(0, "right")], ["", "right"]),
        (slice(2, 4), {3: "right, too"}, [], ["right", "right"]),
    ):
        calls = []

        def gather_object(objects, calls=calls):
            calls.append(objects)
            return [(0, "right")]

        assert exchange_texts(texts, chosen_B, needs_B, own_rows, gather_object) == shown
        assert calls == [sent]
