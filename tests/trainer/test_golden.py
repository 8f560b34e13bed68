"""Golden CPU runs: what a few optimizer steps log, number by number, against stored files.

A change that computes nothing new leaves them as they are. One that means to change numbers says so and renews them:

    python tests/trainer/test_golden.py --write
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from harness import LORA, contains_answer, logged, make_trainer

FOLDER = Path(__file__).parent / "golden"

METRICS = (
    "loss",
    "srpo/loss/policy",
    "srpo/loss/distilled",
    "srpo/distillation/divergence",
    "srpo/distillation/student_entropy",
    "srpo/distillation/topk_mass",
    "srpo/distillation/importance_ratio",
    "srpo/teacher/entropy",
    "srpo/teacher/prompt_length",
    "srpo/teacher/distance",
    "srpo/weight/raw_mean",
    "srpo/weight/raw_std",
    "srpo/route/policy_frac",
    "srpo/route/distilled_frac",
    "srpo/route/skipped_frac",
)

# Rates at which five steps move every number visibly. AdamW's epsilon is far above the gradients' rounding: at its
# default, a gradient of rounding alone would move its parameter by a whole step, in a direction that machines choose.
COMMON = {
    "optim": "adamw_torch",
    "adam_epsilon": 1e-3,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "learning_rate": 0.03,
    "teacher_update_rate": 0.2,
    "max_steps": 5,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
}


def graded(completions, log_extra, **kwargs):
    """The reward of the harness, with feedback for what is wrong."""
    log_extra("feedback", [None if "#" in c[0]["content"] else "No answer after 4" for c in completions])
    return contains_answer(completions)


RUNS = {
    # Two of the four prompts a step; half of the micro-batches hold no distilled token.
    "srpo": {},
    # Two optimizer steps on each rollout batch: importance ratios and policy clips off 1.
    "lora": {"peft_config": LORA, "num_iterations": 2, "learning_rate": 0.05},
    "renormalized_topk_with_feedback": {
        "learning_rate": 0.01,
        "distillation_add_tail": False,
        "distillation_topk": 4,
        "distillation_alpha": 0.3,
        "entropy_weight_beta": 2.0,
        "temperature": 0.8,
        "teacher_context": ["sibling+feedback", "feedback"],
        "reward_funcs": graded,
    },
}


def run(name, folder):
    """Train, and return what each optimizer step logged."""
    torch.set_num_threads(1)
    torch.manual_seed(0)  # of a new adapter
    trainer = make_trainer(folder, **(COMMON | RUNS[name]))
    trainer.train()
    return {metric: logged(trainer, metric) for metric in METRICS}


@pytest.mark.parametrize("name", RUNS)
def test_run_logs_the_golden_numbers(tmp_path, name):
    golden = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    found = run(name, tmp_path)
    assert set(found) == set(golden)
    for metric, values in golden.items():
        # Near 0 the policy's loss is a difference of sums: what is left is their rounding.
        assert found[metric] == pytest.approx(values, rel=1e-4, abs=1e-6), metric


def test_golden_runs_are_sensitive():
    """Every number of theirs moves, and distillation makes a good part of the loss."""
    for name in RUNS:
        golden = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        assert all(len(values) >= 2 for values in golden.values())
        assert max(golden["srpo/loss/distilled"]) > 0.1 * max(map(abs, golden["srpo/loss/policy"]))
        assert max(golden["srpo/teacher/distance"]) > 0.01
        assert len({round(value, 4) for value in golden["srpo/distillation/divergence"]}) >= 4


def write():
    FOLDER.mkdir(exist_ok=True)
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            numbers = run(name, folder)
        text = json.dumps({k: [float(f"{v:.9g}") for v in vs] for k, vs in numbers.items()}, indent=2)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(
            "python tests/trainer/test_golden.py --write renews the golden numbers; pytest compares with them"
        )
    write()
