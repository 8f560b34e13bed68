"""The study's rows: each is a method with its options, by name, and a question that it answers."""

from typing import Any

from srpo_trl.methods import CONTROLS, VARIANTS

Rows = dict[str, dict[str, Any]]
_OURS = "benchmarks.learning.methods:"


_BOTH = {"method": "srpo_both"}


def _both(**options: Any) -> dict[str, Any]:
    return {"method": f"{_OURS}failed_in_both", "entropy_weight_beta": 1.0, "method_options": options}


# The paper's variants, then SDPO's strongest form, GRPO as TRL scales it, forward KL, and three controls without a
# demonstration: near an average of the student, failed rollouts pushed away alike, and failed rollouts left alone.
PAPER: Rows = {
    name: {option: float(value) if option.startswith("entropy") else value for option, value in words.items()}
    for name, words in VARIANTS.items()
}
BASELINES: Rows = {
    "sdpo_frozen": {"method": "sdpo", "teacher_model_kind": "base"},
    "grpo_std": {"method": "grpo", "scale_rewards": "group"},
    "srpo_forward_kl": {"method": "srpo", "distillation_alpha": 0.0},
    **{name: {"method": name} for name in CONTROLS},
    "correct_only": {"method": "negative_control", "method_options": {"advantage": 0.0}},
}
# Can SRPO keep its early gain and end above GRPO?
LATE: Rows = {
    "srpo_frozen": {"method": "srpo", "teacher_model_kind": "base"},
    "srpo_resync": {"method": "srpo", "teacher_update_rate": 1.0, "teacher_update_interval": 10},
    "both": _BOTH,
    "both_half_policy": _both(policy=0.5),
    "both_half_distilled": _both(distilled=0.5),
    "both_falling": _both(decay_steps=50),
    "both_constant": _both(advantage=-0.1),
    "both_frozen": _BOTH | {"teacher_model_kind": "base"},
    "srpo_entropy": {"method": f"{_OURS}with_entropy_bonus", "entropy_weight_beta": 1.0},
}
# What does a teacher add that is shown what no rollout of the group knows? Without a teacher, the same solutions as a
# member of groups that fail as a whole, and as all that is trained on.
_REFERENCE = {"teacher_context": ["sibling", "reference"], "reference_column": "solution"}
REFERENCES: Rows = {
    "srpo_reference": {"method": "srpo"} | _REFERENCE,
    "both_reference": _BOTH | _REFERENCE,
    "grpo_reference": {"method": "grpo"},
    "negative_reference": {"method": "negative_control"},
    "sft": {},
}
RESCUED = ("grpo_reference", "negative_reference")
SUPERVISED = "sft"
# Why does SRPO lose where a column has many forms?
FORMS: Rows = {
    "srpo_without_forms": {"method": f"{_OURS}without_forms", "entropy_weight_beta": 1.0},
}
ROWS: Rows = PAPER | BASELINES | LATE | REFERENCES | FORMS
MAIN = (*PAPER, *BASELINES)
SWEPT = (*MAIN, *REFERENCES)  # at three rates, where a task has them
COUNTER = tuple(row for row in MAIN if row not in ("sdpo_failed", "sdpo_correct", "grpo_std", "ema_anchor"))
