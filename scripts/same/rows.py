"""The runs that are measured, with the names of options as they were when the table was written.

`renamed.py` translates names that have changed since.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROUTINGS = ("srpo", "grpo", "sdpo", "sdpo_failed", "sdpo_correct", "advantage_mix")
METHODS = (
    *("clip_cov", "distil", "kl_cov", "many_faces", "negative_control", "opsd", "opsd_zhao"),
    *("paced", "sc_sdpo", "sdpo_then_grpo"),
)
ALL_SOURCES = ["sibling+feedback", "reference", "earlier"]

# How the 16 rollouts of an optimizer step are cut into micro-batches.
WHOLE = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
SPLIT = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}

# Several optimizer steps on each rollout batch, which a checkpoint of step 2 lies inside.
INSIDE = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "steps_per_generation": 3}


@dataclass(frozen=True)
class Row:
    """One run, or something that trains nothing.

    Attributes:
        name: of the row.
        kind: which function of `measure.py` makes it.
        options: of SRPOConfig, beside those that all runs share.
        lora: whether adapters train in place of all weights.
        num_prompts: of the data set.
        rewards: names of reward functions in `tiny.py`.
    """

    name: str
    kind: str = "run"
    options: Mapping[str, Any] = field(default_factory=dict)
    lora: bool = False
    num_prompts: int = 4
    rewards: tuple[str, ...] = ("by_ids",)


def _of_routings() -> list[Row]:
    return [
        Row(
            f"{routing}-{'lora' if lora else 'full'}-{number}",
            options={"routing": routing} | split,
            lora=lora,
        )
        for routing in ROUTINGS
        for lora in (False, True)
        for number, split in ((1, WHOLE), (4, SPLIT))
    ]


def _of_one_option_each() -> list[Row]:
    changes: dict[str, dict[str, Any]] = {
        "renormalized-topk": {"distillation_topk": 5, "distillation_add_tail": False},
        "full-vocabulary": {"distillation_topk": None},
        "forward-kl": {"distillation_alpha": 0.0},
        "reverse-kl": {"distillation_alpha": 1.0},
        "sampled-token": {"distillation_mode": "sampled_token", "distillation_alpha": 1.0},
        "unweighted": {"entropy_weight_beta": 0.0, "distillation_is_clip": None},
        "two-iterations": {"num_iterations": 2},
        "teacher-base": {"teacher_model_kind": "base"},
        "teacher-live": {"teacher_model_kind": "live"},
        "teacher-live-iterations": {"teacher_model_kind": "live", "num_iterations": 2},
        "teacher-short-passes": {"teacher_tokens_per_pass": 100, "max_reprompt_length": 28},
        "teacher-states-on-host": {"teacher_states_on_host": True},
        "hold-and-decay": {"distillation_hold_steps": 1, "distillation_decay_steps": 2},
        "until-accuracy": {"distillation_until_accuracy": 0.1},
        "observed": {"gradient_share_steps": 1, "log_examples_steps": 1},
        "bfloat16": {"bf16": True},
    }
    rows = [Row(name, options=WHOLE | change) for name, change in changes.items()]
    rows += [
        Row(f"{name}-4", options=SPLIT | changes[name])
        for name in ("renormalized-topk", "sampled-token", "two-iterations", "observed")
    ]
    return rows


def _of_methods() -> list[Row]:
    """Return rows whose method was written after the table, two updates on each rollout batch: a clip acts.

    HDPO distils groups that failed as a whole, which have feedback alone to show.
    """
    rows = [Row(f"method-{name}", options={"method": name, "num_iterations": 2} | SPLIT) for name in METHODS]
    shown = {"teacher_context": ["sibling+feedback", "feedback", "sibling"]}
    hdpo = Row("method-hdpo", options={"method": "hdpo"} | shown | SPLIT, rewards=("by_ids", "by_length"))
    return [*rows, hdpo]


ROWS: tuple[Row, ...] = (
    Row("train-help", "train_help"),
    Row("config-fields", "config_fields"),
    Row("report", "report"),
    *_of_routings(),
    *_of_one_option_each(),
    *_of_methods(),
    Row(
        "two-feedbacks",
        options=WHOLE | {"teacher_context": ["sibling+feedback", "feedback", "sibling"]},
        rewards=("by_ids", "by_length"),
    ),
    Row(
        "one-correctness-reward",
        options=WHOLE | {"correctness_reward": "by_ids", "reward_weights": [0.7, 0.2]},
        rewards=("by_ids", "by_length"),
    ),
    Row(
        "all-sources",
        options=WHOLE | {"teacher_context": ALL_SOURCES, "reference_column": "reference"},
        rewards=("by_ids", "by_length"),
    ),
    Row("kl-penalty", "from_disk", WHOLE | {"beta": 0.05}),
    Row("kl-penalty-grpo", "from_disk", WHOLE | {"beta": 0.05, "routing": "grpo"}),
    Row("redraw-failed", options=WHOLE | {"redraw_failed_frac": 0.5}, num_prompts=12),
    Row("vllm-colocate", "vllm", WHOLE | {"vllm_mode": "colocate"}),
    Row("vllm-server-4", "vllm", SPLIT | {"vllm_mode": "server"}),
    Row("vision-full", "vision", WHOLE),
    Row("vision-lora-4", "vision", SPLIT, lora=True),
    Row("resumed-full", "resumed", INSIDE | {"max_steps": 4, "save_steps": 2}, num_prompts=6),
    Row("resumed-lora-iterations", "resumed", WHOLE | {"num_iterations": 3, "save_steps": 2}, lora=True),
    Row("evaluated", "evaluated", WHOLE | {"num_generations_eval": 3}),
    Row("evaluated-grpo", "evaluated", WHOLE | {"routing": "grpo"}),
    Row("nonfinite-loss", "nonfinite", WHOLE),
    Row("nonfinite-loss-4", "nonfinite", SPLIT),
)
