"""The seven variants of the paper's tables, each as the options that make it of any SRPO configuration.

Token weights are SRPO's: the other variants that distil have `entropy_weight_beta` 0, as in `configs/paper/`.
"""

_UNWEIGHTED = {"entropy_weight_beta": "0"}

VARIANTS: dict[str, dict[str, str]] = {
    "grpo": {"method": "grpo"},  # table 1
    "sdpo": {"method": "sdpo", **_UNWEIGHTED},  # table 1
    "srpo": {"method": "srpo"},  # table 1
    "srpo_beta0": {"method": "srpo", **_UNWEIGHTED},  # table 2
    "advantage_mix": {"method": "advantage_mix", **_UNWEIGHTED},  # table 2
    "sdpo_failed": {"method": "sdpo_failed", **_UNWEIGHTED},  # figure 1b
    "sdpo_correct": {"method": "sdpo_correct", **_UNWEIGHTED},  # figure 1b
}
