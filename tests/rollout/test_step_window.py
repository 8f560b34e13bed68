"""The window of an optimizer step; no trainer."""

from srpo_trl.rollout.step_window import StepWindow


def test_all_micro_batches_are_prepared_in_order_before_the_first_is_handed_out():
    window, seen = StepWindow(), []

    def prepare(position, batch):
        seen.append(("prepared", position, batch))
        return batch.upper()

    window.begin(["a", "b", "c"])
    handed = [window.next(prepare, lambda ready: seen.append(("opened", list(ready)))) for _ in range(3)]
    assert handed == ["A", "B", "C"]
    prepared = [("prepared", 0, "a"), ("prepared", 1, "b"), ("prepared", 2, "c")]
    assert seen == [*prepared, ("opened", ["A", "B", "C"])]


def test_it_is_used_up_with_the_steps_last_micro_batch():
    window = StepWindow()
    window.begin([1, 2])
    used_up = []
    for _ in range(2):
        window.next(lambda position, batch: batch, lambda ready: None)
        used_up.append(window.is_used_up)
    assert used_up == [False, True]


def test_a_step_that_broke_off_leaves_nothing_to_the_next():
    window = StepWindow()
    window.begin([1, 2])
    window.next(lambda position, batch: batch, lambda ready: None)
    window.begin([3])
    assert window.next(lambda position, batch: batch, lambda ready: None) == 3
