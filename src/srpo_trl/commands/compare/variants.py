"""The seven variants of the paper's tables, each as the options that make it of any SRPO configuration.

Token weights are SRPO's: the other methods that distil have none of their own accord.
"""

VARIANTS: dict[str, dict[str, str]] = {
    "grpo": {"method": "grpo"},  # table 1
    "sdpo": {"method": "sdpo"},  # table 1
    "srpo": {"method": "srpo"},  # table 1
    "srpo_beta0": {"method": "srpo", "entropy_weight_beta": "0"},  # table 2
    "advantage_mix": {"method": "advantage_mix"},  # table 2
    "sdpo_failed": {"method": "sdpo_failed"},  # figure 1b
    "sdpo_correct": {"method": "sdpo_correct"},  # figure 1b
}
