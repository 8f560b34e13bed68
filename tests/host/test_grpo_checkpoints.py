"""With `method="grpo"` a run leaves the checkpoints that `GRPOTrainer` leaves, with the same files."""

import pytest
from trl import GRPOTrainer

from harness import chat_dataset, config, replay, tiny_model, tiny_tokenizer
from resumed_runs import half
from srpo_trl import SRPOTrainer

OPTIONS = {
    "method": "grpo",
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "greater_is_better": True,
}
KEPT = {None: (1, 2, 3, 4), 1: (2,), 2: (2, 4)}  # by save_total_limit; the second is the best


def best_at_2(trainer):
    return lambda *args, **kwargs: {"eval_score": -abs(trainer.state.global_step - 2.0)}


@pytest.mark.parametrize("limit", KEPT)
def test_grpo_leaves_the_checkpoints_and_files_that_grpo_trainer_leaves(tmp_path, limit):
    left = []
    for kind in (GRPOTrainer, SRPOTrainer):
        folder, tokenizer = tmp_path / kind.__name__, tiny_tokenizer()
        trainer = kind(
            model=tiny_model(),
            reward_funcs=half,
            args=config(folder, **OPTIONS, save_total_limit=limit),
            train_dataset=chat_dataset(),
            eval_dataset=chat_dataset(),
            rollout_func=replay(tokenizer),
            processing_class=tokenizer,
        )
        trainer.evaluate = best_at_2(trainer)
        trainer.train()
        left.append(sorted(path.relative_to(folder).as_posix() for path in folder.glob("checkpoint-*/**/*")))
    assert left[0] == left[1]
    assert {name.split("/")[0] for name in left[0]} == {f"checkpoint-{step}" for step in KEPT[limit]}
