"""The seven variants of the paper's tables, each as the options that make it of any SRPO configuration."""

VARIANTS: dict[str, dict[str, str]] = {
    "grpo": {"routing": "grpo"},  # table 1
    "sdpo": {"routing": "sdpo"},  # table 1
    "srpo": {"routing": "srpo"},  # table 1
    "srpo_beta0": {"routing": "srpo", "entropy_weight_beta": "0"},  # table 2
    "advantage_mix": {"routing": "advantage_mix"},  # table 2
    "sdpo_failed": {"routing": "sdpo_failed"},  # figure 1b
    "sdpo_correct": {"routing": "sdpo_correct"},  # figure 1b
}
