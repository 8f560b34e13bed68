"""The seven variants of the paper's tables, each as the options that make it of any SRPO configuration.

Token weights are SRPO's: the other variants that distil have `entropy_weight_beta` 0, as in `configs/paper/`.
"""

_UNWEIGHTED = {"entropy_weight_beta": "0"}

VARIANTS: dict[str, dict[str, str]] = {
    "grpo": {"routing": "grpo"},  # table 1
    "sdpo": {"routing": "sdpo", **_UNWEIGHTED},  # table 1
    "srpo": {"routing": "srpo"},  # table 1
    "srpo_beta0": {"routing": "srpo", **_UNWEIGHTED},  # table 2
    "advantage_mix": {"routing": "advantage_mix", **_UNWEIGHTED},  # table 2
    "sdpo_failed": {"routing": "sdpo_failed", **_UNWEIGHTED},  # figure 1b
    "sdpo_correct": {"routing": "sdpo_correct", **_UNWEIGHTED},  # figure 1b
}
